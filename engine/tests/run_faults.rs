//! Runs in which something goes wrong: each ends in time, with an error that says where, and no result.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pipo_engine::disk::{BlockReader, Buffered, Faulty, ReadError, Trouble};
use pipo_engine::executor::ExecutionError;
use pipo_engine::run::{Device, Outcome, Request, RunError, run as execute};
use pipo_plan::plan::{Batching, Plan};
use pipo_plan::strategy::pipo::{Embedding, Pipo};
use pipo_plan::strategy::{KvTier, Strategy};
use pipo_plan::units::Bytes;

use fixture::Fixture;
use plans::{bits, fixture, resident};

mod fixture;
#[path = "fixture/plans.rs"]
mod plans;

/// A run that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_mins(1);

/// Everything streamed in pieces that begin anywhere, by two threads.
fn streamed(fixture: &Fixture) -> Plan {
    let knobs = Pipo {
        block: Bytes(5001),
        read_block: Bytes(8192),
        disk_threads: 2,
        embedding: Embedding::Unit,
        ..Pipo::default()
    };
    fixture.plan(Strategy::Pipo(knobs), Batching { micro: 2, count: 2, prefill_chunk: None }, 4)
}

/// A run whose reads of weights are another reader's.
fn with_reader(
    fixture: &Fixture,
    plan: &Plan,
    reader: &dyn BlockReader,
    cancelled: &AtomicBool,
) -> Result<Outcome, RunError> {
    let prompts = fixture.prompts(plan);
    let request = Request::new(plan, &fixture.store, &prompts);
    execute(&Request { threads: 1, reader: Some(reader), ..request }, cancelled)
}

/// Runs with a reader on a thread of its own, so that a hang is a failure.
fn run(
    plan: Plan,
    fixture: &'static Fixture,
    reader: impl BlockReader + 'static,
) -> Result<Outcome, RunError> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let result = with_reader(fixture, &plan, &reader, &AtomicBool::new(false));
        sender.send(result).unwrap();
    });
    receiver.recv_timeout(PATIENCE).unwrap()
}

fn buffered(fixture: &Fixture) -> Buffered {
    Buffered::open(fixture.store.data_path(), 8192).unwrap()
}

/// Counts reads.
#[derive(Debug)]
struct Counted<'a, R>(R, &'a AtomicU64);

impl<R: BlockReader> BlockReader for Counted<'_, R> {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.read(offset, into)
    }
}

fn reads(fixture: &Fixture) -> u64 {
    let count = AtomicU64::new(0);
    let reader = Counted(buffered(fixture), &count);
    with_reader(fixture, &streamed(fixture), &reader, &AtomicBool::new(false)).unwrap();
    count.into_inner()
}

#[test]
fn a_read_that_fails_ends_the_run_and_names_its_place() {
    let fixture = fixture(2, 0);
    let all = reads(fixture);
    for at in [0, 1, all / 2, all - 1] {
        for (trouble, cause) in
            [(Trouble::Fails, "input/output error"), (Trouble::Shortens, "the file ends after")]
        {
            let reader = Faulty::new(buffered(fixture), trouble, at);
            let error = run(streamed(fixture), fixture, reader).unwrap_err().to_string();
            assert!(error.starts_with("read weights on disk read "), "{error}");
            assert!(error.contains(", block ") && error.contains(" bytes from byte "), "{error}");
            assert!(error.contains(cause), "{error}");
        }
    }
}

/// In the first pass, when no piece has been seen before, in the last read of all, and between them.
#[test]
fn a_corrupted_read_is_found_whenever_it_happens() {
    let fixture = fixture(2, 0);
    let all = reads(fixture);
    assert!(all > 100, "{all}");
    for at in (0..all).step_by(17).chain([all - 1]) {
        let reader = Faulty::new(buffered(fixture), Trouble::Corrupts, at);
        let error = run(streamed(fixture), fixture, reader).unwrap_err().to_string();
        assert!(error.contains("weights.bin: block 0 of the run `"), "read {at}: {error}");
        assert!(error.contains("has the checksum"), "read {at}: {error}");
    }
}

#[test]
fn a_late_read_changes_nothing() {
    let fixture = fixture(2, 0);
    let expected = fixture.run(&streamed(fixture)).unwrap();
    let late = Trouble::Delays(Duration::from_millis(200));
    let found = run(streamed(fixture), fixture, Faulty::new(buffered(fixture), late, 40)).unwrap();
    assert_eq!(bits(&found), bits(&expected));
}

/// Takes its time for each read.
#[derive(Debug)]
struct Slow<R>(R);

impl<R: BlockReader> BlockReader for Slow<R> {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        std::thread::sleep(Duration::from_millis(100));
        self.0.read(offset, into)
    }
}

#[test]
fn a_cancelled_run_ends_with_the_read_under_way() {
    let fixture = fixture(2, 0);
    let whole = Duration::from_millis(100) * u32::try_from(reads(fixture)).unwrap() / 2;
    let (count, cancelled) = (AtomicU64::new(0), AtomicBool::new(false));
    let reader = Slow(Counted(buffered(fixture), &count));
    let plan = streamed(fixture);
    let begin = Instant::now();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(250));
            cancelled.store(true, Ordering::Relaxed);
        });
        with_reader(fixture, &plan, &reader, &cancelled)
    });
    assert!(matches!(result, Err(RunError::Execution(ExecutionError::Cancelled))), "{result:?}");
    let took = begin.elapsed();
    assert!(took < whole / 4, "it took {took:?} of {whole:?}");
    // The lanes have ended: nobody reads on.
    let reads = count.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(count.load(Ordering::Relaxed), reads);
}

#[test]
fn a_budget_that_is_a_byte_too_small_is_refused_before_anything_is_read() {
    let fixture = fixture(2, 0);
    for plan in [streamed(fixture), fixture.plan(resident(), Batching::single(1), 2)] {
        let layout = pipo_plan::strategy::lower(&plan).unwrap().layout;
        let none = pipo_plan::memory::Overheads::default();
        let table = pipo_plan::memory::MemoryTable::new(&layout, none);
        let mut exact = plan.clone();
        exact.budget.gpu = table.gpu();
        exact.budget.host = table.host();
        exact.budget.disk = table.disk();
        fixture.run(&exact).unwrap();
        for (side, path) in [(0, "budget.gpu: "), (1, "budget.host: "), (2, "budget.disk: ")] {
            let mut small = exact.clone();
            let budget = &mut small.budget;
            let budget =
                [&mut budget.gpu, &mut budget.host, &mut budget.disk].into_iter().nth(side);
            let budget = budget.unwrap();
            if *budget == Bytes::ZERO {
                continue;
            }
            *budget = *budget - Bytes(1);
            let count = AtomicU64::new(0);
            let reader = Counted(buffered(fixture), &count);
            let error = with_reader(fixture, &small, &reader, &AtomicBool::new(false)).unwrap_err();
            assert!(matches!(error, RunError::Plan(_)), "{error}");
            let error = error.to_string();
            assert!(error.starts_with(path) && error.contains("1 B (1 B) too much"), "{error}");
            assert_eq!(count.into_inner(), 0);
        }
    }
}

/// Said without a GPU, too: before a device is looked for.
#[test]
fn more_sequences_than_a_gpu_attends_for_at_once_are_refused_before_anything_is_read() {
    let fixture = fixture(2, 0);
    let plan = fixture.plan(resident(), Batching::single(40_000), 2);
    let heads = plan.model.kv_heads;
    assert!(heads > 1);
    let request = Request { device: Device::Cuda, ..Request::new(&plan, &fixture.store, &[]) };
    let error = execute(&request, &AtomicBool::new(false)).unwrap_err().to_string();
    for words in
        ["batch.micro: ", "at most 65535 ", &format!("40000 times {heads}"), "smaller --batch"]
    {
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }
}

#[test]
fn a_plan_for_more_memory_than_the_shape_has_is_refused() {
    let fixture = fixture(2, 0);
    let mut plan = fixture.plan(resident(), Batching::single(1), 2);
    plan.budget.gpu = Bytes(6_000_000_001);
    let shape = "gpu-mem=6GB".parse().unwrap();
    let request = Request::new(&plan, &fixture.store, &[]);
    let request = Request { device: Device::Cuda, shape, ..request };
    let error = execute(&request, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(
        error.starts_with("budget.gpu is 6.00 GB") && error.contains("--gpu-mem 6GB"),
        "{error}"
    );
}

/// A cache on disk leaves nothing there, whether the run ends well or not.
#[test]
fn a_scratch_file_is_gone_with_its_run() {
    let fixture = fixture(2, 0);
    let folder = fixture.store.data_path().parent().unwrap();
    let files = || std::fs::read_dir(folder).unwrap().count();
    let before = files();
    let knobs = Pipo { kv: KvTier::Disk, ..Pipo::default() };
    let plan = fixture.plan(Strategy::Pipo(knobs), Batching::single(2), 4);
    let outcome = fixture.run(&plan).unwrap();
    assert!(outcome.notes.iter().any(|note| note.contains("the cache on disk")));
    assert_eq!(files(), before);
    let reader = Faulty::new(buffered(fixture), Trouble::Fails, 12);
    run(plan, fixture, reader).unwrap_err();
    assert_eq!(files(), before);
}
