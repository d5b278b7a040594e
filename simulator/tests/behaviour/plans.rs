//! Whole plans: lowered, priced by a catalogue machine, simulated.

use pipo_plan::machine::catalog as machines;
use pipo_plan::model::{Precision, catalog};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::schedule::{LaneKind, OpKind};
use pipo_plan::strategy::pipo::{Embedding, HostWeights, Pipo};
use pipo_plan::strategy::{KvTier, Processor, Strategy as Lowering, lower};
use pipo_plan::units::{Bytes, FlopRate, Nanos};
use pipo_plan::workload::{Budget, Objective, Workload};
use pipo_simulator::{
    CostModel, Options, Outcome, PageCache, Resource, critical_path, lower_bound, phase_bounds,
    simulate,
};
use proptest::prelude::*;

use crate::script::RECORD;

fn plan(knobs: Pipo, new_tokens: u64) -> Plan {
    Plan {
        machine: "rtx3060-laptop".into(),
        profile: String::new(),
        seed: 1,
        workload: Workload {
            prompt: 64,
            new_tokens,
            batch: None,
            objective: Objective::Throughput,
            token_within: None,
        },
        budget: Budget { gpu: Bytes(1 << 50), host: Bytes(1 << 50), disk: Bytes(1 << 50) },
        precision: Precisions { weights: Precision::Int4, kv: Precision::Fp16 },
        batch: Batching { micro: 2, count: 2, prefill_chunk: None },
        strategy: Lowering::Pipo(knobs),
        model: catalog::find("llama-3.1-8b").unwrap(),
        prediction: None,
        runners_up: Vec::new(),
    }
}

/// Simulates on the laptop and checks what must hold of any plan.
fn run(knobs: Pipo, new_tokens: u64) -> Outcome {
    let machine = machines::find("rtx3060-laptop").unwrap();
    let schedule = lower(&plan(knobs, new_tokens)).unwrap();
    let page_cache = PageCache::beside(&schedule.layout, &machine, false);
    let options = Options { page_cache, ..RECORD };
    let outcome = simulate(&schedule, &machine, &options).unwrap();
    let bound = lower_bound(&schedule, &CostModel::new(&machine), &options).unwrap();
    assert!(outcome.summary.end >= bound.total(), "{bound:?}");
    let phases = phase_bounds(&schedule, &CostModel::new(&machine), &options).unwrap();
    let end = outcome.summary.passes.iter().map(|pass| pass.end).max().unwrap();
    assert!(end >= phases.request(), "{phases:?}");
    let path = critical_path(outcome.timeline.as_ref().unwrap());
    assert_eq!(path.by_kind.iter().copied().sum::<Nanos>(), outcome.summary.end);
    assert_eq!(path.idle, Nanos::ZERO);
    outcome
}

/// All weights in pinned host memory, none on the GPU.
fn streamed() -> Pipo {
    Pipo { gpu_weights: Bytes::ZERO, host_weights: Bytes(1 << 40), ..Pipo::default() }
}

/// The share of decode in which the CPU attends: four sequences in one micro-batch or in two.
fn attending(micro: u64, count: u64) -> (f64, Nanos) {
    let mut machine = machines::find("rtx3060-laptop").unwrap();
    // Slow cores: what they do takes longer than all else together.
    machine.host.attention.value = FlopRate(machine.host.attention.value.0 / 40);
    let knobs = Pipo {
        kv: KvTier::Host,
        attention: Processor::Cpu,
        gpu_weights: Bytes(1 << 40),
        embedding: Embedding::Unit,
        ..Pipo::default()
    };
    let batch = Batching { micro, count, prefill_chunk: None };
    let schedule = lower(&Plan { batch, ..plan(knobs, 8) }).unwrap();
    let outcome = simulate(&schedule, &machine, &RECORD).unwrap();
    let timeline = outcome.timeline.unwrap();
    let prefilled = timeline.passes[0].end;
    let on_cpu = timeline.spans.iter().filter(|span| span.kind == OpKind::CpuCompute);
    let busy: Nanos = on_cpu.map(|span| span.end - span.start).sum();
    let decode = outcome.summary.end - prefilled;
    (busy.as_f64() / decode.as_f64(), decode)
}

/// What one micro-batch waits for between two attentions hides behind the attention of the other. Only where a step
/// ends, and the next one begins with the tokens of both, do the cores wait.
#[test]
fn the_cpu_attends_without_a_break_where_two_micro_batches_take_turns() {
    let ((alone, one), (in_turns, two)) = (attending(4, 1), attending(2, 2));
    assert!(in_turns > 0.98, "it attends {in_turns} of the time");
    assert!(alone < in_turns - 0.02, "{alone} with a single one");
    assert!(two < one, "{two} for {one}");
}

#[test]
fn a_streamed_model_is_bound_by_the_link() {
    // Long enough that the prefill, which arithmetic binds, does not count.
    let outcome = run(streamed(), 32);
    let summary = &outcome.summary;
    let link = outcome.timeline.as_ref().unwrap().layout.lanes.iter();
    let link = link.clone().position(|lane| lane.kind == LaneKind::H2d).unwrap();
    let busy = summary.lane_busy[link].as_f64() / summary.end.as_f64();
    assert!(busy > 0.9, "the link is busy {busy} of the time");
    assert!(summary.nvml_busy.as_f64() > 0.9 * summary.end.as_f64());
    assert!(summary.kernel_busy < summary.nvml_busy);
    let path = critical_path(outcome.timeline.as_ref().unwrap());
    assert!(path.on_kind(OpKind::LoadWeights).as_f64() > 0.8 * summary.end.as_f64());
    assert_eq!(summary.disk_read, Bytes::ZERO);
}

#[test]
fn one_buffer_is_slower_than_two() {
    let end = |gpu_slots| run(Pipo { gpu_slots, ..streamed() }, 4).summary.end;
    assert!(end(1) > end(2), "{} and {}", end(1), end(2));
    assert!(end(4) <= end(2));
}

#[test]
fn resident_weights_are_not_moved() {
    let moved = |gpu| {
        let knobs = Pipo { gpu_weights: Bytes(gpu), ..streamed() };
        run(knobs, 4).summary.moved(LaneKind::H2d)
    };
    assert!(moved(2_000_000_000) < moved(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_pipo_plan_runs_to_its_end(
        gpu_slots in 1..4_u32,
        host_slots in 1..5_u32,
        threads in 1..4_u32,
        gpu in 0..5_000_000_000_u64,
        host in 0..5_000_000_000_u64,
        pageable: bool,
        kv in prop::sample::select(vec![KvTier::Gpu, KvTier::Host, KvTier::Disk]),
    ) {
        let memory = if pageable { HostWeights::Pageable } else { HostWeights::Pinned };
        let summary = run(Pipo {
            gpu_slots,
            host_slots,
            disk_threads: threads,
            gpu_weights: Bytes(gpu),
            host_weights: Bytes(host),
            host_memory: memory,
            kv,
            ..Pipo::default()
        }, 3).summary;
        prop_assert_eq!(summary.passes.len(), 3);
        prop_assert!(summary.prefill() > Nanos::ZERO && summary.decode() > Nanos::ZERO);
        prop_assert!(summary.drawn(Resource::Disk) >= summary.disk_read);
    }
}
