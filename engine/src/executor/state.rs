//! What is emitted, what has ended, which slots are free: everything that the lanes decide by.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use pipo_plan::schedule::{Builder, LaneKind, Op, OpId, Pass, Schedule, Slot, Work};
use pipo_plan::timeline::{Blame, PassEnd, Span, Timeline};
use pipo_plan::units::Nanos;

use super::bind::{Binder, Bound};
use super::error::{ExecutionError, Fault};

/// When something ended, and which operation it was.
type Ended = (Nanos, OpId);

/// A pass that has been emitted and not yet retired.
struct Live {
    pass: Pass,
    bound: Vec<Bound>,
    /// For each operation that takes a slot, how many took it before.
    turns: Vec<u32>,
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
    freed: u32,
    freed_by: Option<Ended>,
}

/// An operation that a lane has begun.
pub(super) struct Started {
    pub(super) id: OpId,
    pub(super) pass: u32,
    pub(super) op: Op,
    pub(super) work: Arc<Work>,
    pub(super) bound: Bound,
}

struct LaneState {
    queues: Vec<usize>,
    running: Option<(OpId, usize)>,
    last: Option<Ended>,
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
    pub(super) fn new(schedule: &'a Schedule) -> Result<Self, ExecutionError> {
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
            LaneState { queues, running: None, last: None }
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

    /// Whether a lane that is idle could start something.
    pub(super) fn can_start(&self, lane: usize) -> bool {
        self.lanes[lane].running.is_none() && self.first_ready(lane).is_some()
    }

    /// Begins the operation that a lane has to run next, if there is one.
    pub(super) fn start(&mut self, lane: usize) -> Option<Started> {
        let (queue, id) = self.first_ready(lane)?;
        self.queues[queue].pop_front();
        let now = self.now();
        let blame = self.blame(lane, id, now);
        let (live, index) = self.find(id)?;
        let op = live.pass.ops[index];
        let (pass, bound) = (live.pass.number, live.bound[index]);
        let work = self.works[op.work.0 as usize].clone();
        if let Some(slot) = op.takes {
            self.slots[usize::from(slot.ring.0)][usize::from(slot.index)].taken += 1;
        }
        let of_lane = self.schedule.layout.queues[queue];
        let on_gpu = matches!(
            self.schedule.layout.lanes[lane].kind,
            LaneKind::Gpu | LaneKind::H2d | LaneKind::D2h
        );
        self.lanes[lane].running = Some((id, self.spans.len()));
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
            bytes: work.bytes(),
            gpu_permille: if on_gpu { 1000 } else { 0 },
            blame,
        });
        Some(Started { id, pass, op, work, bound })
    }

    /// Ends what a lane runs, and emits passes that may follow.
    pub(super) fn end(&mut self, lane: usize) {
        let now = self.now();
        let Some((id, span)) = self.lanes[lane].running.take() else { return };
        self.lanes[lane].last = Some((now, id));
        self.spans[span].end = now;
        let Some(index) = self.index(id) else { return };
        let live = &mut self.live[index.0];
        let op = live.pass.ops[index.1];
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

    /// What a lane runs has failed.
    pub(super) fn failed(&mut self, lane: usize, fault: Fault) {
        let operation = self.running(lane);
        self.fail(ExecutionError::Failed { operation, fault });
    }

    /// What a lane runs has panicked.
    pub(super) fn panicked(&mut self, lane: usize, message: String) {
        let operation = self.running(lane);
        self.fail(ExecutionError::Panicked { operation, message });
    }

    /// Who waits for what, if nothing runs and nothing can start.
    pub(super) fn stuck(&self) -> Option<ExecutionError> {
        let idle = self.lanes.iter().all(|lane| lane.running.is_none());
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
        Ok(Timeline { layout, spans: self.spans, passes: self.passes, end })
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
        Nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Among the ready heads of a lane's queues, the first in program order.
    fn first_ready(&self, lane: usize) -> Option<(usize, OpId)> {
        let heads = self.lanes[lane].queues.iter().filter_map(|&queue| {
            let &id = self.queues[queue].front()?;
            self.is_ready(id).then_some((queue, id))
        });
        heads.min_by_key(|&(_, id)| id)
    }

    fn is_ready(&self, id: OpId) -> bool {
        let Some((live, index)) = self.find(id) else { return false };
        let op = &live.pass.ops[index];
        let ended = live.pass.waits(op).iter().all(|&wait| self.has_ended(wait));
        ended && op.takes.is_none_or(|slot| self.slot(slot).freed == live.turns[index])
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

    fn running(&self, lane: usize) -> String {
        self.lanes[lane].running.map_or_else(String::new, |(id, _)| self.describe(id))
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
