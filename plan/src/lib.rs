//! The shared language of pipo: what a model is, what a machine can do, what is asked for, what a plan
//! says, what it is lowered to, and what then happened.
//!
//! Everything here is data and pure functions: no clock, no thread, no file. Texts come in as
//! [`diagnostic::Document`]s and go out as strings.

pub mod diagnostic;
pub mod machine;
pub mod memory;
pub mod model;
pub mod plan;
pub mod schedule;
pub mod strategy;
pub mod timeline;
pub mod units;
pub mod workload;
