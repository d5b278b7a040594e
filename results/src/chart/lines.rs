//! Lines over a numeric axis: published or measured points, simulated lines.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::axis::{Axis, Scale};
use super::theme::{GRID, INK, MUTED, PAPER, series};
use super::{Canvas, Drawn, MARGIN, SMALL, TEXT, at, font, heading, pixels, render, significant};

/// A chart of lines and points.
#[derive(Debug, Clone, PartialEq)]
pub struct LineChart {
    /// First line.
    pub title: String,
    /// Smaller lines below it.
    pub subtitle: String,
    /// What runs across, with its unit.
    pub x_label: String,
    /// What the values are, with their unit.
    pub y_label: String,
    /// Scale across.
    pub x_scale: Scale,
    /// Scale of the values.
    pub y_scale: Scale,
    /// What the points are, such as `paper`.
    pub points: String,
    /// What the lines are, such as `simulated`.
    pub lines: String,
    /// Named at the right end, each in its colour.
    pub series: Vec<Line>,
}

/// One series: a line, points, or both.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Corners of the line, from left to right.
    pub line: Vec<(f64, f64)>,
    /// Separate points.
    pub points: Vec<Point>,
}

/// A point with its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Place across.
    pub x: f64,
    /// Value.
    pub y: f64,
    /// What rounding or samples allow, from here ...
    pub low: f64,
    /// ... to here; equal to `low` for no error bar.
    pub high: f64,
}

/// Size of the picture without its heading and the names at the right.
const SIZE: (i32, i32) = (720, 400);
/// Least distance of two names.
const LINE: i32 = 15;

/// Draws the chart.
pub fn line_chart(chart: &LineChart) -> String {
    let names = chart.series.iter().map(|s| pixels(&s.name, TEXT)).max().unwrap_or(0);
    let size = (SIZE.0 + names + 27 + MARGIN, SIZE.1 + 80);
    let label = format!("{}. {}", chart.title, chart.subtitle);
    let size = (size.0.unsigned_abs(), size.1.unsigned_abs());
    render(size, &label, |root| draw(root, chart, names))
}

fn draw(root: &Canvas, chart: &LineChart, names: i32) -> Drawn {
    let top = heading(root, &chart.title, &chart.subtitle)?;
    legend(root, chart, top)?;
    let xs = chart
        .series
        .iter()
        .flat_map(|s| s.line.iter().map(|p| p.0).chain(s.points.iter().map(|p| p.x)));
    let ys = chart.series.iter().flat_map(|s| {
        s.line.iter().map(|p| p.1).chain(s.points.iter().flat_map(|p| [p.y, p.low, p.high]))
    });
    let mut plot = ChartBuilder::on(root)
        .margin_top(top + 26)
        .margin_right(MARGIN + names + 27)
        .margin_left(MARGIN)
        .margin_bottom(MARGIN)
        .set_label_area_size(LabelAreaPosition::Left, 64)
        .set_label_area_size(LabelAreaPosition::Bottom, 44)
        .build_cartesian_2d(
            Axis::across(chart.x_scale, xs),
            Axis::around(chart.y_scale, ys, 1.08),
        )?;
    plot.configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(MUTED)
        .x_desc(&chart.x_label)
        .y_desc(&chart.y_label)
        .axis_desc_style(font(TEXT, INK))
        .label_style(font(SMALL, MUTED))
        .x_label_formatter(&|v| significant(*v))
        .y_label_formatter(&|v| significant(*v))
        .draw()?;
    let place = |x: f64, y: f64| plot.plotting_area().map_coordinate(&(x, y));
    let shows = |x: f64, y: f64| chart.x_scale.shows(x) && chart.y_scale.shows(y);
    let mut ends = Vec::new();
    for (s, one) in chart.series.iter().enumerate() {
        let colour = series(s + 1);
        let corners = one.line.iter().filter(|p| shows(p.0, p.1));
        let corners: Vec<_> = corners.map(|p| place(p.0, p.1)).collect();
        root.draw(&PathElement::new(corners.clone(), colour.stroke_width(2)))?;
        for point in one.points.iter().filter(|p| shows(p.x, p.y)) {
            let [low, middle, high] = [point.low, point.y, point.high].map(|y| place(point.x, y));
            if point.low < point.high {
                root.draw(&PathElement::new(vec![low, high], colour))?;
            }
            marker(root, s, middle)?;
        }
        let last = one.points.iter().rev().find(|p| shows(p.x, p.y)).map(|p| place(p.x, p.y));
        if let Some((_, y)) = corners.last().copied().or(last) {
            ends.push((y, s));
        }
    }
    let right = plot.plotting_area().get_pixel_range().0.end;
    let style = at(&font(TEXT, INK), HPos::Left, VPos::Center);
    for (y, s) in apart(ends) {
        marker(root, s, (right + 14, y))?;
        root.draw_text(&chart.series[s].name, &style, (right + 25, y))?;
    }
    Ok(())
}

/// A shape for each series, so that colour is not needed to tell them apart.
fn marker(root: &Canvas, index: usize, at: (i32, i32)) -> Drawn {
    let (fill, edge) = (series(index + 1).filled(), PAPER.stroke_width(1));
    let (x, y) = at;
    let corners: Vec<(i32, i32)> = match index % 4 {
        0 => {
            root.draw(&Circle::new(at, 5, fill))?;
            root.draw(&Circle::new(at, 5, edge))?;
            return Ok(());
        }
        1 => vec![(x - 5, y + 4), (x + 5, y + 4), (x, y - 6)],
        2 => vec![(x - 4, y - 4), (x + 4, y - 4), (x + 4, y + 4), (x - 4, y + 4)],
        _ => vec![(x - 6, y), (x, y - 6), (x + 6, y), (x, y + 6)],
    };
    root.draw(&Polygon::new(corners.clone(), fill))?;
    let closed = corners.iter().copied().chain(corners.first().copied()).collect::<Vec<_>>();
    root.draw(&PathElement::new(closed, edge))?;
    Ok(())
}

/// Moves names that would touch downwards, keeping their order.
fn apart(mut ends: Vec<(i32, usize)>) -> Vec<(i32, usize)> {
    ends.sort_unstable();
    let mut free = i32::MIN;
    for (y, _) in &mut ends {
        *y = (*y).max(free);
        free = *y + LINE;
    }
    ends
}

fn legend(root: &Canvas, chart: &LineChart, y: i32) -> Drawn {
    let text = at(&font(SMALL, MUTED), HPos::Left, VPos::Center);
    let mut x = MARGIN;
    if chart.series.iter().any(|s| !s.points.is_empty()) {
        root.draw(&Circle::new((x + 5, y + 6), 5, MUTED.filled()))?;
        root.draw_text(&chart.points, &text, (x + 15, y + 6))?;
        x += 15 + pixels(&chart.points, SMALL) + 14;
    }
    if chart.series.iter().any(|s| !s.line.is_empty()) {
        root.draw(&PathElement::new(vec![(x, y + 6), (x + 20, y + 6)], MUTED.stroke_width(2)))?;
        root.draw_text(&chart.lines, &text, (x + 25, y + 6))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_line_chart() {
        let mut chart = crate::sample::lines();
        chart.series.truncate(1);
        insta::assert_snapshot!(line_chart(&chart));
    }

    #[test]
    fn names_do_not_touch() {
        assert_eq!(apart(vec![(50, 0), (10, 1), (52, 2)]), [(10, 1), (50, 0), (65, 2)]);
    }
}
