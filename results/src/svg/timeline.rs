//! The picture of one timeline: the whole request, and a steady part of it closely.

use pipo_plan::schedule::Phase;
use pipo_plan::timeline::Timeline;
use pipo_plan::units::Nanos;

use super::axis::TimeAxis;
use super::lanes::Rows;
use super::palette::Family;
use super::{Anchor, Canvas, LEFT, MARGIN, RIGHT, curves, excerpt, heading, text_width};
use crate::busy::Window;
use crate::utilisation::{Meters, phase, whole};

/// More spans than this are shown as an overview with an excerpt.
const SHORT: usize = 150;
/// Height of a lane's row.
const ROW: f64 = 24.0;
/// Height of a utilisation panel of the whole request, and of an excerpt.
const PANELS: [f64; 2] = [34.0, 20.0];
/// Room for the labels of a time axis.
const AXIS: f64 = 30.0;

/// What to show closely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excerpt {
    /// Everything if that is legible, otherwise a few stages of the middle decode pass.
    Auto,
    /// Everything, however dense.
    Whole,
    /// This part.
    Window(Window),
}

/// What the picture says about itself, and what it shows closely.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    /// First line.
    pub title: &'a str,
    /// Smaller lines below it; broken where they are too long.
    pub subtitle: &'a str,
    /// The close view.
    pub excerpt: Excerpt,
}

/// Draws a timeline.
pub fn timeline(timeline: &Timeline, picture: &Picture) -> String {
    let all = whole(timeline);
    let close = match picture.excerpt {
        Excerpt::Whole => all,
        Excerpt::Window(window) => window.overlap(all),
        Excerpt::Auto if timeline.spans.len() <= SHORT => all,
        Excerpt::Auto => excerpt::steady(timeline).unwrap_or(all),
    };
    let meters = Meters::of(timeline);
    let mut canvas = Canvas::new();
    let mut y = heading(&mut canvas, picture.title, picture.subtitle);
    if close != all {
        y = overview(&mut canvas, timeline, &meters, close, y);
    }
    y = closely(&mut canvas, timeline, &meters, close, y);
    canvas.finish(y, &format!("{}. {}", picture.title, picture.subtitle))
}

/// Utilisation over the whole request, the phases shaded and the excerpt marked.
fn overview(
    canvas: &mut Canvas,
    timeline: &Timeline,
    meters: &Meters,
    close: Window,
    y: f64,
) -> f64 {
    let all = whole(timeline);
    let axis = TimeAxis::new(all);
    canvas.text("head", MARGIN, y + 14.0, Anchor::Start, "Whole request");
    let band = y + 24.0;
    phases(canvas, timeline, axis, band);
    let top = band + BAND;
    let bottom = top + curves::height(PANELS[0]);
    axis.draw(canvas, top, bottom);
    let figures: Vec<_> = [("prefill", Phase::Prefill), ("decode", Phase::Decode)]
        .into_iter()
        .filter_map(|(name, p)| Some((name, phase(timeline, p)?)))
        .collect();
    curves::panels(canvas, axis, meters, all, &figures, [top, PANELS[0]]);
    mark(canvas, axis, close, [band - 4.0, bottom]);
    bottom + AXIS + 14.0
}

/// Height of the band that names the phases.
pub(super) const BAND: f64 = 20.0;

/// A band with prefill and decode, each named where its name fits.
pub(super) fn phases(canvas: &mut Canvas, timeline: &Timeline, axis: TimeAxis, y: f64) {
    let decode = timeline.passes.iter().filter(|p| p.phase == Phase::Decode).count();
    for (p, class) in [(Phase::Prefill, "pre"), (Phase::Decode, "dec")] {
        let Some(window) = phase(timeline, p) else { continue };
        let (left, right) = (axis.x(window.start), axis.x(window.end));
        canvas.rect(class, left, y, right - left, BAND - 4.0);
        let length = window.length();
        let names = match p {
            Phase::Prefill => [format!("prefill {length}"), "prefill".to_owned()],
            Phase::Decode => {
                let each = Nanos(length.0 / decode.max(1) as u64);
                [
                    format!("decode {length}: {decode} passes of {each} on average"),
                    format!("decode {length}"),
                ]
            }
        };
        let fits = |name: &&String| text_width(name, 11.0) + 10.0 <= right - left;
        if let Some(name) = names.iter().find(fits) {
            canvas.text("small", left + 5.0, y + 12.0, Anchor::Start, name);
        }
    }
}

/// Frames the excerpt in the overview; a frame narrower than its own line is widened.
fn mark(canvas: &mut Canvas, axis: TimeAxis, close: Window, [top, bottom]: [f64; 2]) {
    let (left, right) = (axis.x(close.start), axis.x(close.end));
    let left = left.min(right - 3.0).max(LEFT);
    let width = (right - left).max(3.0);
    canvas.rect("zoom", left, top, width, bottom - top);
    canvas.rect("frame", left, top, width, bottom - top);
}

/// The operations of a window, lane by lane, with utilisation below.
fn closely(
    canvas: &mut Canvas,
    timeline: &Timeline,
    meters: &Meters,
    close: Window,
    y: f64,
) -> f64 {
    let axis = TimeAxis::new(close);
    let rows = Rows::new(timeline, axis);
    let mut y = y;
    let part = close != whole(timeline);
    let head = if part { "Excerpt, framed above" } else { "Operations" };
    if part {
        let place = excerpt::place(timeline, close);
        let from = format!("from {:.4} s on: {place}", close.start.seconds());
        canvas.head(y + 14.0, head, &from);
    } else {
        canvas.text("head", MARGIN, y + 14.0, Anchor::Start, head);
        phases(canvas, timeline, axis, y + 24.0);
        y += BAND + 2.0;
    }
    y = legend(canvas, &rows.families(), y + 22.0);
    let panels = y + rows.height(ROW) + 4.0;
    let panel = PANELS[usize::from(part)];
    let bottom = panels + curves::height(panel);
    rows.ground(canvas, y, ROW);
    axis.draw(canvas, y, bottom);
    rows.draw(canvas, close, y, ROW);
    curves::panels(canvas, axis, meters, close, &[("", close)], [panels, panel]);
    canvas.text("small mut", RIGHT + 8.0, y - 8.0, Anchor::Start, "busy");
    bottom + AXIS
}

/// The colours that occur, in one line.
pub(super) fn legend(canvas: &mut Canvas, families: &[Family], y: f64) -> f64 {
    let mut x = LEFT;
    for family in families {
        canvas.rect(family.class(), x, y, 12.0, 12.0);
        canvas.text("small", x + 17.0, y + 10.0, Anchor::Start, family.name());
        x += 17.0 + text_width(family.name(), 11.0) + 18.0;
    }
    y + 24.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{self, LAPTOP, Shape};
    use crate::svg::{Compared, comparison};
    use proptest::prelude::*;

    fn picture(excerpt: Excerpt) -> Picture<'static> {
        Picture { title: "A <plan> & its run", subtitle: "predicted", excerpt }
    }

    /// Every element that opens closes, and nothing is left unescaped.
    fn well_formed(svg: &str) -> bool {
        let text = svg.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "");
        let opened = text.matches('<').count() - text.matches("</").count();
        let closed = text.matches("</").count() + text.matches("/>").count();
        opened == closed && !text.replace("&quot;", "").contains('&')
    }

    #[test]
    fn a_small_timeline() {
        let run = sample::pipeline(Shape { layers: 1, decode_passes: 0, ..LAPTOP });
        insta::assert_snapshot!(timeline(&run, &picture(Excerpt::Auto)));
    }

    #[test]
    fn a_run_of_300_000_spans_is_a_small_file() {
        let shape = Shape { layers: 96, micros: 12, decode_passes: 65, ..LAPTOP };
        let run = sample::pipeline(shape);
        assert!(run.spans.len() > 290_000, "{}", run.spans.len());
        for excerpt in [Excerpt::Auto, Excerpt::Whole] {
            let svg = timeline(&run, &picture(excerpt));
            assert!(svg.len() < 500_000, "{excerpt:?}: {} bytes", svg.len());
            assert!(well_formed(&svg));
        }
        let compared = Compared { name: "long", note: "", timeline: &run };
        assert!(comparison("Two", "", &[compared, compared]).len() < 500_000);
    }

    proptest! {
        #[test]
        fn any_timeline_can_be_drawn(
            run in sample::any_timeline(), start in 0_u64..20_000, length in 0_u64..20_000,
        ) {
            let window = Window::new(Nanos(start), Nanos(start + length));
            for excerpt in [Excerpt::Auto, Excerpt::Whole, Excerpt::Window(window)] {
                prop_assert!(well_formed(&timeline(&run, &picture(excerpt))));
            }
            let compared = Compared { name: "<a>", note: "b & c", timeline: &run };
            prop_assert!(well_formed(&comparison("", "", &[compared])));
            prop_assert!(well_formed(&comparison("none", "", &[])));
        }
    }
}
