//! Turns timelines into pictures, files and reports.
//!
//! Every function is pure: it returns a `String` (or writes to a [`std::fmt::Write`]) and looks at
//! nothing but its arguments, so the same input gives the same bytes. Files and clocks belong to the
//! command line.

pub mod accuracy;
pub mod bench;
pub mod busy;
pub mod chart;
pub mod csv;
pub mod manifest;
pub mod report;
pub mod svg;
pub mod timeline_json;
pub mod trace;
pub mod utilisation;

#[cfg(test)]
mod gallery;
#[cfg(test)]
mod sample;
