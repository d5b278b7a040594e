//! The engine: what runs a plan for real.
//!
//! It decides nothing. What happens, and in which order, is the schedule's business; the
//! [`executor`] issues it and measures what happened.

pub mod executor;
