//! Lanes and queues: what runs, and what stands in line.

use std::collections::VecDeque;

use pipo_plan::schedule::OpId;
use pipo_plan::units::{Bytes, LIMIT, Nanos};

use super::LAST;
use crate::cost::{Cost, Price, Resource};
use crate::page_cache::HitShare;
use crate::share::Flow;
use crate::window::{Ended, Place, Window};

/// What occupies a lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub(super) op: OpId,
    pub(super) place: Place,
    /// When it really begins: later than its lane is held, where something was to be handed over first.
    pub(super) start: Nanos,
    /// Earliest end there can be: start plus the solo time.
    pub(super) earliest: Nanos,
    /// Nanoseconds at full speed that were left at `since`.
    remaining: f64,
    since: Nanos,
    /// Share of the full speed at which it runs.
    rate: f64,
    /// Where its span is recorded.
    pub(super) span: usize,
    /// Whether it needs a core and has not had one.
    pub(super) waits: bool,
}

impl Running {
    /// An operation that holds its lane from `now` on for `solo`, `late` of which is before it begins.
    pub(super) fn new(
        op: OpId,
        place: Place,
        (now, late): (Nanos, Nanos),
        solo: Nanos,
        (span, waits): (usize, bool),
    ) -> Self {
        let (remaining, earliest) = (solo.as_f64(), now + solo);
        Self {
            op,
            place,
            start: now + late,
            earliest,
            remaining,
            since: now,
            rate: 1.0,
            span,
            waits,
        }
    }

    /// Changes the speed and returns the new end; none if the speed is the old one. An operation that does not run
    /// ends at [`LAST`] as far as is known.
    ///
    /// The comparison is bitwise: an operation that nothing slows must end at its start plus its solo
    /// time to the nanosecond, and so must never be estimated anew. Rounding is upwards, except for
    /// the part in 10^12 that the arithmetic itself may have added.
    pub(super) fn set_rate(&mut self, rate: f64, now: Nanos) -> Option<Nanos> {
        if self.rate.to_bits() == rate.to_bits() {
            return None;
        }
        self.remaining -= self.rate * now.saturating_sub(self.since).as_f64();
        self.since = now;
        self.rate = rate;
        if rate <= 0.0 {
            return Some(LAST);
        }
        let left = Nanos::ceil(self.remaining / rate * (1.0 - 1e-12));
        Some((now + left).max(self.earliest))
    }
}

/// A serial resource.
#[derive(Debug)]
pub(super) struct LaneState {
    pub(super) running: Option<Running>,
    /// The last operation that ran here.
    pub(super) last: Option<Ended>,
    /// Its queues, by index.
    pub(super) queues: Vec<usize>,
}

/// An operation in line, with its turn at the slot it takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queued {
    pub(super) place: Place,
    pub(super) turn: u32,
}

/// A first-in first-out queue of one lane.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) line: VecDeque<Queued>,
    /// How many of the head's waits are known to have ended.
    over: usize,
    /// The one of them that ended last; of several the first listed.
    pub(super) waited: Option<Ended>,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { line: VecDeque::new(), over: 0, waited: None }
    }

    /// Removes the head.
    pub(super) fn pop(&mut self) {
        self.line.pop_front();
        self.over = 0;
        self.waited = None;
    }

    /// The first of the head's `waits` that has not ended, looking at each ended one only once.
    pub(super) fn waits_for(&mut self, waits: &[OpId], window: &Window) -> Option<OpId> {
        for &op in &waits[self.over..] {
            let Some(end) = window.ended(op) else { return Some(op) };
            if self.waited.is_none_or(|(latest, _)| end > latest) {
                self.waited = Some((end, op));
            }
            self.over += 1;
        }
        None
    }
}

/// A price, prepared for the inner loop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prepared {
    pub(super) bytes: Bytes,
    pub(super) disk_read: Bytes,
    pub(super) first: Variant,
    /// What it is once the extent has been read before; none where the page cache is of no use.
    pub(super) again: Option<Variant>,
}

/// One way in which a price is paid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variant {
    pub(super) nanos: Nanos,
    pub(super) permille: u16,
    pub(super) flow: Flow,
    pub(super) drawn: [Bytes; Resource::COUNT],
}

impl Prepared {
    pub(super) fn new(price: &Price, hits: HitShare) -> Self {
        Self {
            bytes: price.bytes,
            disk_read: price.disk_read,
            first: Variant::new(&price.cost),
            again: price.reread(hits).as_ref().map(Variant::new),
        }
    }
}

impl Variant {
    fn new(cost: &Cost) -> Self {
        Self {
            nanos: cost.nanos,
            permille: cost.gpu_permille,
            flow: Flow::of(cost),
            drawn: cost.drawn().map(rounded),
        }
    }
}

/// To the nearest byte, because payload times duration is only nearly the bytes it was made of.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 0..=LIMIT on the line itself"
)]
fn rounded(bytes: f64) -> Bytes {
    Bytes(bytes.round().clamp(0.0, LIMIT as f64) as u64)
}
