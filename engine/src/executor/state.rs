//! What is emitted, what has ended, which slots are free: everything that the lanes decide by.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipo_plan::schedule::{Builder, Op, OpId, Pass, Schedule, Slot, Work};
use pipo_plan::timeline::{Blame, PassEnd, Span, Timeline};
use pipo_plan::units::{Bandwidth, Bytes, Nanos};

use super::bind::{Binder, Bound};
use super::error::{ExecutionError, Fault};
use super::{ABOUT_TO_END, AHEAD, AHEAD_OF_CHOICE, Interval, MANY, Task};

/// When something ended, and which operation it was.
type Ended = (Nanos, OpId);

/// A pass that has been emitted and not yet retired.
struct Live {
    pass: Pass,
    bound: Vec<Bound>,
    /// For each operation that takes a slot, how many took it before.
    turns: Vec<u32>,
    /// What has been issued to a queue.
    issued: Vec<bool>,
    ended: Vec<Option<Nanos>>,
    /// Operations that have not ended.
    left: usize,
    /// The last operation of the pass that had to end before this one was emitted.
    gate: Option<Ended>,
    /// When its last token was ready.
    token: Option<Nanos>,
}

/// One slot: how often it was promised, and how often given back.
#[derive(Debug, Clone, Copy, Default)]
struct SlotUse {
    promised: u32,
    taken: u32,
    /// How often who gives it back was issued to a queue, or ended: what queues go by.
    released: u32,
    released_by: Option<OpId>,
    freed: u32,
    freed_by: Option<Ended>,
}

/// An operation that a lane has begun.
pub(super) struct Started {
    id: OpId,
    pass: u32,
    op: Op,
    work: Arc<Work>,
    bound: Bound,
    after: Vec<OpId>,
    span: usize,
}

impl Started {
    pub(super) fn task(&self) -> Task<'_> {
        let Self { id, pass, op, work, bound, after, .. } = self;
        Task { id: *id, pass: *pass, op, work, bound: *bound, after }
    }
}

struct LaneState {
    queues: Vec<usize>,
    /// Whether a queue of a device works its operations off.
    queued: bool,
    /// What is being performed.
    performing: Option<Arc<Started>>,
    /// What was issued to the queue and has not ended, the oldest first.
    issued: VecDeque<Arc<Started>>,
    last: Option<Ended>,
    /// How fast it moved [`MANY`] bytes or more when it last did.
    rate: Option<Bandwidth>,
    /// Whether its thread sleeps until a queue has room.
    sleeps: bool,
}

/// When a lane may take another operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Now,
    /// Not before this.
    At(Nanos),
    /// When something has ended.
    Later,
}

impl LaneState {
    fn is_idle(&self) -> bool {
        self.performing.is_none() && self.issued.is_empty()
    }

    /// `issued_at` says of an operation in the queue when it was issued.
    fn room(&self, issued_at: impl Fn(&Started) -> Nanos) -> Room {
        if self.performing.is_some() || self.issued.len() >= AHEAD {
            return Room::Later;
        }
        if self.queues.len() < 2 {
            return Room::Now;
        }
        let mut large = self.issued.iter().filter(|started| started.work.bytes() >= MANY);
        match (large.next(), large.count() + 1) {
            (None, _) => Room::Now,
            (Some(_), AHEAD_OF_CHOICE..) => Room::Later,
            (Some(first), _) => self.rate.map_or(Room::Now, |rate| {
                let free = self.last.map_or(Nanos::ZERO, |(end, _)| end);
                let end = issued_at(first).max(free) + rate.time(first.work.bytes());
                Room::At(end - ABOUT_TO_END)
            }),
        }
    }

    /// Learns from an operation that took so long.
    fn moved(&mut self, bytes: Bytes, time: Nanos) {
        if bytes >= MANY {
            self.rate = Some(Bandwidth::of(bytes, time));
        }
    }
}

/// The state of a run.
pub(super) struct State<'a> {
    schedule: &'a Schedule,
    origin: Instant,
    builder: Builder,
    binder: Binder,
    works: Vec<Arc<Work>>,
    next_pass: u32,
    live: VecDeque<Live>,
    last_retired: Option<Ended>,
    queues: Vec<VecDeque<OpId>>,
    lanes: Vec<LaneState>,
    slots: Vec<Vec<SlotUse>>,
    spans: Vec<Span>,
    passes: Vec<PassEnd>,
    failure: Option<ExecutionError>,
}

impl<'a> State<'a> {
    pub(super) fn new(
        schedule: &'a Schedule,
        queued: &dyn Fn(usize) -> bool,
    ) -> Result<Self, ExecutionError> {
        let layout = &schedule.layout;
        let lanes = layout.lanes.len();
        if layout.queues.iter().any(|lane| usize::from(lane.0) >= lanes) {
            return Err(ExecutionError::Layout {
                what: "a queue belongs to a lane that is not there",
            });
        }
        if layout.window == 0 || layout.rings.iter().any(|ring| ring.slots == 0) {
            return Err(ExecutionError::Layout { what: "the window or a ring is empty" });
        }
        let lane = |lane: usize| {
            let mine = |&queue: &usize| usize::from(layout.queues[queue].0) == lane;
            let queues = (0..layout.queues.len()).filter(mine).collect();
            let queued = queued(lane);
            let (performing, issued, last, rate) = (None, VecDeque::new(), None, None);
            LaneState { queues, queued, performing, issued, last, rate, sleeps: false }
        };
        let slots =
            |ring: &pipo_plan::schedule::Ring| vec![SlotUse::default(); usize::from(ring.slots)];
        let mut state = Self {
            schedule,
            origin: Instant::now(),
            builder: Builder::new(layout),
            binder: Binder::default(),
            works: Vec::new(),
            next_pass: 0,
            live: VecDeque::new(),
            last_retired: None,
            queues: layout.queues.iter().map(|_| VecDeque::new()).collect(),
            lanes: (0..lanes).map(lane).collect(),
            slots: layout.rings.iter().map(slots).collect(),
            spans: Vec::new(),
            passes: Vec::new(),
            failure: None,
        };
        state.admit()?;
        Ok(state)
    }

    /// Whether the run has come to its end, good or bad.
    pub(super) fn is_over(&self) -> bool {
        let emitted = self.next_pass == self.schedule.program.passes();
        self.failure.is_some() || (emitted && self.live.is_empty())
    }

    /// Ends the run with an error; the first one counts.
    pub(super) fn fail(&mut self, error: ExecutionError) {
        self.failure.get_or_insert(error);
    }

    /// Whether a lane that is idle should look what it can start: at once, or when to look again.
    pub(super) fn should_look(&self, lane: usize) -> bool {
        let soon = match self.room(lane) {
            Room::Now => true,
            Room::At(_) => !self.lanes[lane].sleeps,
            Room::Later => false,
        };
        soon && self.first_ready(lane).is_some()
    }

    /// How long a lane that found nothing to start sleeps at most: until there is room for what is ready.
    pub(super) fn sleep(&mut self, lane: usize, at_most: Duration) -> Duration {
        if self.first_ready(lane).is_none() {
            return at_most;
        }
        match self.room(lane) {
            // There is room by now.
            Room::Now => Duration::ZERO,
            Room::At(at) => {
                self.lanes[lane].sleeps = true;
                Duration::from_nanos((at - self.now()).0).min(at_most)
            }
            Room::Later => at_most,
        }
    }

    /// A lane's thread is awake.
    pub(super) fn woke(&mut self, lane: usize) {
        self.lanes[lane].sleeps = false;
    }

    fn room(&self, lane: usize) -> Room {
        match self.lanes[lane].room(|started| self.spans[started.span].start) {
            Room::At(at) if at <= self.now() => Room::Now,
            room => room,
        }
    }

    /// Begins the operation that a lane has to run next, if there is one.
    pub(super) fn start(&mut self, lane: usize) -> Option<Arc<Started>> {
        let (queue, id) = self.first_ready(lane).filter(|_| self.room(lane) == Room::Now)?;
        self.queues[queue].pop_front();
        let now = self.now();
        let blame = self.blame(lane, id, now);
        let (live, index) = self.find(id)?;
        let op = live.pass.ops[index];
        let (pass, bound) = (live.pass.number, live.bound[index]);
        let after = if self.lanes[lane].queued { self.after(lane, id) } else { Vec::new() };
        let work = self.works[op.work.0 as usize].clone();
        if let Some(slot) = op.takes {
            self.slots[usize::from(slot.ring.0)][usize::from(slot.index)].taken += 1;
        }
        let of_lane = self.schedule.layout.queues[queue];
        let on_gpu = self.schedule.layout.lanes[lane].kind.is_of_gpu();
        let span = self.spans.len();
        let started = Arc::new(Started { id, pass, op, work, bound, after, span });
        self.lanes[lane].performing = Some(Arc::clone(&started));
        let bytes = started.work.bytes();
        self.spans.push(Span {
            op: id,
            lane: of_lane,
            kind: op.kind,
            pass,
            unit: op.unit,
            micro: op.micro,
            block: op.block,
            start: now,
            end: now,
            bytes,
            gpu_permille: if on_gpu { 1000 } else { 0 },
            blame,
        });
        Some(started)
    }

    /// What a lane performs has been done: it has ended, or it is in the lane's queue.
    pub(super) fn performed(&mut self, lane: usize) {
        let Some(started) = self.lanes[lane].performing.take() else { return };
        for slot in started.op.frees.into_iter().flatten() {
            let used = &mut self.slots[usize::from(slot.ring.0)][usize::from(slot.index)];
            used.released += 1;
            used.released_by = Some(started.id);
        }
        if !self.lanes[lane].queued {
            let now = self.now();
            self.spans[started.span].end = now;
            return self.end(lane, started.id, now, &started.op);
        }
        if let Some((live, index)) = self.index(started.id) {
            self.live[live].issued[index] = true;
        }
        self.lanes[lane].issued.push_back(started);
    }

    /// The oldest operation in a lane's queue.
    pub(super) fn oldest(&self, lane: usize) -> Option<Arc<Started>> {
        self.lanes[lane].issued.front().cloned()
    }

    /// Whether the ends of everything that the oldest operation in a lane's queue waited for have been
    /// noted: the device was told of them, but another thread notes them.
    pub(super) fn can_end(&self, lane: usize) -> bool {
        let Some(started) = self.lanes[lane].issued.front() else { return false };
        let Some((live, index)) = self.find(started.id) else { return false };
        let mut waits = live.pass.waits(&started.op).iter();
        let freed = |slot| self.slot(slot).freed >= live.turns[index];
        waits.all(|&wait| self.has_ended(wait)) && started.op.takes.is_none_or(freed)
    }

    /// The oldest operation in a lane's queue has ended.
    pub(super) fn end_oldest(&mut self, lane: usize, interval: Interval) {
        let Some(started) = self.lanes[lane].issued.pop_front() else { return };
        let blame = self.blame(lane, started.id, Nanos(u64::MAX));
        // Clocks of host and device are compared to a few microseconds: a lane stays serial all the same.
        let free = self.lanes[lane].last.map_or(Nanos::ZERO, |(end, _)| end);
        let start = self.at(interval.start).max(free);
        let end = self.at(interval.end).max(start);
        let span = &mut self.spans[started.span];
        (span.start, span.end, span.blame) = (start, end, blame);
        self.lanes[lane].moved(started.work.bytes(), end - start);
        self.end(lane, started.id, end, &started.op);
    }

    /// Notes an end, and emits passes that may follow.
    fn end(&mut self, lane: usize, id: OpId, now: Nanos, op: &Op) {
        self.lanes[lane].last = Some((now, id));
        let Some(index) = self.index(id) else { return };
        let live = &mut self.live[index.0];
        live.ended[index.1] = Some(now);
        live.left -= 1;
        if op.ends_pass {
            live.token = Some(now);
        }
        for slot in op.frees.into_iter().flatten() {
            let used = &mut self.slots[usize::from(slot.ring.0)][usize::from(slot.index)];
            if used.freed == used.taken {
                return self.fail(ExecutionError::Invalid { op: id, what: "it frees a free slot" });
            }
            used.freed += 1;
            used.freed_by = Some((now, id));
        }
        if let Err(error) = self.admit() {
            self.fail(error);
        }
    }

    /// An operation has failed.
    pub(super) fn failed(&mut self, started: &Started, fault: Fault) {
        let operation = self.describe(started.id);
        self.fail(ExecutionError::Failed { operation, fault });
    }

    /// An operation has panicked.
    pub(super) fn panicked(&mut self, started: &Started, message: String) {
        let operation = self.describe(started.id);
        self.fail(ExecutionError::Panicked { operation, message });
    }

    /// Who waits for what, if nothing runs and nothing can start.
    pub(super) fn stuck(&self) -> Option<ExecutionError> {
        let idle = self.lanes.iter().all(LaneState::is_idle);
        if !idle || (0..self.lanes.len()).any(|lane| self.first_ready(lane).is_some()) {
            return None;
        }
        let heads = self.queues.iter().filter_map(|queue| queue.front());
        let waiting =
            heads.map(|&id| format!("{} waits for {}", self.describe(id), self.blocker(id)));
        Some(ExecutionError::Stuck { waiting: waiting.collect() })
    }

    /// The measured timeline, or why there is none.
    pub(super) fn finish(mut self) -> Result<Timeline, ExecutionError> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let end = self.spans.iter().map(|span| span.end).max().unwrap_or(Nanos::ZERO);
        self.spans.sort_unstable_by_key(|span| (span.start, span.op));
        let layout = self.schedule.layout.clone();
        let (spans, passes) = (self.spans, self.passes);
        Ok(Timeline { layout, spans, passes, end, readings: Vec::new() })
    }

    /// Retires passes that have ended, in order, and emits those that the window then admits.
    fn admit(&mut self) -> Result<(), ExecutionError> {
        loop {
            self.retire();
            let more = self.next_pass < self.schedule.program.passes();
            if !more || self.live.len() >= self.schedule.layout.window as usize {
                return Ok(());
            }
            self.emit()?;
        }
    }

    fn retire(&mut self) {
        while self.live.front().is_some_and(|live| live.left == 0) {
            let Some(live) = self.live.pop_front() else { break };
            let ends =
                (live.pass.first..).zip(&live.ended).filter_map(|(id, &at)| Some((at?, OpId(id))));
            let last = ends.max().unwrap_or((self.now(), OpId(live.pass.first)));
            let phase = self.schedule.program.phase(live.pass.number);
            self.passes.push(PassEnd { phase, end: live.token.unwrap_or(last.0) });
            self.last_retired = Some(last);
        }
    }

    fn emit(&mut self) -> Result<(), ExecutionError> {
        let number = self.next_pass;
        self.schedule.program.emit(number, &mut self.builder);
        let mut pass = self.builder.finish(Pass::default());
        pass.number = number;
        self.next_pass += 1;
        let known = self.works.len();
        self.works.extend(self.builder.works.as_slice()[known..].iter().cloned().map(Arc::new));
        let mut live = Live {
            bound: Vec::with_capacity(pass.ops.len()),
            turns: Vec::with_capacity(pass.ops.len()),
            issued: vec![false; pass.ops.len()],
            ended: vec![None; pass.ops.len()],
            left: pass.ops.len(),
            gate: self.last_retired,
            token: None,
            pass,
        };
        for (id, op) in (live.pass.first..).map(OpId).zip(&live.pass.ops) {
            self.check(id, op, live.pass.waits(op))?;
            live.bound.push(self.binder.bind(op));
            live.turns.push(op.takes.map_or(0, |slot| {
                let used = &mut self.slots[usize::from(slot.ring.0)][usize::from(slot.index)];
                used.promised += 1;
                used.promised - 1
            }));
            self.queues[usize::from(op.queue.0)].push_back(id);
        }
        self.live.push_back(live);
        Ok(())
    }

    /// Refuses an operation that names what is not there, so that nothing later can be out of range.
    fn check(&self, id: OpId, op: &Op, waits: &[OpId]) -> Result<(), ExecutionError> {
        let invalid = |what| Err(ExecutionError::Invalid { op: id, what });
        let known = |slot: Slot| {
            let ring = self.slots.get(usize::from(slot.ring.0));
            ring.is_some_and(|ring| usize::from(slot.index) < ring.len())
        };
        if usize::from(op.queue.0) >= self.queues.len() {
            return invalid("its queue is not there");
        }
        if op.work.0 as usize >= self.works.len() {
            return invalid("its work is not there");
        }
        if !op.takes.into_iter().chain(op.frees.into_iter().flatten()).all(known) {
            return invalid("its slot is not there");
        }
        if waits.iter().any(|&other| other >= id) {
            return invalid("it waits for itself or for something later");
        }
        Ok(())
    }

    fn now(&self) -> Nanos {
        self.at(Instant::now())
    }

    fn at(&self, instant: Instant) -> Nanos {
        let since = instant.saturating_duration_since(self.origin);
        Nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Among the ready heads of a lane's queues, the first in program order; on a lane with a queue, what
    /// need not wait there goes before what must.
    fn first_ready(&self, lane: usize) -> Option<(usize, OpId)> {
        let LaneState { queues, queued, .. } = &self.lanes[lane];
        let first = |queued| {
            let heads = queues.iter().filter_map(|&queue| {
                let &id = self.queues[queue].front()?;
                self.is_ready(id, queued).then_some((queue, id))
            });
            heads.min_by_key(|&(_, id)| id)
        };
        first(false).or_else(|| first(true).filter(|_| *queued))
    }

    /// Whether an operation can be performed; one that goes to a queue waits there for other queues.
    fn is_ready(&self, id: OpId, queued: bool) -> bool {
        let Some((live, index)) = self.find(id) else { return false };
        let op = &live.pass.ops[index];
        let over = |&wait: &OpId| self.has_ended(wait) || queued && self.is_issued(wait);
        let free = |slot| {
            let SlotUse { released, freed, .. } = *self.slot(slot);
            (if queued { released } else { freed }) == live.turns[index]
        };
        live.pass.waits(op).iter().all(over) && op.takes.is_none_or(free)
    }

    /// What the device has to wait for before it starts an operation: what is in other lanes' queues.
    fn after(&self, lane: usize, id: OpId) -> Vec<OpId> {
        let Some((live, index)) = self.find(id) else { return Vec::new() };
        let op = &live.pass.ops[index];
        let releases = op.takes.and_then(|slot| self.slot(slot).released_by);
        let here = |id: OpId| {
            let mine = |started: &Arc<Started>| started.id == id;
            self.lanes[lane].issued.iter().any(mine)
        };
        let all = live.pass.waits(op).iter().copied().chain(releases);
        all.filter(|&id| !self.has_ended(id) && !here(id)).collect()
    }

    fn is_issued(&self, id: OpId) -> bool {
        self.find(id).is_some_and(|(live, index)| live.issued[index])
    }

    fn slot(&self, slot: Slot) -> &SlotUse {
        &self.slots[usize::from(slot.ring.0)][usize::from(slot.index)]
    }

    /// Position of an operation among the live passes; none once its pass is retired.
    fn index(&self, id: OpId) -> Option<(usize, usize)> {
        let at = self.live.partition_point(|live| live.pass.first <= id.0).checked_sub(1)?;
        let index = (id.0 - self.live[at].pass.first) as usize;
        (index < self.live[at].pass.ops.len()).then_some((at, index))
    }

    fn find(&self, id: OpId) -> Option<(&Live, usize)> {
        self.index(id).map(|(at, index)| (&self.live[at], index))
    }

    fn has_ended(&self, id: OpId) -> bool {
        self.find(id).is_none_or(|(live, index)| live.ended[index].is_some())
    }

    /// The last of the conditions of a start to be satisfied.
    fn blame(&self, lane: usize, id: OpId, now: Nanos) -> Blame {
        let Some((live, index)) = self.find(id) else { return Blame::Start };
        let op = &live.pass.ops[index];
        let ended = |&wait: &OpId| {
            let (live, index) = self.find(wait)?;
            Some((live.ended[index]?, wait))
        };
        let wait = live.pass.waits(op).iter().filter_map(ended).max();
        let slot = op.takes.and_then(|slot| self.slot(slot).freed_by);
        let conditions = [
            wait.map(|(at, op)| (at, Blame::Wait(op))),
            slot.map(|(at, op)| (at, Blame::Slot(op))),
            self.lanes[lane].last.map(|(at, op)| (at, Blame::Lane(op))),
            live.gate.map(|(at, op)| (at, Blame::Window(op))),
        ];
        // Of several that ended together the first in this order, as in the simulator.
        let last = conditions.into_iter().flatten().filter(|(at, _)| *at <= now);
        last.rev().max_by_key(|(at, _)| *at).map_or(Blame::Start, |(_, blame)| blame)
    }

    fn describe(&self, id: OpId) -> String {
        let Some((live, index)) = self.find(id) else { return format!("operation {}", id.0) };
        self.schedule.layout.describe(&live.pass.ops[index], live.pass.number)
    }

    fn blocker(&self, id: OpId) -> String {
        let Some((live, index)) = self.find(id) else { return "nothing".into() };
        let op = &live.pass.ops[index];
        if let Some(&wait) = live.pass.waits(op).iter().find(|&&wait| !self.has_ended(wait)) {
            return self.describe(wait);
        }
        op.takes.map_or_else(
            || "its lane".into(),
            |slot| {
                let ring = &self.schedule.layout.rings[usize::from(slot.ring.0)].name;
                format!("slot {} of {ring}", slot.index)
            },
        )
    }
}
