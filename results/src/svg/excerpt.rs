//! Which part of a long run to show closely.

use pipo_plan::schedule::{OpKind, Phase};
use pipo_plan::timeline::{Span, Timeline};

use crate::busy::Window;

/// Operations that fit side by side with room for their names.
const READABLE: usize = 40;
/// Stages shown even where they hold more: fewer do not show how one overlaps the next.
const STAGES: usize = 4;

/// A few whole stages from the middle of the middle decode pass (or of the only pass), where the
/// pipeline is in its steady state. A stage begins where the computing lane takes up a new unit.
pub(super) fn steady(timeline: &Timeline) -> Option<Window> {
    let decode: Vec<u32> = (0..)
        .zip(&timeline.passes)
        .filter(|(_, pass)| pass.phase == Phase::Decode)
        .map(|(number, _)| number)
        .collect();
    let pass = decode.get(decode.len() / 2).copied().unwrap_or(0);
    let begins = stages(timeline, pass);
    let middle = begins.len() / 2;
    let first = *begins.get(middle)?;
    let ends = &begins[middle + 1..];
    let readable = |end: &&_| count(timeline, Window::new(first, **end)) <= READABLE;
    let stages = ends.iter().take_while(readable).count().max(STAGES);
    let end = ends.iter().take(stages).next_back()?;
    Some(Window::new(first, *end))
}

/// Start times of a pass's stages on the lane that computes.
fn stages(timeline: &Timeline, pass: u32) -> Vec<pipo_plan::units::Nanos> {
    let computes = |s: &&Span| {
        s.pass == pass && matches!(s.kind, OpKind::Compute | OpKind::CpuCompute) && s.start < s.end
    };
    let mut unit = None;
    let mut begins = Vec::new();
    for span in timeline.spans.iter().filter(computes) {
        if unit != Some(span.unit) {
            unit = Some(span.unit);
            begins.push(span.start);
        }
    }
    begins
}

fn count(timeline: &Timeline, window: Window) -> usize {
    timeline.spans.iter().filter(|s| s.end > window.start && s.start < window.end).count()
}

/// `decode pass 16 of 31, layer 30 MLP to layer 33 MLP`: where in the run a window lies.
pub(super) fn place(timeline: &Timeline, window: Window) -> String {
    let inside = |s: &&Span| {
        s.end > window.start
            && s.start < window.end
            && matches!(s.kind, OpKind::Compute | OpKind::CpuCompute)
    };
    let mut spans = timeline.spans.iter().filter(inside);
    let Some(first) = spans.next() else {
        return String::new();
    };
    let last = spans.next_back().unwrap_or(first);
    let unit = |span: &Span| {
        timeline.layout.units.get(usize::from(span.unit)).cloned().unwrap_or_default()
    };
    let pass = |span: &Span| {
        let before = timeline.passes.iter().take(span.pass as usize);
        let Some(own) = timeline.passes.get(span.pass as usize) else {
            return format!("pass {}", span.pass);
        };
        let number = before.filter(|p| p.phase == own.phase).count() + 1;
        let all = timeline.passes.iter().filter(|p| p.phase == own.phase).count();
        match (own.phase, all) {
            (Phase::Prefill, 1) => "prefill".to_owned(),
            (Phase::Prefill, _) => format!("prefill pass {number} of {all}"),
            (Phase::Decode, _) => format!("decode pass {number} of {all}"),
        }
    };
    match (pass(first), pass(last)) {
        (a, b) if a == b && first.unit == last.unit => format!("{a}, {}", unit(first)),
        (a, b) if a == b => format!("{a}, {} to {}", unit(first), unit(last)),
        (a, b) => format!("{a}, {} to {b}, {}", unit(first), unit(last)),
    }
}
