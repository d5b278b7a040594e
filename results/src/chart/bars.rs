//! Grouped bars: one group for each published figure, one bar for each series.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::axis::{Axis, Scale};
use super::theme::{GRID, INK, MUTED, PAPER, series};
use super::{Canvas, Drawn, MARGIN, SMALL, TEXT, at, font, heading, pixels, render, significant};
use crate::svg::wrap;

/// A grouped bar chart.
#[derive(Debug, Clone, PartialEq)]
pub struct BarChart {
    /// First line.
    pub title: String,
    /// Smaller lines below it.
    pub subtitle: String,
    /// What the values are, with their unit.
    pub y_label: String,
    /// Linear from zero, or logarithmic.
    pub scale: Scale,
    /// Names of the series, what is given (a paper, a measurement) first.
    pub series: Vec<String>,
    /// From left to right.
    pub groups: Vec<Group>,
}

/// Bars that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// What they have in common.
    pub label: String,
    /// A smaller line below it; may be empty.
    pub note: String,
    /// Nothing was fitted to this group: its bars are hatched.
    pub held_out: bool,
    /// At most one for each series; a series without a bar is marked `n/a`.
    pub bars: Vec<Bar>,
}

/// One value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    /// Index into [`BarChart::series`].
    pub series: usize,
    /// Its height.
    pub value: f64,
    /// What the source's rounding or the samples allow, from here ...
    pub low: f64,
    /// ... to here; equal to `low` for no error bar.
    pub high: f64,
}

/// Height of the plotted area.
const HEIGHT: i32 = 320;
/// Room for the labels of the value axis.
const LEFT: i32 = 72;
/// Part of a group's width that its bars fill.
const FILLED: f64 = 0.78;

/// Draws the chart.
pub fn bar_chart(chart: &BarChart) -> String {
    let layout = Layout::of(chart);
    let label = format!("{}. {}", chart.title, chart.subtitle);
    render((layout.width.unsigned_abs(), layout.height.unsigned_abs()), &label, |root| {
        draw(root, chart, &layout)
    })
}

/// Sizes that follow from the content.
struct Layout {
    width: i32,
    height: i32,
    /// Width of a group and of a bar in pixels.
    group: i32,
    bar: i32,
    /// Lines under each group: its label, then its note.
    labels: Vec<(Vec<String>, Vec<String>)>,
    label_lines: i32,
    heading: i32,
}

impl Layout {
    fn of(chart: &BarChart) -> Self {
        let count = small(chart.groups.len().max(1));
        let bars = small(chart.series.len().max(1));
        let plot = (count * (bars * 34 + 28).max(84)).clamp(640, 1500);
        let group = plot / count;
        let room = f64::from(group) - 6.0;
        let labels: Vec<_> = chart
            .groups
            .iter()
            .map(|g| (wrap(&g.label, TEXT, room), wrap(&g.note, SMALL, room)))
            .collect();
        let label_lines = labels.iter().map(|(l, n)| small(l.len() + n.len())).max().unwrap_or(0);
        let width = LEFT + plot + 2 * MARGIN;
        let lines = |text: &str, size| small(wrap(text, size, f64::from(width - 2 * MARGIN)).len());
        let heading = lines(&chart.title, super::TITLE) * 23 + lines(&chart.subtitle, TEXT) * 17;
        #[allow(clippy::cast_possible_truncation, reason = "part of a width in pixels")]
        let bar = (f64::from(group) * FILLED / f64::from(bars)) as i32;
        let height = MARGIN + heading + 40 + HEIGHT + 14 + label_lines * 15 + MARGIN;
        Self { width, height, group, bar, labels, label_lines, heading: heading + MARGIN + 8 }
    }
}

fn small(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX).min(10_000)
}

fn draw(root: &Canvas, chart: &BarChart, layout: &Layout) -> Drawn {
    let top = heading(root, &chart.title, &chart.subtitle)?;
    debug_assert_eq!(top, layout.heading, "the layout counted the same lines");
    legend(root, chart, top)?;
    let bars = chart.groups.iter().flat_map(|g| &g.bars);
    let values = bars.flat_map(|b| [b.value, b.low, b.high]);
    let upright = widest(chart) > layout.bar;
    let axis = Axis::around(chart.scale, values, if upright { 1.2 } else { 1.1 });
    let low = axis.low();
    let across: RangedCoordf64 = (0.0..chart.groups.len().max(1) as f64).into();
    let mut plot = ChartBuilder::on(root)
        .margin_top(top + 30)
        .margin_right(MARGIN)
        .margin_left(MARGIN)
        .margin_bottom(MARGIN + layout.label_lines * 15 + 8)
        .set_label_area_size(LabelAreaPosition::Left, LEFT)
        .build_cartesian_2d(across, axis)?;
    plot.configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(MUTED)
        .y_desc(&chart.y_label)
        .axis_desc_style(font(TEXT, INK))
        .y_label_style(font(SMALL, MUTED))
        .y_label_formatter(&|v| significant(*v))
        .draw()?;
    let place = |value: f64| plot.plotting_area().map_coordinate(&(0.0, value)).1;
    let left = plot.plotting_area().map_coordinate(&(0.0, low)).0;
    let right = left + layout.group * small(chart.groups.len());
    root.draw(&PathElement::new(vec![(left, place(low)), (right, place(low))], MUTED))?;
    for (g, group) in chart.groups.iter().enumerate() {
        let begin = left + layout.group * small(g);
        let inset = (layout.group - layout.bar * small(chart.series.len())) / 2;
        for s in 0..chart.series.len() {
            let x = begin + inset + layout.bar * small(s);
            let bar = group.bars.iter().find(|b| b.series == s && chart.scale.shows(b.value));
            if let Some(bar) = bar {
                let ys = [bar.value, low.max(0.0), bar.low, bar.high].map(place);
                one(root, bar, group.held_out, [x, layout.bar], ys, upright)?;
            } else {
                let style = at(&font(SMALL, MUTED), HPos::Center, VPos::Bottom);
                root.draw_text("n/a", &style, (x + layout.bar / 2, place(low) - 3))?;
            }
        }
        labels(root, &layout.labels[g], begin + layout.group / 2, place(low) + 8)?;
    }
    Ok(())
}

/// Width of the widest value printed over a bar.
fn widest(chart: &BarChart) -> i32 {
    let bars = chart.groups.iter().flat_map(|g| &g.bars);
    bars.map(|b| pixels(&significant(b.value), SMALL)).max().unwrap_or(0)
}

/// One bar with its error bar and its value; `ys` are the pixels of value, base, low and high.
fn one(
    root: &Canvas,
    bar: &Bar,
    hatched: bool,
    [x, width]: [i32; 2],
    ys: [i32; 4],
    upright: bool,
) -> Drawn {
    let [y, base, low, high] = ys;
    let (left, right, middle) = (x + 1, x + width - 1, x + width / 2);
    let colour = series(bar.series);
    let corners = [(left, y.min(base)), (right, y.max(base))];
    root.draw(&Rectangle::new(corners, colour.filled()))?;
    if hatched {
        hatch(root, corners)?;
    }
    let mut top = y.min(base);
    if bar.low < bar.high {
        let line = ShapeStyle { color: INK.to_rgba(), filled: false, stroke_width: 1 };
        root.draw(&PathElement::new(vec![(middle, low), (middle, high)], line))?;
        for end in [low, high] {
            root.draw(&PathElement::new(vec![(middle - 4, end), (middle + 4, end)], line))?;
        }
        top = top.min(high);
    }
    let style = font(SMALL, INK);
    if upright {
        let style = style.transform(FontTransform::Rotate270);
        root.draw_text(
            &significant(bar.value),
            &at(&style, HPos::Left, VPos::Center),
            (middle, top - 4),
        )?;
    } else {
        root.draw_text(
            &significant(bar.value),
            &at(&style, HPos::Center, VPos::Bottom),
            (middle, top - 3),
        )?;
    }
    Ok(())
}

/// Diagonal lines in the colour of the ground, six pixels apart, cut at the bar's edges.
fn hatch(root: &Canvas, [(left, top), (right, bottom)]: [(i32, i32); 2]) -> Drawn {
    let (width, height) = (right - left, bottom - top);
    for offset in (6..width + height).step_by(6) {
        // The line x + y = offset, from the left or bottom edge to the top or right edge.
        let from = if offset <= height { (0, offset) } else { (offset - height, height) };
        let to = if offset <= width { (offset, 0) } else { (width, offset - width) };
        let ends = [from, to].map(|(x, y)| (left + x, top + y));
        root.draw(&PathElement::new(ends.to_vec(), PAPER.stroke_width(1)))?;
    }
    Ok(())
}

fn labels(root: &Canvas, (label, note): &(Vec<String>, Vec<String>), x: i32, y: i32) -> Drawn {
    let lines = label.iter().map(|l| (l, font(TEXT, INK)));
    let lines = lines.chain(note.iter().map(|l| (l, font(SMALL, MUTED))));
    for ((line, style), row) in lines.zip(0..) {
        root.draw_text(line, &at(&style, HPos::Center, VPos::Top), (x, y + 15 * row))?;
    }
    Ok(())
}

/// The series, and what hatching and error bars mean where there are any.
fn legend(root: &Canvas, chart: &BarChart, y: i32) -> Drawn {
    let mut x = MARGIN;
    let text = at(&font(SMALL, INK), HPos::Left, VPos::Center);
    for (s, name) in chart.series.iter().enumerate() {
        root.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], series(s).filled()))?;
        root.draw_text(name, &text, (x + 17, y + 6))?;
        x += 17 + pixels(name, SMALL) + 14;
    }
    if chart.groups.iter().any(|g| g.held_out) {
        let corners = [(x, y), (x + 18, y + 12)];
        root.draw(&Rectangle::new(corners, MUTED.filled()))?;
        hatch(root, corners)?;
        let name = "held out: nothing was fitted to it";
        root.draw_text(name, &text, (x + 23, y + 6))?;
        x += 23 + pixels(name, SMALL) + 14;
    }
    if chart.groups.iter().flat_map(|g| &g.bars).any(|b| b.low < b.high) {
        root.draw(&PathElement::new(vec![(x + 4, y), (x + 4, y + 12)], INK))?;
        for end in [y, y + 12] {
            root.draw(&PathElement::new(vec![(x, end), (x + 8, end)], INK))?;
        }
        root.draw_text("what rounding allows", &text, (x + 14, y + 6))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use proptest::prelude::*;

    #[test]
    fn a_small_bar_chart() {
        let mut chart = sample::bars(Scale::Log);
        chart.groups.drain(1..3);
        insta::assert_snapshot!(bar_chart(&chart));
    }

    #[test]
    fn many_bars_write_their_values_upright() {
        let mut chart = sample::bars(Scale::Linear);
        chart.groups = chart.groups.iter().cycle().take(24).cloned().collect();
        assert!(bar_chart(&chart).contains("rotate"));
    }

    proptest! {
        #[test]
        fn no_values_break_the_chart(value in any::<f64>(), low in any::<f64>(), held_out in any::<bool>()) {
            for scale in [Scale::Linear, Scale::Log] {
                let mut chart = sample::bars(scale);
                chart.groups[1].held_out = held_out;
                chart.groups[1].bars[0] = Bar { series: 0, value, low, high: value };
                chart.groups[2].bars.clear();
                prop_assert!(bar_chart(&chart).trim_end().ends_with("</svg>"));
                chart.groups.clear();
                prop_assert!(!bar_chart(&chart).contains("not drawn"));
            }
        }
    }
}
