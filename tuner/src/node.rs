//! Groups of candidates that share which weights stay on the GPU, and the candidates in them.
//!
//! ```text
//! Cut      granularity                                              the model in units
//! Shape      sequences, prefill chunk                               arithmetic
//! Base         cache, attention, hidden states, experts             memory that is left, other traffic
//! Node           GPU slots, order, host memory -> weights on GPU    link traffic
//! Leaf             block, host slots, disk reads -> host weights    everything
//! ```
//!
//! Each level computes what the levels below it share. A node is bounded by what all its leaves have in
//! common, so most leaves are never looked at.

use pipo_plan::schedule::LaneKind;
use pipo_plan::strategy::Order;
use pipo_plan::strategy::pipo::{Embedding, ExpertLoads, Pipo, place};
use pipo_plan::strategy::residency::Placed;
use pipo_plan::units::Bytes;
use pipo_simulator::Resource;

use crate::base::Base;
use crate::bound::{Bounded, Moving};
use crate::demand::Demand;
use crate::fill::Units;
use crate::pipeline::{Stage, earliest_end};
use crate::problem::Problem;
use crate::score::Score;
use crate::shape::{Cut, Picked, Shape};
use crate::space::HostChoice;
use crate::weights::{Loads, Moved, Times, shares_moved};

/// A group of candidates.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Index of the base.
    pub(crate) base: usize,
    pub(crate) gpu_slots: u32,
    pub(crate) order: Order,
    pub(crate) host: HostChoice,
    pub(crate) gpu_weights: Bytes,
    /// Bytes that are moved in each pass if every expert is needed.
    pub(crate) streamed: Bytes,
    /// Host memory that would hold all of these; less, where head and embedding are one matrix.
    pub(crate) held: Bytes,
    /// Largest unit that is moved: the size of a slot.
    pub(crate) slot: Bytes,
    /// GPU time of the units that are moved, in the prefill and in all decode steps.
    pub(crate) computed: (f64, f64),
    /// No leaf scores better.
    pub(crate) bound: Score,
    /// How many leaves there are.
    pub(crate) leaves: usize,
}

impl Node {
    /// What a search tries each of early on: base and number of slots.
    pub(crate) fn kind(&self) -> (usize, u32) {
        (self.base, self.gpu_slots)
    }
}

/// A base with what it stands on.
#[derive(Clone, Copy)]
pub(crate) struct Stand<'a> {
    pub(crate) problem: &'a Problem<'a>,
    pub(crate) cut: &'a Cut,
    pub(crate) shape: &'a Shape,
    pub(crate) base: &'a Base,
    pub(crate) index: usize,
}

impl<'a> Stand<'a> {
    /// The nodes of a base, and how many settings had no room for their slots.
    pub(crate) fn nodes(&self) -> (Vec<Node>, u64) {
        let space = &self.problem.request.space;
        let (mut nodes, mut too_large) = (Vec::new(), 0);
        for &gpu_slots in &space.gpu_slots {
            let mut others: Vec<Vec<Placed>> = Vec::new();
            for &order in &space.order {
                let Some(gpu) = self.units(order).fill_gpu(self.base.gpu_room, gpu_slots) else {
                    too_large += 1;
                    continue;
                };
                let placed = self.place(gpu, Bytes::ZERO, order);
                if others.contains(&placed) && self.all_fits_host(&placed) {
                    continue; // the order decides nothing
                }
                for &host in &space.host {
                    let (node, excluded) = self.node(gpu_slots, order, host, gpu, &placed);
                    too_large += excluded;
                    let resident = node.streamed == Bytes::ZERO;
                    nodes.extend((node.leaves > 0).then_some(node));
                    if resident {
                        return (nodes, too_large); // no other knob decides anything
                    }
                }
                others.push(placed);
            }
        }
        (nodes, too_large)
    }

    fn all_fits_host(&self, placed: &[Placed]) -> bool {
        placed.iter().map(Placed::streamed).sum::<Bytes>() <= self.base.host_room
    }

    pub(crate) fn units(&self, order: Order) -> Units<'a> {
        let embedding = self.base.knobs.embedding;
        let all = self.cut.placed_units(embedding);
        Units { all, tied_table: self.cut.tied_table(embedding), order }
    }

    /// Places weights; `host` is what of them may stay in host memory.
    pub(crate) fn place(&self, gpu: Bytes, host: Bytes, order: Order) -> Vec<Placed> {
        let host_weights = self.with_table(host);
        let knobs = Pipo { gpu_weights: gpu, host_weights, order, ..self.base.knobs.clone() };
        place(&self.cut.frame, self.cut.placed_units(knobs.embedding), &knobs)
    }

    /// The knob counts a table that is looked up in host memory among the weights there.
    pub(crate) fn with_table(&self, host: Bytes) -> Bytes {
        match self.base.knobs.embedding {
            Embedding::Host | Embedding::Mapped if host > Bytes::ZERO => {
                host + self.cut.frame.units[0].bytes
            }
            _ => host,
        }
    }

    fn node(
        &self,
        gpu_slots: u32,
        order: Order,
        host: HostChoice,
        gpu_weights: Bytes,
        placed: &[Placed],
    ) -> (Node, u64) {
        let micros = self.shape.batch.count as f64;
        let mut computed = (0.0, 0.0);
        for (index, _) in placed.iter().enumerate().filter(|(_, p)| p.streamed() > Bytes::ZERO) {
            if let Some(arithmetic) = self.shape.arithmetic(self.cut, index) {
                let gpu = |demand: &Demand| demand.lane(LaneKind::Gpu) * micros;
                computed.0 += gpu(&arithmetic.whole.first);
                computed.1 += gpu(&arithmetic.split.as_ref().unwrap_or(&arithmetic.whole).rest)
                    .min(gpu(&arithmetic.whole.rest));
            }
        }
        let mut node = Node {
            base: self.index,
            gpu_slots,
            order,
            host,
            gpu_weights,
            streamed: placed.iter().map(Placed::streamed).sum(),
            held: self.units(order).held_off_gpu(gpu_weights),
            slot: placed.iter().map(Placed::streamed).max().unwrap_or(Bytes::ZERO),
            computed,
            bound: Score::BEST,
            leaves: 0,
        };
        let (transfers, excluded) = self.transfers(&node);
        node.leaves = transfers.len();
        node.bound = self.optimistic(&node, placed).score(self);
        (node, excluded)
    }

    /// What all leaves of a node have in common: every byte crosses the link at no more than its best
    /// rate, and what host memory cannot hold is read by so many threads at no more than theirs.
    fn optimistic(&self, node: &Node, placed: &[Placed]) -> Bounded {
        let machine = &self.problem.request.machine;
        let steps = self.steps();
        let moved = Moved::new(placed, &self.shape.picked, steps);
        let (first, rest, least) = moved.bytes(steps);
        let link = 1.0 / machine.link.h2d.best().per_nano();
        let crossing = |bytes: f64| Demand::on(LaneKind::H2d, bytes * link);
        let mut moving = Moving {
            first: crossing(first),
            rest: crossing(rest),
            least: crossing(least),
            // The first blocks of `gpu_slots` units; a slower candidate has the same bytes ahead.
            ahead: crossing((node.slot * u64::from(node.gpu_slots)).as_f64()),
        };
        if let Some(disk) = &machine.disk {
            let best = disk.read.best().max(disk.buffered_read.best()).per_nano();
            // Buffered reads that are faster than the whole disk draw less of it for each byte: one alone,
            // or several together.
            let together = [&disk.buffered_pair, &disk.buffered_total].into_iter().flatten();
            let together = together.map(|rate| rate.value.per_nano()).fold(0.0, f64::max);
            let whole_disk = self.problem.pricer.capacity(Resource::Disk).max(best).max(together);
            let reading = |bytes: f64| {
                let lanes = Demand::on(LaneKind::DiskRead, bytes / best);
                lanes.plus(&Demand::of(Resource::Disk, bytes / whole_disk))
            };
            let routed = self.base.knobs.experts == ExpertLoads::Routed;
            let picked: &[Picked] = if routed { &self.shape.picked } else { &[] };
            // At least these shares of any unit's bytes are moved, whichever units are on disk.
            let (first, rest, least) = shares_moved(placed, picked);
            let on_disk = match node.host {
                HostChoice::Disk => node.streamed,
                HostChoice::Pinned | HostChoice::Pageable => node.held - self.base.host_room,
            };
            moving.first.add(&reading(on_disk.as_f64()), first);
            moving.rest.add(&reading(self.read_again(node, rest.min(steps), steps)), 1.0);
            moving.least.add(&reading(self.read_again(node, least, 1.0)), 1.0);
            // Units in GPU slots and blocks in host slots; those blocks take host memory.
            let ahead =
                node.slot * u64::from(node.gpu_slots) + self.base.host_room.min(node.streamed);
            moving.ahead.add(&reading(ahead.as_f64()), 1.0);
        }
        let threads = self.most_threads();
        Bounded::new(self.base, &moving, node.computed, node.gpu_slots, threads, threads)
    }

    /// Bytes that are read from disk after the prefill, at least, in `passes` passes that together move
    /// `share` times the bytes of any unit.
    ///
    /// Say that weights take `h` of the host's `room`, so that all but `h` of them are on disk, and the page
    /// cache has no more than what is left. With nothing read through it, `share * (held - h)` is read. What
    /// the cache keeps may be the very bytes that are moved, so it saves up to all of itself in each pass.
    /// As `h` grows what is on disk shrinks more slowly than the cache, relative to their sizes, and the
    /// cache keeps a smaller share of its capacity: at most what it keeps beside `h = 0`, in proportion to
    /// its size. With that the difference is linear in `h`, so the least of it is at one of the ends,
    /// which are none and `room`.
    fn read_again(&self, node: &Node, share: f64, passes: f64) -> f64 {
        let room = self.base.host_room;
        let cached = |on_disk| self.kept(room, on_disk).as_f64() * passes;
        let none = |held: Bytes| share * held.as_f64() - cached(held);
        let least = match node.host {
            HostChoice::Disk => none(node.streamed),
            HostChoice::Pinned | HostChoice::Pageable => {
                none(node.held).min(share * (node.held - room).as_f64())
            }
        };
        least.max(0.0)
    }

    /// A second bound on a node, dearer than its own: looked at before its leaves are.
    pub(crate) fn second_bound(&self, node: &Node) -> Score {
        let placed = self.place(node.gpu_weights, Bytes::ZERO, node.order);
        let link = 1.0 / self.problem.request.machine.link.h2d.best().per_nano();
        let end = self.pipeline(node, &placed, &mut AtBest { link });
        Bounded::NOTHING.or_later(end).score(self).max(node.bound)
    }

    /// When the last token comes at least, if only loads and computations take time.
    pub(crate) fn pipeline(&self, node: &Node, placed: &[Placed], times: &mut dyn Times) -> f64 {
        let stage = |(index, unit): (usize, &Placed)| {
            let chain = self.base.chain_of.get(index).copied().flatten()?;
            let routed = unit.segments.len() > 1;
            let picked = self.shape.picked.get(index).filter(|_| routed);
            let of_unit = &self.cut.frame.units[index];
            let crosses = self.base.cache_crosses.get(of_unit.layer as usize);
            let cached = of_unit.attends && crosses.copied().unwrap_or(false);
            let loads = Loads::new(unit, picked, times);
            Some(Stage { chain, load: loads.link, cached, routed: routed.then_some(loads.wait) })
        };
        let stages: Vec<Stage> = placed.iter().enumerate().filter_map(stage).collect();
        let passes = self.cut.frame.passes();
        earliest_end(&stages, &self.base.pace, passes, node.gpu_slots)
    }

    /// Steps that the pipeline of one bound takes.
    pub(crate) fn bound_steps(&self) -> u64 {
        self.cut.frame.units.len() as u64 * u64::from(self.cut.frame.passes())
    }

    /// The most threads that read weights, or a cache on disk.
    pub(crate) fn most_threads(&self) -> u32 {
        self.problem.request.space.disk_threads.iter().copied().max().unwrap_or(1)
    }

    /// Decode steps.
    pub(crate) fn steps(&self) -> f64 {
        self.problem.request.workload.new_tokens.saturating_sub(1) as f64
    }
}

/// The link at its best rate, and a disk that takes no time, because nothing is known of it yet.
struct AtBest {
    link: f64,
}

impl Times for AtBest {
    fn link(&mut self, bytes: Bytes) -> f64 {
        bytes.as_f64() * self.link
    }

    fn disk(&mut self, _: Bytes) -> f64 {
        0.0
    }
}
