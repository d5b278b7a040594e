//! Settings for other engines.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use pipo_plan::machine::catalog as machines;
use pipo_plan::model::{Precision, catalog as models};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::strategy::cpu_split::CpuSplit;
use pipo_plan::strategy::pipo::Pipo;
use pipo_plan::strategy::resident::Resident;
use pipo_plan::strategy::{KvTier, Processor, Strategy};
use pipo_plan::units::Bytes;
use pipo_plan::workload::{Budget, Objective, Workload};
use pipo_tuner::{EmitError, Target, emit};

fn plan(model: &str, strategy: Strategy) -> Plan {
    let machine = machines::find("rtx3060-laptop").unwrap();
    Plan {
        machine: machine.name.clone(),
        profile: machine.hash(),
        seed: 0,
        workload: Workload {
            prompt: 512,
            new_tokens: 32,
            batch: None,
            objective: Objective::Throughput,
            token_within: None,
        },
        budget: Budget { gpu: Bytes(6 << 30), host: Bytes(16 << 30), disk: Bytes(1 << 40) },
        precision: Precisions { weights: Precision::Int4, kv: Precision::Fp16 },
        batch: Batching { micro: 4, count: 2, prefill_chunk: Some(128) },
        strategy,
        model: models::find(model).unwrap(),
        prediction: None,
        runners_up: Vec::new(),
    }
}

/// OPT-125m with a third of its weights on the GPU, a third on disk, and its cache in host memory.
fn split() -> Plan {
    let knobs = Pipo {
        gpu_weights: Bytes(40_000_000),
        host_weights: Bytes(50_000_000),
        kv: KvTier::Host,
        attention: Processor::Cpu,
        ..Pipo::default()
    };
    plan("opt-125m", Strategy::Pipo(knobs))
}

#[test]
fn llama_cpp() {
    insta::assert_snapshot!(emit(&split(), Target::LlamaCpp).unwrap());
}

/// Which layers a split keeps off the GPU is its own choice, and no share of the bytes.
#[test]
fn llama_cpp_has_the_layers_of_a_split() {
    let text = |gpu_layers| {
        let knobs = CpuSplit { gpu_layers, ..CpuSplit::default() };
        let batch = Batching { micro: 1, count: 1, prefill_chunk: None };
        let plan = Plan { batch, ..plan("llama-3.1-8b", Strategy::CpuSplit(knobs)) };
        emit(&plan, Target::LlamaCpp).unwrap()
    };
    let some = text(28);
    for tensors in ["attn", "ffn"] {
        assert!(some.contains(&format!("'blk\\.(0|1|2|3)\\.{tensors}_.*=CPU'")), "{some}");
    }
    assert!(!some.contains("output") && !some.contains("share"), "{some}");
    let all = text(32);
    assert!(all.contains("-ngl all \\") && !all.contains("=CPU"), "{all}");
}

#[test]
fn accelerate() {
    insta::assert_snapshot!(emit(&split(), Target::Accelerate).unwrap());
}

#[test]
fn vllm() {
    insta::assert_snapshot!(emit(&split(), Target::Vllm).unwrap());
}

#[test]
fn flexgen() {
    insta::assert_snapshot!(emit(&split(), Target::FlexGen).unwrap());
}

#[test]
fn deepspeed() {
    insta::assert_snapshot!(emit(&split(), Target::DeepSpeed).unwrap());
}

#[test]
fn a_resident_plan_is_plain_everywhere() {
    let plan = plan("opt-125m", Strategy::Resident(Resident::default()));
    let all: Vec<String> = Target::ALL.iter().map(|&t| emit(&plan, t).unwrap()).collect();
    assert!(all[0].contains("-ngl all \\\n") && !all[0].contains("-ot"));
    assert!(all[2].contains("vllm serve") && !all[2].contains("--offload-backend"));
    assert!(all[3].contains("--percent 100 0 100 0 100 0"));
}

#[test]
fn flexgen_knows_opt_alone() {
    let plan = plan("llama-3.1-8b", Strategy::Resident(Resident::default()));
    assert!(matches!(emit(&plan, Target::FlexGen), Err(EmitError::Impossible { .. })));
}
