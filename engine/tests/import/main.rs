//! Checkpoints written here, imported, and read back.

#![allow(clippy::unwrap_used, reason = "a checkpoint that cannot be written must stop the test")]

mod checkpoint;
mod faults;
mod formats;
mod properties;
mod random;
mod refusals;
mod round_trip;
mod support;
