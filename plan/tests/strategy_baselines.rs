//! Accelerate and the CPU split: order, memory, and that bytes add up.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod strategy_support;

use pipo_plan::plan::{Batching, Plan};
use pipo_plan::schedule::{OpKind, Tier};
use pipo_plan::strategy::accelerate::Accelerate;
use pipo_plan::strategy::cpu_split::CpuSplit;
use pipo_plan::strategy::{Strategy, lower};
use pipo_plan::units::Bytes;
use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};
use strategy_support::{Emitted, count, plan};

fn accelerate(model: &str, gpu: Bytes, host: Bytes) -> Plan {
    let knobs = Accelerate { gpu_weights: gpu, host_weights: host };
    plan(model, 2, 1, Strategy::Accelerate(knobs))
}

fn split(model: &str, gpu_layers: u32, offload_prefill: bool) -> Plan {
    let knobs = CpuSplit { gpu_layers, gpu_head: true, offload_prefill };
    plan(model, 2, 1, Strategy::CpuSplit(knobs))
}

fn held(run: &Emitted, tier: Tier, name: &str) -> Bytes {
    let of = |a: &&pipo_plan::schedule::Allocation| a.tier == tier && a.name.starts_with(name);
    run.layout.allocations.iter().filter(of).map(|a| a.bytes).sum()
}

/// Each operation waits for the one before it.
fn assert_serial(run: &Emitted) {
    for pass in &run.passes {
        for (index, op) in pass.ops.iter().enumerate() {
            let id = pass.first + u32::try_from(index).unwrap();
            let waits: Vec<u32> = pass.waits(op).iter().map(|w| w.0).collect();
            assert_eq!(waits, id.checked_sub(1).into_iter().collect::<Vec<_>>(), "{:?}", op.kind);
        }
    }
}

#[test]
fn accelerate_does_one_thing_at_a_time() {
    assert_serial(&Emitted::new(&accelerate("opt-125m", Bytes(60_000_000), Bytes(100_000_000))));
}

#[test]
fn accelerate_fills_gpu_then_host_then_disk_with_whole_layers() {
    let run = Emitted::new(&accelerate("opt-125m", Bytes(100_000_000), Bytes(50_000_000)));
    let (table, layer) = (2 * (50_272 + 2050) * 768, 2 * 7_087_872);
    // 80 MB of tables and one layer of 14 MB; then three layers in 50 MB.
    assert_eq!(held(&run, Tier::Gpu, "weights"), Bytes(table + layer));
    assert_eq!(held(&run, Tier::Pageable, "weights"), Bytes(3 * layer));
    let kinds = |unit: &str| {
        let unit = run.layout.units.iter().position(|u| u == unit).unwrap();
        let ops = run.passes[1].ops.iter().filter(|op| usize::from(op.unit) == unit);
        ops.map(|op| op.kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds("layer 0 q"), [OpKind::Compute]);
    assert_eq!(kinds("layer 1 q"), [OpKind::LoadWeights, OpKind::Compute]);
    assert_eq!(kinds("layer 4 q"), [OpKind::ReadWeights, OpKind::LoadWeights, OpKind::Compute]);
}

#[test]
fn hidden_states_cross_once_where_layers_are_split() {
    let run = Emitted::new(&split("opt-125m", 5, true));
    assert_serial(&run);
    let decode = &run.passes[1];
    assert_eq!(count(decode, OpKind::LoadHidden), 1);
    assert_eq!(count(decode, OpKind::SaveHidden), 0);
    assert_eq!(count(decode, OpKind::LoadWeights), 0, "decode moves no weight");
    assert_eq!(count(decode, OpKind::CpuCompute), 7);
    assert_eq!(count(decode, OpKind::Compute), 5 + 1, "the last layers and the head");
    let first = decode.ops.iter().find(|op| op.kind == OpKind::Compute).unwrap();
    assert_eq!(run.layout.units[usize::from(first.unit)], "layer 7");
}

#[test]
fn a_long_prompt_is_offloaded_and_a_short_one_is_not() {
    let loads = |prompt, offload| {
        let mut plan = split("opt-125m", 5, offload);
        plan.workload.prompt = prompt;
        let run = Emitted::new(&plan);
        (count(&run.passes[0], OpKind::LoadWeights), count(&run.passes[0], OpKind::SaveCache))
    };
    assert_eq!(loads(512, true), (7, 7));
    assert_eq!(loads(512, false), (0, 0));
    assert_eq!(loads(15, true), (0, 0), "two sequences of 15 are fewer than 32 rows");
    assert_eq!(loads(16, true), (7, 7));
}

#[test]
fn each_chunk_of_a_prompt_copies_the_weights_anew() {
    let mut plan = split("opt-125m", 0, true);
    plan.batch.prefill_chunk = Some(200);
    let run = Emitted::new(&plan);
    run.check_slots().unwrap();
    let prefill = &run.passes[0];
    assert_eq!(count(prefill, OpKind::LoadWeights), 3 * 12);
    assert_eq!(count(prefill, OpKind::LoadCache), 2 * 12, "earlier chunks are attended to");
    assert_eq!(run.moved(OpKind::SaveCache), Bytes(2 * 2 * 768 * 2 * 512 * 12));
    assert_eq!(prefill.ops.iter().filter(|op| op.ends_pass).count(), 1);
}

#[test]
fn impossible_plans_are_refused_with_their_field() {
    let refused = |plan: &Plan| lower(plan).err().map(|e| e.path).unwrap_or_default();
    let mut fine = split("llama-3.1-8b", 0, true);
    fine.workload.prompt = 131_000;
    fine.batch.prefill_chunk = Some(2);
    assert_eq!(refused(&fine), "", "65500 chunks");
    fine.batch.prefill_chunk = Some(1);
    assert_eq!(refused(&fine), "batch.prefill_chunk", "no executor numbers 131000");
    fine.batch = Batching { micro: 1, count: 64, prefill_chunk: Some(2) };
    assert_eq!(refused(&fine), "workload.new_tokens", "134 million layer steps");
    let mut deep = split("opt-125m", 0, true);
    deep.model.layers = 70_000;
    assert_eq!(refused(&deep), "model.layers");
    let mut several = accelerate("opt-125m", Bytes::ZERO, Bytes::ZERO);
    several.batch.count = 2;
    assert_eq!(refused(&several), "batch.count");
    assert_eq!(refused(&split("opt-125m", 13, true)), "cpu-split.gpu_layers");
    let knobs = CpuSplit { gpu_layers: 1, gpu_head: false, offload_prefill: true };
    assert_eq!(refused(&plan("opt-125m", 1, 1, Strategy::CpuSplit(knobs))), "cpu-split.gpu_head");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn accelerate_moves_what_is_not_on_the_gpu(gpu in 0_u64..300, host in 0_u64..300) {
        let run = Emitted::new(&accelerate("opt-125m", Bytes(gpu << 20), Bytes(host << 20)));
        run.check_slots()?;
        let passes = run.passes.len() as u64;
        let streamed = held(&run, Tier::Pageable, "weights") + held(&run, Tier::Disk, "weights");
        let extra = run.moved(OpKind::LoadWeights) - streamed * passes;
        // A tied table is stored once where both of its users have it at one tier, but loaded twice.
        let table = Bytes(2 * 50_272 * 768);
        prop_assert_eq!(extra, if extra == Bytes::ZERO { extra } else { table * passes });
    }

    #[test]
    fn a_split_balances_its_slots(layers in 0_u32..=12, offload in any::<bool>(), chunk in 1_u64..600) {
        let mut plan = split("opt-125m", layers, offload);
        plan.batch.prefill_chunk = Some(chunk);
        let run = Emitted::new(&plan);
        run.check_slots()?;
        let ends = run.passes.iter().flat_map(|p| &p.ops).filter(|op| op.ends_pass).count();
        prop_assert_eq!(ends, run.passes.len());
    }
}

#[test]
fn weights_held_are_the_models_own_size_wherever_they_are() {
    let total = |model: &str, all: Bytes| {
        let run = Emitted::new(&accelerate(model, all, Bytes::ZERO));
        let model = pipo_plan::model::catalog::find(model).unwrap();
        let held = held(&run, Tier::Gpu, "weights") + held(&run, Tier::Disk, "weights");
        assert_eq!(held, model.total_bytes(pipo_plan::model::Precision::Fp16), "{}", model.name);
    };
    for model in ["opt-125m", "opt-350m", "llama-3.1-8b"] {
        total(model, Bytes::ZERO);
        total(model, Bytes(1 << 40));
    }
}
