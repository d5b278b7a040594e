//! Colours of charts, and the style sheet that turns them dark where the viewer is.

use plotters::style::RGBColor;

use crate::svg::escape;

pub(super) const PAPER: RGBColor = RGBColor(255, 255, 255);
pub(super) const INK: RGBColor = RGBColor(0x1c, 0x21, 0x26);
pub(super) const MUTED: RGBColor = RGBColor(0x59, 0x63, 0x6e);
pub(super) const GRID: RGBColor = RGBColor(0xd8, 0xde, 0xe4);

/// Series: first a grey for what is given (a paper, a measurement), then Okabe and Ito's colours.
pub(super) const SERIES: [RGBColor; 7] = [
    RGBColor(0x8c, 0x95, 0x9f),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
];

/// Colour of a series; they repeat after seven.
pub(super) fn series(index: usize) -> RGBColor {
    SERIES[index % SERIES.len()]
}

/// Attribute selectors, because plotters writes colours as attributes and no classes.
const STYLE: &str = "<style>
text{font-family:Helvetica,Arial,'Liberation Sans','DejaVu Sans',sans-serif}
@media (prefers-color-scheme:dark){
[fill='#FFFFFF']{fill:#14181d}[stroke='#FFFFFF']{stroke:#14181d}
[fill='#1C2126']{fill:#e6e9ec}[stroke='#1C2126']{stroke:#e6e9ec}
[fill='#59636E']{fill:#9aa5b1}[stroke='#59636E']{stroke:#9aa5b1}
[fill='#D8DEE4']{fill:#303841}[stroke='#D8DEE4']{stroke:#303841}
[fill='#0072B2']{fill:#2a8fd0}[stroke='#0072B2']{stroke:#2a8fd0}}
</style>";

/// Adds the style sheet and a label, and rounds what plotters writes with sixteen digits.
pub(super) fn finish(drawing: &str, label: &str) -> String {
    let Some((head, body)) = drawing.split_once('>') else { return drawing.to_owned() };
    let head = format!("{head} role=\"img\" aria-label=\"{}\">\n{STYLE}", escape(label));
    let mut out = head;
    let mut rest = body;
    while let Some((before, after)) = rest.split_once("font-size=\"") {
        let Some((size, tail)) = after.split_once('"') else { break };
        let size = size.parse::<f64>().map_or(size.to_owned(), |s| format!("{s:.1}"));
        out.push_str(before);
        out.push_str("font-size=\"");
        out.push_str(&size);
        out.push('"');
        rest = tail;
    }
    out.push_str(rest);
    out
}
