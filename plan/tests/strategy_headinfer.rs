//! What must be true of every lowered HeadInfer plan, checked on the emitted operations themselves.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use pipo_plan::diagnostic::Document;
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::model::{Precision, catalog};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::schedule::{Builder, Layout, Op, OpId, OpKind, Pass, Phase, Schedule, Work};
use pipo_plan::strategy::headinfer::{self, HeadInfer};
use pipo_plan::strategy::{KvTier, Strategy, lower};
use pipo_plan::units::Bytes;
use pipo_plan::workload::{Budget, Objective, Workload};
use proptest::prelude::*;

fn plan(knobs: HeadInfer, prompt: u64, new_tokens: u64, chunk: Option<u64>) -> Plan {
    let mut model = catalog::find("llama-3.1-8b").unwrap();
    model.max_context = 1 << 23;
    Plan {
        machine: "any".into(),
        profile: String::new(),
        seed: 0,
        workload: Workload {
            prompt,
            new_tokens,
            batch: None,
            objective: Objective::Latency,
            token_within: None,
        },
        budget: Budget { gpu: Bytes(1 << 50), host: Bytes(1 << 50), disk: Bytes(1 << 50) },
        precision: Precisions { weights: Precision::Bf16, kv: Precision::Bf16 },
        batch: Batching { micro: 1, count: 1, prefill_chunk: chunk },
        strategy: Strategy::HeadInfer(knobs),
        model,
        prediction: None,
        runners_up: Vec::new(),
    }
}

fn groups(head_groups: u32) -> HeadInfer {
    HeadInfer { head_groups, ..HeadInfer::default() }
}

struct Run {
    layout: Layout,
    phases: Vec<Phase>,
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
    let phases = (0..program.passes()).map(|pass| program.phase(pass)).collect();
    Run { layout, phases, passes, builder }
}

impl Run {
    fn of(&self, pass: usize, kind: OpKind) -> impl Iterator<Item = &Op> {
        self.passes[pass].ops.iter().filter(move |op| op.kind == kind)
    }

    fn bytes(&self, pass: usize, kind: OpKind) -> u64 {
        self.of(pass, kind).map(|op| self.builder.works[op.work].bytes().0).sum()
    }

    fn attention_flops(&self, pass: usize) -> u64 {
        let attention = |op: &Op| match &self.builder.works[op.work] {
            Work::Gpu(compute) => compute.attention.map_or(0, |a| a.flops()),
            _ => 0,
        };
        self.passes[pass].ops.iter().map(attention).sum()
    }
}

#[test]
fn a_chunk_is_a_pass_and_only_the_last_makes_a_token() {
    let run = run(&plan(groups(4), 2500, 3, Some(1000)));
    assert_eq!(
        run.phases,
        [Phase::Prefill, Phase::Prefill, Phase::Prefill, Phase::Decode, Phase::Decode]
    );
    let tokens = |p: &Pass| p.ops.iter().filter(|op| op.ends_pass).count();
    assert_eq!(run.passes.iter().map(tokens).collect::<Vec<_>>(), [0, 0, 1, 1, 1]);
    // In each of 32 layers: q, k, v; four attentions, saved and, but in the first chunk, loaded;
    // output projection; MLP. Embedding everywhere, head at the last three.
    let count = |p: &Pass| p.ops.len();
    let layers = |of_one: usize| 32 * of_one + 1;
    assert_eq!(
        run.passes.iter().map(count).collect::<Vec<_>>(),
        [layers(11), layers(15), layers(15) + 1, layers(15) + 1, layers(15) + 1]
    );
}

#[test]
fn every_load_waits_for_the_layer_s_last_save_and_every_attention_for_its_load() {
    let run = run(&plan(groups(2), 300, 2, Some(100)));
    for pass in 1..run.passes.len() {
        let op = |id: &OpId| {
            let pass = run.passes.iter().rfind(|p| p.first <= id.0).unwrap();
            pass.ops[(id.0 - pass.first) as usize]
        };
        let this = &run.passes[pass];
        for load in run.of(pass, OpKind::LoadCache) {
            let [save] = this.waits(load) else { panic!("a load waits for one save") };
            assert!(save.0 < this.first, "the save belongs to an earlier pass");
            let save = op(save);
            assert_eq!(save.kind, OpKind::SaveCache);
            assert_eq!((save.unit, save.block), (load.unit, 1), "of two groups the second");
        }
        for save in run.of(pass, OpKind::SaveCache) {
            let [attend] = this.waits(save) else { panic!("a save waits for its attention") };
            let attend = op(attend);
            let [load] = this.waits(&attend) else { panic!("attention waits for its load") };
            assert_eq!(op(load).takes, save.frees[0]);
        }
    }
}

#[test]
fn the_paper_s_adaptive_rule() {
    let rule = |context| headinfer::adaptive_groups(context, 8);
    let at = [1000, 500 << 10, (500 << 10) + 1, 1 << 20, 2 << 20, 4 << 20].map(rule);
    assert_eq!(at, [1, 1, 2, 2, 4, 8]);
    assert_eq!(headinfer::adaptive_groups(4 << 20, 2), 2);
    assert_eq!(headinfer::adaptive_groups(4 << 20, 12), 6);
}

#[test]
fn memory_is_weights_two_slots_and_one_chunk() {
    let table = |knobs, chunk| {
        let schedule = lower(&plan(knobs, (1 << 20) - 1, 1, chunk)).unwrap();
        let none = Overheads::default();
        let table = MemoryTable::new(&schedule.layout, none);
        let rows =
            table.rows.iter().map(|r| format!("{:?} {}: {}", r.tier, r.name, r.bytes.binary()));
        rows.collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(table(groups(8), Some(headinfer::CHUNK)), @"
    Gpu weights, resident: 15.0 GiB
    Gpu activations: 640 MiB
    Gpu KV slots: 1.00 GiB
    Pinned KV cache: 128 GiB
    ");
    insta::assert_snapshot!(table(groups(1), None), @"
    Gpu weights, resident: 15.0 GiB
    Gpu activations: 64.0 GiB
    Gpu KV slots: 8.00 GiB
    Pinned KV cache: 128 GiB
    ");
    let baseline = HeadInfer { kv: KvTier::Gpu, ..groups(1) };
    insta::assert_snapshot!(table(baseline, Some(headinfer::CHUNK)), @"
    Gpu weights, resident: 15.0 GiB
    Gpu KV cache: 128 GiB
    Gpu activations: 640 MiB
    ");
}

#[test]
fn a_plan_file_keeps_the_knobs() {
    let plan = plan(HeadInfer { kv_slots: 3, ..groups(4) }, 5000, 2, Some(1000));
    let document = Document::new("plan.toml", plan.to_toml());
    assert_eq!(Plan::from_toml(&document).unwrap(), plan);
}

#[test]
fn impossible_knobs_name_the_field() {
    let path = |knobs| lower(&plan(knobs, 100, 1, None)).map(drop).unwrap_err().path;
    assert_eq!(path(groups(3)), "headinfer.head_groups");
    assert_eq!(path(groups(0)), "headinfer.head_groups");
    assert_eq!(path(groups(16)), "headinfer.head_groups");
    assert_eq!(path(HeadInfer { kv_slots: 0, ..groups(1) }), "headinfer.kv_slots");
    let crumbs = lower(&plan(groups(1), 1 << 20, 1, Some(1))).map(drop).unwrap_err();
    assert_eq!(crumbs.path, "batch.prefill_chunk");
    assert_eq!(path(HeadInfer { kv: KvTier::Disk, ..groups(1) }), "headinfer.kv");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn bytes_and_flops_do_not_depend_on_the_cut(
        groups_log in 0_u32..4,
        kv_slots in 1_u32..4,
        prompt in 1_u64..3000,
        chunk in 1_u64..3000,
        micro in 1_u64..3,
        count in 1_u64..3,
    ) {
        let chunk = chunk.max(prompt / 16);
        let knobs = HeadInfer { head_groups: 1 << groups_log, kv_slots, ..HeadInfer::default() };
        let mut cut = plan(knobs, prompt, 3, Some(chunk));
        cut.batch.micro = micro;
        cut.batch.count = count;
        let sequences = micro * count;
        let run = run(&cut);
        let token = 2 * 8 * 128 * 2 * 32 * sequences;
        let mut done = 0;
        let mut flops = 0;
        for pass in 0..run.passes.len() {
            let rows = if run.phases[pass] == Phase::Prefill { chunk.min(prompt - done) } else { 1 };
            prop_assert_eq!(run.bytes(pass, OpKind::LoadCache), done * token);
            prop_assert_eq!(run.bytes(pass, OpKind::SaveCache), rows * token);
            done += rows;
            flops += run.attention_flops(pass);
        }
        prop_assert_eq!(done, prompt + 2);
        // Every position attends to itself and all before it, once.
        prop_assert_eq!(flops, 4 * 4096 * 32 * sequences * (done * (done + 1) / 2));
        check_slots(&run, kv_slots)?;
    }
}

/// Slots are taken only after they were freed, never more at once than there are, and all are free at
/// the end of each pass.
fn check_slots(run: &Run, kv_slots: u32) -> Result<(), TestCaseError> {
    for pass in &run.passes {
        let mut held = Vec::new();
        for op in &pass.ops {
            if let Some(slot) = op.takes {
                prop_assert!(!held.contains(&slot));
                held.push(slot);
            }
            prop_assert!(held.len() <= kv_slots as usize);
            for slot in op.frees.iter().flatten() {
                prop_assert!(held.contains(slot));
                held.retain(|h| h != slot);
            }
        }
        prop_assert!(held.is_empty());
    }
    prop_assert_eq!(
        run.layout.rings.iter().map(|r| u32::from(r.slots)).collect::<Vec<_>>(),
        [kv_slots]
    );
    Ok(())
}
