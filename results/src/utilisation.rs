//! Utilisation of GPU, link and disk: totals over a phase, and curves.
//!
//! A GPU that keeps its copy engines full reads 100 % in `nvidia-smi` whatever its kernels do, so the
//! figures are kept apart and every report shows all of them.

use pipo_plan::schedule::{LaneKind, OpKind, Phase};
use pipo_plan::timeline::{Span, Timeline};
use pipo_plan::units::Nanos;
use serde::Serialize;

use crate::busy::{Busy, Window};

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meter {
    /// Kernels or copies: what NVML, and so `nvidia-smi`, shows.
    Nvml,
    /// Kernels only.
    Kernel,
    /// Copies over the link, either way.
    Link,
    /// Disk reads or writes.
    Disk,
}

impl Meter {
    /// Every meter, in the order in which they are drawn.
    pub const ALL: [Self; 4] = [Self::Nvml, Self::Kernel, Self::Link, Self::Disk];

    /// As printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvml => "nvml",
            Self::Kernel => "kernel",
            Self::Link => "link",
            Self::Disk => "disk",
        }
    }

    /// What it counts, in few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Nvml => "kernels or copies",
            Self::Kernel => "kernels only",
            Self::Link => "copies, both ways",
            Self::Disk => "reads or writes",
        }
    }

    /// Thousandths of a span's duration that this meter counts.
    ///
    /// On the GPU's own meters a span weighs its `gpu_permille`, kernels like copies, so that `kernel`
    /// can never exceed `nvml`. Link and disk count occupancy: who holds the lane keeps others out.
    fn weight(self, kind: LaneKind, span: &Span) -> u16 {
        use LaneKind::{D2h, DiskRead, DiskToGpu, DiskWrite, Gpu, H2d};
        let counts = match self {
            Self::Nvml => kind.is_of_gpu(),
            Self::Kernel => {
                kind == Gpu && matches!(span.kind, OpKind::Compute | OpKind::Decompress)
            }
            Self::Link => matches!(kind, H2d | D2h),
            Self::Disk => matches!(kind, DiskRead | DiskWrite | DiskToGpu),
        };
        match self {
            _ if !counts || span.kind == OpKind::Barrier => 0,
            Self::Nvml | Self::Kernel => span.gpu_permille.min(1000),
            Self::Link | Self::Disk => 1000,
        }
    }
}

/// Busy shares, 0 to 1, of one window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Utilisation {
    /// Kernels or copies.
    pub nvml: f64,
    /// Kernels only.
    pub kernel: f64,
    /// Copies over the link.
    pub link: f64,
    /// Disk.
    pub disk: f64,
}

impl Utilisation {
    /// The share of one meter.
    pub fn get(self, meter: Meter) -> f64 {
        match meter {
            Meter::Nvml => self.nvml,
            Meter::Kernel => self.kernel,
            Meter::Link => self.link,
            Meter::Disk => self.disk,
        }
    }
}

/// The busy intervals of a timeline, computed once and asked often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meters {
    busy: [Busy; 4],
}

impl Meters {
    /// Unites the intervals of every meter.
    pub fn of(timeline: &Timeline) -> Self {
        Self { busy: Meter::ALL.map(|meter| unite(timeline, meter)) }
    }

    /// The busy intervals of one meter.
    pub fn busy(&self, meter: Meter) -> &Busy {
        &self.busy[meter as usize]
    }

    /// Utilisation over a window.
    pub fn over(&self, window: Window) -> Utilisation {
        let [nvml, kernel, link, disk] = Meter::ALL.map(|meter| self.busy(meter).share(window));
        Utilisation { nvml, kernel, link, disk }
    }

    /// Utilisation over the window's equal parts.
    pub fn curve(&self, window: Window, bins: usize) -> Vec<(Window, Utilisation)> {
        window.bins(bins).map(|bin| (bin, self.over(bin))).collect()
    }
}

fn unite(timeline: &Timeline, meter: Meter) -> Busy {
    Busy::union(timeline.spans.iter().filter_map(|span| {
        let lane = timeline.layout.lanes.get(usize::from(span.lane.0))?;
        Some((Window::new(span.start, span.end), meter.weight(lane.kind, span)))
    }))
}

/// The whole request.
pub fn whole(timeline: &Timeline) -> Window {
    Window::new(Nanos::ZERO, timeline.end)
}

/// The time of one phase: the prefill from the start to its last token, decode from there to the last.
///
/// `None` where the timeline has no such pass. What is written back after the last token belongs to
/// the whole request only.
pub fn phase(timeline: &Timeline, phase: Phase) -> Option<Window> {
    let last = |wanted| {
        let ends = timeline.passes.iter().filter(|p| p.phase == wanted).map(|p| p.end);
        ends.max()
    };
    let end = last(phase)?;
    let start = match phase {
        Phase::Prefill => Nanos::ZERO,
        Phase::Decode => last(Phase::Prefill).unwrap_or(Nanos::ZERO),
    };
    Some(Window::new(start, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use proptest::prelude::*;

    #[test]
    fn the_figures_of_the_sample() {
        let timeline = sample::two_tokens();
        let meters = Meters::of(&timeline);
        let text = |window: Option<Window>| {
            let u = meters.over(window.unwrap());
            Meter::ALL.map(|m| format!("{} {:.3}", m.name(), u.get(m))).join(", ")
        };
        insta::assert_snapshot!(text(phase(&timeline, Phase::Prefill)), @"nvml 0.922, kernel 0.819, link 0.316, disk 0.797");
        insta::assert_snapshot!(text(phase(&timeline, Phase::Decode)), @"nvml 0.991, kernel 0.811, link 0.524, disk 0.328");
        insta::assert_snapshot!(text(Some(whole(&timeline))), @"nvml 0.944, kernel 0.817, link 0.383, disk 0.646");
    }

    proptest! {
        #[test]
        fn kernel_never_exceeds_nvml_and_all_are_shares(
            timeline in sample::any_timeline(), bins in 1_usize..30,
        ) {
            let meters = Meters::of(&timeline);
            for (bin, u) in meters.curve(whole(&timeline), bins) {
                prop_assert!(u.kernel <= u.nvml, "{bin:?}: {u:?}");
                for meter in Meter::ALL {
                    prop_assert!((0.0..=1.0).contains(&u.get(meter)));
                }
            }
        }

        #[test]
        fn the_bins_of_every_meter_add_up(timeline in sample::any_timeline(), bins in 1_usize..30) {
            let meters = Meters::of(&timeline);
            for meter in Meter::ALL {
                let busy = meters.busy(meter);
                let sum: u128 = whole(&timeline).bins(bins).map(|b| busy.within(b)).sum();
                prop_assert_eq!(sum, busy.within(whole(&timeline)));
            }
        }
    }
}
