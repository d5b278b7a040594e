//! What makes one plan better than another.

use std::cmp::Ordering;

use pipo_plan::timeline::Times;
use pipo_plan::units::Nanos;
use pipo_plan::workload::{Objective, Workload};

/// A figure of merit; smaller is better.
///
/// First comes what a decode step takes beyond the goal, where there is a goal: of plans that miss it,
/// the one that misses least is preferred. Then comes time for each token, compared exactly as a
/// fraction, so that no rounding decides.
///
/// Both are monotone in the times they are made of. So the score of lower bounds on the times is a lower
/// bound on the score: that is what excludes a candidate without simulating it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Score {
    excess: Nanos,
    time: Nanos,
    tokens: u64,
}

impl Score {
    /// No plan scores better than this.
    pub(crate) const BEST: Self = Self { excess: Nanos::ZERO, time: Nanos::ZERO, tokens: 1 };

    /// The score of these times with that many sequences.
    pub(crate) fn new(times: &Times, workload: &Workload, sequences: u64) -> Self {
        let excess = workload.token_within.map_or(Nanos::ZERO, |goal| times.step - goal);
        let (time, tokens) = match workload.objective {
            Objective::Throughput => (times.request, sequences.saturating_mul(workload.new_tokens)),
            Objective::Latency => (times.request, 1),
            Objective::FirstToken => (times.prefill, 1),
        };
        Self { excess, time, tokens: tokens.max(1) }
    }
}

impl Score {
    /// Whether the goal, if there is one, is met.
    pub(crate) fn meets_goal(&self) -> bool {
        self.excess == Nanos::ZERO
    }

    /// How much more for each unit of time a better score gives: 0.01 is one in a hundred.
    pub(crate) fn gain(&self, better: &Self) -> f64 {
        let pace = |score: &Self| score.tokens as f64 / score.time.as_f64().max(1.0);
        (pace(better) / pace(self) - 1.0).max(0.0)
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        let across = |a: &Self, b: &Self| u128::from(a.time.0) * u128::from(b.tokens);
        self.excess.cmp(&other.excess).then_with(|| across(self, other).cmp(&across(other, self)))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
