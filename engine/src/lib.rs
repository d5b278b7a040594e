//! The engine: what runs a plan for real.
//!
//! It decides nothing. What happens, and in which order, is the schedule's business; the
//! [`executor`] issues it and measures what happened; [`disk`] reads what it is told to.

pub mod arithmetic;
pub mod disk;
pub mod executor;
pub mod memory;
