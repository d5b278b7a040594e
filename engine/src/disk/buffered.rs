//! Ordinary reads, through the page cache.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pipo_plan::units::Bytes;
use rustix::fs::{Advice, fadvise};

use super::kept::Kept;
use super::{BlockReader, Cause, ReadError, fill, in_requests};

/// Reads through the page cache, which keeps what the system makes of it, or no more than it is
/// [told to](Self::holding).
#[derive(Debug)]
pub struct Buffered {
    path: PathBuf,
    file: File,
    request: usize,
    /// Nothing where the system decides what it keeps.
    kept: Option<Mutex<Kept>>,
}

impl Buffered {
    /// Opens a file that is read in requests of at most `request` bytes.
    pub fn open(path: &Path, request: usize) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|error| not_opened(path, error))?;
        Ok(Self { path: path.into(), file, request, kept: None })
    }

    /// Reads the same open file in requests of another size. Where the system reads ahead of it goes on, whichever
    /// of the two reads next; what has to go is not counted for the new one.
    pub fn with_request(&self, request: usize) -> Result<Self, ReadError> {
        let file = self.file.try_clone().map_err(|error| not_opened(&self.path, error))?;
        Ok(Self { path: self.path.clone(), file, request, kept: None })
    }

    /// Has the system keep no more than so much of what is read through this reader, beyond what is being
    /// read: as on a machine that has no more for its page cache. Where something has to go, it is drawn at
    /// random, which is what predictions assume: it stands between dropping what was read longest ago, of
    /// which nothing is left when a scan comes round, and protecting what came first.
    #[must_use]
    pub fn holding(self, capacity: Bytes) -> Self {
        Self { kept: Some(Mutex::new(Kept::new(capacity))), ..self }
    }

    /// Has the system drop a stretch.
    pub fn forget(&self, offset: u64, length: u64) {
        // No length would stand for all of the rest.
        if let Some(length) = NonZeroU64::new(length) {
            // Advice: where the system does not take it, the next reads are faster and no less right.
            let _ = fadvise(&self.file, offset, Some(length), Advice::DontNeed);
        }
    }

    /// Has the system drop what has to go for what was read. Only now is that known to be in the page cache,
    /// whoever had it dropped meanwhile.
    fn make_room(&self, kept: &Mutex<Kept>, read: Range<u64>) {
        let forgotten = kept.lock().unwrap_or_else(PoisonError::into_inner).note(read);
        for Range { start, end } in forgotten {
            self.forget(start, end - start);
        }
    }
}

/// Nothing was asked for yet.
fn not_opened(path: &Path, error: std::io::Error) -> ReadError {
    ReadError { file: path.into(), offset: 0, length: 0, cause: Cause::Io(error) }
}

impl BlockReader for Buffered {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let length = into.len() as u64;
        let end = |at: u64| at.saturating_add(self.request as u64);
        in_requests(offset, into, end, |at, piece| fill(&self.file, at, piece))
            .map_err(|cause| ReadError { file: self.path.clone(), offset, length, cause })?;
        if let Some(kept) = &self.kept {
            self.make_room(kept, offset..offset.saturating_add(length));
        }
        Ok(())
    }
}
