//! One file for each subcommand.

pub mod bench;
pub mod doctor;
pub mod emit;
pub mod explain;
pub mod import;
pub mod machines;
pub mod models;
pub mod plot;
pub mod profile;
pub mod published;
pub mod report;
pub mod reproduce;
pub mod run;
pub mod shell;
pub mod simulate;
pub mod timeline;
pub mod tune;
pub mod verify;
