//! Several timelines on one time axis, such as a baseline and a tuned plan.

use pipo_plan::timeline::Timeline;

use super::axis::TimeAxis;
use super::lanes::Rows;
use super::palette::Family;
use super::timeline::{BAND, legend, phases};
use super::{Canvas, RIGHT, TEXT, curves, heading};
use crate::busy::Window;
use crate::utilisation::{Meters, whole};

/// Height of a lane's row and of a utilisation panel.
const ROW: f64 = 14.0;
const PANEL: f64 = 24.0;

/// One timeline and what it is called.
#[derive(Debug, Clone, Copy)]
pub struct Compared<'a> {
    /// Such as `tuned`.
    pub name: &'a str,
    /// A few figures, such as `8.2 tokens/s`; may be empty.
    pub note: &'a str,
    /// What ran.
    pub timeline: &'a Timeline,
}

/// Draws the timelines below each other, so that a shorter one is seen to be shorter.
pub fn comparison(title: &str, subtitle: &str, compared: &[Compared]) -> String {
    let longest = compared.iter().map(|c| c.timeline.end).max().unwrap_or_default();
    let axis = TimeAxis::new(Window { end: longest, ..Window::default() });
    let rows: Vec<Rows> = compared.iter().map(|c| Rows::new(c.timeline, axis)).collect();
    let mut canvas = Canvas::new();
    let mut y = heading(&mut canvas, title, subtitle);
    let mut families: Vec<Family> = rows.iter().flat_map(Rows::families).collect();
    families.sort_unstable();
    families.dedup();
    y = legend(&mut canvas, &families, y);
    for (one, rows) in compared.iter().zip(&rows) {
        y = block(&mut canvas, one, rows, axis, y);
    }
    canvas.finish(y, &format!("{title}. {subtitle}"))
}

fn block(canvas: &mut Canvas, one: &Compared, rows: &Rows, axis: TimeAxis, y: f64) -> f64 {
    let all = whole(one.timeline);
    let separator = if one.note.is_empty() { "" } else { ", " };
    let note = format!("{} in total{separator}{}", one.timeline.end, one.note);
    canvas.head(y + 14.0, one.name, &note);
    let band = y + TEXT + 12.0;
    phases(canvas, one.timeline, axis, band);
    let top = band + BAND;
    let panels = top + rows.height(ROW);
    let bottom = panels + curves::height(PANEL);
    rows.ground(canvas, top, ROW);
    axis.draw(canvas, top, bottom);
    rows.draw(canvas, all, top, ROW);
    let meters = Meters::of(one.timeline);
    curves::panels(canvas, axis, &meters, all, &[("", all)], [panels, PANEL]);
    let end = axis.x(one.timeline.end);
    if end < RIGHT - 1.0 {
        canvas.line("finish", (end, band), (end, bottom));
    }
    bottom + 46.0
}
