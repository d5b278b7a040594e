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

use pipo_plan::plan::Plan;
use pipo_plan::schedule::{DiskIo, LaneKind};
use pipo_plan::strategy::pipo::{Embedding, FileReads, Pipo, place};
use pipo_plan::strategy::residency::Placed;
use pipo_plan::strategy::stream::MOST_BLOCKS;
use pipo_plan::strategy::{KvTier, Order, Strategy};
use pipo_plan::units::Bytes;
use pipo_simulator::{HitShare, PageCache, Resource, Unsupported};

use crate::base::Base;
use crate::bound::{Bounded, Moving};
use crate::demand::Demand;
use crate::fill::Units;
use crate::pipeline::{Stage, earliest_end};
use crate::problem::Problem;
use crate::score::Score;
use crate::shape::{Cut, Shape};
use crate::space::HostChoice;
use crate::weights::{Moved, Transfer, link_time, loads};

/// A group of candidates.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Index of the base.
    pub(crate) base: usize,
    gpu_slots: u32,
    order: Order,
    host: HostChoice,
    gpu_weights: Bytes,
    /// Bytes that are moved in each pass if every expert is needed.
    streamed: Bytes,
    /// Host memory that would hold all of these; less, where head and embedding are one matrix.
    held: Bytes,
    /// Largest unit that is moved: the size of a slot.
    slot: Bytes,
    /// GPU time of the units that are moved, in the prefill and in all decode steps.
    computed: (f64, f64),
    /// No leaf scores better.
    pub(crate) bound: Score,
    /// How many leaves there are.
    pub(crate) leaves: usize,
}

/// A candidate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf {
    pub(crate) transfer: Transfer,
    pub(crate) host_weights: Bytes,
    /// Weights in host memory alone, without a table that is looked up there.
    host: Bytes,
    pub(crate) bound: Score,
    /// Whether the bound is the dear one, of [`Stand::refine`].
    pub(crate) refined: bool,
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

    fn units(&self, order: Order) -> Units<'a> {
        let embedding = self.base.knobs.embedding;
        let tied = self.cut.frame.plan.model.tied_embeddings && embedding == Embedding::Unit;
        Units { all: self.cut.placed_units(embedding), tied, order }
    }

    /// Places weights; `host` is what of them may stay in host memory.
    fn place(&self, gpu: Bytes, host: Bytes, order: Order) -> Vec<Placed> {
        let host_weights = self.with_table(host);
        let knobs = Pipo { gpu_weights: gpu, host_weights, order, ..self.base.knobs.clone() };
        place(&self.cut.frame, self.cut.placed_units(knobs.embedding), &knobs)
    }

    /// The knob counts a table that is looked up in host memory among the weights there.
    fn with_table(&self, host: Bytes) -> Bytes {
        match self.base.knobs.embedding {
            Embedding::Host if host > Bytes::ZERO => host + self.cut.frame.units[0].bytes,
            Embedding::Host | Embedding::Unit => host,
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
        if let Some(disk) = machine.disk.as_ref().filter(|_| self.shape.picked.is_empty()) {
            let best = disk.read.best().max(disk.buffered_read.best()).per_nano();
            let whole_disk = self.problem.pricer.capacity(Resource::Disk);
            let reading = |bytes: f64| {
                let lanes = Demand::on(LaneKind::DiskRead, bytes / best);
                lanes.plus(&Demand::of(Resource::Disk, bytes / whole_disk))
            };
            let from_disk = (node.held - self.base.host_room).as_f64();
            let in_prefill =
                if node.host == HostChoice::Disk { node.streamed.as_f64() } else { from_disk };
            moving.first.add(&reading(in_prefill), 1.0);
            moving.rest.add(&reading(from_disk), steps);
            moving.least.add(&reading(from_disk), 1.0);
            // Units in GPU slots and blocks in host slots; those blocks take host memory.
            let ahead =
                node.slot * u64::from(node.gpu_slots) + self.base.host_room.min(node.streamed);
            moving.ahead.add(&reading(ahead.as_f64()), 1.0);
        }
        let threads = self.most_threads();
        Bounded::new(self.base, &moving, node.computed, node.gpu_slots, threads, threads)
    }

    /// A second bound on a node, dearer than its own: looked at before its leaves are.
    pub(crate) fn second_bound(&self, node: &Node) -> Score {
        let placed = self.place(node.gpu_weights, Bytes::ZERO, node.order);
        let link = 1.0 / self.problem.request.machine.link.h2d.best().per_nano();
        let end = self.pipeline(node, &placed, &mut |bytes| bytes.as_f64() * link);
        Bounded::NOTHING.or_later(end).score(self).max(node.bound)
    }

    /// When the last token comes at least, if only loads and computations take time.
    fn pipeline(&self, node: &Node, placed: &[Placed], time: &mut dyn FnMut(Bytes) -> f64) -> f64 {
        let stage = |(index, unit): (usize, &Placed)| {
            let chain = self.base.chain_of.get(index).copied().flatten()?;
            let routed = unit.segments.len() > 1;
            let picked = self.shape.picked.get(index).filter(|_| routed);
            let of_unit = &self.cut.frame.units[index];
            let crosses = self.base.cache_crosses.get(of_unit.layer as usize);
            let cached = of_unit.attends && crosses.copied().unwrap_or(false);
            Some(Stage { chain, load: loads(unit, picked, time), cached })
        };
        let stages: Vec<Stage> = placed.iter().enumerate().filter_map(stage).collect();
        let passes = self.cut.frame.passes();
        earliest_end(&stages, &self.base.pace, passes, node.gpu_slots)
    }

    /// Units of the model.
    pub(crate) fn units_len(&self) -> u64 {
        self.cut.frame.units.len() as u64
    }

    /// Steps that the pipeline of one bound takes.
    pub(crate) fn bound_steps(&self) -> u64 {
        self.units_len() * u64::from(self.cut.frame.passes())
    }

    /// The most threads that read weights, or a cache on disk.
    fn most_threads(&self) -> u32 {
        self.problem.request.space.disk_threads.iter().copied().max().unwrap_or(1)
    }

    /// Decode steps.
    pub(crate) fn steps(&self) -> f64 {
        self.problem.request.workload.new_tokens.saturating_sub(1) as f64
    }

    /// The ways to move a node's weights, and how many more there would be with more host memory.
    fn transfers(&self, node: &Node) -> (Vec<Transfer>, u64) {
        let space = &self.problem.request.space;
        let staged = node.host == HostChoice::Pageable;
        let first = |list: &[Bytes]| list.first().copied().unwrap_or(Bytes(4096));
        let plain = Transfer {
            block: first(&space.block),
            host_slots: space.host_slots.first().copied().unwrap_or(1),
            read_block: first(&space.read_block),
            disk_threads: space.disk_threads.first().copied().unwrap_or(1),
            io: io(space.reads.first().copied().unwrap_or_default()),
            staged: staged && node.streamed > Bytes::ZERO,
        };
        let writes_cache = self.base.knobs.kv == KvTier::Disk;
        if node.streamed == Bytes::ZERO && !writes_cache {
            return (vec![plain], 0);
        }
        let (mut all, mut too_large) = (Vec::new(), 0);
        for block in self.blocks(node) {
            for &host_slots in &space.host_slots {
                let ring = block.min(node.slot) * u64::from(host_slots);
                let room = self.base.host_room;
                let fits = node.held <= if staged { room - ring } else { room };
                let on_disk = node.host == HostChoice::Disk || !fits;
                let passes = staged || (on_disk && node.streamed > Bytes::ZERO);
                if (passes && ring > room)
                    || (on_disk && self.problem.request.machine.disk.is_none())
                {
                    too_large += 1;
                    continue;
                }
                let one = Transfer { block, host_slots, ..plain };
                if on_disk || writes_cache {
                    all.extend(self.disk_reads(one));
                } else {
                    all.push(one);
                }
                if !passes {
                    break; // nothing goes through host slots, so their number decides nothing
                }
            }
        }
        (all, too_large)
    }

    /// The sizes of block that make a difference, and do not cut units into too many; the largest one
    /// where all would.
    fn blocks(&self, node: &Node) -> Vec<Bytes> {
        let space = &self.problem.request.space;
        let units = self.cut.frame.units.iter().map(|u| u.bytes);
        let largest = units.max().unwrap_or(Bytes::ZERO);
        // What an operation can number goes before what was asked for.
        let numbered = Bytes(largest.0.div_ceil(MOST_BLOCKS).max(4096));
        let least = Bytes(node.slot.0.div_ceil(space.most_blocks.max(1)));
        let possible: Vec<Bytes> =
            effective(&space.block, node.slot).filter(|&block| block >= numbered).collect();
        let wanted: Vec<Bytes> = possible.iter().copied().filter(|&b| b >= least).collect();
        if wanted.is_empty() { possible.into_iter().max().into_iter().collect() } else { wanted }
    }

    fn disk_reads(&self, one: Transfer) -> Vec<Transfer> {
        let space = &self.problem.request.space;
        let mut all = Vec::new();
        // A cache on disk is moved whole, so every size of request differs there.
        let most = if self.base.knobs.kv == KvTier::Disk { Bytes(u64::MAX) } else { one.block };
        for read_block in effective(&space.read_block, most) {
            for &disk_threads in &space.disk_threads {
                for &reads in &space.reads {
                    all.push(Transfer { read_block, disk_threads, io: io(reads), ..one });
                }
            }
        }
        all
    }

    /// The leaves of a node.
    pub(crate) fn leaves(&self, node: &Node) -> Result<Vec<Leaf>, Unsupported> {
        let (transfers, _) = self.transfers(node);
        transfers.into_iter().map(|transfer| self.leaf(node, transfer)).collect()
    }

    fn leaf(&self, node: &Node, transfer: Transfer) -> Result<Leaf, Unsupported> {
        let units = self.units(node.order);
        let room = self.base.host_room;
        let ring = transfer.block.min(node.slot) * u64::from(transfer.host_slots);
        let host = match node.host {
            HostChoice::Disk => Bytes::ZERO,
            HostChoice::Pinned | HostChoice::Pageable => {
                units.fill_host(node.gpu_weights, room, ring, transfer.staged)
            }
        };
        let placed = self.place(node.gpu_weights, host, node.order);
        let moved = Moved::new(&placed, &self.shape.picked, self.steps());
        let on_disk = moved.on_disk();
        let in_host: Bytes = placed.iter().map(|p| p.total().host).sum();
        let asked = moved.asked(
            &transfer,
            self.problem.pricer,
            self.steps(),
            node.gpu_slots,
            Self::kept(room - in_host, on_disk),
        )?;
        let moving =
            Moving { first: asked.first, rest: asked.rest, least: asked.least, ahead: asked.ahead };
        let threads = transfer.disk_threads;
        let bounded =
            Bounded::new(self.base, &moving, node.computed, node.gpu_slots, threads, threads);
        let (host_weights, bound) = (self.with_table(host), bounded.score(self));
        Ok(Leaf { transfer, host_weights, host, bound, refined: false })
    }

    /// A leaf with a second bound, dearer than its first: from the order of its loads and computations.
    pub(crate) fn refine(&self, node: &Node, leaf: &Leaf) -> Result<Leaf, Unsupported> {
        let transfer = leaf.transfer;
        let placed = self.place(node.gpu_weights, leaf.host, node.order);
        let pricer = self.problem.pricer;
        let mut known: Vec<(Bytes, f64)> = Vec::new();
        let mut failed = None;
        let mut time = |bytes: Bytes| {
            if let Some((_, time)) = known.iter().find(|(other, _)| *other == bytes) {
                return *time;
            }
            match link_time(bytes, transfer.block, pricer) {
                Ok(time) => {
                    known.push((bytes, time));
                    time
                }
                Err(error) => {
                    failed = Some(error);
                    0.0
                }
            }
        };
        let end = self.pipeline(node, &placed, &mut time);
        if let Some(error) = failed {
            return Err(error);
        }
        let bound = Bounded::NOTHING.or_later(end).score(self).max(leaf.bound);
        Ok(Leaf { bound, refined: true, ..*leaf })
    }

    /// Bytes of the file that the page cache can keep from pass to pass. Blocks in flight take from the
    /// room; not to count them errs towards more hits, which is the safe side.
    fn kept(room: Bytes, on_disk: Bytes) -> Bytes {
        let hits = PageCache { capacity: room, warm: false }.hits(on_disk);
        if hits == HitShare::NONE { Bytes::ZERO } else { hits.of(on_disk) + Bytes(1) }
    }

    /// The plan of a leaf.
    pub(crate) fn plan(&self, node: &Node, leaf: &Leaf) -> Plan {
        let transfer = leaf.transfer;
        let knobs = Pipo {
            gpu_slots: node.gpu_slots,
            host_slots: transfer.host_slots,
            block: transfer.block,
            read_block: transfer.read_block,
            disk_threads: transfer.disk_threads,
            reads: match transfer.io {
                DiskIo::Direct => FileReads::Direct,
                DiskIo::Buffered | DiskIo::PageFault => FileReads::Buffered,
            },
            gpu_weights: node.gpu_weights,
            host_weights: leaf.host_weights,
            host_memory: node.host.memory(),
            order: node.order,
            ..self.base.knobs.clone()
        };
        self.problem.plan(self.shape.batch, Strategy::Pipo(knobs))
    }
}

fn io(reads: FileReads) -> DiskIo {
    match reads {
        FileReads::Direct => DiskIo::Direct,
        FileReads::Buffered => DiskIo::Buffered,
    }
}

/// Those of some sizes that differ in effect on something of `whole` bytes: all smaller ones, and the
/// smallest that is not.
fn effective(sizes: &[Bytes], whole: Bytes) -> impl Iterator<Item = Bytes> {
    let enough = sizes.iter().copied().filter(|&s| s >= whole).min();
    sizes.iter().copied().filter(move |&s| s < whole || Some(s) == enough)
}
