//! The threads: each waits until its lane can go on, and lets the backend do the work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use pipo_plan::timeline::Timeline;

use super::error::ExecutionError;
use super::state::State;
use super::{Backend, PATIENCE, Task};

/// What the lanes share.
pub(super) struct Lanes<'a> {
    state: Mutex<State<'a>>,
    /// One for each lane: only who can go on is woken.
    ready: Vec<Condvar>,
}

impl<'a> Lanes<'a> {
    pub(super) fn new(state: State<'a>, lanes: usize) -> Self {
        Self { state: Mutex::new(state), ready: (0..lanes).map(|_| Condvar::new()).collect() }
    }

    /// The life of one lane's thread.
    pub(super) fn run(&self, lane: usize, backend: &dyn Backend, stop: &dyn Fn() -> bool) {
        let mut state = self.lock();
        while !state.is_over() {
            if stop() {
                state.fail(ExecutionError::Cancelled);
            } else if let Some(started) = state.start(lane) {
                drop(state);
                let task = Task {
                    id: started.id,
                    pass: started.pass,
                    op: &started.op,
                    work: &started.work,
                    bound: started.bound,
                };
                // Nothing of ours is borrowed mutably, and the run ends: a backend that panicked half
                // way is never asked again.
                let result = catch_unwind(AssertUnwindSafe(|| backend.perform(&task)));
                state = self.lock();
                match result {
                    Ok(Ok(())) => state.end(lane),
                    Ok(Err(fault)) => state.failed(lane, fault),
                    Err(panic) => state.panicked(lane, text(&*panic)),
                }
            } else if let Some(stuck) = state.stuck() {
                state.fail(stuck);
            } else {
                let waited = self.ready[lane].wait_timeout(state, PATIENCE);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            self.wake(&mut state, lane);
        }
        drop(state);
        self.ready.iter().for_each(Condvar::notify_all);
    }

    /// Wakes the other lanes that can go on, or all where the run is over.
    fn wake(&self, state: &mut State, but: usize) {
        let over = state.is_over();
        for (lane, ready) in self.ready.iter().enumerate() {
            if lane != but && (over || state.can_start(lane)) {
                ready.notify_all();
            }
        }
    }

    /// No lane panics while it holds the lock; were one to, its state would still be consistent, because
    /// every change is made by one call.
    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After all threads have ended.
    pub(super) fn finish(self) -> Result<Timeline, ExecutionError> {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).finish()
    }
}

/// What a panic said.
fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let literal = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = literal.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".into())
}
