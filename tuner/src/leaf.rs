//! The candidates of a node: every way to move its weights.

use std::collections::BTreeMap;

use pipo_plan::plan::Plan;
use pipo_plan::strategy::pipo::{FileReads, Pipo};
use pipo_plan::strategy::stream::MOST_BLOCKS;
use pipo_plan::strategy::{KvTier, Strategy};
use pipo_plan::units::Bytes;
use pipo_simulator::{HitShare, PageCache, Unsupported};

use crate::bound::{Bounded, Moving};
use crate::demand::Pricer;
use crate::node::{Node, Stand};
use crate::score::Score;
use crate::space::HostChoice;
use crate::weights::{Moved, Times, Transfer, disk_time, link_time};

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

/// Where the weights of some leaves wait.
struct Stored {
    /// Weights in host memory alone.
    host: Bytes,
    moved: Moved,
    /// Bytes of the file that the page cache keeps.
    kept: Bytes,
}

impl Stand<'_> {
    /// The ways to move a node's weights, and how many more there would be with more host memory.
    pub(crate) fn transfers(&self, node: &Node) -> (Vec<Transfer>, u64) {
        let space = &self.problem.request.space;
        let staged = node.host == HostChoice::Pageable;
        let first = |list: &[Bytes]| list.first().copied().unwrap_or(Bytes(4096));
        let plain = Transfer {
            block: first(&space.block),
            host_slots: space.host_slots.first().copied().unwrap_or(1),
            read_block: first(&space.read_block),
            disk_threads: space.disk_threads.first().copied().unwrap_or(1),
            reads: space.reads.first().copied().unwrap_or_default(),
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
        let writes_cache = self.base.knobs.kv == KvTier::Disk;
        let most = if writes_cache { Bytes(u64::MAX) } else { one.block };
        let disk = self.problem.request.machine.disk.as_ref();
        let all_alike = disk.is_some_and(|disk| disk.buffered_read.flat_rate().is_some());
        for (nth, read_block) in effective(&space.read_block, most).enumerate() {
            for &disk_threads in &space.disk_threads {
                for &reads in &space.reads {
                    let decided = reads == FileReads::Buffered && all_alike && !writes_cache;
                    if nth == 0 || !decided {
                        all.push(Transfer { read_block, disk_threads, reads, ..one });
                    }
                }
            }
        }
        all
    }

    /// The leaves of a node.
    pub(crate) fn leaves(&self, node: &Node) -> Result<Vec<Leaf>, Unsupported> {
        let (transfers, _) = self.transfers(node);
        // Many leaves differ in nothing that decides where weights wait.
        let mut known: BTreeMap<Bytes, Stored> = BTreeMap::new();
        let leaf = |transfer: Transfer| {
            let ring = match node.host {
                HostChoice::Disk => Bytes::ZERO,
                HostChoice::Pinned | HostChoice::Pageable => {
                    transfer.block.min(node.slot) * u64::from(transfer.host_slots)
                }
            };
            let stored = known.entry(ring).or_insert_with(|| self.stored(node, &transfer, ring));
            self.leaf(node, transfer, stored)
        };
        transfers.into_iter().map(leaf).collect()
    }

    /// Where weights wait beside a ring of blocks.
    fn stored(&self, node: &Node, transfer: &Transfer, ring: Bytes) -> Stored {
        let room = self.base.host_room;
        let host = match node.host {
            HostChoice::Disk => Bytes::ZERO,
            HostChoice::Pinned | HostChoice::Pageable => {
                self.units(node.order).fill_host(node.gpu_weights, room, ring, transfer.staged)
            }
        };
        let placed = self.place(node.gpu_weights, host, node.order);
        let moved = Moved::new(&placed, &self.shape.picked, self.steps());
        // A table in common is held once; to take it off even where it is not there is safe, too.
        let in_host = placed.iter().map(|p| p.total().host).sum::<Bytes>()
            - self.cut.tied_table(self.base.knobs.embedding);
        let kept = self.kept(room - in_host, moved.on_disk());
        Stored { host, moved, kept }
    }

    fn leaf(&self, node: &Node, transfer: Transfer, stored: &Stored) -> Result<Leaf, Unsupported> {
        let pricer = self.problem.pricer;
        let asked =
            stored.moved.asked(&transfer, pricer, self.steps(), node.gpu_slots, stored.kept)?;
        let moving =
            Moving { first: asked.first, rest: asked.rest, least: asked.least, ahead: asked.ahead };
        let threads = transfer.disk_threads;
        let bounded =
            Bounded::new(self.base, &moving, node.computed, node.gpu_slots, threads, threads);
        let bound = bounded.score(self);
        Ok(Leaf {
            transfer,
            host_weights: self.with_table(stored.host),
            host: stored.host,
            bound,
            refined: false,
        })
    }

    /// A leaf with a second bound, dearer than its first: from the order of its loads and computations.
    pub(crate) fn refine(&self, node: &Node, leaf: &Leaf) -> Result<Leaf, Unsupported> {
        let transfer = leaf.transfer;
        let placed = self.place(node.gpu_weights, leaf.host, node.order);
        let mut priced = Priced::new(transfer, self.problem.pricer);
        let end = self.pipeline(node, &placed, &mut priced);
        if let Some(error) = priced.failed {
            return Err(error);
        }
        let bound = Bounded::NOTHING.or_later(end).score(self).max(leaf.bound);
        Ok(Leaf { bound, refined: true, ..*leaf })
    }

    /// Bytes of the file that the page cache can keep from pass to pass. Blocks in flight take from the
    /// room; not to count them errs towards more hits, which is the safe side. So do a few millionths
    /// more, for a share is rounded to one of them.
    pub(crate) fn kept(&self, room: Bytes, on_disk: Bytes) -> Bytes {
        let hits = PageCache::within(room, &self.problem.request.machine).hits(on_disk);
        let slack = Bytes(on_disk.0 / 250_000 + 1);
        if hits == HitShare::NONE { Bytes::ZERO } else { hits.of(on_disk) + slack }
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
            reads: transfer.reads,
            gpu_weights: node.gpu_weights,
            host_weights: leaf.host_weights,
            host_memory: node.host.memory(),
            order: node.order,
            ..self.base.knobs.clone()
        };
        self.problem.plan(self.shape.batch, Strategy::Pipo(knobs))
    }
}

/// Those of some sizes that differ in effect on something of `whole` bytes: all smaller ones, and the
/// smallest that is not.
fn effective(sizes: &[Bytes], whole: Bytes) -> impl Iterator<Item = Bytes> {
    let enough = sizes.iter().copied().filter(|&s| s >= whole).min();
    sizes.iter().copied().filter(move |&s| s < whole || Some(s) == enough)
}

/// Segments at their prices. There are few sizes, so each is priced once.
struct Priced<'a> {
    transfer: Transfer,
    pricer: Pricer<'a>,
    /// Bytes with their times on the link, and from the disk.
    known: [Vec<(Bytes, f64)>; 2],
    failed: Option<Unsupported>,
}

impl<'a> Priced<'a> {
    fn new(transfer: Transfer, pricer: Pricer<'a>) -> Self {
        Self { transfer, pricer, known: [Vec::new(), Vec::new()], failed: None }
    }

    fn time(
        &mut self,
        way: usize,
        bytes: Bytes,
        price: impl Fn(&Self) -> Result<f64, Unsupported>,
    ) -> f64 {
        if bytes == Bytes::ZERO {
            return 0.0;
        }
        if let Some(&(_, time)) = self.known[way].iter().find(|(known, _)| *known == bytes) {
            return time;
        }
        match price(self) {
            Ok(time) => {
                self.known[way].push((bytes, time));
                time
            }
            Err(error) => {
                self.failed = Some(error);
                0.0
            }
        }
    }
}

impl Times for Priced<'_> {
    fn link(&mut self, bytes: Bytes) -> f64 {
        self.time(0, bytes, |this| link_time(bytes, this.transfer.block, this.pricer))
    }

    fn disk(&mut self, bytes: Bytes) -> f64 {
        let threads = f64::from(self.transfer.disk_threads.max(1));
        self.time(1, bytes, |this| Ok(disk_time(bytes, &this.transfer, this.pricer)? / threads))
    }
}
