//! Lanes as rows of operations.
//!
//! An operation at least two pixels wide is drawn where it ran. Narrower ones are merged: each column
//! of two pixels shows, as a bar from the row's bottom, the share of its time in which the lane was
//! busy with them, stacked by family. What a run costs is thus bounded by the width of the picture.

use std::collections::BTreeMap;

use pipo_plan::schedule::LaneId;
use pipo_plan::timeline::{Span, Timeline};

use super::axis::TimeAxis;
use super::palette::Family;
use super::{Anchor, Canvas, LEFT, MARGIN, RIGHT, add_box, text_width};
use crate::busy::{Busy, Window};
use crate::trace::{ByOp, lane_name, lanes_in_order};

/// Narrower operations are merged into columns of this width, in pixels.
const COLUMN: f64 = 2.0;
/// Up to so many operations in the window, each is a shape with its own description.
const DESCRIBED: usize = 600;
/// Distance between rows.
const GAP: f64 = 4.0;

/// The rows of one timeline on one axis.
pub(super) struct Rows<'a> {
    timeline: &'a Timeline,
    axis: TimeAxis,
    lanes: Vec<LaneId>,
    spans: Vec<&'a Span>,
}

impl<'a> Rows<'a> {
    /// The lanes that ever do anything, and what they do in the axis' window.
    pub(super) fn new(timeline: &'a Timeline, axis: TimeAxis) -> Self {
        let mut used = [false; 256];
        for span in timeline.spans.iter().filter(|s| s.start < s.end) {
            used[usize::from(span.lane.0)] = true;
        }
        let lanes = lanes_in_order(&timeline.layout);
        let lanes = lanes.into_iter().filter(|l| used[usize::from(l.0)]).collect();
        let spans = timeline.spans.iter();
        let spans = spans.filter(|s| s.end > axis.window.start && s.start < axis.window.end);
        Self { timeline, axis, lanes, spans: spans.collect() }
    }

    /// Height that [`Rows::draw`] takes.
    pub(super) fn height(&self, row: f64) -> f64 {
        self.lanes.len() as f64 * (row + GAP)
    }

    /// Families in the window, for the legend.
    pub(super) fn families(&self) -> Vec<Family> {
        let seen =
            |f: &Family| self.spans.iter().any(|s| s.start < s.end && Family::of(s.kind) == *f);
        Family::ALL.into_iter().filter(seen).collect()
    }

    /// Draws the rows' grounds; the grid comes between them and the operations.
    pub(super) fn ground(&self, canvas: &mut Canvas, y: f64, row: f64) {
        for i in 0..self.lanes.len() {
            canvas.rect("row", LEFT, y + i as f64 * (row + GAP), RIGHT - LEFT, row);
        }
    }

    /// Draws the rows from `y` on, with each lane's busy share over `until` at the right end.
    pub(super) fn draw(&self, canvas: &mut Canvas, until: Window, y: f64, row: f64) {
        let described = (self.spans.len() <= DESCRIBED).then(|| ByOp::of(self.timeline));
        for (i, &lane) in self.lanes.iter().enumerate() {
            let top = y + i as f64 * (row + GAP);
            let small = if row < 16.0 { "small" } else { "" };
            let base = top + row / 2.0 + 4.0;
            let name = lane_name(&self.timeline.layout, lane);
            canvas.text(small, MARGIN, base, Anchor::Start, &name);
            let spans: Vec<&Span> = self.spans.iter().copied().filter(|s| s.lane == lane).collect();
            let busy = Busy::union(spans.iter().map(|s| (Window::new(s.start, s.end), 1000)));
            let share = format!("{:.0} %", busy.share(until) * 100.0);
            canvas.text(small, RIGHT + 8.0, base, Anchor::Start, &share);
            self.operations(canvas, &spans, described.as_ref(), [top, row]);
        }
    }

    fn operations(
        &self,
        canvas: &mut Canvas,
        spans: &[&Span],
        by_op: Option<&ByOp>,
        [top, row]: [f64; 2],
    ) {
        let mut columns = Columns::default();
        let mut wide: BTreeMap<Family, String> = BTreeMap::new();
        for span in spans {
            let (left, right) = (self.axis.x(span.start), self.axis.x(span.end));
            let family = Family::of(span.kind);
            let shape = [left, top, right - left, row];
            match by_op {
                _ if right - left < COLUMN => columns.add(family, left, right),
                Some(by_op) => self.described(canvas, span, shape, by_op),
                None => add_box(wide.entry(family).or_default(), shape),
            }
        }
        for (family, data) in &wide {
            canvas.path(family.class(), data);
        }
        for (family, data) in columns.boxes(top, row) {
            canvas.path(family.class(), &data);
        }
    }

    /// One operation with its unit's name upon it where that fits, and all about it under the pointer.
    fn described(&self, canvas: &mut Canvas, span: &Span, shape: [f64; 4], by_op: &ByOp) {
        let units = &self.timeline.layout.units;
        let unit = units.get(usize::from(span.unit)).map_or("", String::as_str);
        let title = format!(
            "{unit}: {} | {} | {} | pass {}, micro-batch {}, block {} | waited for {}",
            span.kind.name(),
            span.end - span.start,
            span.bytes,
            span.pass,
            span.micro,
            span.block,
            by_op.describe(self.timeline, span.blame)
        );
        let family = Family::of(span.kind);
        canvas.titled_rect(&format!("op {}", family.class()), shape, &title);
        let [left, top, width, row] = shape;
        let short = unit.replace("layer ", "L").replace("attention", "attn");
        let fits = |name: &&str| text_width(name, 11.0) + 4.0 <= width;
        if let Some(name) = [unit, short.as_str()].into_iter().find(fits) {
            let (x, y) = (left + width / 2.0, top + row / 2.0 + 4.0);
            canvas.text(family.text_class(), x, y, Anchor::Middle, name);
        }
    }
}

/// Busy part of each family in each column, 0 to 1.
#[derive(Default)]
struct Columns(BTreeMap<i32, BTreeMap<Family, f64>>);

impl Columns {
    /// Adds a span at most one column wide, which touches two at most.
    fn add(&mut self, family: Family, left: f64, right: f64) {
        #[allow(clippy::cast_possible_truncation, reason = "positions lie within the picture")]
        let column = (left / COLUMN).floor() as i32;
        let border = f64::from(column + 1) * COLUMN;
        for (at, pixels) in [(column, right.min(border) - left), (column + 1, right - border)] {
            if pixels > 0.0 {
                *self.0.entry(at).or_default().entry(family).or_default() += pixels / COLUMN;
            }
        }
    }

    /// The bars of each family; neighbours of equal height are one box.
    fn boxes(&self, top: f64, row: f64) -> BTreeMap<Family, String> {
        let mut data: BTreeMap<Family, String> = BTreeMap::new();
        let mut open: BTreeMap<Family, (i32, i32, [f64; 2])> = BTreeMap::new();
        let mut close = |family: Family, (from, to, [y, height]): (i32, i32, [f64; 2])| {
            let shape = [f64::from(from) * COLUMN, y, f64::from(to - from) * COLUMN, height];
            add_box(data.entry(family).or_default(), shape);
        };
        for (&column, families) in &self.0 {
            // Overlapping spans, which only a measured lane can have, share the column.
            let scale = row / families.values().sum::<f64>().max(1.0);
            let mut bottom = top + row;
            for (&family, part) in families {
                // Half pixels are fine enough to see, and coarse enough for neighbours to merge.
                let height = (part * scale * 2.0).round() / 2.0;
                if height <= 0.0 {
                    continue;
                }
                bottom -= height;
                let bar = [bottom, height];
                match open.get_mut(&family) {
                    Some((_, to, same))
                        if *to == column && same.map(f64::to_bits) == bar.map(f64::to_bits) =>
                    {
                        *to = column + 1;
                    }
                    _ => {
                        if let Some(done) = open.insert(family, (column, column + 1, bar)) {
                            close(family, done);
                        }
                    }
                }
            }
        }
        for (family, last) in open {
            close(family, last);
        }
        data
    }
}
