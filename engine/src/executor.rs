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
//! # Lanes that a device works off
//!
//! A backend may have lanes whose operations it only hands to a queue of a device ([`Queue`]), which waits
//! by itself for what other queues do. Such an operation is issued as soon as everything it waits for has
//! been issued to a queue or has ended, and its slot will be free by then: the device never waits for the
//! host between two operations that were issued in time. A second thread for each such lane waits for the
//! ends and reads off when operations really ran. Lanes of the host see of the device only what has ended.
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
use std::thread::Builder;
use std::time::{Duration, Instant};

use pipo_plan::schedule::{LaneKind, Op, OpId, Schedule, Work};
use pipo_plan::timeline::Timeline;
use pipo_plan::units::{Bytes, Nanos};

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

/// How many operations a lane issues to its queue before the first of them has ended. Enough to hide the
/// issuing, and few enough that the launches of them all find room in a driver's queue, where a launch
/// that does not would hold up those of other lanes.
pub const AHEAD: usize = 16;

/// The same for a lane that several queues of the schedule share, counting only what moves [`MANY`] bytes:
/// what is issued first runs first, even if it has to wait for another lane and something else could have
/// run. So the choice is made late: the second of two when the first is about to end.
pub const AHEAD_OF_CHOICE: usize = 2;

/// Bytes that take longer to move than the host takes to issue the next operation.
pub const MANY: Bytes = Bytes(4 << 20);

/// How long before the end of what moves such a choice is made. Threads that are woken come late: of those of a
/// virtual machine one in a hundred by more than this.
pub const ABOUT_TO_END: Nanos = Nanos(300_000);

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
    /// On a lane with a queue: operations of other queues that had not ended when it was issued. The
    /// device must wait for them.
    pub after: &'a [OpId],
}

/// When an operation ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Its begin.
    pub start: Instant,
    /// Its end, not before.
    pub end: Instant,
}

/// Works off the operations of a lane on a device, in the order in which they were performed.
pub trait Queue: Sync {
    /// Waits until an operation has ended. Called once for each, in their order.
    fn wait(&self, task: &Task) -> Result<Interval, Fault>;
}

/// Does the work of operations. Called by several lanes at once, by each for one operation at a time.
pub trait Backend: Sync {
    /// Does one operation and returns when it has ended; on a lane with a queue, when it was issued.
    fn perform(&self, task: &Task) -> Result<(), Fault>;

    /// What works off the operations of lanes of a kind, where that is not the lane's own thread.
    fn queue(&self, _lane: LaneKind) -> Option<&dyn Queue> {
        None
    }
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
    let queues = schedule.layout.lanes.iter().map(|lane| backend.queue(lane.kind));
    let queues: Vec<Option<&dyn Queue>> = queues.collect();
    let state = State::new(schedule, &|lane| queues.get(lane).is_some_and(Option::is_some))?;
    let lanes = Lanes::new(state, queues.len());
    let stop = || cancelled.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let lanes = &lanes;
        for (lane, queue) in queues.into_iter().enumerate() {
            let thread = |name: &str| Builder::new().name(format!("{name} {lane}"));
            let run = move || lanes.run(lane, backend, &stop);
            let started = thread("lane").spawn_scoped(scope, run).and_then(|_| {
                let follow =
                    |queue| thread("queue").spawn_scoped(scope, move || lanes.follow(lane, queue));
                queue.map(follow).transpose()
            });
            if let Err(error) = started {
                // Those that run wait for operations of the one that does not.
                lanes.fail(ExecutionError::NoThread { why: error.to_string() });
                break;
            }
        }
    });
    lanes.finish()
}
