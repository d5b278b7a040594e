//! The timeline: what ran when. The simulator predicts one, the engine measures one, and they compare.

use crate::schedule::{LaneId, Layout, OpId, OpKind, Phase};
use crate::units::{Bytes, Nanos};

/// Why an operation did not start earlier: the last thing it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Blame {
    /// Nothing: it started at the beginning.
    Start,
    /// An operation it depends on.
    Wait(OpId),
    /// The operation that freed its buffer slot.
    Slot(OpId),
    /// The operation that occupied its lane or stood before it in its queue.
    Lane(OpId),
    /// The last operation of the pass that had to end before this one was released.
    Window(OpId),
}

impl Blame {
    /// The operation behind it.
    pub fn op(self) -> Option<OpId> {
        match self {
            Self::Start => None,
            Self::Wait(op) | Self::Slot(op) | Self::Lane(op) | Self::Window(op) => Some(op),
        }
    }
}

/// One operation as it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its position in program order.
    pub op: OpId,
    /// Where it ran.
    pub lane: LaneId,
    /// What it did.
    pub kind: OpKind,
    /// Pass it belongs to.
    pub pass: u32,
    /// Unit of the model, an index into [`Layout::units`].
    pub unit: u16,
    /// Micro-batch.
    pub micro: u16,
    /// Block or chunk.
    pub block: u16,
    /// Start.
    pub start: Nanos,
    /// End, never before the start.
    pub end: Nanos,
    /// Bytes moved between tiers.
    pub bytes: Bytes,
    /// Thousandths of its duration in which a GPU engine (kernels or copies) is really busy: below 1000
    /// for pageable copies, where the driver stages, and for latencies.
    pub gpu_permille: u16,
    /// Why it did not start earlier.
    pub blame: Blame,
}

/// The end of one pass as a user sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassEnd {
    /// Prefill or decode.
    pub phase: Phase,
    /// When its last token was ready.
    pub end: Nanos,
}

/// Everything that ran, by start time and then by program order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// Lanes, rings, units: what the spans refer to.
    pub layout: Layout,
    /// The operations as they ran.
    pub spans: Vec<Span>,
    /// When each pass ended.
    pub passes: Vec<PassEnd>,
    /// When everything had ended.
    pub end: Nanos,
}
