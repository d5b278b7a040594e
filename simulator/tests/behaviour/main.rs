//! What a simulation must do, one file for each kind of promise.

mod blame;
mod conservation;
mod page_cache;
mod pipeline;
mod random;
mod refusals;
mod script;
mod sharing;
mod window;
