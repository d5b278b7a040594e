//! What a run adds up to.

use pipo_plan::schedule::{Lane, LaneKind, Phase};
use pipo_plan::timeline::PassEnd;
use pipo_plan::units::{Bytes, Nanos};

use crate::cost::Resource;

/// What a run adds up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// When the last operation ended.
    pub end: Nanos,
    /// When each pass ended for the user.
    pub passes: Vec<PassEnd>,
    /// Time in which each lane held an operation, in the layout's order.
    pub lane_busy: Vec<Nanos>,
    /// Union of kernel intervals on GPU lanes, launch gaps inside an operation taken out.
    pub kernel_busy: Nanos,
    /// Union of kernel and copy intervals, as NVML counts. Where several are partly busy at once the
    /// busiest counts alone, as if the others were hidden behind it.
    pub nvml_busy: Nanos,
    /// Bytes moved between tiers, by kind of lane, in the order of [`LaneKind::ALL`].
    pub moved: [Bytes; LaneKind::ALL.len()],
    /// Bytes drawn from each shared resource, in the order of [`Resource::ALL`].
    pub drawn: [Bytes; Resource::COUNT],
    /// Operations that ran.
    pub ops: u64,
    /// The most slots of each ring ever held at once.
    pub slot_high_water: Vec<u16>,
    /// Bytes of reads that the page cache answered.
    pub cache_hits: Bytes,
    /// Bytes of reads that the disk answered.
    pub disk_read: Bytes,
    /// The most operations ever in memory together: bounded by the window, not by the run.
    pub live_high_water: u32,
}

impl Summary {
    /// When the prompt had been worked on.
    pub fn prefill(&self) -> Nanos {
        let prefill = self.passes.iter().filter(|p| p.phase == Phase::Prefill);
        prefill.map(|p| p.end).max().unwrap_or(Nanos::ZERO)
    }

    /// From the end of the prefill to the end of the last token.
    pub fn decode(&self) -> Nanos {
        let decode = self.passes.iter().filter(|p| p.phase == Phase::Decode);
        decode.map(|p| p.end).max().unwrap_or(Nanos::ZERO).saturating_sub(self.prefill())
    }

    /// Bytes moved on lanes of one kind.
    pub fn moved(&self, kind: LaneKind) -> Bytes {
        self.moved[kind.index()]
    }

    /// Bytes drawn from one resource.
    pub fn drawn(&self, resource: Resource) -> Bytes {
        self.drawn[resource as usize]
    }
}

/// How a lane shows in the GPU's own counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Hidden,
    Copies,
    Kernels,
}

/// Adds up a run while it happens.
#[derive(Debug)]
pub(crate) struct Meter {
    kinds: Vec<usize>,
    views: Vec<View>,
    /// Busy thousandths of what each lane runs; zero where it idles.
    permille: Vec<u16>,
    /// In thousandths of nanoseconds.
    kernel_busy: u128,
    nvml_busy: u128,
    lane_busy: Vec<Nanos>,
    moved: [Bytes; LaneKind::ALL.len()],
    drawn: [Bytes; Resource::COUNT],
    ops: u64,
    cache_hits: Bytes,
    disk_read: Bytes,
}

impl Meter {
    pub(crate) fn new(lanes: &[Lane]) -> Self {
        let view = |lane: &Lane| match lane.kind {
            LaneKind::Gpu => View::Kernels,
            LaneKind::H2d | LaneKind::D2h => View::Copies,
            _ => View::Hidden,
        };
        Self {
            kinds: lanes.iter().map(|lane| lane.kind.index()).collect(),
            views: lanes.iter().map(view).collect(),
            permille: vec![0; lanes.len()],
            kernel_busy: 0,
            nvml_busy: 0,
            lane_busy: vec![Nanos::ZERO; lanes.len()],
            moved: [Bytes::ZERO; LaneKind::ALL.len()],
            drawn: [Bytes::ZERO; Resource::COUNT],
            ops: 0,
            cache_hits: Bytes::ZERO,
            disk_read: Bytes::ZERO,
        }
    }

    /// An operation starts on a lane.
    pub(crate) fn start(&mut self, lane: usize, bytes: Bytes, permille: u16, drawn: &[Bytes]) {
        self.ops += 1;
        self.permille[lane] = permille;
        self.moved[self.kinds[lane]] += bytes;
        for (sum, &bytes) in self.drawn.iter_mut().zip(drawn) {
            *sum += bytes;
        }
    }

    /// A read is answered by the disk, but for the `hits` that the page cache holds.
    pub(crate) fn read(&mut self, bytes: Bytes, hits: Bytes) {
        self.cache_hits += hits;
        self.disk_read += bytes - hits;
    }

    /// Time passes with what is running.
    pub(crate) fn advance(&mut self, nanos: Nanos) {
        let (mut kernel, mut any) = (0, 0);
        for (&permille, view) in self.permille.iter().zip(&self.views) {
            match view {
                View::Hidden => {}
                View::Copies => any = any.max(permille),
                View::Kernels => kernel = kernel.max(permille),
            }
        }
        self.kernel_busy += u128::from(kernel) * u128::from(nanos.0);
        self.nvml_busy += u128::from(any.max(kernel)) * u128::from(nanos.0);
    }

    /// The operation on a lane ends.
    pub(crate) fn end(&mut self, lane: usize, duration: Nanos) {
        self.permille[lane] = 0;
        self.lane_busy[lane] += duration;
    }

    pub(crate) fn finish(
        self,
        end: Nanos,
        (passes, live_high_water): (Vec<PassEnd>, u32),
        slot_high_water: Vec<u16>,
    ) -> Summary {
        let nanos =
            |thousandths: u128| Nanos(u64::try_from(thousandths / 1000).unwrap_or(u64::MAX));
        Summary {
            end,
            passes,
            lane_busy: self.lane_busy,
            kernel_busy: nanos(self.kernel_busy),
            nvml_busy: nanos(self.nvml_busy),
            moved: self.moved,
            drawn: self.drawn,
            ops: self.ops,
            slot_high_water,
            cache_hits: self.cache_hits,
            disk_read: self.disk_read,
            live_high_water,
        }
    }
}
