//! Best-first search with pruning, the same on any number of threads.
//!
//! Nodes and leaves are looked at in the order of their bounds, ties in the order of enumeration, in
//! batches of fixed size. What is known so far changes only between batches. So which candidates are
//! simulated, and what is found, depends on nothing but the request.
//!
//! A candidate is excluded when its bound is worse than the score of the last of the best that are to be
//! kept. Its own score is no better than its bound, so it could not have been among them. A bound that
//! is equal excludes nothing: the tie might be broken in its favour.

use std::cmp::Ordering;

use pipo_plan::plan::Plan;
use pipo_plan::timeline::Times;
use pipo_plan::units::Bytes;
use pipo_simulator::Summary;
use rayon::prelude::*;

use crate::TuneError;
use crate::evaluate::{EvaluateError, Fitted};
use crate::frontier::{Frontier, Left};
use crate::node::{Node, Stand};
use crate::problem::Problem;
use crate::progress::Progress;
use crate::score::Score;

/// Candidates simulated between two looks at what is known: enough to keep many threads busy, few enough
/// that a good find soon excludes others.
const BATCH: usize = 64;

/// The size of the first batch, before it is known how long runs are.
const FIRST: usize = 8;

/// A plan with its score.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) plan: Plan,
    pub(crate) score: Score,
    pub(crate) gpu: Bytes,
    /// What its run added up to.
    pub(crate) summary: Summary,
}

impl Found {
    /// The written order: score, then fewer GPU bytes, then the text of the plan.
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        let text = || self.plan.to_toml().cmp(&other.plan.to_toml());
        self.score.cmp(&other.score).then(self.gpu.cmp(&other.gpu)).then_with(text)
    }
}

/// The best found so far, at most `keep` of them.
#[derive(Debug)]
pub(crate) struct Best {
    keep: usize,
    found: Vec<Found>,
}

impl Best {
    pub(crate) fn new(keep: usize) -> Self {
        Self { keep: keep.max(1), found: Vec::new() }
    }

    pub(crate) fn add(&mut self, found: Found) {
        let at = self.found.partition_point(|other| other.compare(&found) == Ordering::Less);
        if at < self.keep {
            self.found.insert(at, found);
            self.found.truncate(self.keep);
        }
    }

    /// Whether something with this bound cannot come among the best.
    pub(crate) fn excludes(&self, bound: &Score) -> bool {
        self.found.len() == self.keep && self.found.last().is_some_and(|worst| *bound > worst.score)
    }

    pub(crate) fn first(&self) -> Option<&Found> {
        self.found.first()
    }

    pub(crate) fn into_vec(self) -> Vec<Found> {
        self.found
    }
}

/// What a search did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) considered: u64,
    pub(crate) simulated: u64,
    pub(crate) by_bound: u64,
    pub(crate) by_memory: u64,
    /// Not wanted by whoever asked.
    pub(crate) refused: u64,
    /// Neither simulated nor excluded when the effort was spent.
    pub(crate) left: u64,
}

/// Simulates a plan that may not fit; none if it does not.
pub(crate) fn simulate(problem: &Problem, plan: Plan) -> Result<Option<Found>, EvaluateError> {
    let fitted = match Fitted::new(&plan, &problem.request.machine) {
        Err(EvaluateError::Memory(_)) => return Ok(None),
        fitted => fitted?,
    };
    let (summary, _) = fitted.run(problem.costs, false)?;
    let sequences = plan.batch.sequences();
    let times = Times::of(&summary.passes);
    let score = Score::new(&times, &problem.request.workload, sequences);
    Ok(Some(Found { plan, score, gpu: fitted.memory.gpu(), summary }))
}

/// Searches nodes that stand on `stands`, adding to what is `best` and to the counts. Returns the best
/// bound of what is left, if the effort was spent before the end.
pub(crate) fn search(
    problem: &Problem,
    stands: &[Stand],
    mut nodes: Vec<Node>,
    best: &mut Best,
    counts: &mut Counts,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Option<Score>, TuneError> {
    // Stable: nodes with the same bound stay in the order of enumeration.
    nodes.sort_by_key(|node| node.bound);
    let total: u64 = nodes.iter().map(|node| node.leaves as u64).sum();
    let mut frontier = Frontier::new(problem, stands, &nodes);
    let (mut simulated, mut too_large, mut refused, mut ops) = (0, 0, 0, 0_u64);
    let mut size = FIRST;
    let mut left: Option<Left> = None;
    loop {
        frontier.open(best, size)?;
        if !problem.request.exhaustive && ops >= problem.request.effort {
            left = frontier.left(best);
            if left.is_some_and(|left| left.may_rest(best)) {
                break;
            }
        }
        let batch = frontier.next_batch(best, size)?;
        if batch.is_empty() {
            break;
        }
        let all = batch.len() as u64;
        let batch: Vec<Plan> =
            batch.into_iter().filter(|plan| problem.refusal(plan).is_none()).collect();
        refused += all - batch.len() as u64;
        let results: Vec<Option<Found>> = batch
            .into_par_iter()
            .map(|plan| simulate(problem, plan))
            .collect::<Result<_, _>>()
            .map_err(TuneError::Candidate)?;
        for found in results {
            match found {
                Some(found) => {
                    simulated += 1;
                    ops = ops.saturating_add(found.summary.ops);
                    best.add(found);
                }
                None => too_large += 1,
            }
        }
        // Long runs come in smaller batches, so that the last one does not overshoot by much.
        let each = (ops / simulated.max(1)).max(1);
        let share = usize::try_from(problem.request.effort / 8 / each).unwrap_or(BATCH);
        size = share.clamp(4, BATCH);
        progress(Progress { done: simulated + too_large + refused, total });
    }
    progress(Progress { done: total, total });
    let left_over = left.map_or(0, |left| left.candidates);
    counts.considered += total;
    counts.simulated += simulated;
    counts.by_memory += too_large;
    counts.refused += refused;
    counts.left += left_over;
    counts.by_bound += total - simulated - too_large - refused - left_over;
    Ok(left.map(|left| left.bound))
}
