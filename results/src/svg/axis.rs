//! The time axis: where an instant stands, and which instants are labelled.

use pipo_plan::units::Nanos;

use super::{Anchor, Canvas, LEFT, RIGHT, text_width};
use crate::busy::Window;

/// Maps a window of time to the width of the picture. Labels count from the window's start.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeAxis {
    pub(super) window: Window,
}

/// Units of axis labels with their nanoseconds.
const UNITS: [(u64, &str); 4] = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns")];

impl TimeAxis {
    pub(super) fn new(window: Window) -> Self {
        Self { window }
    }

    /// Horizontal position of an instant, clamped to the window.
    pub(super) fn x(self, at: Nanos) -> f64 {
        let length = self.window.length().as_f64().max(1.0);
        let offset = at.saturating_sub(self.window.start).as_f64();
        LEFT + (offset / length).min(1.0) * (RIGHT - LEFT)
    }

    /// Draws the labels below `bottom` and a line through everything between.
    pub(super) fn draw(self, canvas: &mut Canvas, top: f64, bottom: f64) {
        for (at, label) in self.ticks() {
            let x = self.x(at);
            canvas.line("grid", (x, top), (x, bottom + 4.0));
            canvas.text("small mut", x, bottom + 17.0, Anchor::Middle, &label);
        }
        canvas.line("edge", (LEFT, bottom), (RIGHT, bottom));
    }

    /// Instants at a round step of 1, 2 or 5, as many as fit without their labels touching.
    pub(super) fn ticks(self) -> Vec<(Nanos, String)> {
        let length = self.window.length().0.max(1);
        // Seconds only from two on: "0.5 s" reads worse than "500 ms".
        let (scale, unit) = UNITS.into_iter().find(|u| length >= 2 * u.0).unwrap_or((1, "ns"));
        let steps = (0..19).flat_map(|power| [1, 2, 5].map(|m| m * 10_u64.pow(power)));
        let fits = |step: &u64| {
            let widest = text_width(&label(length / step * step, *step, scale, unit), 11.0) + 24.0;
            (RIGHT - LEFT) * *step as f64 / length as f64 >= widest.max(80.0)
        };
        let step = steps.into_iter().find(fits).unwrap_or(length);
        (0..=length / step)
            .map(|i| (self.window.start + Nanos(i * step), label(i * step, step, scale, unit)))
            .collect()
    }
}

/// `1.5 s`: as many decimals as the step needs.
fn label(offset: u64, step: u64, scale: u64, unit: &str) -> String {
    let mut decimals = 0;
    let mut part = scale;
    while !step.is_multiple_of(part) && part > 1 {
        part /= 10;
        decimals += 1;
    }
    format!("{:.decimals$} {unit}", offset as f64 / scale as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(start: u64, end: u64) -> String {
        let axis = TimeAxis::new(Window::new(Nanos(start), Nanos(end)));
        axis.ticks().into_iter().map(|t| t.1).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn ticks_are_round() {
        insta::assert_snapshot!(labels(0, 17_300_000_000), @"0 s, 2 s, 4 s, 6 s, 8 s, 10 s, 12 s, 14 s, 16 s");
        insta::assert_snapshot!(labels(5, 1_900_000_005), @"0 ms, 200 ms, 400 ms, 600 ms, 800 ms, 1000 ms, 1200 ms, 1400 ms, 1600 ms, 1800 ms");
        insta::assert_snapshot!(labels(0, 2_600_000_000), @"0.0 s, 0.5 s, 1.0 s, 1.5 s, 2.0 s, 2.5 s");
        insta::assert_snapshot!(labels(0, 12_345), @"0 us, 2 us, 4 us, 6 us, 8 us, 10 us, 12 us");
        insta::assert_snapshot!(labels(0, 0), @"0 ns, 1 ns");
    }

    proptest! {
        #[test]
        fn ticks_never_touch(length in 0_u64..1 << 60) {
            let axis = TimeAxis::new(Window::new(Nanos(7), Nanos(7 + length)));
            let ticks = axis.ticks();
            prop_assert!((1..=20).contains(&ticks.len()));
            for pair in ticks.windows(2) {
                prop_assert!(axis.x(pair[1].0) - axis.x(pair[0].0) > text_width(&pair[1].1, 11.0));
            }
        }
    }
}
