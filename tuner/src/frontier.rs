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

/// Nodes opened, and candidates taken and probed, between two looks at what is known. Large enough to
/// keep many threads busy, small enough that a good find soon excludes others.
const NODES: usize = 64;
const LEAVES: usize = 48;
const PROBES: usize = 16;

/// Nodes and leaves that are still to be looked at.
pub(crate) struct Frontier<'a> {
    exhaustive: bool,
    stands: &'a [Stand<'a>],
    nodes: &'a [Node],
    /// Nodes before this one have been opened.
    opened: usize,
    /// Leaves of opened nodes, the best bound first.
    open: BinaryHeap<Reverse<(Score, usize, usize)>>,
    leaves: Vec<Vec<Leaf>>,
    /// Nodes before this one are of kinds that have been tried.
    probed: usize,
    /// Kinds of nodes that have been tried: base and number of slots.
    kinds: BTreeSet<(usize, u32)>,
    /// Leaves that were tried before their turn.
    early: BTreeSet<(usize, usize)>,
}

impl<'a> Frontier<'a> {
    /// All nodes closed; they are sorted by their bounds.
    pub(crate) fn new(problem: &Problem, stands: &'a [Stand<'a>], nodes: &'a [Node]) -> Self {
        Self {
            exhaustive: problem.request.exhaustive,
            stands,
            nodes,
            opened: 0,
            open: BinaryHeap::new(),
            leaves: Vec::new(),
            probed: 0,
            kinds: BTreeSet::new(),
            early: BTreeSet::new(),
        }
    }

    fn excluded(&self, best: &Best, bound: &Score) -> bool {
        !self.exhaustive && best.excludes(bound)
    }

    /// Opens nodes until the best leaf is known to be the best of all, or nothing is left to open.
    pub(crate) fn open(&mut self, best: &Best) -> Result<(), TuneError> {
        while let Some(node) = self.nodes.get(self.opened) {
            let leaf = self.open.peek().map(|Reverse((bound, ..))| *bound);
            let enough = self.open.len() >= LEAVES + self.early.len();
            if leaf.is_some_and(|leaf| leaf < node.bound && enough) {
                break;
            }
            if self.excluded(best, &node.bound) {
                break; // and so are all nodes after it
            }
            let end = self.nodes.len().min(self.opened + NODES);
            let (nodes, this) = (&self.nodes[self.opened..end], &*self);
            let opened: Vec<Vec<Leaf>> = nodes
                .par_iter()
                .map(|node| {
                    let stand = &this.stands[node.base];
                    if this.excluded(best, &stand.second_bound(node)) {
                        return Ok(Vec::new());
                    }
                    stand.leaves(node)
                })
                .collect::<Result<_, _>>()
                .map_err(TuneError::Unsupported)?;
            for (node, leaves) in (self.opened..end).zip(opened) {
                let at = leaves.iter().enumerate();
                self.open.extend(at.map(|(leaf, l)| Reverse((l.bound, node, leaf))));
                self.leaves.push(leaves);
            }
            self.opened = end;
        }
        Ok(())
    }

    /// Candidates to simulate now; none when the search is over.
    pub(crate) fn next_batch(&mut self, best: &Best) -> Result<Vec<Plan>, TuneError> {
        let mut batch = Vec::with_capacity(LEAVES + PROBES);
        while batch.len() < LEAVES
            && let Some(Reverse((bound, node, leaf))) = self.open.pop()
        {
            if self.excluded(best, &bound) {
                self.open.clear(); // the others have no better bound
            } else if !self.early.remove(&(node, leaf)) {
                self.kinds.insert(self.nodes[node].kind());
                batch.push(self.plan(node, &self.leaves[node][leaf]));
            }
        }
        if !batch.is_empty() && !self.exhaustive {
            self.probe(best, &mut batch)?;
        }
        Ok(batch)
    }

    /// Adds the best leaf of some nodes of kinds that have not been tried.
    fn probe(&mut self, best: &Best, batch: &mut Vec<Plan>) -> Result<(), TuneError> {
        let mut probes = 0;
        while probes < PROBES
            && let Some(node) = self.nodes.get(self.probed)
            && !best.excludes(&node.bound)
        {
            let index = self.probed;
            self.probed += 1;
            if !self.kinds.insert(node.kind()) {
                continue;
            }
            let stand = &self.stands[node.base];
            if best.excludes(&stand.second_bound(node)) {
                continue;
            }
            let leaves = stand.leaves(node).map_err(TuneError::Unsupported)?;
            // The first of equals: what comes first in a knob's list is the usual choice.
            let first = leaves.iter().enumerate().min_by_key(|(_, leaf)| leaf.bound);
            if let Some((at, leaf)) = first.filter(|(_, leaf)| !best.excludes(&leaf.bound)) {
                // Nodes after this one may not be open yet; those before it are, and so is their leaf.
                self.early.insert((index, at));
                batch.push(self.plan(index, leaf));
                probes += 1;
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
        let open = self.open.iter().map(|Reverse((bound, node, leaf))| {
            (*bound, usize::from(!self.early.contains(&(*node, *leaf))))
        });
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
