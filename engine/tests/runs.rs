//! Plans that run for real on the CPU backend.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use pipo_engine::executor::ExecutionError;
use pipo_engine::run::{Device, GREEDY, NewToken, Outcome, Request, RunError, run};
use pipo_engine::store::Place;
use pipo_kernels::sample::Settings;
use pipo_plan::model::{Part, Precision};
use pipo_plan::plan::{Batching, Plan};
use pipo_plan::strategy::Strategy as System;
use pipo_plan::strategy::cpu_split::CpuSplit;
use pipo_plan::strategy::pipo::Pipo;
use pipo_plan::units::Bytes;
use proptest::prelude::*;

use cases::{Case, accelerate, cases, check_offloaded, flexgen, pipo};
use fixture::{Fixture, MODELS};
use plans::{PRECISIONS, fixture, resident};

#[path = "fixture/cases.rs"]
mod cases;
mod fixture;
#[path = "fixture/plans.rs"]
mod plans;

/// Tokens of a run with 16-bit hidden states and cache are those of the reference in 32 bits as long as
/// its best logit leads by more than rounding moves them.
#[test]
fn a_resident_run_says_what_transformers_says() {
    for (model, name) in MODELS.iter().enumerate() {
        let fixture = fixture(model, 0);
        let outcome = fixture.run(&fixture.plan(resident(), Batching::single(2), 64)).unwrap();
        for (sequence, tokens) in outcome.tokens.iter().enumerate() {
            let gaps = fixture.golden["greedy_gaps"][sequence].as_array().unwrap();
            let safe = gaps.iter().take_while(|gap| gap.as_f64() > Some(0.1)).count();
            let expected = fixture.tokens("greedy", sequence);
            assert_eq!(tokens.len(), 64);
            assert_eq!(tokens[..safe], expected[..safe], "{name}, sequence {sequence}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_pipo_run_is_the_resident_run_bit_for_bit(knobs in pipo(), case in cases()) {
        check_offloaded(Device::Cpu, case, System::Pipo(knobs), true)?;
    }

    #[test]
    fn a_run_of_accelerate_is_the_resident_run_bit_for_bit(
        knobs in accelerate(),
        case in cases(),
    ) {
        let batch = Batching::single(case.batch.micro);
        check_offloaded(Device::Cpu, Case { batch, ..case }, System::Accelerate(knobs), true)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_run_of_flexgen_is_the_resident_run_bit_for_bit(knobs in flexgen(), case in cases()) {
        // FlexGen has no int8.
        let int4 = |precision| if precision == Precision::Int8 { Precision::Int4 } else { precision };
        let weights = PRECISIONS.iter().position(|&p| p == int4(PRECISIONS[case.weights])).unwrap();
        let batch = Batching { prefill_chunk: None, ..case.batch };
        let case = Case { weights, kv: int4(case.kv), batch, ..case };
        check_offloaded(Device::Cpu, case, System::FlexGen(knobs), true)?;
    }
}

/// A run with settings of its own, and what its observer saw of each sequence.
fn observed(plan: &Plan, fixture: &Fixture, sampling: Settings) -> (Outcome, Vec<Vec<u32>>) {
    // The same prompt everywhere: what differs is drawn.
    let prompts = vec![fixture.tokens("prompts", 0); 4];
    let seen = Mutex::new(vec![Vec::new(); 4]);
    let observer = |new: NewToken| seen.lock().unwrap()[new.sequence].push(new.token);
    let request = Request {
        threads: 1,
        sampling,
        observer: &observer,
        ..Request::new(plan, &fixture.store, &prompts)
    };
    let outcome = run(&request, &AtomicBool::new(false)).unwrap();
    (outcome, seen.into_inner().unwrap())
}

#[test]
fn drawn_tokens_follow_from_seed_and_place_alone() {
    let fixture = fixture(2, 0);
    let sampling = Settings { temperature: 1.0, top_k: Some(50), top_p: Some(0.95), seed: 5 };
    let mut found: Vec<Vec<Vec<u32>>> = Vec::new();
    for (micro, count) in [(4, 1), (2, 2), (1, 4)] {
        let batch = Batching { micro, count, prefill_chunk: Some(7) };
        for strategy in [resident(), System::Pipo(Pipo::default())] {
            let (outcome, seen) = observed(&fixture.plan(strategy, batch, 8), fixture, sampling);
            assert_eq!(outcome.tokens, seen, "the observer sees every token, in order");
            found.push(seen);
        }
    }
    assert!(found.iter().all(|tokens| *tokens == found[0]));
    assert_ne!(found[0][0], found[0][1], "equal prompts draw apart");
    let plan = fixture.plan(resident(), Batching::single(4), 8);
    let (_, other) = observed(&plan, fixture, Settings { seed: 6, ..sampling });
    assert_ne!(other, found[0]);
    assert_ne!(other[0], found[0][1], "a seed's first sequence is not another seed's second");
}

#[test]
fn settings_out_of_range_are_refused_before_anything_starts() {
    let fixture = fixture(2, 0);
    let plan = fixture.plan(resident(), Batching::single(1), 2);
    let prompts = [fixture.tokens("prompts", 0)];
    let sampling = Settings { top_p: Some(1.5), ..GREEDY };
    let request = Request { sampling, ..Request::new(&plan, &fixture.store, &prompts) };
    let error = run(&request, &AtomicBool::new(false)).unwrap_err();
    insta::assert_snapshot!(error, @"top-p is 1.5, but must be above 0 and at most 1; choose another value");
}

#[test]
fn a_cancelled_run_ends_before_its_weights_are_read() {
    let fixture = fixture(2, 0);
    let plan = fixture.plan(resident(), Batching::single(1), 2);
    let prompts = [fixture.tokens("prompts", 0)];
    let error = run(&Request::new(&plan, &fixture.store, &prompts), &AtomicBool::new(true));
    assert!(matches!(error, Err(RunError::Execution(ExecutionError::Cancelled))));
}

/// The first token of a prompt in chunks, whose later rows read what the cache made of the earlier ones.
#[test]
fn a_cache_in_fewer_bits_is_less_exact() {
    let fixture = fixture(2, 0);
    let batch = Batching { micro: 2, count: 1, prefill_chunk: Some(5) };
    let logits = |kv| {
        let mut plan = fixture.plan(resident(), batch, 1);
        plan.precision.kv = kv;
        fixture.run(&plan).unwrap().logits.concat()
    };
    let exact = logits(Precision::Fp16);
    let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    let error = |kv| {
        let apart: Vec<f32> = logits(kv).iter().zip(&exact).map(|(a, b)| a - b).collect();
        length(&apart) / length(&exact)
    };
    let (int8, int4) = (error(Precision::Int8), error(Precision::Int4));
    assert!(0.0 < int8 && int8 < int4 && int4 < 0.5, "{int8} and {int4}");
}

#[test]
fn what_does_not_belong_together_is_refused_before_anything_starts() {
    let fixture = fixture(2, 0);
    let plan = || fixture.plan(resident(), Batching::single(1), 2);
    let message = |plan: &Plan| fixture.run(plan).unwrap_err().to_string();
    let mut other = plan();
    other.model.layers += 1;
    other.model.name = "another".into();
    insta::assert_snapshot!(message(&other), @"the plan is for `another`, the store holds `llama2`; tune for the store's model, or import the plan's");
    let mut other = plan();
    other.precision.weights = Precision::Int4;
    insta::assert_snapshot!(message(&other), @"the plan has weights in int4, the store in fp16; import with --weights int4");
    let mut other = plan();
    other.workload.prompt = 9;
    insta::assert_snapshot!(message(&other), @"the plan is for prompts of 9 tokens, one has 24; tune with --prompt 24");
    let split = CpuSplit::default();
    let other = fixture.plan(System::CpuSplit(split), Batching::single(1), 2);
    insta::assert_snapshot!(message(&other), @"the engine does not run the strategy `cpu-split`; use a plan of `pipo`, `flexgen`, `accelerate` or `resident`");
}

#[test]
fn a_flipped_bit_in_the_store_stops_the_run_and_is_named() {
    let fixture = Fixture::new("llama2", Precision::Fp16);
    let path = fixture.store.data_path().to_owned();
    let mut bytes = std::fs::read(&path).unwrap();
    let attention = Place { part: Part::Attention, layer: 1 };
    let range = fixture.store.layout().range(attention).unwrap();
    bytes[usize::try_from(range.end - 1).unwrap()] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let streamed = Pipo { block: Bytes(8192), ..Pipo::default() };
    for strategy in [resident(), System::Pipo(streamed)] {
        let error = fixture.run(&fixture.plan(strategy, Batching::single(1), 2)).unwrap_err();
        assert!(error.to_string().contains("layer 1 attention"), "{error}");
        assert!(error.to_string().contains("checksum"), "{error}");
    }
}
