//! A reader that goes wrong on purpose: how the rest of the engine learns to take it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{BlockReader, Cause, ReadError};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The read is refused, as by a disk that has failed.
    Fails,
    /// The file ends half way through.
    Shortens,
    /// It takes this much longer.
    Delays(Duration),
    /// One bit of the last byte is another.
    Corrupts,
}

/// Another reader, of whose reads one goes wrong.
#[derive(Debug)]
pub struct Faulty<R> {
    inner: R,
    trouble: Trouble,
    /// Which one: the reads are counted from 0.
    at: u64,
    reads: AtomicU64,
}

impl<R> Faulty<R> {
    /// Lets the read number `at` of `inner` go wrong.
    pub fn new(inner: R, trouble: Trouble, at: u64) -> Self {
        Self { inner, trouble, at, reads: AtomicU64::new(0) }
    }
}

impl<R: BlockReader> BlockReader for Faulty<R> {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        if self.reads.fetch_add(1, Ordering::Relaxed) != self.at {
            return self.inner.read(offset, into);
        }
        let length = into.len() as u64;
        let error = |cause| {
            let file = PathBuf::from("a file that fails on purpose");
            Err(ReadError { file, offset, length, cause })
        };
        match self.trouble {
            Trouble::Fails => error(Cause::Io(std::io::Error::other("input/output error"))),
            Trouble::Shortens => error(Cause::Short(length / 2)),
            Trouble::Delays(by) => {
                std::thread::sleep(by);
                self.inner.read(offset, into)
            }
            Trouble::Corrupts => {
                self.inner.read(offset, into)?;
                if let Some(last) = into.last_mut() {
                    *last ^= 1;
                }
                Ok(())
            }
        }
    }
}
