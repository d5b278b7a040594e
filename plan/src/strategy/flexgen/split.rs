//! How FlexGen splits the cache of a micro-batch: by whole sequences.

use super::FlexGen;
use crate::strategy::frame::Frame;
use crate::strategy::shapes;
use crate::units::Bytes;

/// Sequences of each micro-batch whose cache lives at a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    /// On the GPU.
    pub(super) gpu: u64,
    /// In host memory.
    pub(super) host: u64,
    /// On disk.
    pub(super) disk: u64,
}

impl Split {
    /// Rounds down at the GPU, and on the host too if the disk has a share; what is left goes to the
    /// last tier that has one.
    pub(super) fn new(sequences: u64, knobs: &FlexGen) -> Self {
        let share = |percent: u32| sequences * u64::from(percent) / 100;
        let gpu = share(knobs.cache_gpu);
        let on_disk = knobs.cache_gpu + knobs.cache_host < 100;
        let host = if on_disk { share(knobs.cache_host) } else { sequences - gpu };
        Self { gpu, host, disk: sequences - gpu - host }
    }

    /// Sequences whose cache is not on the GPU.
    pub(super) fn outside(self) -> u64 {
        self.host + self.disk
    }
}

/// Keys and values of one layer for some sequences of a micro-batch.
pub(super) fn bytes(frame: &Frame, sequences: u64, positions: u64) -> Bytes {
    shapes::kv_bytes(&frame.plan.model, frame.style, sequences, positions)
}
