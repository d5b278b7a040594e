//! A lower bound on every time of a candidate, from sums.
//!
//! # Proof
//!
//! Let `e(p)` be when pass `p` ends for the user: when the head of its last micro-batch has been
//! computed.
//!
//! **A lane or a shared resource.** Take the passes `a..=b`. All compute operations share one first-in
//! first-out queue, so when `e(a-1)` comes, no unit of pass `a` has been computed. Whatever of these
//! passes has been done by then was done ahead: at most as many streamed units as there are GPU slots,
//! because a slot is freed by the unit's last computation; at most as many blocks more as there are host
//! slots; at most as many caches as there are slots for them; the embedding rows of each micro-batch.
//! When `e(b)` comes, everything that a computation waits for has been done, and what has not is behind:
//! at most as many saved cache rows as there are slots, and the last hidden states. A lane does one thing
//! at a time, and sharing only slows it; a resource yields at most its capacity. Hence for each of them
//!
//! `e(b) - e(a-1) >= sum over a..=b - ahead - behind`
//!
//! where nothing is ahead of pass 0. Disk writes may trail further, and are left out of this, but the
//! last pass reads back what all passes before it wrote.
//!
//! **The ring of weight slots.** A slot is held from the start of the unit's first load until its last
//! computation has ended: for at least the loads and the computations one after the other. All slots
//! together are held for no more than their number times the run.
//!
//! **The request.** `e(last)` is at least the bound on all passes taken as one, and at least the sum of
//! the bounds on the prefill and on all decode steps: the two may well be short of different things.
//! A step is bounded as the passes `p..=p`, and the median of bounds is a bound on the median. Another
//! bound on the request is in `pipeline`.

use pipo_plan::schedule::LaneKind;
use pipo_plan::timeline::{Times, median};
use pipo_plan::units::Nanos;

use crate::base::Base;
use crate::demand::{Demand, at_least};
use crate::node::Stand;
use crate::score::Score;

/// What moving weights asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moving {
    /// In the prefill.
    pub(crate) first: Demand,
    /// In all decode steps.
    pub(crate) rest: Demand,
    /// At least in any step.
    pub(crate) least: Demand,
    /// What of a step may be done before it begins.
    pub(crate) ahead: Demand,
}

/// Times below which no run of a candidate can stay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounded(Times);

impl Bounded {
    /// `computed` is the GPU time of the units that are moved; `threads` read weights, and
    /// `cache_threads` at most read a cache from disk.
    pub(crate) fn new(
        base: &Base,
        moving: &Moving,
        computed: (f64, f64),
        gpu_slots: u32,
        threads: u32,
        cache_threads: u32,
    ) -> Self {
        let join = |rest: &Demand, weights: &Demand| {
            let (mut rest, mut weights) = (*rest, *weights);
            rest.spread(LaneKind::DiskRead, cache_threads);
            weights.spread(LaneKind::DiskRead, threads);
            rest.plus(&weights)
        };
        let hold = |mut demand: Demand, weights: &Demand, computed: f64| {
            demand.hold_slots(weights.lane(LaneKind::H2d) + computed, gpu_slots);
            demand
        };
        let first = hold(join(&base.series.first, &moving.first), &moving.first, computed.0);
        let rest = hold(join(&base.series.rest, &moving.rest), &moving.rest, computed.1);
        let ahead = hold(join(&base.ahead, &moving.ahead), &moving.ahead, 0.0);
        let edges = ahead.plus(&base.behind);
        let prefill = first.less(&base.behind).least();
        let decode = rest.less(&edges).least();
        let whole = first.plus(&rest).less(&base.behind).plus(&base.writes).least();
        let step = |step: &Demand| at_least(join(step, &moving.least).less(&edges).least());
        let steps: Vec<Nanos> = base.series.steps.iter().map(step).collect();
        Self(Times {
            request: at_least(whole.max(prefill + decode)),
            prefill: at_least(prefill),
            step: median(steps),
        })
    }

    /// No time at all: every run is longer.
    pub(crate) const NOTHING: Self =
        Self(Times { request: Nanos::ZERO, prefill: Nanos::ZERO, step: Nanos::ZERO });

    /// The request lasts at least `nanos`.
    pub(crate) fn or_later(mut self, nanos: f64) -> Self {
        self.0.request = self.0.request.max(at_least(nanos));
        self
    }

    /// No run scores better.
    pub(crate) fn score(&self, stand: &Stand) -> Score {
        Score::new(&self.0, &stand.problem.request.workload, stand.shape.batch.sequences())
    }
}
