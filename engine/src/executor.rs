//! The lane executor: runs any valid schedule, one thread for each lane.
//!
//! ```text
//! program --emit--> queues --ready?--> lane threads --perform--> backend
//!                      ^                    |
//!                      +---- ends, frees ---+
//! ```
//!
//! A lane runs one operation at a time. Of the heads of its queues it takes the one that is ready and
//! comes first in program order; ready means that everything the operation waits for has ended and
//! that its slot is free. There is no global synchronisation: a lane that can go on is woken by the
//! operation that made it ready, and by nothing else.
//!
//! The rules are those of the simulator (see [`pipo_plan::schedule`]), so that a measured timeline and
//! a predicted one differ in times alone.
//!
//! # What is promised
//!
//! - Passes are emitted as the window admits them: memory does not grow with the length of a run.
//! - The first operation that fails ends the run: nothing starts after it, what runs is let finish,
//!   and the error names it. A panic in a backend is such a failure.
//! - A schedule in which nothing can go on is a typed error that names who waits for what, not a hang.
//! - A run that was cancelled ends with an error, at the latest when the operations under way have
//!   ended and [`PATIENCE`] has passed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pipo_plan::schedule::{Op, OpId, Schedule, Work};
use pipo_plan::timeline::Timeline;

mod bind;
mod error;
mod lane;
mod state;

pub use bind::{Binder, Bound};
pub use error::{ExecutionError, Fault};

use lane::Lanes;
use state::State;

/// How often an idle lane looks whether the run was cancelled.
pub const PATIENCE: Duration = Duration::from_millis(20);

/// One operation, as a backend gets it.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// Its position in program order.
    pub id: OpId,
    /// The pass it belongs to.
    pub pass: u32,
    /// What it is.
    pub op: &'a Op,
    /// How many bytes, in which way, of which shapes.
    pub work: &'a Work,
    /// The slots it reads and writes.
    pub bound: Bound,
}

/// Does the work of operations. Called by several lanes at once, by each for one operation at a time.
pub trait Backend: Sync {
    /// Does one operation and returns when it has ended.
    fn perform(&self, task: &Task) -> Result<(), Fault>;
}

/// Runs a schedule and returns what ran when.
///
/// # Errors
///
/// See [`ExecutionError`]; there is no partial timeline.
pub fn execute(
    schedule: &Schedule,
    backend: &dyn Backend,
    cancelled: &AtomicBool,
) -> Result<Timeline, ExecutionError> {
    let state = State::new(schedule)?;
    let lanes = Lanes::new(state, schedule.layout.lanes.len());
    let stop = || cancelled.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        for lane in 0..schedule.layout.lanes.len() {
            let lanes = &lanes;
            scope.spawn(move || lanes.run(lane, backend, &stop));
        }
    });
    lanes.finish()
}
