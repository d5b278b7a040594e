//! Ordinary reads, through the page cache.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pipo_plan::units::Bytes;
use rustix::fs::Advice;

use super::kept::Kept;
use super::passing::advise;
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
    /// Whether each stretch is read through a file of its own.
    apart: bool,
}

impl Buffered {
    /// Opens a file that is read in requests of at most `request` bytes.
    pub fn open(path: &Path, request: usize) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|error| not_opened(path, error))?;
        Ok(Self { path: path.into(), file, request, kept: None, apart: false })
    }

    /// Reads the same open file in requests of another size. Where the system reads ahead of it goes on, whichever
    /// of the two reads next; what has to go is not counted for the new one.
    pub fn with_request(&self, request: usize) -> Result<Self, ReadError> {
        let file = self.file.try_clone().map_err(|error| not_opened(&self.path, error))?;
        Ok(Self { path: self.path.clone(), file, request, kept: None, apart: false })
    }

    /// Has the system keep no more than so much of what is read through this reader, beyond what is being
    /// read: as on a machine that has no more for its page cache. Where something has to go, it is drawn at
    /// random, which is what predictions assume: it stands between dropping what was read longest ago, of
    /// which nothing is left when a scan comes round, and protecting what came first.
    #[must_use]
    pub fn holding(self, capacity: Bytes) -> Self {
        Self { kept: Some(Mutex::new(Kept::new(capacity))), ..self }
    }

    /// Opens the file anew for each [stretch](BlockReader::of_a_stretch), as systems do that keep each tensor in a
    /// file of its own: what the system reads ahead follows each stretch by itself, however many are read at once.
    #[must_use]
    pub fn apart(self) -> Self {
        Self { apart: true, ..self }
    }

    /// Has the system drop a stretch.
    pub fn forget(&self, offset: u64, length: u64) {
        advise(&self.file, &(offset..offset.saturating_add(length)), Advice::DontNeed);
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

    fn of_a_stretch(&self) -> Result<Option<Box<dyn BlockReader + '_>>, ReadError> {
        if !self.apart {
            return Ok(None);
        }
        let own = Self::open(&self.path, self.request)?;
        Ok(Some(Box::new(Apart { own, of: self })))
    }
}

/// One stretch, through a file of its own.
#[derive(Debug)]
struct Apart<'a> {
    own: Buffered,
    /// Who keeps the account of what stays in memory.
    of: &'a Buffered,
}

impl BlockReader for Apart<'_> {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        self.own.read(offset, into)?;
        if let Some(kept) = &self.of.kept {
            self.own.make_room(kept, offset..offset.saturating_add(into.len() as u64));
        }
        Ok(())
    }
}
