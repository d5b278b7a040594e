//! What is to be looked at next.
//!
//! Most of a batch are the leaves with the best bounds. Where bounds are loose these are all alike, and a
//! search that spends its effort on them finds nothing good. So each batch also probes: it takes one leaf
//! of each kind of node that has not been tried at all, again the best bounds first.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use pipo_plan::plan::Plan;
use rayon::prelude::*;

use crate::TuneError;
use crate::leaf::Leaf;
use crate::node::{Node, Stand};
use crate::problem::Problem;
use crate::score::Score;
use crate::search::Best;

/// Nodes opened between two looks at what is known: enough to keep many threads busy.
const NODES: usize = 64;

/// Batches of nodes opened before some leaves are simulated, be they proved the best or not: a plan that is
/// known excludes nodes that would otherwise all be opened.
const ROUNDS: usize = 4;

/// Steps of a bound's pipeline that take as long as simulating one operation.
const STEPS_PER_OPERATION: u64 = 8;

/// Operations that could be simulated while a leaf gets its first bound.
const OPERATIONS_PER_LEAF: u64 = 24;

/// A leaf's place: its node, and its number there.
type Place = (usize, usize);

/// Nodes and leaves that are still to be looked at.
pub(crate) struct Frontier<'a> {
    problem: &'a Problem<'a>,
    stands: &'a [Stand<'a>],
    nodes: &'a [Node],
    /// Nodes before this one have been opened.
    opened: usize,
    /// Leaves of opened nodes, the best bound first.
    open: BinaryHeap<Reverse<(Score, Place)>>,
    leaves: Vec<Vec<Leaf>>,
    /// Nodes before this one are of kinds that have been tried.
    probed: usize,
    /// Kinds of nodes that have been tried: base and number of slots.
    kinds: BTreeSet<(usize, u32)>,
    /// Leaves that were tried before their turn.
    early: BTreeSet<Place>,
    /// What bounds have taken, in operations that could have been simulated meanwhile.
    spent: u64,
}

impl<'a> Frontier<'a> {
    /// All nodes closed; they are sorted by their bounds.
    pub(crate) fn new(problem: &'a Problem, stands: &'a [Stand<'a>], nodes: &'a [Node]) -> Self {
        Self {
            problem,
            stands,
            nodes,
            opened: 0,
            open: BinaryHeap::new(),
            leaves: Vec::new(),
            probed: 0,
            kinds: BTreeSet::new(),
            early: BTreeSet::new(),
            spent: 0,
        }
    }

    fn excluded(&self, best: &Best, bound: &Score) -> bool {
        !self.problem.request.exhaustive && best.excludes(bound)
    }

    /// Whether bounds have taken all the effort that they may.
    fn is_spent(&self) -> bool {
        !self.problem.request.exhaustive && self.spent >= self.problem.request.effort
    }

    /// Opens nodes until `enough` leaves are open and the best of them is known to be the best of all, or
    /// nothing is left to open, or for a while.
    pub(crate) fn open(&mut self, best: &Best, enough: usize) -> Result<(), TuneError> {
        let mut rounds = 0;
        while let Some(node) = self.nodes.get(self.opened) {
            let some = self.open.len() > self.early.len();
            let many = self.open.len() >= enough + self.early.len();
            let leaf = self.open.peek().map(|Reverse((bound, _))| *bound);
            let in_order = many && leaf.is_some_and(|leaf| leaf < node.bound);
            let for_now = some && (rounds == ROUNDS || self.is_spent());
            if in_order || for_now || self.excluded(best, &node.bound) {
                break;
            }
            rounds += 1;
            let end = self.nodes.len().min(self.opened + NODES);
            let this = &*self;
            let opened: Vec<Vec<Leaf>> = this.nodes[this.opened..end]
                .par_iter()
                .map(|node| this.leaves_of(node, best))
                .collect::<Result<_, _>>()?;
            for (node, leaves) in (self.opened..end).zip(opened) {
                let stand = &self.stands[self.nodes[node].base];
                let firsts = leaves.len() as u64 * OPERATIONS_PER_LEAF;
                self.spent += stand.bound_steps() / STEPS_PER_OPERATION + firsts;
                let at = leaves.iter().enumerate();
                self.open.extend(at.map(|(leaf, l)| Reverse((l.bound, (node, leaf)))));
                self.leaves.push(leaves);
            }
            self.opened = end;
        }
        Ok(())
    }

    /// The leaves of a node, or none if all are excluded.
    fn leaves_of(&self, node: &Node, best: &Best) -> Result<Vec<Leaf>, TuneError> {
        let stand = &self.stands[node.base];
        if self.excluded(best, &stand.second_bound(node)) {
            return Ok(Vec::new());
        }
        stand.leaves(node).map_err(TuneError::Unsupported)
    }

    /// At most `size` candidates to simulate now; none when the search is over.
    pub(crate) fn next_batch(&mut self, best: &Best, size: usize) -> Result<Vec<Plan>, TuneError> {
        let probes = if self.problem.request.exhaustive { 0 } else { size / 4 };
        let mut batch = Vec::with_capacity(size);
        loop {
            let unrefined = self.take(best, size - probes, &mut batch);
            if unrefined.is_empty() {
                break;
            }
            self.refine(unrefined)?;
        }
        if !batch.is_empty() {
            self.probe(best, probes, &mut batch)?;
        }
        Ok(batch)
    }

    /// Fills a batch up to `size` with leaves whose bounds are refined, as long as they come first; what
    /// comes before them unrefined is returned.
    fn take(&mut self, best: &Best, size: usize, batch: &mut Vec<Plan>) -> Vec<Place> {
        let mut unrefined = Vec::new();
        while batch.len() + unrefined.len() < size
            && let Some(Reverse((bound, place))) = self.open.pop()
        {
            let leaf = self.leaves[place.0][place.1];
            if self.excluded(best, &bound) {
                self.open.clear(); // the others have no better bound
            } else if self.early.remove(&place) {
                // It has been simulated before its turn.
            } else if !leaf.refined && !self.problem.request.exhaustive {
                unrefined.push(place);
            } else if unrefined.is_empty() {
                self.kinds.insert(self.nodes[place.0].kind());
                batch.push(self.plan(place.0, &leaf));
            } else {
                // What stands before it may fall behind it once it is refined.
                self.open.push(Reverse((bound, place)));
                break;
            }
        }
        unrefined
    }

    /// Refines the bounds of some leaves and puts them back.
    fn refine(&mut self, places: Vec<Place>) -> Result<(), TuneError> {
        let this = &*self;
        let refine = |&(node, leaf): &Place| {
            let (node, leaf) = (&this.nodes[node], &this.leaves[node][leaf]);
            this.stands[node.base].refine(node, leaf).map_err(TuneError::Unsupported)
        };
        let refined: Vec<Leaf> = places.par_iter().map(refine).collect::<Result<_, _>>()?;
        for ((node, at), leaf) in places.into_iter().zip(refined) {
            self.spent += self.stands[self.nodes[node].base].bound_steps() / STEPS_PER_OPERATION;
            self.open.push(Reverse((leaf.bound, (node, at))));
            self.leaves[node][at] = leaf;
        }
        Ok(())
    }

    /// Adds the best leaf of some nodes of kinds that have not been tried.
    fn probe(
        &mut self,
        best: &Best,
        mut probes: usize,
        batch: &mut Vec<Plan>,
    ) -> Result<(), TuneError> {
        while probes > 0
            && let Some(node) = self.nodes.get(self.probed)
            && !best.excludes(&node.bound)
        {
            let index = self.probed;
            self.probed += 1;
            if !self.kinds.insert(node.kind()) {
                continue;
            }
            let leaves = self.leaves_of(node, best)?;
            // The first of equals: what comes first in a knob's list is the usual choice.
            let first = leaves.iter().enumerate().min_by_key(|(_, leaf)| leaf.bound);
            if let Some((at, leaf)) = first.filter(|(_, leaf)| !best.excludes(&leaf.bound)) {
                self.early.insert((index, at));
                batch.push(self.plan(index, leaf));
                probes -= 1;
            }
        }
        Ok(())
    }

    fn plan(&self, node: usize, leaf: &Leaf) -> Plan {
        let node = &self.nodes[node];
        self.stands[node.base].plan(node, leaf)
    }

    /// What is neither simulated nor excluded; none if that is nothing.
    pub(crate) fn left(&self, best: &Best) -> Option<Left> {
        let closed = (self.opened..).zip(&self.nodes[self.opened..]).map(|(index, node)| {
            let early = self.early.range((index, 0)..(index + 1, 0)).count();
            (node.bound, node.leaves - early)
        });
        let open = self
            .open
            .iter()
            .map(|Reverse((bound, place))| (*bound, usize::from(!self.early.contains(place))));
        let left = closed.chain(open).filter(|(bound, count)| *count > 0 && !best.excludes(bound));
        left.fold(None, |sum: Option<Left>, (bound, count)| {
            let others = sum.map_or(0, |sum| sum.candidates);
            let bound = sum.map_or(bound, |sum| sum.bound.min(bound));
            Some(Left { bound, candidates: others + count as u64 })
        })
    }
}

/// Candidates that are neither simulated nor excluded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    /// The best of their bounds.
    pub(crate) bound: Score,
    /// How many there are.
    pub(crate) candidates: u64,
}

impl Left {
    /// Whether a search may stop with these left: something is found, and if that misses the goal, so
    /// must all that is left.
    pub(crate) fn may_rest(&self, best: &Best) -> bool {
        best.first().is_some_and(|found| found.score.meets_goal() || !self.bound.meets_goal())
    }
}
