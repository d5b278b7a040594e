//! Plans that run for real on a GPU. Without one, each test says so and ends.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]
#![allow(clippy::print_stderr, reason = "who skips a test must say so")]

use pipo_engine::run::Device;
use pipo_plan::model::Precision;
use pipo_plan::plan::Batching;
use pipo_plan::strategy::Strategy as System;
use pipo_plan::strategy::pipo::{Embedding, Pipo};
use pipo_plan::strategy::resident::Resident;
use pipo_plan::strategy::{KvTier, Processor};
use pipo_plan::units::Bytes;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use cases::{Case, accelerate, cases, check_against, check_offloaded, flexgen, pipo};
use fixture::{Fixture, MODELS};
use plans::{PRECISIONS, fixture, resident};

#[path = "fixture/cases.rs"]
mod cases;
mod fixture;
#[path = "fixture/plans.rs"]
mod plans;

/// Whether there is a GPU; says so where there is none.
fn has_gpu() -> bool {
    let present = Device::present() == Device::Cuda;
    if !present {
        eprintln!("skipped: there is no NVIDIA GPU here");
    }
    present
}

fn on_gpu<S: Strategy>(
    tests: u32,
    strategy: S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    if has_gpu() {
        let config =
            ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(tests) };
        TestRunner::new(config).run(&strategy, test).unwrap();
    }
}

/// What this backend runs of PIPO. A model whose tokens pass through a product on their way in rounds it
/// elsewhere where the host looks them up.
fn runnable(knobs: &Pipo, case: &Case) -> Pipo {
    let kv = if knobs.kv == KvTier::Disk { KvTier::Host } else { knobs.kv };
    let through_product = MODELS[case.model] == "opt-postnorm";
    let embedding = if through_product { Embedding::Unit } else { knobs.embedding };
    let hidden = if embedding == Embedding::Unit { Processor::Gpu } else { knobs.hidden };
    Pipo { hidden, kv, embedding, ..knobs.clone() }
}

/// Tokens before the first that leads by less than rounding to 16 bits may move it.
fn safe(fixture: &Fixture, sequence: usize) -> usize {
    let gaps = fixture.golden["greedy_gaps"][sequence].as_array().unwrap();
    gaps.iter().take_while(|gap| gap.as_f64() > Some(0.1)).count()
}

/// The length of the difference over that of what is expected.
fn apart(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    let apart: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    length(&apart) / length(expected)
}

/// What a run of PIPO must equal. Attention on the CPU is another arithmetic than the GPU's: it is compared
/// with a run that has it too, in the same layers, and everything else on the device.
fn reference(knobs: &Pipo) -> System {
    if knobs.attention == Processor::Gpu {
        return System::Resident(Resident { fused: knobs.fused });
    }
    System::Pipo(beside(knobs.kv_gpu_layers, knobs.fused))
}

/// Everything on the device but attention, which is beside it in all but some layers.
fn beside(kv_gpu_layers: u32, fused: bool) -> Pipo {
    Pipo {
        gpu_weights: Bytes(1 << 40),
        embedding: Embedding::Unit,
        kv: KvTier::Host,
        kv_gpu_layers,
        attention: Processor::Cpu,
        fused,
        ..Pipo::default()
    }
}

#[test]
fn a_pipo_run_is_the_resident_run_bit_for_bit() {
    on_gpu(200, (pipo(), cases()), |(knobs, case)| {
        let knobs = runnable(&knobs, &case);
        let expected = reference(&knobs);
        check_against(Device::Cuda, case, System::Pipo(knobs), expected)
    });
}

#[test]
fn a_run_of_accelerate_is_the_resident_run_bit_for_bit() {
    on_gpu(50, (accelerate(), cases()), |(knobs, case)| {
        let case = Case { batch: Batching::single(case.batch.micro), ..case };
        check_offloaded(Device::Cuda, case, System::Accelerate(knobs), false)
    });
}

#[test]
fn a_run_of_flexgen_is_the_resident_run_bit_for_bit() {
    on_gpu(10, (flexgen(), cases()), |(knobs, case)| {
        let int4 =
            |precision| if precision == Precision::Int8 { Precision::Int4 } else { precision };
        let weights = PRECISIONS.iter().position(|&p| p == int4(PRECISIONS[case.weights])).unwrap();
        let batch = Batching { prefill_chunk: None, ..case.batch };
        let case = Case { weights, kv: int4(case.kv), batch, ..case };
        let knobs = pipo_plan::strategy::flexgen::FlexGen { hidden: Processor::Gpu, ..knobs };
        check_offloaded(Device::Cuda, case, System::FlexGen(knobs), false)
    });
}

/// Tokens are those of transformers as long as the best logit leads by more than 16-bit rounding moves it.
#[test]
fn a_resident_run_says_what_transformers_says() {
    if !has_gpu() {
        return;
    }
    for (model, name) in MODELS.iter().enumerate() {
        let fixture = fixture(model, 0);
        let plan = fixture.plan(resident(), Batching::single(2), 64);
        let outcome = fixture.run_on(Device::Cuda, &plan).unwrap();
        for (sequence, tokens) in outcome.tokens.iter().enumerate() {
            let safe = safe(fixture, sequence);
            let expected = fixture.tokens("greedy", sequence);
            assert_eq!(tokens.len(), 64);
            assert_eq!(tokens[..safe], expected[..safe], "{name}, sequence {sequence}");
        }
        println!("{name}: tokens are those of transformers");
    }
}

/// Attention beside the GPU rounds in other places than on it, and nowhere else: tokens are those of
/// transformers where the best logit leads by more than that, and a step's logits are close.
#[test]
fn attention_on_the_cpu_is_that_of_the_gpu_within_rounding() {
    if !has_gpu() {
        return;
    }
    for (model, name) in MODELS.iter().enumerate() {
        let fixture = fixture(model, 0);
        let batch = Batching { micro: 1, count: 2, prefill_chunk: None };
        let run = |strategy, kv, tokens| {
            let mut plan = fixture.plan(strategy, batch, tokens);
            plan.precision.kv = kv;
            fixture.run_on(Device::Cuda, &plan).unwrap()
        };
        let on_cpu = || System::Pipo(beside(0, true));
        let outcome = run(on_cpu(), Precision::Fp16, 64);
        for (sequence, tokens) in outcome.tokens.iter().enumerate() {
            let safe = safe(fixture, sequence);
            let expected = fixture.tokens("greedy", sequence);
            assert_eq!(tokens.len(), 64);
            assert_eq!(tokens[..safe], expected[..safe], "{name}, sequence {sequence}");
        }
        // The second token's logits: the prompt is attended to on the GPU in both runs, bit for bit.
        for kv in PRECISIONS {
            let [found, expected] = [on_cpu(), resident()].map(|strategy| run(strategy, kv, 2));
            for (found, expected) in found.logits.iter().zip(&expected.logits) {
                let error = apart(found, expected);
                assert!(error < 1e-2, "{name} with a cache in {kv}: {error:e}");
            }
        }
    }
}

/// Last logits after 8 tokens, against the CPU backend's, which round in other places: in every precision
/// of weights and every family.
#[test]
fn logits_are_those_of_the_cpu_within_rounding() {
    if !has_gpu() {
        return;
    }
    let mut worst: f32 = 0.0;
    for (model, name) in MODELS.iter().enumerate() {
        for (weights, precision) in PRECISIONS.iter().enumerate() {
            let fixture = fixture(model, weights);
            let plan = fixture.plan(resident(), Batching::single(2), 1);
            let expected = fixture.run(&plan).unwrap().logits.concat();
            let found = fixture.run_on(Device::Cuda, &plan).unwrap().logits.concat();
            let error = apart(&found, &expected);
            println!("{name} {precision}: {error:.1e}");
            worst = worst.max(error);
        }
    }
    assert!(worst < 1e-2, "{worst}");
}
