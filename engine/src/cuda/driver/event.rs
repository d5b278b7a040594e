//! Events: what streams get to, and when.

use std::sync::OnceLock;

use cudarc::driver::{result, sys};

use super::checked;
use crate::executor::Fault;

/// Something that a stream gets to, with its time.
#[derive(Debug)]
pub(crate) struct Event(pub(super) sys::CUevent);

// SAFETY: the driver locks what its calls on one event share.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new() -> Result<Self, Fault> {
        // Who waits should not take a core from the threads that read and copy; where there are plenty, it
        // is sooner awake for that. How many there are is read from files: once.
        static CORES: OnceLock<usize> = OnceLock::new();
        let count = || std::thread::available_parallelism().map_or(1, usize::from);
        let flags = if *CORES.get_or_init(count) > 8 {
            sys::CUevent_flags::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC
        };
        Ok(Self(checked("make an event", result::event::create(flags))?))
    }

    /// Waits until it has happened.
    pub(crate) fn synchronise(&self) -> Result<(), Fault> {
        // SAFETY: the event is alive.
        checked("finish an operation", unsafe { result::event::synchronize(self.0) })
    }

    /// Whether it has happened.
    pub(crate) fn has_happened(&self) -> Result<bool, Fault> {
        // SAFETY: the event is alive.
        match unsafe { sys::cuEventQuery(self.0) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => checked("ask for an event", result.result()).map(|()| true),
        }
    }

    /// Milliseconds from this event to a later one; both have happened.
    pub(crate) fn until(&self, later: &Self) -> Result<f32, Fault> {
        // SAFETY: both are alive and were made with their times kept.
        checked("read a time", unsafe { result::event::elapsed(self.0, later.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody else holds it.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
