//! The event loop.
//!
//! The calendar holds one entry for each lane, the end of what runs there. With at most a few dozen
//! lanes a linear scan for the earliest beats any heap, and has no order among equals to get wrong.

use pipo_plan::schedule::{Builder, OpId, Schedule};
use pipo_plan::timeline::{Blame, Span, Timeline};
use pipo_plan::units::{Bytes, Nanos};

use crate::cost::{Capacities, Costs};
use crate::error::SimulationError;
use crate::meter::{Meter, Summary};
use crate::page_cache::{HitShare, PageCache, Residency};
use crate::scheduler::Scheduler;
use crate::share::{self, Flow};
use crate::slots::Slots;
use crate::window::Window;

mod crossing;
mod emit;
mod lane;
mod stuck;

pub(crate) use emit::check_layout;

use crossing::Crossings;
use lane::{LaneState, Prepared, Queue, Queued, Running};

/// How to run a schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Whether to record every operation; a search over many candidates needs only the summary.
    pub record: bool,
    /// The page cache that buffered and page-fault reads meet.
    pub page_cache: PageCache,
}

/// What a run was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What it adds up to.
    pub summary: Summary,
    /// Every operation, where [`Options::record`] asked for it.
    pub timeline: Option<Timeline>,
}

/// Runs a schedule with any source of prices.
///
/// # Errors
///
/// See [`SimulationError`]; there is no partial outcome.
pub fn simulate_with(
    schedule: &Schedule,
    costs: &dyn Costs,
    options: &Options,
) -> Result<Outcome, SimulationError> {
    Engine::new(schedule, costs, options)?.run()
}

/// The latest instant: 146 years, with room above for one more operation of any length.
const LAST: Nanos = Nanos(1 << 62);

/// Stands in the calendar for an idle lane.
const IDLE: Nanos = Nanos(u64::MAX);

struct Engine<'a> {
    schedule: &'a Schedule,
    costs: &'a dyn Costs,
    capacity: Capacities,
    handover: Nanos,
    crossings: Crossings,
    builder: Builder,
    prices: Vec<Prepared>,
    window: Window,
    queues: Vec<Queue>,
    lanes: Vec<LaneState>,
    /// When each lane's operation ends; [`IDLE`] where there is none.
    calendar: Vec<Nanos>,
    /// What each lane's operation draws.
    flows: Vec<Flow>,
    scheduler: Scheduler,
    /// Share of its speed that each lane's operation has cores for.
    limits: Vec<f64>,
    rates: Vec<f64>,
    /// Whether a flow has started or ended since resources were last divided.
    flows_changed: bool,
    /// Whether some operation may be running below full speed.
    slowed: bool,
    slots: Slots,
    residency: Residency,
    /// Share of a read that the page cache answers from the second time on.
    hits: HitShare,
    meter: Meter,
    spans: Option<Vec<Span>>,
    now: Nanos,
}

impl<'a> Engine<'a> {
    fn new(
        schedule: &'a Schedule,
        costs: &'a dyn Costs,
        options: &Options,
    ) -> Result<Self, SimulationError> {
        let layout = &schedule.layout;
        check_layout(layout)?;
        let queues_of = |lane: usize| {
            let mine = |&q: &usize| usize::from(layout.queues[q].0) == lane;
            (0..layout.queues.len()).filter(mine).collect()
        };
        let lanes = (0..layout.lanes.len())
            .map(|lane| LaneState { running: None, last: None, queues: queues_of(lane) })
            .collect();
        Ok(Self {
            schedule,
            costs,
            capacity: costs.capacities(),
            handover: costs.handover(),
            crossings: Crossings::new(&layout.lanes, costs),
            builder: Builder::new(layout),
            prices: Vec::new(),
            window: Window::new(layout.window),
            queues: layout.queues.iter().map(|_| Queue::new()).collect(),
            lanes,
            calendar: vec![IDLE; layout.lanes.len()],
            flows: vec![Flow::NONE; layout.lanes.len()],
            scheduler: Scheduler::new(costs.capacities().cores()),
            limits: vec![1.0; layout.lanes.len()],
            rates: vec![1.0; layout.lanes.len()],
            flows_changed: false,
            slowed: false,
            slots: Slots::new(&layout.rings),
            residency: Residency::new(&options.page_cache, &layout.extents),
            hits: options.page_cache.hits_of(layout),
            meter: Meter::new(&layout.lanes),
            spans: options.record.then(Vec::new),
            now: Nanos::ZERO,
        })
    }

    fn run(mut self) -> Result<Outcome, SimulationError> {
        loop {
            self.admit_passes()?;
            self.start_ready()?;
            self.divide_resources()?;
            let mut next = self.calendar.iter().copied().min().unwrap_or(IDLE);
            if next == IDLE {
                break;
            }
            if let Some(turn) = self.scheduler.next_turn().filter(|turn| *turn <= next) {
                next = turn;
                self.flows_changed = true;
            }
            self.meter.advance(next.saturating_sub(self.now));
            self.now = next;
            self.end_due()?;
        }
        let waiting = self.waiting();
        if !waiting.is_empty() {
            return Err(SimulationError::Stuck { at: self.now, waiting });
        }
        Ok(self.outcome())
    }

    fn start_ready(&mut self) -> Result<(), SimulationError> {
        for lane in 0..self.lanes.len() {
            if self.calendar[lane] == IDLE
                && let Some((queue, op)) = self.first_ready(lane)
            {
                self.start(lane, queue, op)?;
            }
        }
        Ok(())
    }

    /// Among the ready heads of a lane's queues, the first in program order.
    fn first_ready(&mut self, lane: usize) -> Option<(usize, OpId)> {
        let mut first: Option<(usize, OpId)> = None;
        for &queue in &self.lanes[lane].queues {
            let state = &mut self.queues[queue];
            let Some(&Queued { place, turn }) = state.line.front() else { continue };
            let pass = self.window.pass(place);
            let id = OpId(pass.first + place.index);
            if first.is_some_and(|(_, other)| other < id) {
                continue;
            }
            let op = &pass.ops[place.index as usize];
            let ready = state.waits_for(pass.waits(op), &self.window).is_none()
                && op.takes.is_none_or(|slot| self.slots.is_free(slot, turn));
            if ready {
                first = Some((queue, id));
            }
        }
        first
    }

    fn start(&mut self, lane: usize, queue: usize, id: OpId) -> Result<(), SimulationError> {
        let Some(&Queued { place, .. }) = self.queues[queue].line.front() else { return Ok(()) };
        let pass = self.window.pass(place);
        let op = &pass.ops[place.index as usize];
        let price = &self.prices[op.work.0 as usize];
        let again = match price.again {
            Some(again) if self.residency.read(op.extent as usize, price.bytes) => Some(again),
            _ => None,
        };
        if price.disk_read.0 > 0 {
            let hits = again.map_or(Bytes::ZERO, |_| self.hits.of(price.disk_read));
            self.meter.read(price.disk_read, hits);
        }
        let variant = again.unwrap_or(price.first);
        let waited = self.queues[queue].waited;
        let slot = op.takes.and_then(|slot| self.slots.freed(slot));
        let gate = self.window.gate(place);
        // The lane is held from now on, but nothing runs on it until then.
        let late = self.crossings.late(&self.window, [waited, slot, gate], lane, self.now);
        let permille = share_of(variant.permille, variant.nanos, late);
        self.meter.start(lane, price.bytes, permille, &variant.drawn);
        let span = self.spans.as_ref().map_or(0, Vec::len);
        let idle_since = self.lanes[lane].last.map_or(Nanos::ZERO, |(end, _)| end);
        let stood_idle = idle_since < self.now;
        let handover = if stood_idle { self.handover } else { Nanos::ZERO };
        let solo = late + variant.nanos + handover;
        let waits = variant.flow.cores() > 0.0;
        let running = Running::new(id, place, (self.now, late), solo, (span, waits));
        if running.earliest > LAST {
            return Err(SimulationError::TooLong { op: id });
        }
        if let Some(spans) = &mut self.spans {
            let blame = Blamed { wait: waited, slot, lane: self.lanes[lane].last, window: gate };
            spans.push(Span {
                op: id,
                lane: self.schedule.layout.queues[queue],
                kind: op.kind,
                pass: pass.number,
                unit: op.unit,
                micro: op.micro,
                block: op.block,
                start: running.start,
                end: running.start,
                bytes: price.bytes,
                gpu_permille: variant.permille,
                blame: blame.last(self.now),
            });
        }
        if let Some(slot) = op.takes {
            self.slots.take(slot, id);
        }
        self.flows_changed |= variant.flow.is_some();
        self.flows[lane] = variant.flow;
        self.calendar[lane] = running.earliest;
        self.lanes[lane].running = Some(running);
        self.queues[queue].pop();
        Ok(())
    }

    /// Divides the shared resources anew and moves the ends of what runs faster or slower than before.
    fn divide_resources(&mut self) -> Result<(), SimulationError> {
        if !std::mem::take(&mut self.flows_changed) {
            return Ok(());
        }
        self.scheduler.assign(&self.flows, self.now, &mut self.limits);
        self.begin_with_cores();
        if share::fits(&self.flows, &self.capacity) {
            if !std::mem::take(&mut self.slowed) {
                return Ok(());
            }
            self.rates.fill(1.0);
        } else {
            self.slowed = true;
            share::fill(&self.flows, &self.limits, &self.capacity, &mut self.rates);
        }
        for ((lane, &rate), end) in self.lanes.iter_mut().zip(&self.rates).zip(&mut self.calendar) {
            let Some(running) = &mut lane.running else { continue };
            if let Some(moved) = running.set_rate(rate, self.now) {
                if moved > LAST {
                    return Err(SimulationError::TooLong { op: running.op });
                }
                *end = moved;
            }
        }
        Ok(())
    }

    /// What has waited for a core begins when it has one.
    fn begin_with_cores(&mut self) {
        for (lane, limit) in self.lanes.iter_mut().zip(&self.limits) {
            let Some(running) = &mut lane.running else { continue };
            if !running.waits || *limit <= 0.0 {
                continue;
            }
            running.waits = false;
            running.start = running.start.max(self.now);
            if let Some(spans) = &mut self.spans {
                spans[running.span].start = running.start;
            }
        }
    }

    /// Ends everything that is due now.
    fn end_due(&mut self) -> Result<(), SimulationError> {
        for lane in 0..self.lanes.len() {
            if self.calendar[lane] == self.now
                && let Some(running) = self.lanes[lane].running.take()
            {
                self.end(lane, &running)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, lane: usize, running: &Running) -> Result<(), SimulationError> {
        let Running { op: id, place, start, span, .. } = *running;
        let op = &self.window.pass(place).ops[place.index as usize];
        for slot in op.frees.into_iter().flatten() {
            if !self.slots.free(slot, id, self.now) {
                return Err(crate::Invalid::FreesFreeSlot { op: id, slot }.into());
            }
        }
        let ends_pass = op.ends_pass;
        let of_lane = u8::try_from(lane).unwrap_or(u8::MAX);
        self.window.end(place, id, of_lane, ends_pass, self.now);
        self.meter.end(lane, self.now.saturating_sub(start));
        self.flows_changed |= self.flows[lane].is_some();
        self.flows[lane] = Flow::NONE;
        self.calendar[lane] = IDLE;
        self.lanes[lane].last = Some((self.now, id));
        if let Some(spans) = &mut self.spans {
            spans[span].end = self.now;
        }
        Ok(())
    }

    fn outcome(self) -> Outcome {
        let end = self.now;
        let summary =
            self.meter.finish(end, self.window.into_results(), self.slots.into_high_water());
        let timeline = self.spans.map(|mut spans| {
            // Recorded by start and lane; among equal starts program order is promised.
            spans.sort_unstable_by_key(|span| (span.start, span.op));
            let layout = self.schedule.layout.clone();
            let passes = summary.passes.clone();
            Timeline { layout, spans, passes, end, readings: Vec::new() }
        });
        Outcome { summary, timeline }
    }
}

/// Thousandths of a lane's time that are busy, where an operation of which so many are begins late.
fn share_of(permille: u16, nanos: Nanos, late: Nanos) -> u16 {
    let busy = u128::from(permille) * u128::from(nanos.0);
    let share = busy / u128::from((nanos + late).0.max(1));
    if late == Nanos::ZERO { permille } else { u16::try_from(share).unwrap_or(permille) }
}

/// When each condition of a start was satisfied, and by whom.
struct Blamed {
    wait: Option<(Nanos, OpId)>,
    slot: Option<(Nanos, OpId)>,
    lane: Option<(Nanos, OpId)>,
    window: Option<(Nanos, OpId)>,
}

impl Blamed {
    /// The condition that was satisfied at the start itself; of several the first in this order.
    fn last(&self, start: Nanos) -> Blame {
        let now = |condition: Option<(Nanos, OpId)>| {
            condition.and_then(|(end, op)| (end == start).then_some(op))
        };
        None.or(now(self.wait).map(Blame::Wait))
            .or(now(self.slot).map(Blame::Slot))
            .or(now(self.lane).map(Blame::Lane))
            .or(now(self.window).map(Blame::Window))
            .unwrap_or(Blame::Start)
    }
}
