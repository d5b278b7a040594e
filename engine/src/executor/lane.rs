//! The threads: each waits until its lane can go on, and lets the backend do the work. A lane with a
//! queue has a second one, which follows what the device does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pipo_plan::timeline::Timeline;

use super::error::{ExecutionError, Fault};
use super::state::{Started, State};
use super::{Backend, PATIENCE, Queue};

/// What the lanes share.
pub(super) struct Lanes<'a> {
    state: Mutex<State<'a>>,
    /// One for each lane: only who can go on is woken.
    ready: Vec<Condvar>,
    /// One for each lane: its queue has got something, or what that waited for has ended.
    queued: Vec<Condvar>,
}

impl<'a> Lanes<'a> {
    pub(super) fn new(state: State<'a>, lanes: usize) -> Self {
        let conditions = || (0..lanes).map(|_| Condvar::new()).collect();
        Self { state: Mutex::new(state), ready: conditions(), queued: conditions() }
    }

    /// Ends the run from without.
    pub(super) fn fail(&self, error: ExecutionError) {
        self.lock().fail(error);
        self.wake_all();
    }

    /// The life of one lane's thread.
    pub(super) fn run(&self, lane: usize, backend: &dyn Backend, stop: &dyn Fn() -> bool) {
        let mut state = self.lock();
        while !state.is_over() {
            if stop() {
                state.fail(ExecutionError::Cancelled);
            } else if let Some(started) = state.start(lane) {
                drop(state);
                let result = guarded(|| backend.perform(&started.task()));
                state = self.lock();
                if note(&mut state, &started, result).is_some() {
                    state.performed(lane);
                }
            } else if let Some(stuck) = state.stuck() {
                state.fail(stuck);
            } else {
                let at_most = state.sleep(lane, PATIENCE);
                state = pause(&self.ready[lane], state, at_most);
                state.woke(lane);
                continue;
            }
            self.wake(&mut state, lane);
        }
        drop(state);
        self.wake_all();
    }

    /// The life of the thread that follows a lane's queue. When a run has failed, what is still in the
    /// queue is the backend's to wait for, before it gives memory back.
    pub(super) fn follow(&self, lane: usize, queue: &dyn Queue) {
        let mut state = self.lock();
        while !state.is_over() {
            let Some(started) = state.oldest(lane) else {
                state = pause(&self.queued[lane], state, PATIENCE);
                continue;
            };
            drop(state);
            let result = guarded(|| queue.wait(&started.task()));
            state = self.lock();
            if let Some(interval) = note(&mut state, &started, result) {
                while !state.is_over() && !state.can_end(lane) {
                    state = pause(&self.queued[lane], state, PATIENCE);
                }
                if !state.is_over() {
                    state.end_oldest(lane, interval);
                }
            }
            self.wake(&mut state, usize::MAX);
        }
        drop(state);
        self.wake_all();
    }

    /// Wakes the other lanes that can go on, or all where the run is over.
    fn wake(&self, state: &mut State, but: usize) {
        let over = state.is_over();
        for (lane, (ready, queued)) in self.ready.iter().zip(&self.queued).enumerate() {
            if lane != but && (over || state.should_look(lane)) {
                ready.notify_all();
            }
            if over || state.oldest(lane).is_some() {
                queued.notify_all();
            }
        }
    }

    fn wake_all(&self) {
        self.ready.iter().chain(&self.queued).for_each(Condvar::notify_all);
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

/// Waits until something has changed, or long enough to look whether the run was cancelled.
fn pause<'s, 'a>(
    on: &Condvar,
    state: MutexGuard<'s, State<'a>>,
    at_most: Duration,
) -> MutexGuard<'s, State<'a>> {
    on.wait_timeout(state, at_most).unwrap_or_else(PoisonError::into_inner).0
}

/// What a call into the backend came to: its result, or what a panic said. Nothing of ours is borrowed
/// mutably meanwhile, and the run ends: a backend that panicked half way is never asked again.
fn guarded<T>(call: impl FnOnce() -> Result<T, Fault>) -> Result<Result<T, Fault>, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| text(&*panic))
}

/// Ends the run where an operation failed.
fn note<T>(
    state: &mut State,
    started: &Started,
    result: Result<Result<T, Fault>, String>,
) -> Option<T> {
    match result {
        Ok(Ok(value)) => return Some(value),
        Ok(Err(fault)) => state.failed(started, fault),
        Err(message) => state.panicked(started, message),
    }
    None
}

/// What a panic said.
fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let literal = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = literal.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".into())
}
