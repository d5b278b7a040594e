//! FlexGen's schedule: the calls of a step, what waits for what, memory, and that bytes add up.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod strategy_support;

use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::model::Precision;
use pipo_plan::plan::Plan;
use pipo_plan::schedule::{HostMemory, LaneKind, OpKind, Tier, Work};
use pipo_plan::strategy::flexgen::FlexGen;
use pipo_plan::strategy::{Granularity, Processor, Strategy, lower};
use pipo_plan::units::Bytes;
use proptest::prelude::{ProptestConfig, Strategy as _, any, prop, prop_assert_eq, proptest};
use strategy_support::{Emitted, count, plan};

fn flexgen(model: &str, micro: u64, count: u64, knobs: FlexGen) -> Plan {
    plan(model, micro, count, Strategy::FlexGen(knobs))
}

/// The published policy of OPT-30B: `20 80 0 100 0 100` with attention on the CPU.
fn published() -> FlexGen {
    FlexGen {
        weights_gpu: 20,
        weights_host: 80,
        cache_gpu: 0,
        cache_host: 100,
        hidden: Processor::Cpu,
        cpu_attention: true,
        ..FlexGen::default()
    }
}

fn on_gpu(cache_host: u32) -> FlexGen {
    FlexGen {
        weights_gpu: 0,
        weights_host: 100,
        cache_gpu: 100 - cache_host,
        cache_host,
        ..FlexGen::default()
    }
}

#[test]
fn a_decode_step_has_the_six_calls_and_a_barrier() {
    let plan = flexgen("opt-30b", 4, 3, published());
    let run = Emitted::new(&plan);
    let (layers, micros) = (48, 3);
    let steps = (2 * layers + 2) * micros;
    let decode = &run.passes[2];
    let count = |kind| count(decode, kind);
    assert_eq!(count(OpKind::Barrier), steps, "one after every unit and micro-batch");
    // Attention is cut in two on the GPU around the part on the CPU.
    assert_eq!(count(OpKind::Compute), steps + layers * micros);
    assert_eq!(count(OpKind::CpuCompute), layers * micros);
    assert_eq!(count(OpKind::SaveCache), layers * micros);
    assert_eq!(count(OpKind::LoadCache), 0, "the CPU attends over it where it is");
    // Every step fetches and puts away; attention sends queries down and results up besides.
    assert_eq!(count(OpKind::LoadHidden), steps + layers * micros);
    assert_eq!(count(OpKind::SaveHidden), steps + layers * micros);
}

#[test]
fn a_step_waits_for_the_barrier_before_it_alone() {
    let plan = flexgen("opt-1.3b", 2, 2, on_gpu(100));
    let run = Emitted::new(&plan);
    let pass = &run.passes[1];
    let mut fence = None;
    for (index, op) in pass.ops.iter().enumerate() {
        let id = pass.first + u32::try_from(index).unwrap();
        if let Some(fence) = fence {
            assert!(pass.waits(op).iter().any(|w| w.0 == fence), "{:?} passes a barrier", op.kind);
        }
        if op.kind == OpKind::Barrier {
            fence = Some(id);
        }
    }
}

#[test]
fn weights_of_the_next_unit_load_in_the_first_micro_batch_of_this_one() {
    let plan = flexgen("opt-1.3b", 2, 2, on_gpu(0));
    let run = Emitted::new(&plan);
    let pass = &run.passes[1];
    for window in pass.ops.windows(2) {
        if window[0].kind == OpKind::Barrier && window[1].kind == OpKind::LoadWeights {
            let next = (window[0].unit + u16::from(window[0].micro == 1) + 1) % 50;
            assert_eq!(window[1].unit, next);
            assert_eq!(window[0].micro, 1, "loads come with micro-batch 0 only");
        }
    }
}

#[test]
fn without_overlap_everything_is_in_series() {
    let plan = flexgen("opt-1.3b", 2, 2, FlexGen { overlap: false, ..on_gpu(100) });
    let run = Emitted::new(&plan);
    assert_eq!(count(&run.passes[1], OpKind::Barrier), 0);
    // Each call waits for all of the call before it, so reachability is total between calls; it is
    // enough that each operation but the very first waits for something just before its call.
    for pass in &run.passes {
        for (index, op) in pass.ops.iter().enumerate() {
            if pass.number > 0 || op.kind != OpKind::LoadWeights || op.unit > 0 {
                let id = pass.first + u32::try_from(index).unwrap();
                let latest = pass.waits(op).iter().map(|w| w.0).max();
                let same_call = |other: u32| {
                    other < pass.first || {
                        let o = &pass.ops[(other - pass.first) as usize];
                        o.kind == op.kind && o.unit == op.unit
                    }
                };
                let latest = latest.expect("waits for something");
                assert!(
                    (latest + 1..id).all(same_call),
                    "{:?} of unit {} may overlap",
                    op.kind,
                    op.unit
                );
            }
        }
    }
}

#[test]
fn a_tensor_goes_where_its_middle_falls() {
    // 20 % on the GPU is the output projection (a quarter) of attention and no matrix of the MLP:
    // 8.3 % in all. Biases that end an MLP stay, too.
    let plan = flexgen("opt-30b", 48, 3, published());
    let layout = lower(&plan).unwrap().layout;
    let find = |tier| {
        let is =
            |a: &&pipo_plan::schedule::Allocation| a.tier == tier && a.name == "weights, resident";
        layout.allocations.iter().find(is).map(|a| a.bytes)
    };
    let hidden: u64 = 7168;
    let output = 2 * (hidden * hidden + hidden);
    let positions = 2 * 2050 * hidden;
    let fc2_bias = 2 * hidden;
    assert_eq!(find(Tier::Gpu), Some(Bytes(48 * (output + fc2_bias) + positions)));
    assert_eq!(find(Tier::Pageable), None, "host weights are pinned");
}

#[test]
fn unpinned_weights_leave_the_vectors_pinned() {
    let plan = flexgen("opt-1.3b", 1, 1, FlexGen { pin_weight: false, ..on_gpu(0) });
    let run = Emitted::new(&plan);
    let memories = run.works(&run.passes[1], OpKind::LoadWeights);
    for work in memories {
        let Work::H2d { bytes, memory } = work else { panic!("{work:?}") };
        let vector = bytes < Bytes(1 << 16);
        assert_eq!(memory == HostMemory::Pinned, vector, "{bytes:?}");
    }
}

#[test]
fn compressed_tensors_on_disk_are_two_jobs_through_four_relays() {
    let knobs = FlexGen { weights_gpu: 0, weights_host: 0, ..FlexGen::default() };
    let mut plan = flexgen("opt-1.3b", 1, 1, knobs);
    plan.precision.weights = Precision::Int4;
    let run = Emitted::new(&plan);
    let reads = count(&run.passes[1], OpKind::ReadWeights);
    // A layer has 6 matrices in two pieces and 10 vectors; embedding: table in two pieces, positions;
    // head: the same table, and a norm of two vectors.
    assert_eq!(reads, 24 * (6 * 2 + 10) + (2 + 1) + (2 + 2));
    let relays = run.layout.rings.iter().find(|r| r.name == "copy relays").unwrap();
    assert_eq!((relays.slots, relays.slot_bytes), (4, Bytes(2 << 30)));
    assert_eq!(run.layout.lanes.iter().filter(|l| l.kind == LaneKind::DiskRead).count(), 4);
}

#[test]
fn the_cache_is_split_by_whole_sequences() {
    let knobs = FlexGen { cache_gpu: 50, cache_host: 20, ..FlexGen::default() };
    let plan = flexgen("opt-1.3b", 5, 1, knobs);
    let layout = lower(&plan).unwrap().layout;
    let one = Bytes(2 * 2 * 2048 * plan.workload.context() * 24);
    let find = |tier| layout.allocations.iter().find(|a| a.tier == tier && a.name == "KV cache");
    assert_eq!(find(Tier::Gpu).unwrap().bytes, one * 2);
    assert_eq!(find(Tier::Pageable).unwrap().bytes, one);
    assert_eq!(find(Tier::Disk).unwrap().bytes, one * 2);
}

#[test]
fn llama_8b_at_batch_32_dies_of_its_logits_on_6_gb() {
    let knobs = FlexGen { weights_gpu: 0, weights_host: 0, ..FlexGen::default() };
    let mut plan =
        flexgen("llama-3.1-8b", 32, 1, FlexGen { cache_gpu: 0, cache_host: 100, ..knobs });
    plan.precision.weights = Precision::Int4;
    plan.budget.gpu = "6GB".parse().unwrap();
    let table = |plan: &Plan| {
        let layout = lower(plan).unwrap().layout;
        MemoryTable::new(&layout, Overheads::default())
    };
    let error = table(&plan).check(&plan).unwrap_err();
    assert_eq!(error.path, "budget.gpu");
    // 32 sequences of 512 positions of 128256 logits, and the head's matrix in 16 bits.
    let logits = 2 * 32 * 512 * 128_256 + 2 * 128_256 * 4096;
    assert!(
        error.message.contains(&format!("largest: workspace, {}", Bytes(logits).both())),
        "{error}"
    );
    plan.batch.micro = 8;
    table(&plan).check(&plan).unwrap();
}

#[test]
fn a_cache_for_all_heads_is_four_times_that_of_grouped_heads() {
    let of = |all_heads_cache| {
        let plan = flexgen("llama-3.1-8b", 1, 1, FlexGen { all_heads_cache, ..FlexGen::default() });
        let layout = lower(&plan).unwrap().layout;
        layout.allocations.iter().find(|a| a.name == "KV cache").unwrap().bytes
    };
    assert_eq!(of(true), of(false) * 4);
}

#[test]
fn impossible_plans_are_refused_with_their_field() {
    let refused = |plan: &Plan| lower(plan).err().map(|e| e.path).unwrap_or_default();
    let with = |knobs| refused(&flexgen("opt-1.3b", 4, 1, knobs));
    assert_eq!(with(FlexGen { weights_host: 1, ..FlexGen::default() }), "flexgen.weights_gpu");
    assert_eq!(with(FlexGen { cache_gpu: u32::MAX, ..FlexGen::default() }), "flexgen.cache_gpu");
    let tensor = FlexGen { granularity: Granularity::Tensor, ..FlexGen::default() };
    assert_eq!(with(tensor), "flexgen.granularity");
    assert_eq!(with(FlexGen { disk_threads: 0, ..FlexGen::default() }), "flexgen.disk_threads");
    let mut plan = flexgen("opt-1.3b", 4, 1, published());
    plan.precision.kv = Precision::Int4;
    assert_eq!(refused(&plan), "flexgen.cpu_attention");
    plan.precision.kv = Precision::Int8;
    assert_eq!(refused(&plan), "precision.kv");
    let mut plan = flexgen("opt-1.3b", 4, 1, FlexGen::default());
    plan.batch.prefill_chunk = Some(64);
    assert_eq!(refused(&plan), "batch.prefill_chunk");
    let disk = FlexGen { cache_gpu: 0, ..FlexGen::default() };
    let plan = flexgen("opt-175b", 512, 1, disk);
    assert_eq!(refused(&plan), "batch.micro");
}

fn any_knobs() -> impl proptest::strategy::Strategy<Value = FlexGen> {
    let percent =
        prop::sample::select(vec![(0, 0), (0, 100), (100, 0), (20, 80), (0, 50), (30, 30)]);
    (percent.clone(), percent, any::<[bool; 5]>(), 1_u32..5).prop_map(
        |(weights, cache, flags, threads)| FlexGen {
            granularity: if flags[0] { Granularity::Part } else { Granularity::Layer },
            weights_gpu: weights.0,
            weights_host: weights.1,
            cache_gpu: cache.0,
            cache_host: cache.1,
            hidden: if flags[1] { Processor::Gpu } else { Processor::Cpu },
            overlap: flags[2],
            pin_weight: flags[3],
            cpu_attention: flags[4],
            all_heads_cache: false,
            disk_threads: threads,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the policy: slots are taken and freed in turn, and each byte that is not on the GPU
    /// crosses the link once a pass.
    #[test]
    fn slots_balance_and_bytes_add_up(knobs in any_knobs(), micro in 1_u64..4, count in 1_u64..4) {
        let mut plan = flexgen("opt-125m", micro, count, knobs.clone());
        plan.workload.new_tokens = 4;
        let run = Emitted::new(&plan);
        run.check_slots()?;
        let held = |tier| run.layout.allocations.iter()
            .filter(|a| a.tier == tier && a.name.starts_with("weights")).map(|a| a.bytes).sum::<Bytes>();
        let streamed = held(Tier::Pinned) + held(Tier::Pageable) + held(Tier::Disk);
        let passes = run.passes.len() as u64;
        prop_assert_eq!(run.moved(OpKind::LoadWeights), streamed * passes);
        prop_assert_eq!(run.moved(OpKind::ReadWeights), held(Tier::Disk) * passes);
        let room = |tier| run.layout.allocations.iter()
            .find(|a| a.tier == tier && a.name == "KV cache").map_or(Bytes::ZERO, |a| a.bytes);
        let context = plan.workload.context();
        let outside = (room(Tier::Pageable) + room(Tier::Disk)).0 / context;
        // Rows of the prompt and of all but the last new token, of which the last is not computed on.
        let kept = plan.workload.prompt + plan.workload.new_tokens - 2;
        prop_assert_eq!(run.moved(OpKind::SaveCache), Bytes(outside * kept));
        prop_assert_eq!(run.moved(OpKind::WriteCache), Bytes(room(Tier::Disk).0 / context * kept));
        let seen: u64 = (1..plan.workload.new_tokens).map(|p| plan.workload.prompt + p - 1).sum();
        let loaded = if knobs.cpu_attention { 0 } else { outside * seen };
        prop_assert_eq!(run.moved(OpKind::LoadCache), Bytes(loaded));
        prop_assert_eq!(run.moved(OpKind::ReadCache), Bytes(room(Tier::Disk).0 / context * seen));
    }
}
