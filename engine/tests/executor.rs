//! What must be true of every run, checked on what a backend saw.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use pipo_engine::executor::{Backend, ExecutionError, Fault, Interval, Queue, Task, execute};
use pipo_plan::model::{Precision, catalog};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::schedule::{
    Builder, LaneKind, Layout, OpId, OpKind, Pass, Phase, Program, Schedule, Slot, Tier, Work,
};
use pipo_plan::strategy::flexgen::FlexGen;
use pipo_plan::strategy::pipo::{Embedding, HostWeights, Pipo};
use pipo_plan::strategy::{Granularity, KvTier, Processor, Strategy as System, lower};
use pipo_plan::timeline::Timeline;
use pipo_plan::units::{Bytes, Nanos};
use pipo_plan::workload::{Budget, Objective, Workload};
use proptest::prelude::*;

/// Notes beginnings and ends, in the order in which they happened.
#[derive(Default)]
struct Recorder {
    events: Mutex<Vec<(OpId, bool)>>,
}

impl Recorder {
    fn note(&self, id: OpId, begins: bool) {
        self.events.lock().unwrap().push((id, begins));
    }
}

impl Recorder {
    fn perform_one(&self, id: OpId) {
        self.note(id, true);
        // Operations of different lengths, so that lanes really overtake one another.
        for _ in 0..id.0 % 7 {
            std::thread::yield_now();
        }
        self.note(id, false);
    }
}

impl Backend for Recorder {
    fn perform(&self, task: &Task) -> Result<(), Fault> {
        self.perform_one(task.id);
        Ok(())
    }
}

/// What a queue is told: an operation, and those that it has to wait for.
type Order = (OpId, Vec<OpId>);

/// A backend whose GPU lanes are queues, each worked off by a thread that knows what it was told: the
/// operations before it, and those that `after` names.
#[derive(Default)]
struct Device {
    recorder: Recorder,
    queues: Mutex<BTreeMap<u8, mpsc::Sender<Order>>>,
    ended: Mutex<BTreeMap<OpId, Interval>>,
    end: Condvar,
    /// Lane of each queue of the schedule.
    lanes: Vec<u8>,
    /// The operation that fails on the device.
    fails: Option<OpId>,
    waited: Mutex<BTreeSet<OpId>>,
}

impl Device {
    fn is_queue(lane: LaneKind) -> bool {
        lane.is_of_gpu()
    }

    fn run(schedule: &Schedule, fails: Option<OpId>) -> (Result<Timeline, ExecutionError>, Self) {
        let lanes = schedule.layout.queues.iter().map(|lane| lane.0).collect();
        let device = Self { lanes, fails, ..Self::default() };
        let result = std::thread::scope(|scope| {
            for (lane, number) in schedule.layout.lanes.iter().zip(0..) {
                if Self::is_queue(lane.kind) {
                    let (sender, receiver) = mpsc::channel();
                    device.queues.lock().unwrap().insert(number, sender);
                    let device = &device;
                    scope.spawn(move || {
                        for (id, after) in receiver {
                            device.work(id, &after);
                        }
                    });
                }
            }
            let result = run(schedule, &device);
            device.queues.lock().unwrap().clear();
            result
        });
        (result, device)
    }

    fn work(&self, id: OpId, after: &[OpId]) {
        let mut ended = self.ended.lock().unwrap();
        while !after.iter().all(|wait| ended.contains_key(wait)) {
            ended = self.end.wait(ended).unwrap();
        }
        drop(ended);
        let start = Instant::now();
        self.recorder.perform_one(id);
        self.ended.lock().unwrap().insert(id, Interval { start, end: Instant::now() });
        self.end.notify_all();
    }
}

impl Backend for Device {
    fn perform(&self, task: &Task) -> Result<(), Fault> {
        let lane = self.lanes[usize::from(task.op.queue.0)];
        let queue = self.queues.lock().unwrap().get(&lane).cloned();
        if let Some(queue) = queue {
            queue.send((task.id, task.after.to_vec())).unwrap();
        } else {
            assert_eq!(task.after, []);
            self.recorder.perform_one(task.id);
        }
        Ok(())
    }

    fn queue(&self, lane: LaneKind) -> Option<&dyn Queue> {
        Self::is_queue(lane).then_some(self)
    }
}

impl Queue for Device {
    fn wait(&self, task: &Task) -> Result<Interval, Fault> {
        if self.fails == Some(task.id) {
            return Err(Fault("the device is lost".into()));
        }
        let mut ended = self.ended.lock().unwrap();
        assert!(self.waited.lock().unwrap().insert(task.id), "each is waited for once");
        loop {
            if let Some(&interval) = ended.get(&task.id) {
                return Ok(interval);
            }
            ended = self.end.wait(ended).unwrap();
        }
    }
}

/// All operations of a schedule, as a second lowering emits them.
fn passes(schedule: &Schedule) -> Vec<Pass> {
    let mut builder = Builder::new(&schedule.layout);
    let emit = |pass| {
        schedule.program.emit(pass, &mut builder);
        builder.finish(Pass::default())
    };
    (0..schedule.program.passes()).map(emit).collect()
}

/// Checks an order of events against every rule of the schedule.
fn check(schedule: &Schedule, events: &[(OpId, bool)]) {
    let passes = passes(schedule);
    let all: usize = passes.iter().map(|p| p.ops.len()).sum();
    assert_eq!(events.len(), 2 * all, "every operation begins once and ends once");
    let (mut begun, mut ended) = (vec![false; all], vec![false; all]);
    let mut lane_runs = vec![None; schedule.layout.lanes.len()];
    let mut last_in_queue = vec![None; schedule.layout.queues.len()];
    let mut holders: Vec<Vec<Option<OpId>>> =
        schedule.layout.rings.iter().map(|r| vec![None; usize::from(r.slots)]).collect();
    for &(id, begins) in events {
        let pass = passes.iter().rev().find(|p| p.first <= id.0).unwrap();
        let op = &pass.ops[(id.0 - pass.first) as usize];
        let queue = usize::from(op.queue.0);
        let lane = usize::from(schedule.layout.queues[queue].0);
        let slot = |slot: Slot| (usize::from(slot.ring.0), usize::from(slot.index));
        if begins {
            assert!(!std::mem::replace(&mut begun[id.0 as usize], true), "{id:?} began twice");
            assert_eq!(lane_runs[lane].replace(id), None, "a lane runs one operation at a time");
            assert!(last_in_queue[queue].replace(id) < Some(id), "a queue is first-in first-out");
            for wait in pass.waits(op) {
                assert!(ended[wait.0 as usize], "{id:?} began before {wait:?} had ended");
            }
            let window = schedule.layout.window;
            if pass.number >= window {
                let gate = &passes[(pass.number - window) as usize];
                let all = gate.first as usize..gate.first as usize + gate.ops.len();
                assert!(ended[all].iter().all(|&e| e), "{id:?} began before its window");
            }
            if let Some((ring, index)) = op.takes.map(slot) {
                assert_eq!(holders[ring][index].replace(id), None, "{id:?} took a held slot");
            }
        } else {
            ended[id.0 as usize] = true;
            assert_eq!(lane_runs[lane].take(), Some(id));
            for (ring, index) in op.frees.into_iter().flatten().map(slot) {
                assert!(holders[ring][index].take().is_some(), "{id:?} freed a free slot");
            }
        }
    }
}

fn run(schedule: &Schedule, backend: &dyn Backend) -> Result<Timeline, ExecutionError> {
    execute(schedule, backend, &AtomicBool::new(false))
}

fn plan(strategy: System, batch: Batching) -> Plan {
    Plan {
        machine: "any".into(),
        profile: String::new(),
        seed: 1,
        workload: Workload {
            prompt: 24,
            new_tokens: 4,
            batch: None,
            objective: Objective::Throughput,
            token_within: None,
        },
        budget: Budget { gpu: Bytes(1 << 50), host: Bytes(1 << 50), disk: Bytes(1 << 50) },
        precision: Precisions { weights: Precision::Int4, kv: Precision::Fp16 },
        batch,
        strategy,
        model: catalog::find("opt-125m").unwrap(),
        prediction: None,
        runners_up: Vec::new(),
    }
}

fn pipo() -> impl Strategy<Value = Pipo> {
    let granularity =
        prop::sample::select(vec![Granularity::Layer, Granularity::Part, Granularity::Tensor]);
    let kv = prop::sample::select(vec![KvTier::Gpu, KvTier::Host, KvTier::Disk]);
    let sizes = (1..4_u32, 1..5_u32, 1..4_u32, 1..4_u32, 0..60_u64, 0..60_u64, 1..8_u64);
    let embedding = [Embedding::Host, Embedding::Mapped, Embedding::Unit];
    let embedding = prop::sample::select(embedding.to_vec());
    (granularity, (kv, embedding), sizes, any::<[bool; 3]>(), 0..6_u32).prop_map(
        |(granularity, (kv, embedding), sizes, flags, kv_gpu_layers)| {
            let (gpu_slots, host_slots, kv_slots, disk_threads, gpu, host, block) = sizes;
            let on_cpu = flags[2] && kv == KvTier::Host;
            Pipo {
                granularity,
                gpu_slots,
                host_slots,
                kv_slots,
                disk_threads,
                block: Bytes(block * 500_000),
                gpu_weights: Bytes(gpu * 1_000_000),
                host_weights: Bytes(host * 1_000_000),
                host_memory: if flags[0] { HostWeights::Pageable } else { HostWeights::Pinned },
                embedding,
                kv,
                kv_gpu_layers,
                attention: if on_cpu { Processor::Cpu } else { Processor::Gpu },
                hidden: if flags[1] && !on_cpu { Processor::Cpu } else { Processor::Gpu },
                ..Pipo::default()
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_run_keeps_every_rule(
        knobs in pipo(),
        micro in 1..3_u64,
        count in 1..4_u64,
        chunk in prop::option::of(1..24_u64),
    ) {
        let batch = Batching { micro, count, prefill_chunk: chunk };
        let schedule = lower(&plan(System::Pipo(knobs), batch)).unwrap();
        let recorder = Recorder::default();
        let timeline = run(&schedule, &recorder).unwrap();
        check(&schedule, &recorder.events.into_inner().unwrap());
        check_timeline(&schedule, &timeline)?;
        let (timeline, device) = Device::run(&schedule, None);
        check(&schedule, &device.recorder.events.into_inner().unwrap());
        check_timeline(&schedule, &timeline.unwrap())?;
    }
}

fn check_timeline(schedule: &Schedule, timeline: &Timeline) -> Result<(), TestCaseError> {
    let ops: usize = passes(schedule).iter().map(|p| p.ops.len()).sum();
    prop_assert_eq!((timeline.spans.len(), timeline.passes.len()), (ops, 4));
    prop_assert!(timeline.passes.is_sorted_by_key(|p| p.end));
    for pair in timeline.spans.windows(2) {
        prop_assert!((pair[0].start, pair[0].op) <= (pair[1].start, pair[1].op));
    }
    for span in &timeline.spans {
        prop_assert!(span.start <= span.end && span.end <= timeline.end);
        prop_assert!(span.blame.op() < Some(span.op) || span.blame.op().is_some());
    }
    for lane in 0..schedule.layout.lanes.len() {
        let of_lane = timeline.spans.iter().filter(|span| usize::from(span.lane.0) == lane);
        let mut end = Nanos::ZERO;
        for span in of_lane {
            prop_assert!(end <= span.start, "a lane runs one operation at a time");
            end = span.end;
        }
    }
    Ok(())
}

#[test]
fn a_failure_on_a_device_ends_the_run_and_is_named() {
    let schedule = streamed();
    let gpu = |op: &pipo_plan::schedule::Op| op.kind == OpKind::Compute;
    let (first, ops) = passes(&schedule).into_iter().nth(1).map(|p| (p.first, p.ops)).unwrap();
    let at = u32::try_from(ops.iter().position(gpu).unwrap()).unwrap();
    let (result, _) = Device::run(&schedule, Some(OpId(first + at)));
    insta::assert_snapshot!(result.unwrap_err(), @"compute on GPU 0, layer 0 attention, block 0, micro-batch 0, pass 1: the device is lost");
}

#[test]
fn barriers_keep_the_rules_too() {
    let knobs = FlexGen {
        weights_gpu: 0,
        weights_host: 50,
        cache_gpu: 50,
        cache_host: 50,
        ..FlexGen::default()
    };
    let batch = Batching { micro: 2, count: 2, prefill_chunk: None };
    let schedule = lower(&plan(System::FlexGen(knobs), batch)).unwrap();
    let recorder = Recorder::default();
    run(&schedule, &recorder).unwrap();
    check(&schedule, &recorder.events.into_inner().unwrap());
}

/// What the slots of streamed weights mean: a product reads the slot that its unit's blocks were loaded to.
#[test]
fn a_product_is_bound_to_the_slot_its_weights_were_loaded_to() {
    #[derive(Default)]
    struct Slots {
        of_unit: Mutex<Vec<(Slot, u16)>>,
        products: AtomicU32,
    }
    impl Backend for Slots {
        fn perform(&self, task: &Task) -> Result<(), Fault> {
            let mut of_unit = self.of_unit.lock().unwrap();
            match (task.op.kind, task.bound.weights) {
                (OpKind::LoadWeights, Some(slot)) => {
                    of_unit.retain(|(held, _)| *held != slot);
                    of_unit.push((slot, task.op.unit));
                }
                (OpKind::Compute, Some(slot)) => {
                    assert!(of_unit.contains(&(slot, task.op.unit)), "{task:?}");
                    self.products.fetch_add(1, Ordering::Relaxed);
                }
                (OpKind::LoadWeights, None) => panic!("a load without a slot"),
                _ => {}
            }
            Ok(())
        }
    }
    let knobs = Pipo { block: Bytes(1_000_000), gpu_slots: 3, ..Pipo::default() };
    let batch = Batching { micro: 1, count: 2, prefill_chunk: None };
    let schedule = lower(&plan(System::Pipo(knobs), batch)).unwrap();
    let slots = Slots::default();
    run(&schedule, &slots).unwrap();
    // 12 layers of two parts and the head, for two micro-batches in four passes.
    assert_eq!(slots.products.into_inner(), 25 * 2 * 4);
}

/// A program written out: queue, waits, slot taken, slot freed.
struct Script(Vec<Item>);

type Item = (u8, Vec<u32>, Option<u16>, Option<u16>);

impl Program for Script {
    fn passes(&self) -> u32 {
        1
    }
    fn phase(&self, _: u32) -> Phase {
        Phase::Prefill
    }
    fn emit(&self, _: u32, out: &mut Builder) {
        for (queue, waits, takes, frees) in &self.0 {
            let slot = |index: &u16| Slot { ring: pipo_plan::schedule::RingId(0), index: *index };
            let waits: Vec<OpId> = waits.iter().map(|&w| OpId(w)).collect();
            let work = out.work(Work::Barrier);
            let op = out.op(pipo_plan::schedule::QueueId(*queue), OpKind::Compute, work);
            op.after_all(&waits)
                .takes(takes.as_ref().map(slot))
                .frees(frees.as_ref().map(slot))
                .emit();
        }
    }
}

fn script(ops: Vec<Item>) -> Schedule {
    let mut layout = Layout { window: 1, units: vec!["the unit".into()], ..Layout::default() };
    layout.lane_queue(LaneKind::DiskRead);
    layout.lane_queue(LaneKind::Gpu);
    layout.ring("blocks", Tier::Pinned, 1, Bytes(1));
    Schedule { layout, program: Box::new(Script(ops)) }
}

#[test]
fn a_stuck_schedule_says_who_waits_for_what() {
    let held = script(vec![
        (0, vec![], Some(0), None),
        (0, vec![], Some(0), None),
        (1, vec![1], None, None),
    ]);
    let error = run(&held, &Recorder::default()).unwrap_err();
    insta::assert_snapshot!(error, @r"
    the schedule is stuck: nothing runs and nothing can start
      compute on disk read 0, the unit, block 0, micro-batch 0, pass 0 waits for slot 0 of blocks
      compute on GPU 0, the unit, block 0, micro-batch 0, pass 0 waits for compute on disk read 0, the unit, block 0, micro-batch 0, pass 0
    ");
}

#[test]
fn schedules_that_break_a_rule_are_refused() {
    let error = |ops| run(&script(ops), &Recorder::default()).unwrap_err().to_string();
    let wrong = "the lowering that made this schedule is wrong";
    let cases = [
        (vec![(0, vec![0], None, None)], "operation 0: it waits for itself or for something later"),
        (vec![(7, vec![], None, None)], "operation 0: its queue is not there"),
        (vec![(0, vec![], Some(1), None)], "operation 0: its slot is not there"),
        (vec![(0, vec![], None, Some(0))], "operation 0: it frees a free slot"),
    ];
    for (ops, expected) in cases {
        assert_eq!(error(ops), format!("{expected}; {wrong}"));
    }
}

#[test]
fn an_empty_program_ends_at_once() {
    let timeline = run(&script(Vec::new()), &Recorder::default()).unwrap();
    assert_eq!((timeline.spans.len(), timeline.passes.len()), (0, 1));
}

/// Fails or panics at one operation, and notes what begins after it.
struct Faulty {
    at: u32,
    panics: bool,
    over: AtomicBool,
    late: AtomicU32,
}

impl Backend for Faulty {
    fn perform(&self, task: &Task) -> Result<(), Fault> {
        if self.over.load(Ordering::SeqCst) {
            self.late.fetch_add(1, Ordering::SeqCst);
            // Far longer than the failure takes to be reported.
            std::thread::sleep(Duration::from_millis(50));
        }
        if task.id.0 != self.at {
            return Ok(());
        }
        self.over.store(true, Ordering::SeqCst);
        if self.panics {
            // Without the hook, which would print a backtrace before anybody learns of the panic.
            std::panic::resume_unwind(Box::new("the backend is broken"));
        }
        Err(Fault("block 3 of layer 7 is short by 12 bytes".into()))
    }
}

fn streamed() -> Schedule {
    lower(&plan(System::Pipo(Pipo::default()), Batching::single(1))).unwrap()
}

#[test]
fn the_first_failure_ends_the_run_and_is_named() {
    for panics in [false, true] {
        let schedule = streamed();
        let lanes = u32::try_from(schedule.layout.lanes.len()).unwrap();
        let faulty =
            Faulty { at: 40, panics, over: AtomicBool::new(false), late: AtomicU32::new(0) };
        let error = run(&schedule, &faulty).unwrap_err();
        let expected = if panics {
            "the backend panicked (the backend is broken)"
        } else {
            "block 3 of layer 7 is short by 12 bytes"
        };
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains(", layer "), "{error}");
        // Each other lane may have begun one operation before it learnt of the failure.
        assert!(faulty.late.into_inner() < lanes);
    }
}

#[test]
fn a_cancelled_run_ends() {
    struct Canceller<'a>(&'a AtomicBool);
    impl Backend for Canceller<'_> {
        fn perform(&self, task: &Task) -> Result<(), Fault> {
            if task.id.0 == 20 {
                self.0.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_micros(50));
            Ok(())
        }
    }
    let cancelled = AtomicBool::new(false);
    let error = execute(&streamed(), &Canceller(&cancelled), &cancelled).unwrap_err();
    assert_eq!(error, ExecutionError::Cancelled);
}

#[test]
fn of_a_lanes_ready_queues_the_first_in_program_order_goes_on() {
    let ops = (0..20_u8).map(|i| (i % 3 % 2, vec![], None, None)).collect();
    let mut schedule = script(ops);
    let lane = schedule.layout.queues[0];
    schedule.layout.queues = vec![lane, lane];
    let recorder = Recorder::default();
    run(&schedule, &recorder).unwrap();
    let begun: Vec<u32> =
        recorder.events.into_inner().unwrap().iter().filter(|e| e.1).map(|e| e.0.0).collect();
    assert_eq!(begun, (0..20).collect::<Vec<u32>>());
}

/// A device that takes so long for each operation, and knows when it will end as soon as it is issued.
struct Timed {
    schedule: Vec<LaneKind>,
    took: fn(LaneKind, Bytes) -> Duration,
    /// When each lane is free, and when each operation runs.
    free: Mutex<BTreeMap<LaneKind, Instant>>,
    ran: Mutex<BTreeMap<OpId, Interval>>,
    issued: Mutex<Vec<OpId>>,
}

impl Backend for Timed {
    fn perform(&self, task: &Task) -> Result<(), Fault> {
        let lane = self.schedule[usize::from(task.op.queue.0)];
        let mut ran = self.ran.lock().unwrap();
        let mut free = self.free.lock().unwrap();
        let before = task.after.iter().map(|id| ran[id].end);
        let start = before.chain(free.get(&lane).copied()).fold(Instant::now(), Instant::max);
        let end = start + (self.took)(lane, task.work.bytes());
        free.insert(lane, end);
        ran.insert(task.id, Interval { start, end });
        self.issued.lock().unwrap().push(task.id);
        Ok(())
    }

    fn queue(&self, _: LaneKind) -> Option<&dyn Queue> {
        Some(self)
    }
}

impl Queue for Timed {
    fn wait(&self, task: &Task) -> Result<Interval, Fault> {
        let interval = self.ran.lock().unwrap()[&task.id];
        std::thread::sleep(interval.end.saturating_duration_since(Instant::now()));
        Ok(interval)
    }
}

/// Loads of weights that wait for nothing, and one of hidden states behind a computation that ends while one of
/// them moves: it goes before the next, which is not issued as long as there is time to choose.
#[test]
fn what_is_ready_before_a_copy_ends_goes_before_what_comes_later() {
    const WEIGHTS: Bytes = Bytes(64 << 20);
    struct Loads;
    impl Program for Loads {
        fn passes(&self) -> u32 {
            1
        }
        fn phase(&self, _: u32) -> Phase {
            Phase::Prefill
        }
        fn emit(&self, _: u32, out: &mut Builder) {
            let [weights, hidden, kernels] = [0, 1, 2].map(pipo_plan::schedule::QueueId);
            let large = out.work(Work::HostCopy { bytes: WEIGHTS });
            let small = out.work(Work::HostCopy { bytes: Bytes(4096) });
            out.op(weights, OpKind::LoadWeights, large).emit();
            let loaded = out.op(weights, OpKind::LoadWeights, large).emit();
            let computed = out.op(kernels, OpKind::Compute, small).after(loaded).emit();
            out.op(hidden, OpKind::LoadWeights, small).after(computed).emit();
            for _ in 0..3 {
                out.op(weights, OpKind::LoadWeights, large).emit();
            }
        }
    }
    let mut layout = Layout { window: 1, units: vec!["the unit".into()], ..Layout::default() };
    layout.lane_queue(LaneKind::H2d);
    let lane = layout.queues[0];
    layout.queues.push(lane);
    layout.lane_queue(LaneKind::Gpu);
    let timed = Timed {
        schedule: vec![LaneKind::H2d, LaneKind::H2d, LaneKind::Gpu],
        took: |lane, bytes| match lane {
            LaneKind::Gpu => Duration::from_millis(5),
            _ if bytes == WEIGHTS => Duration::from_millis(100),
            _ => Duration::from_micros(10),
        },
        free: Mutex::default(),
        ran: Mutex::default(),
        issued: Mutex::default(),
    };
    run(&Schedule { layout, program: Box::new(Loads) }, &timed).unwrap();
    let order: Vec<u32> = timed.issued.into_inner().unwrap().iter().map(|id| id.0).collect();
    let copies: Vec<u32> = order.into_iter().filter(|&id| id != 2).collect();
    assert_eq!(copies, [0, 1, 4, 3, 5, 6]);
}
