//! The schedule: operations on lanes, with what each waits for and which buffer slots it takes and frees.
//!
//! One schedule is read by two executors. The simulator asks what each operation's [`Work`] costs; the
//! engine asks what its [`OpKind`], unit, micro-batch and block mean. Neither may reorder what the
//! schedule orders.
//!
//! # Semantics
//!
//! - A **lane** is a serial, non-preemptive piece of hardware or a thread: a copy engine, the GPU's
//!   compute front end, one disk thread.
//! - A **queue** belongs to one lane and is first-in first-out in program order, like a CUDA stream. A
//!   lane with several queues starts, among the heads that are ready, the one that comes first in
//!   program order.
//! - An operation is **ready** when everything it waits for has ended and the slot it takes is free.
//! - A **ring** is a bounded set of equal buffers. Slots are taken round-robin in program order, so the
//!   builder knows each slot's index; the operation that frees it names it.
//! - A **pass** is one walk through the model (the prefill, or one decode step). A program emits pass
//!   after pass, lazily. Operations of pass `p` are released once pass `p - window` has ended entirely:
//!   this bounds the memory of a long run in both executors. With fewer slots than units in `window - 1`
//!   passes the rule never delays anything.

use crate::units::Bytes;

mod builder;
mod work;

pub use builder::{Builder, NewOp, Pass};
pub use work::{
    Attention, Compute, DiskIo, HostMemory, Linear, Way, Work, WorkId, WorkTable, checked_at_once,
};

/// Where bytes can live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The GPU's own memory.
    Gpu,
    /// Page-locked host memory, which copy engines reach directly.
    Pinned,
    /// Ordinary host memory.
    Pageable,
    /// Files.
    Disk,
}

impl Tier {
    /// As printed in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpu => "GPU",
            Self::Pinned => "host, pinned",
            Self::Pageable => "host, pageable",
            Self::Disk => "disk",
        }
    }
}

/// What a lane stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LaneKind {
    /// A thread that reads from disk into host memory.
    DiskRead,
    /// A thread that writes host memory to disk.
    DiskWrite,
    /// A thread that copies within host memory (pageable to pinned).
    HostCopy,
    /// The copy engine towards the GPU.
    H2d,
    /// The copy engine from the GPU.
    D2h,
    /// The GPU's compute front end.
    Gpu,
    /// The CPU cores, as one pool.
    Cpu,
    /// A direct path from disk to GPU memory.
    DiskToGpu,
    /// The host thread that issues work: barriers and serial overheads.
    Host,
}

impl LaneKind {
    /// Every kind, in the order in which lanes are drawn and reported.
    pub const ALL: [Self; 9] = [
        Self::DiskRead,
        Self::DiskWrite,
        Self::DiskToGpu,
        Self::HostCopy,
        Self::H2d,
        Self::D2h,
        Self::Gpu,
        Self::Cpu,
        Self::Host,
    ];

    /// As printed in tables and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::DiskRead => "disk read",
            Self::DiskWrite => "disk write",
            Self::HostCopy => "host copy",
            Self::H2d => "H2D",
            Self::D2h => "D2H",
            Self::Gpu => "GPU",
            Self::Cpu => "CPU",
            Self::DiskToGpu => "disk to GPU",
            Self::Host => "host",
        }
    }

    /// Whether a GPU works it off, where there is one, instead of a thread of the host.
    pub fn is_of_gpu(self) -> bool {
        matches!(self, Self::H2d | Self::D2h | Self::Gpu)
    }

    /// Position in [`LaneKind::ALL`].
    pub fn index(self) -> usize {
        Self::ALL.iter().position(|&k| k == self).unwrap_or(0)
    }
}

/// A serial resource: its kind, and a number where there are several of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// What it stands for.
    pub kind: LaneKind,
    /// 0 for the first of its kind.
    pub index: u8,
}

/// Index of a lane in [`Layout::lanes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u8);

/// Index of a queue in [`Layout::queues`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u8);

/// Index of a ring in [`Layout::rings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingId(pub u8);

/// Position of an operation in program order, over all passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u32);

/// One slot of one ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The ring.
    pub ring: RingId,
    /// Index within the ring, below its number of slots.
    pub index: u16,
}

/// A bounded set of equal buffers at one tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    /// What it holds, as printed in the memory table.
    pub name: String,
    /// Where it lives.
    pub tier: Tier,
    /// How many buffers, at least one.
    pub slots: u16,
    /// Size of each.
    pub slot_bytes: Bytes,
}

/// Memory held for the whole run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// What it holds, as printed in the memory table.
    pub name: String,
    /// Where it lives.
    pub tier: Tier,
    /// Its size.
    pub bytes: Bytes,
}

/// What an operation does, as the engine and a reader understand it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// Disk to host slot: one block of a unit's weights.
    ReadWeights,
    /// Pageable to pinned host memory: one block of a unit's weights.
    StageWeights,
    /// Host to GPU slot: one block of a unit's weights.
    LoadWeights,
    /// Expands compressed weights on the GPU into a dense buffer.
    Decompress,
    /// Disk to host: the KV cache of one layer and micro-batch.
    ReadCache,
    /// Host to disk: new KV rows.
    WriteCache,
    /// Host to GPU: the KV cache of one layer and micro-batch.
    LoadCache,
    /// GPU to host: new KV rows of one layer and micro-batch.
    SaveCache,
    /// Host to GPU: hidden states.
    LoadHidden,
    /// GPU to host: hidden states, or queries for attention on the CPU.
    SaveHidden,
    /// Embedding lookup on the CPU.
    Gather,
    /// A unit's kernels on the GPU.
    Compute,
    /// A unit's attention or all of it on the CPU.
    CpuCompute,
    /// Waits for everything before it; everything after waits for it.
    Barrier,
}

impl OpKind {
    /// Every kind, in drawing order.
    pub const ALL: [Self; 14] = [
        Self::ReadWeights,
        Self::StageWeights,
        Self::LoadWeights,
        Self::Decompress,
        Self::ReadCache,
        Self::WriteCache,
        Self::LoadCache,
        Self::SaveCache,
        Self::LoadHidden,
        Self::SaveHidden,
        Self::Gather,
        Self::Compute,
        Self::CpuCompute,
        Self::Barrier,
    ];

    /// As printed in traces and legends.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadWeights => "read weights",
            Self::StageWeights => "stage weights",
            Self::LoadWeights => "load weights",
            Self::Decompress => "decompress",
            Self::ReadCache => "read KV",
            Self::WriteCache => "write KV",
            Self::LoadCache => "load KV",
            Self::SaveCache => "save KV",
            Self::LoadHidden => "load hidden",
            Self::SaveHidden => "save hidden",
            Self::Gather => "gather embedding",
            Self::Compute => "compute",
            Self::CpuCompute => "compute on CPU",
            Self::Barrier => "barrier",
        }
    }
}

/// Which part of a unit's arithmetic is meant. Only a unit that attends has more than one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Piece {
    /// All of it.
    #[default]
    Whole,
    /// What comes before attention: norm, query, key and value projections.
    BeforeAttention,
    /// Attention alone.
    AttentionOnly,
    /// What comes after attention: output projection and, in a whole layer, the MLP.
    AfterAttention,
}

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    /// What it does.
    pub kind: OpKind,
    /// The queue it is issued to.
    pub queue: QueueId,
    /// What it costs.
    pub work: WorkId,
    /// Unit of the model it belongs to, an index into [`Layout::units`].
    pub unit: u16,
    /// Micro-batch it belongs to.
    pub micro: u16,
    /// Block of the unit, or chunk of the prefill.
    pub block: u16,
    /// Which part of the unit it computes.
    pub piece: Piece,
    /// Where in the unit's stored run the weights begin that it moves.
    pub offset: Bytes,
    /// The file extent it reads, for the page cache; [`Op::NO_EXTENT`] for none.
    pub extent: u32,
    /// Slot it takes when it starts.
    pub takes: Option<Slot>,
    /// Slots it frees when it ends.
    pub frees: [Option<Slot>; 2],
    /// Its completion is a token of every sequence: the end of the pass as a user sees it.
    pub ends_pass: bool,
    pub(crate) waits: (u32, u32),
}

impl Op {
    /// Not a read of a file extent.
    pub const NO_EXTENT: u32 = u32::MAX;
}

/// What a pass does for the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Works on the prompt.
    Prefill,
    /// Works on one new token of each sequence.
    Decode,
}

/// Everything about a schedule that does not grow with the length of the run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// Serial resources.
    pub lanes: Vec<Lane>,
    /// Lane of each queue.
    pub queues: Vec<LaneId>,
    /// Bounded buffers.
    pub rings: Vec<Ring>,
    /// Memory held throughout.
    pub allocations: Vec<Allocation>,
    /// Names of the model's units, such as `layer 7 MLP`.
    pub units: Vec<String>,
    /// Sizes of the file extents that [`Op::extent`] indexes.
    pub extents: Vec<Bytes>,
    /// Cross-pass references the program keeps, see [`Builder::mark`].
    pub marks: usize,
    /// Passes whose operations may be in flight together, at least one.
    pub window: u32,
}

impl Layout {
    /// Adds a lane and returns it; a second of the same kind gets the next index.
    pub fn lane(&mut self, kind: LaneKind) -> LaneId {
        let same = self.lanes.iter().filter(|l| l.kind == kind).count();
        self.lanes.push(Lane { kind, index: small(same) });
        LaneId(small(self.lanes.len() - 1))
    }

    /// Adds a queue to a lane.
    pub fn queue(&mut self, lane: LaneId) -> QueueId {
        self.queues.push(lane);
        QueueId(small(self.queues.len() - 1))
    }

    /// Adds a lane with one queue.
    pub fn lane_queue(&mut self, kind: LaneKind) -> QueueId {
        let lane = self.lane(kind);
        self.queue(lane)
    }

    /// Adds a ring; zero slots are raised to one, because a ring nobody can take is a stuck schedule.
    pub fn ring(&mut self, name: &str, tier: Tier, slots: u32, slot_bytes: Bytes) -> RingId {
        let slots = u16::try_from(slots.max(1)).unwrap_or(u16::MAX);
        self.rings.push(Ring { name: name.into(), tier, slots, slot_bytes });
        RingId(small(self.rings.len() - 1))
    }

    /// Notes memory held for the whole run; nothing is noted for nothing.
    pub fn allocate(&mut self, name: &str, tier: Tier, bytes: Bytes) {
        if bytes > Bytes::ZERO {
            self.allocations.push(Allocation { name: name.into(), tier, bytes });
        }
    }

    /// An operation in words: what both executors say of one that fails or is stuck.
    pub fn describe(&self, op: &Op, pass: u32) -> String {
        let Op { kind, queue, unit, micro, block, .. } = *op;
        let lane = self.queues.get(usize::from(queue.0));
        let lane = lane.and_then(|lane| self.lanes.get(usize::from(lane.0)));
        let lane = lane.map_or_else(
            || format!("queue {}", queue.0),
            |lane| format!("{} {}", lane.kind.name(), lane.index),
        );
        let unit = match self.units.get(usize::from(unit)) {
            Some(name) => name.clone(),
            None => format!("unit {unit}"),
        };
        format!(
            "{} on {lane}, {unit}, block {block}, micro-batch {micro}, pass {pass}",
            kind.name()
        )
    }

    /// Bytes at one tier: allocations and rings.
    pub fn bytes(&self, tier: Tier) -> Bytes {
        let fixed = self.allocations.iter().filter(|a| a.tier == tier).map(|a| a.bytes);
        let rings = self.rings.iter().filter(|r| r.tier == tier);
        fixed.chain(rings.map(|r| r.slot_bytes * u64::from(r.slots))).sum()
    }
}

/// Lanes, queues and rings are counted in tens; more than 255 saturates and is refused by the check.
fn small(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}

/// Emits the operations of a run, pass after pass.
///
/// `emit` is called once for each pass in rising order, with the same builder, whose state (ring
/// positions, marks, the last barrier) carries over. It must be a pure function of that state.
pub trait Program: Send + Sync {
    /// Number of passes.
    fn passes(&self) -> u32;
    /// What a pass is for.
    fn phase(&self, pass: u32) -> Phase;
    /// Emits the operations of one pass.
    fn emit(&self, pass: u32, out: &mut Builder);
}

/// A lowered plan: its fixed layout, and the program that emits its operations.
pub struct Schedule {
    /// Lanes, rings, allocations.
    pub layout: Layout,
    /// The operations.
    pub program: Box<dyn Program>,
}
