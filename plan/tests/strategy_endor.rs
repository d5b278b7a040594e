//! What must be true of every lowered Endor plan, checked on the emitted operations themselves.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use pipo_plan::diagnostic::Document;
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::model::{Precision, Tensor, TensorKind, catalog};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::schedule::{Builder, Layout, Op, OpId, OpKind, Pass, Schedule, Tier};
use pipo_plan::strategy::endor::{Endor, packed};
use pipo_plan::strategy::{Strategy, lower};
use pipo_plan::units::Bytes;
use pipo_plan::workload::{Budget, Objective, Workload};
use proptest::prelude::*;

fn plan(model: &str, knobs: Endor) -> Plan {
    Plan {
        machine: "any".into(),
        profile: String::new(),
        seed: 0,
        workload: Workload {
            prompt: 32,
            new_tokens: 3,
            batch: None,
            objective: Objective::Latency,
            token_within: None,
        },
        budget: Budget { gpu: Bytes(1 << 50), host: Bytes(1 << 50), disk: Bytes(1 << 50) },
        precision: Precisions { weights: Precision::Fp16, kv: Precision::Fp16 },
        batch: Batching::single(1),
        strategy: Strategy::Endor(knobs),
        model: catalog::find(model).unwrap(),
        prediction: None,
        runners_up: Vec::new(),
    }
}

/// The placement of the paper's case study.
fn case_study(sparsity: u32) -> Endor {
    Endor { sparsity, gpu_layers: 5, host_layers: 8, direct: false }
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
    fn bytes(&self, kind: OpKind) -> u64 {
        let ops = self.passes[1].ops.iter().filter(|op| op.kind == kind);
        ops.map(|op| self.builder.works[op.work].bytes().0).sum()
    }

    fn count(&self, kind: OpKind) -> usize {
        self.passes[1].ops.iter().filter(|op| op.kind == kind).count()
    }
}

#[test]
fn half_of_the_weights_pack_into_nine_sixteenths() {
    let matrix = |outputs, inputs| Tensor {
        name: "fc1",
        kind: TensorKind::Matrix,
        outputs,
        inputs,
        copies: 1,
    };
    // The paper's example: 680 MB become 340 MB of values and 42 MB of bitmap; in int8 half of the
    // values and the same bitmap. Our int8 has a scale for each row on top.
    let elements = 9216 * 36864;
    let example = matrix(9216, 36864);
    assert_eq!(packed(&example, Precision::Fp16, 0), Bytes(2 * elements));
    assert_eq!(packed(&example, Precision::Fp16, 500), Bytes(elements + elements / 8));
    assert_eq!(
        packed(&example, Precision::Int8, 500),
        Bytes(elements / 2 + elements / 8 + 2 * 9216)
    );
    let bias = Tensor { kind: TensorKind::Vector, ..matrix(9216, 1) };
    assert_eq!(packed(&bias, Precision::Fp16, 500), Bytes(2 * 9216));
    let odd = matrix(3, 3);
    assert_eq!(packed(&odd, Precision::Fp16, 500), Bytes(2 * 5 + 2));
}

#[test]
fn the_case_study_s_chain() {
    let run = run(&plan("opt-66b", case_study(500)));
    let kinds = [OpKind::ReadWeights, OpKind::LoadWeights, OpKind::Decompress, OpKind::Compute];
    assert_eq!(kinds.map(|k| run.count(k)), [51, 59, 59, 66]);
    let dense = run_dense().bytes(OpKind::ReadWeights);
    let share = run.bytes(OpKind::ReadWeights) as f64 / dense as f64;
    assert!((share - 0.5625).abs() < 1e-4, "{share}");
}

fn run_dense() -> Run {
    run(&plan("opt-66b", case_study(0)))
}

#[test]
fn without_sparsity_nothing_is_expanded_and_direct_reads_pass_no_host() {
    let dense = run_dense();
    let kinds = [OpKind::ReadWeights, OpKind::LoadWeights, OpKind::Decompress, OpKind::Compute];
    assert_eq!(kinds.map(|k| dense.count(k)), [51, 59, 0, 66]);
    let direct = run(&plan("opt-66b", Endor { direct: true, ..case_study(500) }));
    assert_eq!(kinds.map(|k| direct.count(k)), [51, 8, 59, 66]);
    let through_host = direct.layout.rings.iter().find(|r| r.tier == Tier::Pageable).unwrap();
    assert_eq!(through_host.slot_bytes, Bytes::ZERO);
}

#[test]
fn nothing_overlaps() {
    for knobs in [case_study(500), case_study(0), Endor { direct: true, ..case_study(500) }] {
        let run = run(&plan("opt-66b", knobs));
        let mut gpu_queue = None;
        for pass in &run.passes {
            for (op, id) in pass.ops.iter().zip(pass.first..) {
                // Each operation waits for the one before it, or follows it in the same queue.
                let previous = id.checked_sub(1).map(OpId);
                let chained = previous.is_none_or(|p| pass.waits(op).contains(&p));
                assert!(chained || gpu_queue == Some(op.queue), "{op:?}");
                gpu_queue = Some(op.queue);
            }
        }
    }
}

#[test]
fn the_case_study_fits_its_machine() {
    let table = |knobs| {
        let schedule = lower(&plan("opt-66b", knobs)).unwrap();
        let none = Overheads::default();
        let table = MemoryTable::new(&schedule.layout, none);
        let rows = table.rows.iter().map(|r| format!("{:?} {}: {}", r.tier, r.name, r.bytes));
        rows.collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(table(case_study(500)), @"
    Gpu weights, resident: 11.2 GB
    Gpu KV cache: 82.6 MB
    Gpu hidden states: 1.18 MB
    Gpu workspace: 5.31 MB
    Gpu packed layer: 1.15 GB
    Gpu dense layer: 2.04 GB
    Pageable weights, resident: 9.17 GB
    Pageable layer read: 1.15 GB
    Disk weights: 58.5 GB
    ");
    insta::assert_snapshot!(table(case_study(0)), @"
    Gpu weights, resident: 11.2 GB
    Gpu KV cache: 82.6 MB
    Gpu hidden states: 1.18 MB
    Gpu workspace: 5.31 MB
    Gpu dense layer: 2.04 GB
    Pageable weights, resident: 16.3 GB
    Pageable layer read: 2.04 GB
    Disk weights: 104 GB
    ");
}

#[test]
fn a_plan_file_keeps_the_knobs() {
    let plan = plan("opt-66b", Endor { direct: true, ..case_study(625) });
    let document = Document::new("plan.toml", plan.to_toml());
    assert_eq!(Plan::from_toml(&document).unwrap(), plan);
}

#[test]
fn impossible_knobs_name_the_field() {
    let path = |knobs| lower(&plan("opt-1.3b", knobs)).map(drop).unwrap_err().path;
    assert_eq!(path(Endor { sparsity: 1000, ..Endor::default() }), "endor.sparsity");
    let many = Endor { gpu_layers: u32::MAX, host_layers: 1, ..Endor::default() };
    assert_eq!(path(many), "endor.host_layers");
    assert_eq!(
        path(Endor { gpu_layers: 20, host_layers: 5, ..Endor::default() }),
        "endor.host_layers"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_layer_that_is_not_on_the_gpu_comes_once_a_pass(
        sparsity in prop_oneof![Just(0), 1_u32..1000],
        gpu_layers in 0_u32..=12,
        host_layers in 0_u32..=12,
        direct in any::<bool>(),
        micro in 1_u64..3,
        count in 1_u64..3,
        chunk in proptest::option::of(5_u64..40),
    ) {
        let mut plan = plan("opt-1.3b", Endor { sparsity, gpu_layers, host_layers, direct });
        plan.batch = Batching { micro, count, prefill_chunk: chunk };
        let layer = plan.model.tensors(pipo_plan::model::Part::Attention);
        let layer = layer.into_iter().chain(plan.model.tensors(pipo_plan::model::Part::Mlp));
        let bytes: u64 = layer.map(|t| packed(&t, Precision::Fp16, sparsity).0).sum();
        let run = run(&plan);
        let on_disk = u64::from(24 - gpu_layers - host_layers);
        let loaded = u64::from(host_layers) + if direct { 0 } else { on_disk };
        prop_assert_eq!(run.bytes(OpKind::ReadWeights), on_disk * bytes);
        prop_assert_eq!(run.bytes(OpKind::LoadWeights), loaded * bytes);
        prop_assert_eq!(run.layout.bytes(Tier::Disk), Bytes(on_disk * bytes));
        let mut held: Vec<_> = Vec::new();
        for op in run.passes.iter().flat_map(|p| &p.ops) {
            let Op { takes, frees, .. } = op;
            prop_assert!(takes.is_none_or(|slot| !held.contains(&slot)));
            held.extend(*takes);
            held.retain(|slot| !frees.contains(&Some(*slot)));
        }
        prop_assert!(held.is_empty());
    }
}
