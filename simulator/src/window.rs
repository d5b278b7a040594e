//! The passes in flight: their operations, which of them have ended, and when the next may come.

use std::collections::VecDeque;

use pipo_plan::schedule::{Op, OpId, Pass, Phase};
use pipo_plan::timeline::PassEnd;
use pipo_plan::units::Nanos;

/// Where an operation in flight is found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) pass: u32,
    pub(crate) index: u32,
}

/// An operation's end and name.
pub(crate) type Ended = (Nanos, OpId);

/// A pass that has been released and not yet retired.
#[derive(Debug)]
struct Live {
    pass: Pass,
    phase: Phase,
    released: Nanos,
    /// The operation whose end released it; none for the first passes.
    gate: Option<Ended>,
    /// Operations that have not ended.
    open: usize,
    user_end: Option<Nanos>,
    /// The last operation to end so far.
    last: Option<Ended>,
}

/// The passes in flight.
///
/// Passes retire in order, so at most `size` of them are in memory however long the run is.
#[derive(Debug)]
pub(crate) struct Window {
    size: u32,
    live: VecDeque<Live>,
    /// Number of the oldest pass in flight.
    oldest: u32,
    /// First operation of the oldest pass in flight: everything before it has ended.
    first: u32,
    /// First operation of each retired pass whose ends are still remembered.
    past: VecDeque<u32>,
    /// End of each remembered operation, at its id modulo the length, which is a power of two.
    ends: Vec<Nanos>,
    /// The lane on which it ran, likewise.
    lanes: Vec<u8>,
    /// Retired passes whose memory is reused.
    spare: Vec<Pass>,
    /// The operation whose end retired the last pass.
    gate: Option<Ended>,
    passes: Vec<PassEnd>,
    high_water: u32,
}

/// Stands in `ends` for an operation that has not ended; no run reaches it.
const PENDING: Nanos = Nanos(u64::MAX);

impl Window {
    pub(crate) fn new(size: u32) -> Self {
        Self {
            size,
            live: VecDeque::new(),
            oldest: 0,
            first: 0,
            past: VecDeque::new(),
            ends: vec![PENDING; 64],
            lanes: vec![0; 64],
            spare: Vec::new(),
            gate: None,
            passes: Vec::new(),
            high_water: 0,
        }
    }

    /// Number of the pass to emit next, if there is room for it.
    pub(crate) fn next_pass(&self) -> Option<u32> {
        let live = u32::try_from(self.live.len()).unwrap_or(u32::MAX);
        (live < self.size).then_some(self.oldest + live)
    }

    /// First operation id of the pass to emit next.
    pub(crate) fn next_op(&self) -> u32 {
        self.live.back().map_or(self.first, |l| l.pass.first + count(&l.pass))
    }

    /// A pass whose memory may be reused.
    pub(crate) fn spare(&mut self) -> Pass {
        self.spare.pop().unwrap_or_default()
    }

    /// Adds the next pass.
    pub(crate) fn release(&mut self, pass: Pass, phase: Phase, now: Nanos) {
        let next = pass.first + count(&pass);
        self.make_room(next - self.remembered());
        for id in pass.first..next {
            let at = self.at(OpId(id));
            self.ends[at] = PENDING;
        }
        self.live.push_back(Live {
            open: pass.ops.len(),
            pass,
            phase,
            released: now,
            gate: self.gate,
            user_end: None,
            last: None,
        });
        self.high_water = self.high_water.max(next - self.first);
    }

    /// Retires the oldest pass if it has ended entirely; false if it has not, or if there is none.
    pub(crate) fn retire(&mut self) -> bool {
        let Some(live) = self.live.pop_front_if(|live| live.open == 0) else { return false };
        let end = live.user_end.or(live.last.map(|l| l.0)).unwrap_or(live.released);
        self.passes.push(PassEnd { phase: live.phase, end });
        if let Some(last) = live.last
            && self.gate.is_none_or(|gate| last.0 >= gate.0)
        {
            self.gate = Some(last);
        }
        // The passes in flight were released before this one retired: they may have waited for it.
        self.past.push_back(self.first);
        if self.past.len() >= self.size as usize {
            self.past.pop_front();
        }
        self.first = live.pass.first + count(&live.pass);
        self.oldest += 1;
        self.spare.push(live.pass);
        true
    }

    /// Notes the end of an operation that ran on a lane.
    pub(crate) fn end(&mut self, place: Place, id: OpId, lane: u8, ends_pass: bool, now: Nanos) {
        let at = self.at(id);
        (self.ends[at], self.lanes[at]) = (now, lane);
        let live = &mut self.live[(place.pass - self.oldest) as usize];
        live.open -= 1;
        live.last = Some((now, id));
        if ends_pass {
            live.user_end = Some(now);
        }
    }

    /// When an operation ended; none while it has not.
    ///
    /// Of an operation `size` passes back zero is answered. It ended no later than the release of any
    /// pass in flight, so it never decides a start that the release does not decide as well.
    pub(crate) fn ended(&self, id: OpId) -> Option<Nanos> {
        if id.0 < self.remembered() {
            return Some(Nanos::ZERO);
        }
        let end = self.ends[self.at(id)];
        (end != PENDING).then_some(end)
    }

    /// The lane on which an operation that has ended ran; none where its end is not remembered.
    pub(crate) fn lane(&self, id: OpId) -> Option<u8> {
        (id.0 >= self.remembered()).then(|| self.lanes[self.at(id)])
    }

    /// The pass of an operation in flight.
    pub(crate) fn pass(&self, place: Place) -> &Pass {
        &self.live[(place.pass - self.oldest) as usize].pass
    }

    /// The operation that released a pass, and when.
    pub(crate) fn gate(&self, place: Place) -> Option<Ended> {
        self.live[(place.pass - self.oldest) as usize].gate
    }

    /// An operation by its id, with its pass; none once it has been retired.
    pub(crate) fn find(&self, id: OpId) -> Option<(&Op, u32)> {
        self.live.iter().find_map(|live| {
            let index = id.0.checked_sub(live.pass.first)?;
            Some((live.pass.ops.get(index as usize)?, live.pass.number))
        })
    }

    /// When each pass ended, and the most operations ever in memory together.
    pub(crate) fn into_results(self) -> (Vec<PassEnd>, u32) {
        (self.passes, self.high_water)
    }

    /// First operation whose end is remembered.
    fn remembered(&self) -> u32 {
        self.past.front().copied().unwrap_or(self.first)
    }

    fn at(&self, id: OpId) -> usize {
        id.0 as usize & (self.ends.len() - 1)
    }

    /// Doubles the ring of ends until `live` operations fit; amortised over the first passes.
    fn make_room(&mut self, live: u32) {
        if live as usize <= self.ends.len() {
            return;
        }
        let size = (live as usize).next_power_of_two();
        let (mut ends, mut lanes) = (vec![PENDING; size], vec![0; size]);
        for id in self.remembered()..self.next_op() {
            let (from, to) = (self.at(OpId(id)), id as usize & (size - 1));
            (ends[to], lanes[to]) = (self.ends[from], self.lanes[from]);
        }
        (self.ends, self.lanes) = (ends, lanes);
    }
}

/// Operations of a pass; the engine refuses a pass that does not fit into 32 bits.
fn count(pass: &Pass) -> u32 {
    u32::try_from(pass.ops.len()).unwrap_or(u32::MAX)
}
