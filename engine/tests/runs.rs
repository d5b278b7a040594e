//! Plans that run for real on the CPU backend.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use pipo_engine::executor::ExecutionError;
use pipo_engine::run::{GREEDY, NewToken, Outcome, Request, RunError, run};
use pipo_engine::store::Place;
use pipo_kernels::sample::Settings;
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::model::{Part, Precision};
use pipo_plan::plan::{Batching, Plan};
use pipo_plan::schedule::Tier;
use pipo_plan::strategy::accelerate::Accelerate;
use pipo_plan::strategy::cpu_split::CpuSplit;
use pipo_plan::strategy::flexgen::FlexGen;
use pipo_plan::strategy::pipo::{Embedding, HostWeights, Pipo};
use pipo_plan::strategy::{Granularity, KvTier, Order, Processor, Strategy as System, lower};
use pipo_plan::units::Bytes;
use proptest::prelude::*;

use fixture::{Fixture, MODELS};
use plans::{PRECISIONS, bits, fixture, resident};

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

fn pipo() -> impl Strategy<Value = Pipo> {
    let sizes = (1..4_u32, 1..5_u32, 1..4_u32, 4096..40_000_u64, 0..120_u64, 0..120_u64);
    let cache = (0..4_u32, 1..4_u32);
    let order = prop::sample::select(vec![Order::Spread, Order::First, Order::Head]);
    let granularity = [Granularity::Layer, Granularity::Part, Granularity::Tensor];
    let granularity = prop::sample::select(granularity.to_vec());
    (sizes, cache, order, granularity, any::<[bool; 6]>()).prop_map(
        |(sizes, cache, order, granularity, flags)| {
            let (kv_gpu_layers, kv_slots) = cache;
            let on_cpu = flags[3] && kv_gpu_layers < 3;
            let (gpu_slots, host_slots, disk_threads, block, gpu, host) = sizes;
            Pipo {
                granularity,
                gpu_slots,
                host_slots,
                disk_threads,
                block: Bytes(block),
                gpu_weights: Bytes(gpu * 3000),
                host_weights: Bytes(host * 3000),
                host_memory: if flags[1] { HostWeights::Pageable } else { HostWeights::Pinned },
                order,
                embedding: if flags[2] { Embedding::Unit } else { Embedding::Host },
                kv: match (kv_gpu_layers, flags[5] && !on_cpu) {
                    (3, _) => KvTier::Gpu,
                    (_, true) => KvTier::Disk,
                    (_, false) => KvTier::Host,
                },
                kv_gpu_layers,
                kv_slots,
                attention: if on_cpu { Processor::Cpu } else { Processor::Gpu },
                hidden: if flags[4] && !on_cpu { Processor::Cpu } else { Processor::Gpu },
                fused: flags[0],
                ..Pipo::default()
            }
        },
    )
}

fn accelerate() -> impl Strategy<Value = Accelerate> {
    (0..200_u64, 0..200_u64).prop_map(|(gpu, host)| Accelerate {
        gpu_weights: Bytes(gpu * 3000),
        host_weights: Bytes(host * 3000),
    })
}

/// Any split of the weights; the relay of each copy thread is 2 GiB, so there is one.
fn flexgen() -> impl Strategy<Value = FlexGen> {
    (0..101_u32, 0..101_u32, any::<[bool; 5]>()).prop_map(|(gpu, host, flags)| FlexGen {
        granularity: if flags[0] { Granularity::Part } else { Granularity::Layer },
        weights_gpu: gpu,
        weights_host: host.min(100 - gpu),
        overlap: flags[1],
        pin_weight: flags[2],
        all_heads_cache: flags[3],
        hidden: if flags[4] { Processor::Cpu } else { Processor::Gpu },
        disk_threads: 1,
        ..FlexGen::default()
    })
}

/// A model, the precisions of its weights and of its cache, and a batch.
#[derive(Debug, Clone, Copy)]
struct Case {
    model: usize,
    weights: usize,
    kv: Precision,
    batch: Batching,
}

fn cases() -> impl Strategy<Value = Case> {
    let chunk = prop::option::of(1..30_u64);
    let kv = prop::sample::select(PRECISIONS.to_vec());
    let batch = (1..3_u64, 1..4_u64, chunk).prop_map(|(micro, count, prefill_chunk)| Batching {
        micro,
        count,
        prefill_chunk,
    });
    (0..MODELS.len(), 0..PRECISIONS.len(), kv, batch).prop_map(|(model, weights, kv, batch)| Case {
        model,
        weights,
        kv,
        batch,
    })
}

/// Whatever is streamed from where, in which blocks, through how many slots: not a bit is different from
/// the resident run, and what was allocated is what the plan's table says, byte for byte.
fn check_offloaded(case: Case, strategy: System) -> Result<(), TestCaseError> {
    let fixture = fixture(case.model, case.weights);
    let plan = |strategy| {
        let mut plan = fixture.plan(strategy, case.batch, 4);
        plan.precision.kv = case.kv;
        plan
    };
    let offloaded = plan(strategy);
    let expected = fixture.run(&plan(resident())).unwrap();
    let found = fixture.run(&offloaded).unwrap();
    prop_assert_eq!(&found.tokens, &expected.tokens);
    prop_assert_eq!(bits(&found), bits(&expected));
    let schedule = lower(&offloaded).unwrap();
    for tier in [Tier::Gpu, Tier::Pinned, Tier::Pageable] {
        let allocated = found.allocated.iter().filter(|(at, _)| *at == tier);
        let allocated: Bytes = allocated.map(|(_, bytes)| *bytes).sum();
        prop_assert_eq!(allocated, schedule.layout.bytes(tier), "{}", tier.name());
    }
    let none = Overheads { gpu_context: Bytes::ZERO, host_reserved: Bytes::ZERO };
    prop_assert_eq!(
        MemoryTable::new(&schedule.layout, none).gpu(),
        schedule.layout.bytes(Tier::Gpu)
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_pipo_run_is_the_resident_run_bit_for_bit(knobs in pipo(), case in cases()) {
        check_offloaded(case, System::Pipo(knobs))?;
    }

    #[test]
    fn a_run_of_accelerate_is_the_resident_run_bit_for_bit(
        knobs in accelerate(),
        case in cases(),
    ) {
        let batch = Batching::single(case.batch.micro);
        check_offloaded(Case { batch, ..case }, System::Accelerate(knobs))?;
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
        check_offloaded(case, System::FlexGen(knobs))?;
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
