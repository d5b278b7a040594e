//! The timeline: what ran when. The simulator predicts one, the engine measures one, and they compare.

use crate::schedule::{LaneId, Layout, OpId, OpKind, Phase};
use crate::units::{Bandwidth, Bytes, Nanos};

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

/// What a GPU said of itself at one moment of a run. What it does not say is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// When, from the beginning of the run.
    pub at: Nanos,
    /// NVML's utilisation, in thousandths.
    pub nvml_permille: Option<u16>,
    /// GPM's graphics utilisation since the reading before, in thousandths: some kernel ran.
    pub kernel_permille: Option<u16>,
    /// GPM's utilisation of multiprocessors since the reading before, in thousandths.
    pub sm_permille: Option<u16>,
    /// From host to device since the reading before.
    pub to_device: Option<Bandwidth>,
    /// From device to host.
    pub from_device: Option<Bandwidth>,
    /// Clock of the multiprocessors.
    pub clock_mhz: Option<u32>,
    /// Power drawn.
    pub power_mw: Option<u32>,
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
    /// What a GPU said of itself meanwhile, by time: nothing in a prediction, and where there is no GPU.
    pub readings: Vec<Reading>,
}

/// The times that a run is judged by, predicted or measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Until the last token of every sequence.
    pub request: Nanos,
    /// Until the first new token of every sequence.
    pub prefill: Nanos,
    /// The median decode step; zero where there is none.
    pub step: Nanos,
}

impl Times {
    /// From the end of each pass as a user sees it.
    pub fn of(passes: &[PassEnd]) -> Self {
        let last = |phase: fn(Phase) -> bool| {
            let ends = passes.iter().filter(|p| phase(p.phase)).map(|p| p.end);
            ends.max().unwrap_or(Nanos::ZERO)
        };
        let ends = passes.windows(2).filter(|pair| pair[1].phase == Phase::Decode);
        let steps: Vec<Nanos> = ends.map(|pair| pair[1].end - pair[0].end).collect();
        Self {
            request: last(|_| true),
            prefill: last(|phase| phase == Phase::Prefill),
            step: median(steps),
        }
    }
}

/// The middle value, the lower of the two where there are two; zero of nothing.
pub fn median(mut values: Vec<Nanos>) -> Nanos {
    values.sort_unstable();
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(Nanos::ZERO)
}
