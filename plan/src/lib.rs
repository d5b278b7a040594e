//! The shared language of pipo.

pub mod diagnostic;
pub mod machine;
pub mod model;
pub mod schedule;
pub mod timeline;
pub mod units;
