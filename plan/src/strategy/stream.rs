//! Streaming a unit's weights to a GPU slot, block by block.
//!
//! ```text
//! disk part:  read -> (host slot) -> load -> (GPU slot)
//! host part:                         load -> (GPU slot)          pinned
//!             stage -> (host slot) -> load -> (GPU slot)         pageable
//! ```
//!
//! The first block's load takes the GPU slot; whoever computes last frees it. Each read or staging copy
//! takes a host slot, and the block's load frees it.

use super::residency::{Home, Placed};
use crate::schedule::{
    Builder, DiskIo, HostMemory, Layout, NewOp, OpId, OpKind, QueueId, RingId, Slot, Tier, Work,
};
use crate::units::Bytes;

/// Extents of the disk part of every segment of every unit, in store order.
#[derive(Debug, Clone, Default)]
pub struct Extents {
    first: Vec<Vec<u32>>,
    /// Whether each segment's disk part begins where that of the segment before it in the file does not end.
    apart: Vec<Vec<bool>>,
}

impl Extents {
    /// Cuts the disk part of every segment into blocks and notes them in the layout.
    pub fn new(layout: &mut Layout, placed: &[Placed], block: Bytes) -> Self {
        let mut add = |home: &Home| {
            let first = u32::try_from(layout.extents.len()).unwrap_or(u32::MAX);
            layout.extents.extend(blocks(home.disk, block));
            first
        };
        let first = placed.iter().map(|p| p.segments.iter().map(&mut add).collect()).collect();
        // A segment's run is cut in this order: GPU, host, disk.
        let mut ends_on_disk = false;
        let mut apart = |home: &Home| {
            let begins_on_disk = home.gpu + home.host == Bytes::ZERO;
            let before = std::mem::replace(&mut ends_on_disk, home.disk > Bytes::ZERO);
            !(before && begins_on_disk)
        };
        let apart = placed.iter().map(|p| p.segments.iter().map(&mut apart).collect()).collect();
        Self { first, apart }
    }

    fn of(&self, unit: u16, segment: usize, block: usize) -> u32 {
        let first = self.first[usize::from(unit)][segment];
        first.saturating_add(u32::try_from(block).unwrap_or(u32::MAX))
    }

    /// Whether a block is the first of a stretch of the file. Where experts before it are left out, it is not: their
    /// part of the file is short beside what a system reads ahead.
    fn jumps(&self, unit: u16, segment: usize, block: usize) -> bool {
        block == 0 && self.apart[usize::from(unit)][segment]
    }
}

/// The sizes of the blocks that cover `bytes`: equal but for the last.
pub fn blocks(bytes: Bytes, block: Bytes) -> impl Iterator<Item = Bytes> {
    let block = block.0.max(1);
    (0..bytes.0.div_ceil(block)).map(move |i| Bytes(block.min(bytes.0 - i * block)))
}

/// The most blocks of one unit that an operation's 16-bit block number can name.
pub const MOST_BLOCKS: u64 = 1 << 16;

/// How weights travel: queues, rings and block sizes.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Queues of the disk threads.
    pub readers: Vec<QueueId>,
    /// Queue of the staging thread, where host weights are pageable and need one.
    pub stager: Option<QueueId>,
    /// Queue of the copy engine.
    pub h2d: QueueId,
    /// Pinned host buffers of one block each.
    pub host_ring: RingId,
    /// GPU buffers of one unit each.
    pub gpu_ring: RingId,
    /// Bytes moved by one operation.
    pub block: Bytes,
    /// Bytes asked of the disk at once.
    pub request: Bytes,
    /// How the file is read.
    pub io: DiskIo,
    /// Extents of the disk part.
    pub extents: Extents,
}

/// What a streamed unit leaves for those who compute with it.
#[derive(Debug, Clone, Copy)]
pub struct Streamed {
    /// The last block's load.
    pub last: OpId,
    /// The GPU slot to free.
    pub slot: Slot,
}

impl Stream {
    /// Emits the transfers of those segments of a unit that are `needed` (all, where no choice is
    /// given), or nothing where nothing must move. They wait for `after`.
    pub fn emit(
        &self,
        out: &mut Builder,
        unit: u16,
        placed: &Placed,
        needed: Option<&[bool]>,
        after: Option<OpId>,
    ) -> Option<Streamed> {
        let wanted = |segment: usize| {
            // The first segment is the dense part; expert `e` is segment `e + 1`.
            segment == 0 || needed.is_none_or(|n| n.get(segment - 1).copied().unwrap_or(true))
        };
        let moving: Vec<(usize, Home)> = (placed.segments.iter().copied().enumerate())
            .filter(|&(i, home)| wanted(i) && home.streamed() > Bytes::ZERO)
            .collect();
        if moving.is_empty() {
            return None;
        }
        let slot = out.take(self.gpu_ring);
        let mut load =
            Load { stream: self, unit, after, slot, number: 0, offset: Bytes::ZERO, last: None };
        for (segment, home) in moving {
            // A segment's run is cut in this order: GPU, host, disk.
            let before: Bytes = placed.segments[..segment].iter().map(Home::total).sum();
            load.offset = before + home.gpu;
            load.host_part(out, home.host);
            load.disk_part(out, segment, home.disk);
        }
        load.last.map(|last| Streamed { last, slot })
    }
}

/// The loads of one unit as they are emitted.
struct Load<'a> {
    stream: &'a Stream,
    unit: u16,
    after: Option<OpId>,
    slot: Slot,
    number: u16,
    /// Where the next block begins in the unit's run.
    offset: Bytes,
    last: Option<OpId>,
}

impl Load<'_> {
    fn host_part(&mut self, out: &mut Builder, bytes: Bytes) {
        for bytes in blocks(bytes, self.stream.block) {
            match self.stream.stager {
                None => self.emit(out, bytes, None, None),
                Some(stager) => {
                    let work = out.work(Work::HostCopy { bytes });
                    self.through_host_slot(out, bytes, |out, slot| {
                        out.op(stager, OpKind::StageWeights, work).takes(slot)
                    });
                }
            }
        }
    }

    fn disk_part(&mut self, out: &mut Builder, segment: usize, bytes: Bytes) {
        let stream = self.stream;
        for (block, bytes) in blocks(bytes, stream.block).enumerate() {
            let extent = stream.extents.of(self.unit, segment, block);
            // In turn over the whole file: small units would otherwise all go to the first threads.
            let reader = stream.readers[extent as usize % stream.readers.len()];
            let (request, io) = (stream.request, stream.io);
            let jumps = stream.extents.jumps(self.unit, segment, block);
            let work = out.work(Work::DiskRead { bytes, request, io, jumps });
            self.through_host_slot(out, bytes, |out, slot| {
                out.op(reader, OpKind::ReadWeights, work).extent(extent).takes(slot)
            });
        }
    }

    /// Emits an operation that fills a host slot, and the load that empties it.
    fn through_host_slot<F>(&mut self, out: &mut Builder, bytes: Bytes, fill: F)
    where
        F: for<'b> FnOnce(&'b mut Builder, Slot) -> NewOp<'b>,
    {
        let slot = out.take(self.stream.host_ring);
        let filled = fill(out, slot).unit(self.unit, 0).block(self.number).offset(self.offset);
        let filled = filled.after(self.after).emit();
        self.emit(out, bytes, Some(filled), Some(slot));
    }

    fn emit(&mut self, out: &mut Builder, bytes: Bytes, filled: Option<OpId>, host: Option<Slot>) {
        let work = out.work(Work::H2d { bytes, memory: HostMemory::Pinned });
        let takes = (self.number == 0).then_some(self.slot);
        let load = out
            .op(self.stream.h2d, OpKind::LoadWeights, work)
            .unit(self.unit, 0)
            .block(self.number)
            .offset(self.offset)
            .after(self.after)
            .after(filled)
            .takes(takes)
            .frees(host);
        self.last = Some(load.emit());
        self.number = self.number.saturating_add(1);
        self.offset += bytes;
    }
}

/// The largest streamed unit: the size of a GPU slot.
pub fn slot_bytes(placed: &[Placed]) -> Bytes {
    placed.iter().map(Placed::streamed).max().unwrap_or(Bytes::ZERO)
}

/// Adds the host ring that a stream needs; where nothing passes through, a single empty slot.
pub fn host_ring(
    layout: &mut Layout,
    placed: &[Placed],
    staged: bool,
    slots: u32,
    block: Bytes,
) -> RingId {
    let through = |h: &Home| h.disk + if staged { h.host } else { Bytes::ZERO };
    let homes = placed.iter().flat_map(|p| &p.segments);
    let largest = homes.map(through).max().unwrap_or(Bytes::ZERO);
    let slots = if largest == Bytes::ZERO { 1 } else { slots };
    layout.ring("weight blocks", Tier::Pinned, slots, largest.min(block))
}
