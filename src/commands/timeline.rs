//! A timeline in the files that were asked for, predicted or measured.

use std::path::PathBuf;

use pipo_plan::timeline::Timeline;
use pipo_results::svg::{self, Excerpt, Picture};
use pipo_results::{csv, timeline_json, trace};

use crate::cli::TimelineFiles;
use crate::output;

/// What a timeline is of.
#[derive(Debug)]
pub struct Named<'a> {
    /// The process in a trace: `predicted` or `measured`.
    pub process: &'a str,
    /// The picture's title.
    pub title: &'a str,
    /// The line under it.
    pub subtitle: &'a str,
    /// What ran.
    pub timeline: &'a Timeline,
}

/// Writes the files and returns their names.
pub fn write(files: &TimelineFiles, named: &Named) -> anyhow::Result<Vec<PathBuf>> {
    let Named { process, title, subtitle, timeline } = *named;
    let mut wrote = Vec::new();
    if let Some(path) = &files.timeline {
        output::write(path, &timeline_json::write(timeline))?;
        wrote.push(path.clone());
    }
    if let Some(path) = &files.svg {
        let look = Picture { title, subtitle, excerpt: Excerpt::Auto };
        output::write(path, &svg::timeline(timeline, &look))?;
        wrote.push(path.clone());
    }
    if let Some(path) = &files.trace {
        let process = trace::Process { name: process, timeline };
        output::write(path, &trace::chrome(&[process]))?;
        wrote.push(path.clone());
    }
    if let Some(path) = &files.csv {
        output::write(path, &csv::spans(timeline))?;
        wrote.push(path.clone());
    }
    Ok(wrote)
}
