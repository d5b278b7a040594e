//! Reading a file of weights in blocks: past the page cache, through it, or with faults on purpose.
//!
//! A reader is shared by all disk lanes; each read is one lane's. A read fills the whole buffer or
//! fails: short reads are read on, the end of the file is an error.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use pipo_plan::units::Bytes;

use crate::store::in_memory;

mod aligned;
mod buffered;
mod direct;
mod faulty;
mod kept;
mod overlapped;
pub(crate) mod passing;

pub use aligned::AlignedBuf;
pub use buffered::Buffered;
pub use direct::Direct;
pub use faulty::{Faulty, Trouble};
pub(crate) use overlapped::overlapped;

/// What direct reads must be aligned to, in memory and in the file: the page, which no disk exceeds.
pub const PAGE: usize = 4096;

/// What whoever runs this may still write to the disk of a folder.
pub(crate) fn free_space(folder: &Path) -> io::Result<Bytes> {
    let free = rustix::fs::statvfs(folder)?;
    Ok(Bytes(free.f_bavail.saturating_mul(free.f_frsize)))
}

/// Reads a file at any place.
pub trait BlockReader: fmt::Debug + Send + Sync {
    /// Fills `into` with what the file has from `offset` on.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError>;

    /// A reader of the same file for one stretch of it, where that is not this one.
    fn of_a_stretch(&self) -> Result<Option<Box<dyn BlockReader + '_>>, ReadError> {
        Ok(None)
    }
}

impl<R: BlockReader + ?Sized> BlockReader for &R {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        (**self).read(offset, into)
    }

    fn of_a_stretch(&self) -> Result<Option<Box<dyn BlockReader + '_>>, ReadError> {
        (**self).of_a_stretch()
    }
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {length} bytes from byte {offset} on: {cause}", file = .file.display())]
pub struct ReadError {
    /// The file.
    pub file: PathBuf,
    /// First byte asked for.
    pub offset: u64,
    /// How many were asked for.
    pub length: u64,
    /// What went wrong.
    pub cause: Cause,
}

/// What went wrong with a read.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The operating system refused.
    #[error("{0}; check the disk and the file's permissions")]
    Io(#[from] io::Error),
    /// The file ends before.
    #[error("the file ends after {0} of them; it was cut off, import the model again")]
    Short(u64),
}

impl Cause {
    /// The cause as seen from a read of which `before` bytes were there already.
    fn after(self, before: u64) -> Self {
        match self {
            Self::Short(read) => Self::Short(before + read),
            io @ Self::Io(_) => io,
        }
    }
}

/// Why a file cannot be read past the page cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotDirect {
    /// The file system refuses `O_DIRECT`, or the system has no such thing.
    Refused(String),
    /// It accepts the flag and ignores it, as a file system in memory does.
    Ignored,
}

impl fmt::Display for NotDirect {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Refused(why) => write!(f, "the file system refuses direct reads ({why})"),
            Self::Ignored => f.write_str("the file system accepts direct reads and ignores them"),
        }
    }
}

/// Reads `into` in requests, each of which ends where `end` says of its begin, the way `one` reads one.
fn in_requests(
    offset: u64,
    into: &mut [u8],
    end: impl Fn(u64) -> u64,
    mut one: impl FnMut(u64, &mut [u8]) -> Result<(), Cause>,
) -> Result<(), Cause> {
    let mut rest = into;
    let mut at = offset;
    while !rest.is_empty() {
        let length = in_memory(end(at).saturating_sub(at)).clamp(1, rest.len());
        let (now, later) = rest.split_at_mut(length);
        one(at, now).map_err(|cause| cause.after(at - offset))?;
        at += length as u64;
        rest = later;
    }
    Ok(())
}

/// The first page boundary of a file from a byte on.
pub(crate) fn page_behind(at: u64) -> u64 {
    let page = PAGE as u64;
    at.div_ceil(page).saturating_mul(page)
}

/// Reads until `into` is full, whatever the system makes of each request.
fn fill(file: &impl std::os::unix::fs::FileExt, offset: u64, into: &mut [u8]) -> Result<(), Cause> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => return Err(Cause::Short(done as u64)),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Cause::Io(error)),
        }
    }
    Ok(())
}
