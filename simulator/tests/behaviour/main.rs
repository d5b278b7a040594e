//! What a simulation must do, one file for each kind of promise.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "draws are small whole numbers, exact in floating point")]

mod blame;
mod conservation;
mod cost;
mod disk;
mod on_host;
mod page_cache;
mod phases;
mod pipeline;
mod plans;
mod random;
mod refusals;
mod script;
mod sharing;
mod window;
