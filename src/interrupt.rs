//! Ctrl-C: the work under way is told to end, and cleans up.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use pipo_engine::executor::ExecutionError;
use pipo_engine::run::RunError;

/// What a shell expects of a process that an interrupt ended: 128 and the signal's number.
pub const EXIT_CODE: u8 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The work was ended by Ctrl-C.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// From now on Ctrl-C sets the flag that is returned instead of ending the process. A second one does
/// not wait for the operation under way.
pub fn flag() -> anyhow::Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(EXIT_CODE.into());
        }
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(&INTERRUPTED)
}

/// An error of a run, if it was not Ctrl-C that ended it.
pub fn or(error: RunError) -> anyhow::Error {
    match error {
        RunError::Execution(ExecutionError::Cancelled) => Interrupted.into(),
        other => other.into(),
    }
}
