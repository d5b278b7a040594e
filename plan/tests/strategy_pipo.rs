//! What must be true of every lowered PIPO plan, checked on the emitted operations themselves.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]

use std::collections::{BTreeMap, BTreeSet};

use pipo_plan::model::{Precision, catalog};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::schedule::{
    Builder, DiskIo, Layout, Op, OpId, OpKind, Pass, Piece, Schedule, Tier, Work,
};
use pipo_plan::strategy::pipo::{Embedding, ExpertLoads, FileReads, HostWeights, Pipo};
use pipo_plan::strategy::units::cut;
use pipo_plan::strategy::{self, Granularity, KvTier, Order, Processor, lower};
use pipo_plan::units::Bytes;
use pipo_plan::workload::{Budget, Objective, Workload};
use proptest::prelude::*;

fn plan(model: &str, knobs: Pipo, batch: Batching, new_tokens: u64) -> Plan {
    Plan {
        machine: "any".into(),
        profile: String::new(),
        seed: 1,
        workload: Workload {
            prompt: 48,
            new_tokens,
            batch: None,
            objective: Objective::Throughput,
            token_within: None,
        },
        budget: Budget { gpu: Bytes(1 << 50), host: Bytes(1 << 50), disk: Bytes(1 << 50) },
        precision: Precisions { weights: Precision::Int4, kv: Precision::Fp16 },
        batch,
        strategy: strategy::Strategy::Pipo(knobs),
        model: catalog::find(model).unwrap(),
        prediction: None,
        runners_up: Vec::new(),
    }
}

struct Run {
    layout: Layout,
    passes: Vec<Pass>,
    builder: Builder,
}

fn run(plan: &Plan) -> Run {
    let Schedule { layout, program } = lower(plan).unwrap();
    let mut builder = Builder::new(&layout);
    let passes = (0..program.passes())
        .map(|pass| {
            program.emit(pass, &mut builder);
            builder.finish(Pass::default())
        })
        .collect();
    Run { layout, passes, builder }
}

impl Run {
    fn ops(&self) -> impl Iterator<Item = (OpId, &Pass, &Op)> {
        self.passes
            .iter()
            .flat_map(|p| p.ops.iter().zip(p.first..).map(move |(op, id)| (OpId(id), p, op)))
    }

    fn bytes(&self, pass: usize, kind: OpKind) -> u64 {
        let ops = self.passes[pass].ops.iter().filter(|op| op.kind == kind);
        ops.map(|op| self.builder.works[op.work].bytes().0).sum()
    }
}

/// Every wait names an earlier operation; every slot is taken only after it was freed, and all are
/// free at the end.
fn check_structure(run: &Run) {
    let mut held: BTreeMap<(u8, u16), OpId> = BTreeMap::new();
    let mut frees: BTreeMap<(u8, u16), u32> = BTreeMap::new();
    for (id, pass, op) in run.ops() {
        assert!(pass.waits(op).iter().all(|w| *w < id), "a wait must point back");
        assert!(usize::from(op.queue.0) < run.layout.queues.len());
        if let Some(slot) = op.takes {
            assert!(slot.index < run.layout.rings[usize::from(slot.ring.0)].slots);
            let before = held.insert((slot.ring.0, slot.index), id);
            assert_eq!(before, None, "slot {slot:?} is taken twice without being freed");
        }
        for slot in op.frees.iter().flatten() {
            let taken = held.remove(&(slot.ring.0, slot.index));
            assert!(taken.is_some_and(|t| t <= id), "slot {slot:?} is freed without being held");
            *frees.entry((slot.ring.0, slot.index)).or_default() += 1;
        }
    }
    assert!(held.is_empty(), "slots left held at the end: {held:?}");
}

fn knobs() -> impl Strategy<Value = Pipo> {
    let placement = (0_u64..8_000_000_000, 0_u64..8_000_000_000, any::<bool>(), any::<bool>());
    let slots = (1_u32..5, 1_u32..6, 1_u32..4, 1_u32..4);
    let choices = (0_usize..3, (0_usize..3, 0_usize..3), any::<[bool; 4]>(), 0_u32..40);
    (placement, slots, choices, 1_u64..64).prop_map(
        |(
            (gpu, host, spread, pageable),
            (gpu_slots, host_slots, kv_slots, threads),
            choices,
            mb,
        )| {
            let (
                granularity,
                (kv, embedding),
                [routed, on_cpu, hidden_cpu, buffered],
                kv_gpu_layers,
            ) = choices;
            let kv = [KvTier::Gpu, KvTier::Host, KvTier::Disk][kv];
            let granularity =
                [Granularity::Layer, Granularity::Part, Granularity::Tensor][granularity];
            let on_cpu = on_cpu && kv == KvTier::Host;
            Pipo {
                granularity,
                gpu_slots,
                host_slots,
                kv_slots,
                block: Bytes(mb << 20),
                disk_threads: threads,
                reads: if buffered { FileReads::Buffered } else { FileReads::Direct },
                gpu_weights: Bytes(gpu),
                host_weights: Bytes(host),
                host_memory: if pageable { HostWeights::Pageable } else { HostWeights::Pinned },
                order: if spread { Order::Spread } else { Order::First },
                embedding: [Embedding::Host, Embedding::Mapped, Embedding::Unit][embedding],
                kv,
                kv_gpu_layers,
                attention: if on_cpu { Processor::Cpu } else { Processor::Gpu },
                hidden: if hidden_cpu && !on_cpu { Processor::Cpu } else { Processor::Gpu },
                experts: if routed && granularity == Granularity::Part {
                    ExpertLoads::Routed
                } else {
                    ExpertLoads::All
                },
                ..Pipo::default()
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn slots_are_balanced_and_every_pass_moves_exactly_what_is_not_resident(
        mut knobs in knobs(),
        micro in 1_u64..4,
        count in 1_u64..4,
        chunk in proptest::option::of(1_u64..48),
        mixture in any::<bool>(),
    ) {
        if !mixture {
            knobs.experts = ExpertLoads::All;
        }
        let model = if mixture { "mixtral-8x7b" } else { "opt-1.3b" };
        let batch = Batching { micro, count, prefill_chunk: chunk };
        let plan = plan(model, knobs.clone(), batch, 3);
        let run = run(&plan);
        check_structure(&run);

        let disk: u64 = run.layout.extents.iter().map(|b| b.0).sum();
        let tier = |tier: Tier, name: &str| -> u64 {
            run.layout.allocations.iter().filter(|a| a.tier == tier && a.name == name).map(|a| a.bytes.0).sum()
        };
        let total = plan.model.total_bytes(Precision::Int4).0;
        let resident = tier(Tier::Gpu, "weights, resident");
        let table = tier(Tier::Pageable, "embedding table") + tier(Tier::Pinned, "embedding table");
        let units = cut(&plan.model, Precision::Int4, knobs.granularity);
        for pass in 0..3 {
            let read = run.bytes(pass, OpKind::ReadWeights);
            let loaded = run.bytes(pass, OpKind::LoadWeights);
            if knobs.experts == ExpertLoads::All {
                prop_assert_eq!(read, disk);
                if !plan.model.tied_embeddings {
                    prop_assert_eq!(loaded, total - resident - table);
                }
            } else {
                prop_assert!(read <= disk && loaded <= total);
            }
            // What is read and what is loaded covers different stretches of each unit's run, in order.
            for kind in [OpKind::ReadWeights, OpKind::LoadWeights] {
                let mut end = vec![0; run.layout.units.len()];
                for op in run.passes[pass].ops.iter().filter(|o| o.kind == kind) {
                    let end = &mut end[usize::from(op.unit)];
                    prop_assert!(op.offset.0 >= *end, "{:?} at {} after {}", op, op.offset, end);
                    *end = op.offset.0 + run.builder.works[op.work].bytes().0;
                    let unit = &units[usize::from(op.unit)];
                    prop_assert!(*end <= unit.bytes.0, "{} ends at {} of {}", unit.name, end, unit.bytes);
                }
            }
            // Every micro-batch's new rows are saved once for each layer whose cache is elsewhere.
            let saves = run.passes[pass].ops.iter().filter(|o| o.kind == OpKind::SaveCache).count() as u64;
            let elsewhere = if knobs.kv == KvTier::Gpu { 0 } else {
                u64::from(plan.model.layers.saturating_sub(knobs.kv_gpu_layers))
            };
            prop_assert_eq!(saves, elsewhere * count);
            let heads = run.passes[pass].ops.iter().filter(|o| o.ends_pass).count() as u64;
            prop_assert_eq!(heads, count);
        }
    }
}

/// Decode of one micro-batch, cache in host memory: the operations of one layer, as the paper draws them.
#[test]
fn one_layer_reads_as_the_paper_draws_it() {
    let knobs = Pipo { kv: KvTier::Host, block: Bytes(1 << 30), ..Pipo::default() };
    let plan = plan("opt-1.3b", knobs, Batching::single(4), 2);
    let run = run(&plan);
    let lines: Vec<String> = run
        .ops()
        .filter(|(_, p, op)| p.number == 1 && (9..=10).contains(&op.unit))
        .map(|(id, pass, op)| {
            let lane = run.layout.lanes[usize::from(run.layout.queues[usize::from(op.queue.0)].0)];
            let waits: Vec<u32> = pass.waits(op).iter().map(|w| w.0).collect();
            let name = &run.layout.units[usize::from(op.unit)];
            format!(
                "{} {name}: {} on {} waits {waits:?} takes {:?} frees {:?}",
                id.0,
                op.kind.name(),
                lane.kind.name(),
                op.takes.map(|s| (s.ring.0, s.index)),
                op.frees.iter().flatten().map(|s| (s.ring.0, s.index)).collect::<Vec<_>>(),
            )
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

/// One thread or two are followed by what the page cache reads ahead, and two not as well as one.
#[test]
fn several_threads_read_through_the_page_cache_in_turn() {
    let cases = [
        (FileReads::Direct, 1, DiskIo::Direct),
        (FileReads::Direct, 4, DiskIo::Direct),
        (FileReads::Buffered, 1, DiskIo::Buffered),
        (FileReads::Buffered, 2, DiskIo::BufferedPair),
        (FileReads::Buffered, 4, DiskIo::BufferedInTurn),
    ];
    for (reads, disk_threads, expected) in cases {
        // A cache on disk is written and read again past the page cache, however weights are read.
        let knobs = Pipo { reads, disk_threads, kv: KvTier::Disk, ..Pipo::default() };
        let run = run(&plan("opt-1.3b", knobs, Batching::single(1), 2));
        let mut read = BTreeMap::new();
        for (_, _, op) in run.ops() {
            if let Work::DiskRead { io, .. } = run.builder.works[op.work] {
                read.entry(op.kind).or_insert_with(BTreeSet::new).insert(io);
            }
        }
        let one = |io| BTreeSet::from([io]);
        let kinds =
            [(OpKind::ReadWeights, one(expected)), (OpKind::ReadCache, one(DiskIo::Direct))];
        assert_eq!(read, BTreeMap::from(kinds), "{reads:?} by {disk_threads}");
    }
}

#[test]
fn attention_work_of_a_decode_step_covers_the_whole_context() {
    let plan = plan("opt-1.3b", Pipo::default(), Batching::single(2), 3);
    let run = run(&plan);
    let contexts: Vec<u64> = run.passes[2]
        .ops
        .iter()
        .filter_map(|op| match &run.builder.works[op.work] {
            Work::Gpu(compute) => compute.attention.map(|a| a.context),
            _ => None,
        })
        .collect();
    assert_eq!(
        contexts,
        vec![50; 24],
        "prompt 48, second decode step: its own position is the 50th"
    );
}

/// What an MLP of experts leaves, by hand: Mixtral's 8 experts are 14336 wide, hidden states are 4096 wide. A
/// row has 8 logits and 8 shares in single precision, a sum of its experts, and room for copies of weights.
#[test]
fn a_mixture_has_room_for_its_router_and_where_it_is_cut_for_every_expert() {
    let rows = 3 * 48;
    let beside = 2 * 4096 + 2 * 4 * 8 + 2 * 2 * 14336;
    let row = |granularity| match granularity {
        Granularity::Tensor => 2 * (8 * 2 * 14336 + 4096) + beside,
        _ => 2 * (2 * 14336 + 4096) + beside,
    };
    for granularity in [Granularity::Part, Granularity::Tensor] {
        let knobs = Pipo { granularity, ..Pipo::default() };
        let batch = Batching { micro: 3, count: 2, prefill_chunk: None };
        let layout = run(&plan("mixtral-8x7b", knobs, batch, 1)).layout;
        let workspace = layout.allocations.iter().find(|a| a.name == "workspace").unwrap();
        let micros = if granularity == Granularity::Tensor { 2 } else { 1 };
        assert_eq!(workspace.bytes, Bytes(rows * micros * row(granularity)));
    }
}

/// Two micro-batches of 3 sequences: OPT-1.3B has 32 heads of 64 numbers in 16 bits for queries, keys and
/// values alike.
#[test]
fn attention_on_the_cpu_counts_what_crosses() {
    let batch = Batching { micro: 3, count: 2, prefill_chunk: None };
    let lines = |kv_gpu_layers| {
        let knobs =
            Pipo { kv: KvTier::Host, kv_gpu_layers, attention: Processor::Cpu, ..Pipo::default() };
        let layout = run(&plan("opt-1.3b", knobs, batch, 2)).layout;
        let line = |tier, name: &str| -> Bytes {
            let lines = layout.allocations.iter().filter(|a| a.tier == tier && a.name == name);
            lines.map(|a| a.bytes).sum()
        };
        [line(Tier::Gpu, "queries and new rows"), line(Tier::Pinned, "queries")]
    };
    let row = 2 * 32 * 64;
    assert_eq!(lines(0), [Bytes(2 * 3 * 3 * row), Bytes(2 * 3 * row)]);
    assert_eq!(lines(23), lines(0), "one layer elsewhere is enough");
    assert_eq!(lines(24), [Bytes::ZERO; 2]);
}

/// What computes in a decode step between layers 4 and 6, as `unit.micro-batch`, with `<` before attention and `>`
/// behind it.
fn order(granularity: Granularity, gpu_slots: u32, kv_gpu_layers: u32) -> String {
    let knobs = Pipo {
        granularity,
        gpu_slots,
        kv: KvTier::Host,
        kv_gpu_layers,
        attention: Processor::Cpu,
        ..Pipo::default()
    };
    let batch = Batching { micro: 3, count: 2, prefill_chunk: None };
    let run = run(&plan("opt-1.3b", knobs, batch, 3));
    check_structure(&run);
    let name = |op: &Op| {
        let unit = run.layout.units[usize::from(op.unit)].strip_prefix("layer ")?;
        let (layer, part) = unit.split_once(' ').unwrap_or((unit, ""));
        let part = part.replace("attention", "a").replace("MLP", "m");
        let piece = match op.piece {
            Piece::BeforeAttention => "<",
            Piece::AfterAttention => ">",
            _ => "",
        };
        ["4", "5", "6"].contains(&layer).then(|| format!("{layer}{part}.{}{piece}", op.micro))
    };
    let computes = run.ops().filter(|(_, pass, op)| pass.number == 2 && op.kind == OpKind::Compute);
    computes.filter_map(|(_, _, op)| name(op)).collect::<Vec<_>>().join(" ")
}

/// While the CPU attends for one micro-batch, the GPU goes on with the other up to its next attention, where there are
/// slots for all weights in between; otherwise both go on to where slots end first.
#[test]
fn micro_batches_take_turns_where_the_cpu_attends() {
    assert_eq!(
        order(Granularity::Layer, 2, 0),
        "4.0< 4.1< 4.0> 5.0< 4.1> 5.1< 5.0> 6.0< 5.1> 6.1< 6.0> 6.1>",
    );
    assert_eq!(
        order(Granularity::Layer, 1, 0),
        "4.0< 4.1< 4.0> 4.1> 5.0< 5.1< 5.0> 5.1> 6.0< 6.1< 6.0> 6.1>"
    );
    assert_eq!(
        order(Granularity::Part, 3, 0),
        "4a.0< 4a.1< 4a.0> 4m.0 5a.0< 4a.1> 4m.1 5a.1< 5a.0> 5m.0 6a.0< 5a.1> 5m.1 6a.1< 6a.0> 6m.0 6a.1> 6m.1",
    );
    assert_eq!(
        order(Granularity::Part, 2, 0),
        "4a.0< 4a.1< 4a.0> 4m.0 4a.1> 4m.1 5a.0< 5a.1< 5a.0> 5m.0 5a.1> 5m.1 6a.0< 6a.1< 6a.0> 6m.0 6a.1> 6m.1",
    );
    // Pieces of a part share what is between them, so all micro-batches pass each piece.
    let pieces = order(Granularity::Tensor, 8, 0);
    assert!(
        pieces.starts_with("4q.0 4q.1 4k.0 4k.1 4v.0 4v.1 4o.0< 4o.1< 4o.0> 4o.1> "),
        "{pieces}"
    );
}

/// However many caches are on the GPU, and with one slot or many, every slot is free when it is taken.
#[test]
fn turns_leave_every_slot_free_in_time() {
    for granularity in [Granularity::Layer, Granularity::Part] {
        for gpu_slots in 1..=6 {
            for kv_gpu_layers in [0, 1, 12, 23] {
                let found = order(granularity, gpu_slots, kv_gpu_layers);
                let computed = found.split(' ').filter(|name| !name.ends_with('<')).count();
                let units = if granularity == Granularity::Layer { 3 } else { 6 };
                assert_eq!(computed, 2 * units, "{found}");
            }
        }
    }
}

/// Rows on their way to disk have pinned memory from the copy that brings them until they are written.
#[test]
fn new_rows_hold_a_host_slot_until_they_are_on_disk() {
    let knobs = Pipo { kv: KvTier::Disk, kv_gpu_layers: 2, ..Pipo::default() };
    let batch = Batching { micro: 2, count: 2, prefill_chunk: None };
    let run = run(&plan("opt-1.3b", knobs, batch, 3));
    let ring = run.layout.rings.iter().position(|ring| ring.name == "new KV rows").unwrap();
    // Of the prompt: 48 positions of two sequences, keys and values of 32 heads of 64 numbers.
    let bytes = Bytes(2 * 48 * 2 * 32 * 64 * 2);
    let found = &run.layout.rings[ring];
    assert_eq!((found.tier, found.slots, found.slot_bytes), (Tier::Pinned, 2, bytes));
    let mut saves = BTreeMap::new();
    for (id, pass, op) in run.ops() {
        if op.kind == OpKind::SaveCache {
            let slot = op.takes.unwrap();
            assert_eq!(usize::from(slot.ring.0), ring);
            saves.insert(id, slot);
        } else if op.kind == OpKind::WriteCache {
            let saved = pass.waits(op).iter().find_map(|wait| saves.remove(wait));
            assert_eq!(op.frees, [saved, None]);
        }
    }
    assert!(saves.is_empty(), "everything is written: {saves:?}");
}

/// With hidden states in host memory the next pass puts its rows where the head's copy still goes, and what
/// the GPU looks up is computed in a slot as everything else is.
#[test]
fn hidden_states_in_host_memory_are_not_written_over_and_always_have_a_slot() {
    for embedding in [Embedding::Host, Embedding::Mapped, Embedding::Unit] {
        let knobs = Pipo { hidden: Processor::Cpu, embedding, ..Pipo::default() };
        let batch = Batching { micro: 1, count: 2, prefill_chunk: Some(20) };
        let run = run(&plan("opt-1.3b", knobs, batch, 3));
        check_structure(&run);
        let last = u16::try_from(run.layout.units.len() - 1).unwrap();
        let mut saved = BTreeMap::new();
        let mut lookups = 0;
        for (id, pass, op) in run.ops() {
            let first = match embedding {
                Embedding::Host => op.kind == OpKind::Gather,
                Embedding::Mapped | Embedding::Unit => op.kind == OpKind::Compute && op.unit == 0,
            };
            if op.kind == OpKind::SaveHidden && op.unit == last {
                saved.insert(op.micro, id);
            } else if first {
                lookups += 1;
                let before = saved.get(&op.micro);
                assert_eq!(before.is_some(), pass.number > 0);
                assert!(before.is_none_or(|save| pass.waits(op).contains(save)), "{op:?}");
                let takes = embedding != Embedding::Host && op.block == 0;
                assert_eq!(op.takes.is_some(), takes, "{op:?}");
            }
        }
        // Three passes of two micro-batches; the prompt in three chunks where the GPU looks up.
        assert_eq!(lookups, if embedding == Embedding::Host { 6 } else { 10 });
    }
}

/// A read goes on where the one before it ended: within a unit, and from the end of one to the beginning of the next.
#[test]
fn a_read_jumps_where_the_one_before_it_did_not_end() {
    for [gpu_weights, host_weights] in [[0, 0], [300, 0], [0, 300], [200, 100], [10_000, 0]] {
        let [gpu_weights, host_weights] =
            [gpu_weights, host_weights].map(|mega| Bytes(mega * 1_000_000));
        let block = Bytes(1 << 20);
        let knobs = Pipo { gpu_weights, host_weights, block, ..Pipo::default() };
        let plan = plan("opt-1.3b", knobs.clone(), Batching::single(1), 2);
        let sizes: Vec<Bytes> = cut(&plan.model, Precision::Int4, knobs.granularity)
            .iter()
            .map(|unit| unit.bytes)
            .collect();
        let run = run(&plan);
        let (mut ended, mut jumped, mut reads) = (None, 0, 0);
        for (_, pass, op) in run.ops() {
            let Work::DiskRead { bytes, jumps, .. } = run.builder.works[op.work] else { continue };
            if pass.number != 1 {
                continue;
            }
            assert_eq!(jumps, ended != Some((op.unit, op.offset)), "{op:?} after {ended:?}");
            jumped += u32::from(jumps);
            reads += 1;
            let end = op.offset + bytes;
            let ends_unit = end == sizes[usize::from(op.unit)];
            ended = Some(if ends_unit { (op.unit + 1, Bytes::ZERO) } else { (op.unit, end) });
        }
        let parted = gpu_weights + host_weights > Bytes::ZERO;
        assert!(reads == 0 || if parted { jumped > 1 } else { jumped == 1 }, "{jumped}");
        assert_eq!(reads == 0, gpu_weights > Bytes(1_000_000_000));
    }
}
