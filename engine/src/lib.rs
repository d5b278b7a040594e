//! The engine: what runs a plan for real.
//!
//! It decides nothing. What happens, and in which order, is the schedule's business.
//!
//! - [`import`] turns a Hugging Face checkpoint, or random numbers, into a [`store`]: a directory laid
//!   out for the pipeline, in which each part of each layer is one contiguous run that starts at a
//!   multiple of 4 KiB and is checksummed block by block. [`arithmetic`] is what shapes do not say.
//! - [`disk`] reads it, past the page cache or through it; [`memory`] holds what the plan accounts for.
//! - [`decoder`] computes, part by part, on the CPU.
//! - [`tokenizer`] turns text into tokens and back.
//! - [`profile`] measures this machine, so that a simulator can predict what a run will take.
//! - [`counters`] reads what a GPU says of itself while something runs.
//! - [`shape`] makes a device smaller, to stand in for another.
//! - [`executor`] issues a schedule and measures what happened; [`run`] puts it all together, and
//!   [`adapt`] fits a plan to other prompts.

pub mod adapt;
pub mod arithmetic;
mod backend;

pub mod counters;
mod cpu;
mod cuda;
pub mod decoder;
pub mod disk;
pub mod executor;
mod half;
pub mod import;
pub mod memory;
pub mod profile;
pub mod run;
pub mod shape;
pub mod store;
pub mod tokenizer;
