//! Runs a schedule on a machine profile in virtual time.
//!
//! The simulator is pure: it has no clock, thread, file, log or random number of its own, time is
//! integer nanoseconds, and the same schedule, machine and options give the same outcome to the byte.
//!
//! # One instant
//!
//! 1. Every operation that ends at this instant ends, in lane order: slots are freed, passes retired.
//! 2. Passes that the window now admits are emitted.
//! 3. Each idle lane starts, among the ready heads of its queues, the one first in program order.
//! 4. Shared resources are divided anew among what runs, and the next instant is the earliest end.
//!
//! Nothing starts between two ends of the same instant, so no order of insertion can leak into a
//! result. An operation of no duration starts in step 3 and ends in step 1 of a further round at the
//! same instant.
//!
//! # What an operation may wait for
//!
//! Its waits, its slot, its lane (or what stands before it in its queue), its pass. It starts exactly
//! when the last of these is satisfied, and [`Blame`](pipo_plan::timeline::Blame) records which one
//! that was; of several satisfied at one instant the first in the order just given is blamed. Walking
//! the blames back from the last operation therefore covers the whole run without a gap.
//!
//! Slots are taken in program order: a later operation never overtakes an earlier one at a slot that
//! both take. An engine that waits for the previous user's event behaves the same.
//!
//! # Stuck schedules
//!
//! Waits point backwards and queues are first-in first-out, so the only way to hang is a slot whose
//! freeing operation comes after the operation that needs it. That is
//! [`SimulationError::Stuck`], which names who waits for what.

mod bound;
mod cost;
mod cost_model;
mod critical;
mod engine;
mod error;
mod meter;
mod page_cache;
mod phases;
mod scheduler;
mod share;
mod slots;
mod window;

pub use bound::{Bound, lower_bound};
pub use cost::{Capacities, Cost, Costs, Price, Resource};
pub use cost_model::CostModel;
pub use critical::{CriticalPath, Segment, critical_path};
pub use engine::{Options, Outcome, simulate_with};
pub use error::{Blocker, Invalid, SimulationError, Unsupported, Waiting};
pub use meter::Summary;
pub use page_cache::{HitShare, PageCache};
pub use phases::{PhaseBounds, phase_bounds};

use pipo_plan::machine::Machine;
use pipo_plan::schedule::Schedule;

/// Runs a schedule on a machine.
///
/// # Errors
///
/// [`SimulationError`] says why there is no outcome; there is no partial one.
pub fn simulate(
    schedule: &Schedule,
    machine: &Machine,
    options: &Options,
) -> Result<Outcome, SimulationError> {
    simulate_with(schedule, &CostModel::new(machine), options)
}
