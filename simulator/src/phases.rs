//! A lower bound on how long a request can take whose prefill and decode follow each other.

use std::collections::VecDeque;

use pipo_plan::schedule::{Builder, Layout, OpId, Pass, Phase, Schedule, Slot};
use pipo_plan::units::Nanos;

use crate::bound::{Bound, Floors, Sums};
use crate::cost::Costs;
use crate::engine::{Options, check_layout};
use crate::error::SimulationError;

/// What each lane and resource needs at least, of what must follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseBounds {
    /// Of everything that the last token needs.
    pub request: Bound,
    /// Of everything that the prefill's last token needs; of nothing where no decode follows.
    pub prefill: Bound,
    /// Of what the last token needs and what cannot begin before the prefill's last token.
    pub decode: Bound,
}

impl PhaseBounds {
    /// No request has its last token earlier than this.
    pub fn request(&self) -> Nanos {
        self.request.total().max(self.prefill.total() + self.decode.total())
    }
}

/// The least time until the last token, whatever the order in which things happen.
///
/// # Proof
///
/// Let `x` be the operation that makes the prefill's last token, and `y` that of the last token of all.
/// An operation *needs* another if it cannot start before that one has ended:
///
/// - it waits for it, or stands behind it in its queue;
/// - it takes the slot that the other frees. That is the freeing operation before it in program order,
///   where until there every use of the slot was followed by one: turns at a slot are in program order,
///   and an operation frees a slot only after the one that took it;
/// - the other is `window` passes or more before it;
/// - it needs what needs the other.
///
/// When `x` ends, all that it needs has ended, `x` itself too; until then lanes and resources spend at
/// least what [`lower_bound`](crate::lower_bound) says of these operations. What needs `x` starts only
/// then; of it all that `y` needs has ended when `y` ends. So the longest need of a lane or resource in
/// the first part and the longest in the second fit one after the other into the time until `y` ends.
/// What may run on either side of the end of `x`, such as loads ahead and saves that trail behind, is
/// in neither part. Nothing is said of what comes after `y` but is not needed for it.
///
/// A pass ends for its user when the last of its tokens is there, so a request ends no earlier than `y`.
///
/// # Errors
///
/// [`SimulationError::Unsupported`] and [`SimulationError::Invalid`], as a simulation would.
pub fn phase_bounds(
    schedule: &Schedule,
    costs: &dyn Costs,
    options: &Options,
) -> Result<PhaseBounds, SimulationError> {
    let Schedule { layout, program } = schedule;
    check_layout(layout)?;
    let mut floors = Floors::new(options.page_cache.hits_of(layout));
    let mut walk = Walk::new(layout);
    let mut builder = Builder::new(layout);
    let mut pass = Pass::default();
    let nothing = || Sums::new(layout);
    let mut prefill = nothing();
    for number in 0..program.passes() {
        program.emit(number, &mut builder);
        pass = builder.finish(pass);
        floors.add(&builder.works, costs)?;
        walk.add(&pass, &floors)?;
        let decodes = |number| number < program.passes() && program.phase(number) == Phase::Decode;
        if walk.split.is_none()
            && decodes(number + 1)
            && !decodes(number)
            && let Some(token) = token(&pass)
        {
            prefill = walk.needed(token, &floors).0;
            walk.split_at(token, number);
        }
    }
    let end = token(&pass).map(|token| walk.needed(token, &floors));
    let (request, decode) = end.unwrap_or_else(|| (nothing(), nothing()));
    let bound = |sums: &Sums| sums.bound(&costs.capacities());
    Ok(PhaseBounds { request: bound(&request), prefill: bound(&prefill), decode: bound(&decode) })
}

/// The operation that makes the last token of a pass, as far as program order tells.
fn token(pass: &Pass) -> Option<OpId> {
    let last = pass.ops.iter().rposition(|op| op.ends_pass).or(pass.ops.len().checked_sub(1))?;
    Some(OpId(pass.first.saturating_add(u32::try_from(last).ok()?)))
}

/// An operation, and what it needs directly.
struct Node {
    lane: usize,
    work: usize,
    needs: Vec<OpId>,
    /// Whether it needs the operation at which the request is split.
    follows: bool,
}

/// The uses of a slot so far, in program order.
#[derive(Clone, Copy, Default)]
struct Uses {
    taken: u64,
    freed: u64,
    last: Option<OpId>,
}

/// A walk over a program, with the operations of as many passes at hand as may be in flight.
struct Walk<'a> {
    layout: &'a Layout,
    nodes: VecDeque<Node>,
    /// Id of the first node.
    first: u32,
    /// Operations of each pass at hand.
    passes: VecDeque<usize>,
    /// Of the passes before these: whatever comes now needs them.
    past: Sums,
    /// The same, of what follows the split.
    past_following: Sums,
    /// Where the request is split, and the pass of that.
    split: Option<(OpId, u32)>,
    slots: Vec<Vec<Uses>>,
    last_in_queue: Vec<Option<OpId>>,
}

impl<'a> Walk<'a> {
    fn new(layout: &'a Layout) -> Self {
        let uses = |slots: u16| vec![Uses::default(); usize::from(slots)];
        Self {
            layout,
            nodes: VecDeque::new(),
            first: 0,
            passes: VecDeque::new(),
            past: Sums::new(layout),
            past_following: Sums::new(layout),
            split: None,
            slots: layout.rings.iter().map(|ring| uses(ring.slots)).collect(),
            last_in_queue: vec![None; layout.queues.len()],
        }
    }

    fn add(&mut self, pass: &Pass, floors: &Floors) -> Result<(), SimulationError> {
        while self.passes.len() >= self.layout.window as usize {
            self.leave_behind(floors);
        }
        if self.nodes.is_empty() {
            self.first = pass.first;
        }
        let window = self.layout.window;
        let all_follow = self.split.is_some_and(|(_, at)| pass.number.saturating_sub(at) >= window);
        for (index, op) in (0..).zip(&pass.ops) {
            let id = OpId(pass.first.saturating_add(index));
            let lane = floors.lane(self.layout, id, op)?;
            let mut needs = pass.waits(op).to_vec();
            if let Some(last) = self.last_in_queue.get_mut(usize::from(op.queue.0)) {
                needs.extend(last.replace(id));
            }
            if let Some(uses) = op.takes.and_then(|slot| self.uses(slot)) {
                needs.extend(uses.last.filter(|_| uses.taken == uses.freed));
                uses.taken += 1;
            }
            for slot in op.frees.into_iter().flatten() {
                if let Some(uses) = self.uses(slot) {
                    uses.freed += 1;
                    uses.last = Some(id);
                }
            }
            let follows = all_follow || self.any_follows(&needs);
            self.nodes.push_back(Node { lane, work: op.work.0 as usize, needs, follows });
        }
        self.passes.push_back(pass.ops.len());
        Ok(())
    }

    /// Lets go of the oldest pass at hand.
    fn leave_behind(&mut self, floors: &Floors) {
        for _ in 0..self.passes.pop_front().unwrap_or(0) {
            let Some(node) = self.nodes.pop_front() else { return };
            let floor = &floors[node.work];
            self.past.add(node.lane, floor);
            if node.follows {
                self.past_following.add(node.lane, floor);
            }
            self.first = self.first.saturating_add(1);
        }
    }

    fn uses(&mut self, slot: Slot) -> Option<&mut Uses> {
        self.slots.get_mut(usize::from(slot.ring.0))?.get_mut(usize::from(slot.index))
    }

    /// Position of an operation among the nodes, where it is at hand.
    fn at(&self, op: OpId) -> Option<usize> {
        op.0.checked_sub(self.first).map(|at| at as usize).filter(|&at| at < self.nodes.len())
    }

    /// Whether one of these is or follows the split. Those that are not at hand do so only if everything
    /// does that comes now.
    fn any_follows(&self, ops: &[OpId]) -> bool {
        let Some((split, _)) = self.split else { return false };
        ops.iter().any(|&op| op == split || self.at(op).is_some_and(|at| self.nodes[at].follows))
    }

    /// Splits the request at an operation of the last pass.
    fn split_at(&mut self, token: OpId, pass: u32) {
        self.split = Some((token, pass));
        let behind = self.at(token).map_or(self.nodes.len(), |at| at + 1);
        for at in behind..self.nodes.len() {
            self.nodes[at].follows = self.any_follows(&self.nodes[at].needs);
        }
    }

    /// What an operation of the last pass needs, itself included; and that part of it which follows the
    /// split.
    fn needed(&self, token: OpId, floors: &Floors) -> (Sums, Sums) {
        let (mut all, mut following) = (self.past.clone(), self.past_following.clone());
        let Some(last) = self.at(token) else { return (all, following) };
        let mut needed = vec![false; last + 1];
        needed[last] = true;
        for (at, node) in self.nodes.iter().enumerate().take(last + 1).rev() {
            if !needed[at] {
                continue;
            }
            let floor = &floors[node.work];
            all.add(node.lane, floor);
            if node.follows {
                following.add(node.lane, floor);
            }
            // What an operation needs comes before it; a schedule in which it does not is refused later.
            for before in node.needs.iter().filter_map(|&op| self.at(op)).filter(|&b| b < at) {
                needed[before] = true;
            }
        }
        (all, following)
    }
}
