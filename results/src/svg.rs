//! Pictures of timelines as SVG: written by hand, because a Gantt picture is rectangles and text.
//!
//! The pictures carry their own opaque background and follow the viewer's light or dark scheme by a
//! media query; a viewer that knows none shows them light. Colours are Okabe and Ito's, text is 11
//! pixels or more.

use std::fmt::Write;

mod axis;
mod comparison;
mod curves;
mod excerpt;
mod lanes;
mod palette;
mod timeline;

pub use comparison::{Compared, comparison};
pub use timeline::{Excerpt, Picture, timeline};

/// Width of every picture in pixels; the height follows from the content.
const WIDTH: f64 = 1200.0;
/// Left edge of the time axis: names of lanes and meters stand before it.
const LEFT: f64 = 150.0;
/// Right edge of the time axis: figures stand after it.
const RIGHT: f64 = 1100.0;
/// Distance of titles and names from the picture's edge.
const MARGIN: f64 = 20.0;
/// Size of ordinary text.
const TEXT: f64 = 12.0;

/// Where a text stands relative to its point.
#[derive(Debug, Clone, Copy)]
enum Anchor {
    Start,
    Middle,
}

/// An SVG under construction.
struct Canvas {
    body: String,
}

impl Canvas {
    fn new() -> Self {
        Self { body: String::new() }
    }

    fn rect(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64) {
        self.put(&format!(
            "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
            number(x),
            number(y),
            number(width),
            number(height)
        ));
    }

    /// A rectangle that names itself under the pointer.
    fn titled_rect(&mut self, class: &str, [x, y, width, height]: [f64; 4], title: &str) {
        self.put(&format!(
            "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>{}</title></rect>",
            number(x),
            number(y),
            number(width),
            number(height),
            escape(title)
        ));
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(number);
        self.put(&format!("<path class=\"{class}\" d=\"M{x1} {y1}L{x2} {y2}\"/>"));
    }

    fn path(&mut self, class: &str, data: &str) {
        if !data.is_empty() {
            self.put(&format!("<path class=\"{class}\" d=\"{data}\"/>"));
        }
    }

    fn text(&mut self, class: &str, x: f64, y: f64, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
        };
        let (x, y) = (number(x), number(y));
        self.put(&format!(
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\"{anchor}>{}</text>",
            escape(text)
        ));
    }

    /// A heading with a note behind it, wherever the heading ends: bold fonts differ most.
    fn head(&mut self, y: f64, head: &str, note: &str) {
        let (x, y) = (number(MARGIN), number(y));
        let (head, note) = (escape(head), escape(note));
        self.put(&format!(
            "<text class=\"head\" x=\"{x}\" y=\"{y}\">{head}<tspan class=\"mut note\" dx=\"10\">{note}</tspan></text>"
        ));
    }

    fn put(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    /// The finished file; `label` is what a screen reader says.
    fn finish(self, height: f64, label: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" \
             viewBox=\"0 0 {w} {h}\" role=\"img\" aria-label=\"{}\">\n<style>{}</style>\n\
             <rect class=\"bg\" width=\"{w}\" height=\"{h}\"/>\n{}</svg>\n",
            escape(label),
            palette::STYLE,
            self.body,
            w = number(WIDTH),
            h = number(height),
        )
    }
}

/// Adds a rectangle to the data of a path: far shorter than an element of its own.
fn add_box(data: &mut String, [x, y, width, height]: [f64; 4]) {
    let (w, h) = (number(width), number(height));
    // Writing to a String cannot fail.
    let _ = write!(data, "M{} {}h{w}v{h}h-{w}z", number(x), number(y));
}

/// A coordinate with at most two decimals and no trailing zeros.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Text as XML wants it; control characters, which XML cannot hold at all, become spaces.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Upper estimate of a text's width: fonts differ, and a label must fit with all of them.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    let em: f64 = text
        .chars()
        .map(|c| match c {
            'i' | 'j' | 'l' | 't' | 'f' | 'r' | ' ' | '.' | ',' | ':' | '(' | ')' => 0.42,
            'm' | 'w' | 'M' | 'W' | '%' => 0.98,
            c if c.is_ascii_uppercase() => 0.74,
            c if c.is_ascii() => 0.64,
            _ => 1.0,
        })
        .sum();
    em * size
}

/// Breaks a text at its spaces so that each line fits; a single word may be wider.
pub(crate) fn wrap(text: &str, size: f64, width: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line} {word}"), size) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Writes title and subtitle; returns where the content begins.
fn heading(canvas: &mut Canvas, title: &str, subtitle: &str) -> f64 {
    let mut y = 14.0;
    for line in wrap(title, 19.0, WIDTH - 2.0 * MARGIN) {
        y += 22.0;
        canvas.text("title", MARGIN, y, Anchor::Start, &line);
    }
    for line in wrap(subtitle, 13.0, WIDTH - 2.0 * MARGIN) {
        y += 18.0;
        canvas.text("sub", MARGIN, y, Anchor::Start, &line);
    }
    y + 14.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_fixed() {
        assert_eq!(["12", "0.5", "0", "0"], [12.0, 0.5, -0.001, 0.0].map(number).as_slice());
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a<b & \"c\"\u{0}"), "a&lt;b &amp; &quot;c&quot; ");
    }

    #[test]
    fn long_lines_break_at_spaces() {
        let lines = wrap("one two three", 10.0, text_width("one two", 10.0));
        assert_eq!(lines, ["one two", "three"]);
        assert!(wrap(" ", 10.0, 100.0).is_empty());
    }
}
