//! Charts of experiments: what was published or measured against what is simulated.
//!
//! Drawn by plotters; colours are afterwards given a dark variant by a style sheet, because plotters
//! knows only one. Values that are not finite, or not positive on a logarithmic axis, are left out.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

mod axis;
mod bars;
mod lines;
mod theme;

pub use axis::Scale;
pub use bars::{Bar, BarChart, Group, bar_chart};
pub use lines::{Line, LineChart, Point, line_chart};

use crate::svg::{text_width, wrap};
use theme::{INK, MUTED, PAPER, finish};

/// A drawing on the way into a text.
type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Everything that can go wrong while drawing into memory.
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Sizes of titles and of everything else, in pixels.
const TITLE: f64 = 17.0;
const TEXT: f64 = 12.0;
const SMALL: f64 = 11.0;
const MARGIN: i32 = 16;

/// Draws into a text and gives it its style sheet; a failure becomes the picture's only line.
fn render(size: (u32, u32), label: &str, draw: impl FnOnce(&Canvas) -> Drawn) -> String {
    let mut text = String::new();
    let drawn = {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&PAPER)
            .map_err(Into::into)
            .and_then(|()| draw(&root))
            .and_then(|()| root.present().map_err(Into::into))
    };
    match drawn {
        Ok(()) => finish(&text, label),
        Err(error) => format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\"><text y=\"20\">not drawn: {}</text></svg>\n",
            crate::svg::escape(&error.to_string())
        ),
    }
}

/// A font of this many pixels: plotters scales what it is given by 1/1.24.
fn font(pixels: f64, colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", pixels * 1.24).into_font().color(&colour)
}

fn at(style: &TextStyle<'static>, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    style.pos(Pos::new(horizontal, vertical))
}

/// Writes title and subtitle; returns where the content begins.
fn heading(root: &Canvas, title: &str, subtitle: &str) -> Result<i32, Box<dyn std::error::Error>> {
    let width = f64::from(root.dim_in_pixel().0) - 2.0 * f64::from(MARGIN);
    let bold: TextStyle = ("sans-serif", TITLE * 1.24, FontStyle::Bold).into_font().color(&INK);
    let mut y = MARGIN;
    for line in wrap(title, TITLE, width) {
        root.draw_text(&line, &at(&bold, HPos::Left, VPos::Top), (MARGIN, y))?;
        y += 23;
    }
    for line in wrap(subtitle, TEXT, width) {
        root.draw_text(&line, &at(&font(TEXT, MUTED), HPos::Left, VPos::Top), (MARGIN, y))?;
        y += 17;
    }
    Ok(y + 8)
}

/// Three significant figures, without an exponent between a thousandth and a million.
fn significant(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(0.001..1e6).contains(&size) {
        return format!("{value:.1e}");
    }
    let decimals = match size {
        s if s >= 99.95 => 0,
        s if s >= 9.995 => 1,
        s if s >= 0.9995 || s == 0.0 => 2,
        s if s >= 0.09995 => 3,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Width of a text in whole pixels, for places that are counted in them.
#[allow(
    clippy::cast_possible_truncation,
    reason = "texts are shorter than two thousand million pixels"
)]
fn pixels(text: &str, size: f64) -> i32 {
    text_width(text, size).ceil() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_figures() {
        let texts =
            [0.0, 1.0, 0.123_46, 12.345, 123.45, 99_999.0, 2.5e9, 0.69, 1e-9].map(significant);
        assert_eq!(texts, ["0", "1", "0.123", "12.3", "123", "99999", "2.5e9", "0.69", "1.0e-9"]);
    }
}
