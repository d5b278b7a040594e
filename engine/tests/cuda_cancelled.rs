//! A run on a GPU that is cancelled gives its memory back. In a process of its own: the driver is asked for
//! what is used of the whole device, and no other test may use it meanwhile.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]
#![allow(clippy::print_stderr, reason = "who skips a test must say so")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nvml_wrapper::Nvml;
use pipo_engine::executor::ExecutionError;
use pipo_engine::run::{Device, NewToken, Outcome, Request, RunError, run};
use pipo_plan::plan::{Batching, Plan};
use pipo_plan::strategy::pipo::{Embedding, Pipo};
use pipo_plan::strategy::{KvTier, Processor, Strategy};
use pipo_plan::units::Bytes;

use fixture::{Fixture, MODELS};
use plans::{bits, fixture, resident};

mod fixture;
#[path = "fixture/plans.rs"]
mod plans;

/// What a context of this size holds, at least: the scratch of cuBLAS alone has 32 MiB.
const HELD: u64 = 32 << 20;

/// What the driver may keep of a context that is gone, or anybody else take meanwhile: far less than one.
const LEFT: u64 = 16 << 20;

/// Runs a plan, and cancels it once so many tokens are there; says how much of the device was used then.
fn cancelled_after(
    tokens: u64,
    fixture: &Fixture,
    plan: &Plan,
    used: &(dyn Fn() -> u64 + Sync),
) -> (Result<Outcome, RunError>, u64) {
    let (cancelled, seen, meanwhile) =
        (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let prompts = fixture.prompts(plan);
    let observer = |_: NewToken| {
        if seen.fetch_add(1, Ordering::Relaxed) + 1 == tokens {
            meanwhile.store(used(), Ordering::Relaxed);
            cancelled.store(true, Ordering::Relaxed);
        }
    };
    let request = Request::new(plan, &fixture.store, &prompts);
    let request = Request { threads: 1, device: Device::Cuda, observer: &observer, ..request };
    (run(&request, &cancelled), meanwhile.into_inner())
}

#[test]
fn a_cancelled_run_gives_the_devices_memory_back() {
    if Device::present() != Device::Cuda {
        eprintln!("skipped: there is no NVIDIA GPU here");
        return;
    }
    let nvml = Nvml::init().unwrap();
    let used = || nvml.device_by_index(0).unwrap().memory_info().unwrap().used;
    let fixture = fixture(MODELS.iter().position(|&name| name == "llama3").unwrap(), 0);
    let streamed = Pipo {
        block: Bytes(8192),
        embedding: Embedding::Unit,
        kv: KvTier::Host,
        ..Pipo::default()
    };
    let strategies = [
        resident(),
        Strategy::Pipo(streamed.clone()),
        Strategy::Pipo(Pipo { attention: Processor::Cpu, ..streamed.clone() }),
        Strategy::Pipo(Pipo { kv: KvTier::Disk, hidden: Processor::Cpu, ..streamed }),
    ];
    for strategy in strategies {
        let batch = Batching { micro: 1, count: 2, prefill_chunk: Some(7) };
        let plan = fixture.plan(strategy, batch, 64);
        // The first run of a process makes the driver keep things that it does not give back.
        let whole = fixture.run_on(Device::Cuda, &plan).unwrap();
        let before = used();
        for tokens in [1, 2, 31, 100] {
            let (result, meanwhile) = cancelled_after(tokens, fixture, &plan, &used);
            let after = used();
            println!(
                "{}: {before} bytes used before, {meanwhile} at token {tokens}, {after} after",
                plan.strategy.name()
            );
            let stopped = matches!(result, Err(RunError::Execution(ExecutionError::Cancelled)));
            assert!(stopped, "cancelled at token {tokens}: {:?}", result.err());
            assert!(meanwhile >= before + HELD, "{meanwhile} bytes used during a run");
            assert!(after <= before + LEFT, "{after} bytes used after it, {before} before");
        }
        let again = fixture.run_on(Device::Cuda, &plan).unwrap();
        assert_eq!(again.tokens, whole.tokens);
        assert_eq!(bits(&again), bits(&whole));
    }
}
