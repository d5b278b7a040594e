//! Utilisation as small panels, one for each meter, with its figures at the right end.

use std::fmt::Write;

use super::axis::TimeAxis;
use super::{Anchor, Canvas, LEFT, MARGIN, RIGHT, number};
use crate::busy::Window;
use crate::utilisation::{Meter, Meters};

/// Bins of a curve across the whole width: two pixels each.
const BINS: usize = 475;
/// Distance between panels.
const GAP: f64 = 8.0;

/// Phases to report beside a curve, each with its name; an empty name prints the figure alone.
pub(super) type Figures<'a> = [(&'a str, Window)];

/// Height that [`panels`] takes.
pub(super) fn height(panel: f64) -> f64 {
    Meter::ALL.len() as f64 * (panel + GAP)
}

/// Draws the four meters below each other from `y` on; `until` is where the curves end.
pub(super) fn panels(
    canvas: &mut Canvas,
    axis: TimeAxis,
    meters: &Meters,
    until: Window,
    figures: &Figures,
    [y, panel]: [f64; 2],
) {
    for (row, meter) in Meter::ALL.into_iter().enumerate() {
        let top = y + row as f64 * (panel + GAP) + GAP;
        name(canvas, meter, top, panel);
        canvas.line("grid", (LEFT, top), (RIGHT, top));
        curve(canvas, axis, meters, meter, until, [top, panel]);
        canvas.line("edge", (LEFT, top + panel), (RIGHT, top + panel));
        let first = top + panel / 2.0 + 4.0 - 6.5 * (figures.len() as f64 - 1.0);
        for (line, (phase, window)) in figures.iter().enumerate() {
            let percent = meters.busy(meter).share(*window) * 100.0;
            let text = format!("{phase} {percent:.0} %");
            let class = if phase.is_empty() { "" } else { "small" };
            canvas.text(class, RIGHT + 8.0, first + 13.0 * line as f64, Anchor::Start, text.trim());
        }
    }
}

/// Name and, where there is room, meaning.
fn name(canvas: &mut Canvas, meter: Meter, top: f64, panel: f64) {
    let two = panel >= 28.0;
    let y = top + panel / 2.0 + if two { -3.0 } else { 4.0 };
    canvas.text("", MARGIN, y, Anchor::Start, meter.name());
    if two {
        canvas.text("small mut", MARGIN, y + 14.0, Anchor::Start, meter.meaning());
    }
}

/// A step curve over a filled area; equal neighbours are one step.
fn curve(
    canvas: &mut Canvas,
    axis: TimeAxis,
    meters: &Meters,
    meter: Meter,
    until: Window,
    [top, panel]: [f64; 2],
) {
    let (left, right) = (axis.x(until.start), axis.x(until.end));
    let share = ((right - left) / (RIGHT - LEFT)).clamp(0.0, 1.0);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of BINS is a small positive number"
    )]
    let bins = ((BINS as f64 * share).ceil() as usize).max(1);
    let heights = meters.busy(meter).curve(until, bins);
    let height = |share: f64| number(top + panel * (1.0 - share));
    let mut data = String::new();
    let mut last = None;
    for (i, share) in heights.into_iter().enumerate() {
        let y = height(share);
        if last.as_ref() != Some(&y) {
            let x = number(left + (right - left) * i as f64 / bins as f64);
            // Writing to a String cannot fail.
            let _ = match last {
                None => write!(data, "M{x} {y}"),
                Some(_) => write!(data, "H{x}V{y}"),
            };
            last = Some(y);
        }
    }
    let _ = write!(data, "H{}", number(right));
    let bottom = number(top + panel);
    let area = format!("{data}V{bottom}H{}z", number(left));
    canvas.path(&format!("area {}", meter.name()), &area);
    canvas.path(&format!("m {}", meter.name()), &data);
}
