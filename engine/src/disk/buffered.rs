//! Ordinary reads, through the page cache.

use std::fs::File;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use super::{BlockReader, Cause, ReadError, fill, in_requests};

/// Reads through the page cache.
#[derive(Debug)]
pub struct Buffered {
    path: PathBuf,
    file: File,
    request: usize,
    keeps: bool,
}

impl Buffered {
    /// Opens a file that is read in requests of at most `request` bytes.
    pub fn open(path: &Path, request: usize) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|error| ReadError {
            file: path.into(),
            offset: 0,
            length: 0,
            cause: Cause::Io(error),
        })?;
        Ok(Self { path: path.into(), file, request, keeps: true })
    }

    /// Has the system drop what was read: the next read of it comes from the disk again, as on a machine whose
    /// page cache is too small to be of use.
    #[must_use]
    pub fn forgetting(self) -> Self {
        Self { keeps: false, ..self }
    }

    /// Has the system drop a stretch.
    pub fn forget(&self, offset: u64, length: u64) {
        // Advice: where the system does not take it, the next reads are faster and no less right.
        let _ = fadvise(&self.file, offset, NonZeroU64::new(length), Advice::DontNeed);
    }
}

impl BlockReader for Buffered {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let length = into.len() as u64;
        let end = |at: u64| at.saturating_add(self.request as u64);
        in_requests(offset, into, end, |at, piece| fill(&self.file, at, piece))
            .map_err(|cause| ReadError { file: self.path.clone(), offset, length, cause })?;
        if !self.keeps {
            self.forget(offset, length);
        }
        Ok(())
    }
}
