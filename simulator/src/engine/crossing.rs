//! What passes between the end of an operation and the start of one on another lane that waited for it.

use pipo_plan::schedule::{Lane, OpId};
use pipo_plan::units::Nanos;

use crate::cost::Costs;
use crate::window::{Ended, Window};

/// The delays between all lanes.
#[derive(Debug)]
pub(super) struct Crossings {
    lanes: usize,
    /// By the lane before and the lane behind; empty where there is none at all.
    delays: Vec<Nanos>,
}

impl Crossings {
    pub(super) fn new(lanes: &[Lane], costs: &dyn Costs) -> Self {
        let pairs = lanes.iter().flat_map(|from| lanes.iter().map(|to| (from.kind, to.kind)));
        let delays: Vec<Nanos> = pairs.map(|(from, to)| costs.crossing(from, to)).collect();
        let none = delays.iter().all(|&delay| delay == Nanos::ZERO);
        Self { lanes: lanes.len(), delays: if none { Vec::new() } else { delays } }
    }

    /// How long after `now` an operation on a lane really begins, which waited for these. A delay runs from
    /// the end of what was waited for: a lane that was busy meanwhile has spent it.
    pub(super) fn late<const N: usize>(
        &self,
        window: &Window,
        waited: [Option<Ended>; N],
        lane: usize,
        now: Nanos,
    ) -> Nanos {
        if self.delays.is_empty() {
            return Nanos::ZERO;
        }
        let of = |(end, op): Ended| (end + self.between(window, op, lane)).saturating_sub(now);
        waited.into_iter().flatten().map(of).max().unwrap_or(Nanos::ZERO)
    }

    /// Nothing from an operation that ended so long ago that its lane is forgotten.
    fn between(&self, window: &Window, op: OpId, lane: usize) -> Nanos {
        let from = window.lane(op).map(|from| usize::from(from) * self.lanes + lane);
        from.and_then(|at| self.delays.get(at).copied()).unwrap_or(Nanos::ZERO)
    }
}
