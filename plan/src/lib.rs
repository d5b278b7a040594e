//! The shared language of pipo.

pub mod diagnostic;
pub mod machine;
pub mod model;
pub mod units;
