//! `pipo plot`: draws timelines that `pipo simulate --timeline` wrote.

use std::path::Path;

use pipo_plan::timeline::Timeline;
use pipo_results::svg::{self, Compared, Excerpt, Picture};
use pipo_results::timeline_json;
use serde_json::json;

use crate::cli::Plot;
use crate::input;
use crate::output::{self, Printer};

/// Runs the command.
pub fn run(args: &Plot, printer: &Printer) -> anyhow::Result<()> {
    let mut timelines = Vec::new();
    for path in &args.timelines {
        timelines.push((title(path), timeline_json::read(&input::document(path)?)?));
    }
    output::write(&args.output, &draw(&timelines))?;
    printer.line(format!("wrote {}", args.output.display()));
    printer.document(&json!({ "wrote": args.output }))
}

fn draw(timelines: &[(String, Timeline)]) -> String {
    if let [(name, timeline)] = timelines {
        let subtitle = format!("{} operations in {}", timeline.spans.len(), timeline.end);
        let picture = Picture { title: name, subtitle: &subtitle, excerpt: Excerpt::Auto };
        return svg::timeline(timeline, &picture);
    }
    let notes: Vec<String> = timelines.iter().map(|(_, t)| t.end.to_string()).collect();
    let compared: Vec<Compared> = timelines
        .iter()
        .zip(&notes)
        .map(|((name, timeline), note)| Compared { name, note, timeline })
        .collect();
    svg::comparison("Timelines compared", "one time axis for all", &compared)
}

fn title(path: &Path) -> String {
    path.file_stem()
        .map_or_else(|| path.display().to_string(), |s| s.to_string_lossy().into_owned())
}
