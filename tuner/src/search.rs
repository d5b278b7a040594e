//! Best-first search with pruning, the same on any number of threads.
//!
//! Nodes and leaves are looked at in the order of their bounds, ties in the order of enumeration, in
//! batches of fixed size. What is known so far changes only between batches. So which candidates are
//! simulated, and what is found, depends on nothing but the request.
//!
//! A candidate is excluded when its bound is worse than the score of the last of the best that are to be
//! kept. Its own score is no better than its bound, so it could not have been among them. A bound that
//! is equal excludes nothing: the tie might be broken in its favour.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use pipo_plan::plan::Plan;
use pipo_plan::units::Bytes;
use rayon::prelude::*;

use crate::TuneError;
use crate::evaluate::{EvaluateError, Fitted, Times};
use crate::node::{Leaf, Node, Stand};
use crate::problem::Problem;
use crate::progress::Progress;
use crate::score::Score;

/// Nodes opened, and candidates simulated, between two looks at what is known. Large enough to keep many
/// threads busy, small enough that a good find soon excludes others.
const NODES: usize = 64;
const LEAVES: usize = 64;

/// Batches of nodes opened before some leaves are simulated, be they proved the best or not: a plan that is
/// known excludes nodes that would otherwise all be opened.
const ROUNDS: usize = 4;

/// Steps of a bound's pipeline that take as long as simulating one operation.
const STEPS_PER_OPERATION: u64 = 8;

/// A plan with its score.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) plan: Plan,
    pub(crate) score: Score,
    pub(crate) gpu: Bytes,
    /// Operations that were simulated for it.
    pub(crate) ops: u64,
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
    fn excludes(&self, bound: &Score) -> bool {
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
    Ok(Some(Found { plan, score, gpu: fitted.memory.gpu(), ops: summary.ops }))
}

/// Candidates that are neither simulated nor excluded.
#[derive(Debug, Clone, Copy)]
struct Left {
    /// The best of their bounds.
    bound: Score,
    candidates: u64,
}

impl Left {
    fn of(
        best: &Best,
        closed: &[Node],
        open: &BinaryHeap<Reverse<(Score, usize, usize)>>,
    ) -> Option<Self> {
        let nodes = closed.iter().map(|node| (node.bound, node.leaves as u64));
        let leaves = open.iter().map(|Reverse((bound, ..))| (*bound, 1));
        let left = nodes.chain(leaves).filter(|(bound, _)| !best.excludes(bound));
        left.fold(None, |sum: Option<Self>, (bound, candidates)| {
            let others = sum.map_or(0, |sum| sum.candidates);
            let bound = sum.map_or(bound, |sum| sum.bound.min(bound));
            Some(Self { bound, candidates: others + candidates })
        })
    }

    /// Whether the search may stop here: something is found, and if that misses the goal, so must all
    /// that is left.
    fn may_rest(&self, best: &Best) -> bool {
        best.first().is_some_and(|found| found.score.meets_goal() || !self.bound.meets_goal())
    }
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
    let exhaustive = problem.request.exhaustive;
    // Stable: nodes with the same bound stay in the order of enumeration.
    nodes.sort_by_key(|node| node.bound);
    let all: u64 = nodes.iter().map(|node| node.leaves as u64).sum();
    counts.considered += all;
    let mut closed = nodes.as_slice();
    // The leaves of opened nodes that are still to be simulated, the best bound first.
    let mut open: BinaryHeap<Reverse<(Score, usize, usize)>> = BinaryHeap::new();
    let mut leaves: Vec<Vec<Leaf>> = Vec::new();
    let (mut simulated, mut too_large) = (0, 0);
    let (mut in_runs, mut in_bounds, mut batch_size) = (0_u64, 0_u64, LEAVES);
    let mut left: Option<Left> = None;
    loop {
        // Open nodes until the best leaf is known to be the best of all, or nothing is left to open.
        let mut rounds = 0;
        while let Some(node) = closed.first() {
            let spent = !exhaustive && in_bounds >= problem.request.effort;
            if (rounds == ROUNDS || spent) && !open.is_empty() {
                break;
            }
            rounds += 1;
            let leaf = open.peek().map(|Reverse((bound, ..))| *bound);
            if leaf.is_some_and(|leaf| leaf < node.bound && open.len() >= LEAVES) {
                break;
            }
            if !exhaustive && best.excludes(&node.bound) {
                closed = &[];
                break;
            }
            let (now, later) = closed.split_at(NODES.min(closed.len()));
            let opened: Vec<Vec<Leaf>> = now
                .par_iter()
                .map(|node| {
                    let stand = &stands[node.base];
                    if !exhaustive && best.excludes(&stand.second_bound(node)) {
                        return Ok(Vec::new());
                    }
                    stand.leaves(node)
                })
                .collect::<Result<_, _>>()
                .map_err(TuneError::Unsupported)?;
            for (node, opened) in now.iter().zip(&opened) {
                // A leaf's first bound takes about an operation for each unit.
                let stand = &stands[node.base];
                let leaves = opened.len() as u64 * stand.units_len();
                in_bounds += stand.bound_steps() / STEPS_PER_OPERATION + leaves;
            }
            for (node, opened) in (nodes.len() - closed.len()..).zip(opened) {
                let at = opened.iter().enumerate();
                open.extend(at.map(|(leaf, l)| Reverse((l.bound, node, leaf))));
                leaves.push(opened);
            }
            closed = later;
        }
        if !exhaustive && in_runs >= problem.request.effort {
            left = Left::of(best, closed, &open);
            if left.is_some_and(|left| left.may_rest(best)) {
                break;
            }
        }
        let mut batch = Vec::with_capacity(batch_size);
        while batch.len() < batch_size {
            let wanted = batch_size - batch.len();
            let mut unrefined = Vec::with_capacity(wanted);
            while unrefined.len() < wanted
                && let Some(Reverse((bound, node, leaf))) = open.pop()
            {
                let candidate = &leaves[node][leaf];
                if !exhaustive && best.excludes(&bound) {
                    open.clear(); // the others have no better bound
                } else if exhaustive || candidate.refined {
                    if !unrefined.is_empty() {
                        // What stands before it may fall behind it once it is refined.
                        open.push(Reverse((bound, node, leaf)));
                        break;
                    }
                    batch.push(stands[nodes[node].base].plan(&nodes[node], candidate));
                    if batch.len() == batch_size {
                        break;
                    }
                } else {
                    unrefined.push((node, leaf));
                }
            }
            if unrefined.is_empty() {
                break;
            }
            let refine = |&(node, leaf): &(usize, usize)| {
                stands[nodes[node].base].refine(&nodes[node], &leaves[node][leaf])
            };
            let refined: Vec<Leaf> = unrefined
                .par_iter()
                .map(refine)
                .collect::<Result<_, _>>()
                .map_err(TuneError::Unsupported)?;
            for ((node, leaf), refined) in unrefined.into_iter().zip(refined) {
                in_bounds += stands[nodes[node].base].bound_steps() / STEPS_PER_OPERATION;
                open.push(Reverse((refined.bound, node, leaf)));
                leaves[node][leaf] = refined;
            }
        }
        if batch.is_empty() {
            break;
        }
        let results: Vec<Option<Found>> = batch
            .into_par_iter()
            .map(|plan| simulate(problem, plan))
            .collect::<Result<_, _>>()
            .map_err(TuneError::Candidate)?;
        for found in results {
            match found {
                Some(found) => {
                    simulated += 1;
                    in_runs = in_runs.saturating_add(found.ops);
                    best.add(found);
                }
                None => too_large += 1,
            }
        }
        // Long runs come in smaller batches, so that the last one does not overshoot by much.
        let each = (in_runs / simulated.max(1)).max(1);
        let share = usize::try_from(problem.request.effort / 8 / each).unwrap_or(LEAVES);
        batch_size = share.clamp(4, LEAVES);
        progress(Progress { done: simulated + too_large, total: all });
    }
    progress(Progress { done: all, total: all });
    counts.simulated += simulated;
    counts.by_memory += too_large;
    counts.left += left.map_or(0, |left| left.candidates);
    counts.by_bound += all - simulated - too_large - left.map_or(0, |left| left.candidates);
    Ok(left.map(|left| left.bound))
}
