//! Reads past the page cache.

use std::fs::{File, OpenOptions};
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::io::preadv;

use super::{
    AlignedBuf, BlockReader, Cause, NotDirect, PAGE, ReadError, fill, in_requests, page_behind,
};
use crate::store::in_memory;

/// How a file is opened for reads past the page cache.
#[cfg(target_os = "linux")]
const FLAG: Option<i32> = Some(libc::O_DIRECT);
#[cfg(not(target_os = "linux"))]
const FLAG: Option<i32> = None;

/// Boundaries of memory that a device may do with where it does not need pages: words, or its own blocks.
const FINER: [usize; 2] = [4, 512];

/// Reads past the page cache (`O_DIRECT`).
///
/// A request ends on a page boundary of the file, so that no page is read twice. Whole pages go straight to
/// their place, where that begins as the system asks of memory; the parts of pages at its ends, or all of a
/// request whose place begins otherwise, go through a spare buffer: one request all the same.
#[derive(Debug)]
pub struct Direct {
    path: PathBuf,
    file: File,
    request: usize,
    /// Memory that is read into begins at a multiple of so many bytes: a page, or what less the device needs.
    memory: usize,
    /// Buffers for what is not aligned, as many as threads ever needed one at once.
    spare: Mutex<Vec<AlignedBuf>>,
}

impl Direct {
    /// Opens a file that is read in requests of `request` bytes, at least a page; of what does not begin on one,
    /// up to the next page boundary.
    ///
    /// # Errors
    ///
    /// [`NotDirect`] where reads would not be direct: opening is tried, and so is a read at byte 1,
    /// which a file system that honours the flag refuses.
    pub fn open(path: &Path, request: usize) -> Result<Self, NotDirect> {
        let refused = |error: std::io::Error| NotDirect::Refused(error.to_string());
        let Some(flag) = FLAG else {
            return Err(NotDirect::Refused("only Linux has O_DIRECT".into()));
        };
        let file = OpenOptions::new().read(true).custom_flags(flag).open(path).map_err(refused)?;
        let mut probe = AlignedBuf::zeroed(2 * PAGE)
            .ok_or_else(|| NotDirect::Refused("there is no memory for a page".into()))?;
        file.read_at(&mut probe[..PAGE], 0).map_err(refused)?;
        if file.read_at(&mut probe[..PAGE], 1).is_ok() {
            return Err(NotDirect::Ignored);
        }
        let serves = |at: &usize| file.read_at(&mut probe[*at..*at + PAGE], 0).is_ok();
        let memory = FINER.into_iter().find(serves).unwrap_or(PAGE);
        let request = (request / PAGE).max(1) * PAGE;
        Ok(Self { path: path.into(), file, request, memory, spare: Mutex::default() })
    }

    /// Reads pages into a buffer that begins on a page boundary and is a number of pages long. The file
    /// may end within them; at least `needed` bytes must be there.
    fn pages(&self, offset: u64, into: &mut [u8], needed: usize) -> Result<(), Cause> {
        match fill(&self.file, offset, into) {
            // A read at the end of the file leaves the last page unfinished, and goes on unaligned.
            Err(Cause::Short(read)) if read >= needed as u64 => Ok(()),
            Err(Cause::Io(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                let read = self.file.metadata()?.len().saturating_sub(offset);
                if read >= needed as u64 { Ok(()) } else { Err(Cause::Short(read)) }
            }
            other => other,
        }
    }

    fn through_spare(&self, offset: u64, into: &mut [u8]) -> Result<(), Cause> {
        let skip = offset % PAGE as u64;
        let needed = in_memory(skip) + into.len();
        let length = needed.next_multiple_of(PAGE);
        let mut buffer = self.take_spare(length)?;
        let result = self.pages(offset - skip, &mut buffer[..length], needed);
        if result.is_ok() {
            into.copy_from_slice(&buffer[needed - into.len()..needed]);
        }
        self.lock().push(buffer);
        result.map_err(|cause| match cause {
            Cause::Short(read) => Cause::Short(read.saturating_sub(skip)),
            io @ Cause::Io(_) => io,
        })
    }

    /// A buffer of at least `length` bytes: one request and a page at both ends holds any piece.
    fn take_spare(&self, length: usize) -> Result<AlignedBuf, Cause> {
        let spare = self.lock().pop();
        let enough = length.max(self.request + 2 * PAGE);
        let new = || AlignedBuf::zeroed(enough);
        spare.or_else(new).ok_or_else(|| Cause::Io(std::io::ErrorKind::OutOfMemory.into()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<AlignedBuf>> {
        self.spare.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// One request.
    fn request(&self, offset: u64, into: &mut [u8]) -> Result<(), Cause> {
        let head = in_memory(page_behind(offset) - offset).min(into.len());
        let whole = (into.len() - head) / PAGE * PAGE;
        let place = into.as_ptr().addr().wrapping_add(head);
        if whole == 0 || !place.is_multiple_of(self.memory) {
            return self.through_spare(offset, into);
        }
        let on_pages = place.is_multiple_of(PAGE);
        if on_pages && whole == into.len() {
            return self.pages(offset, into, whole);
        }
        if self.at_once(offset, into, head..head + whole)? {
            return Ok(());
        }
        if !on_pages {
            return self.through_spare(offset, into);
        }
        let (first, rest) = into.split_at_mut(head);
        let (pages, last) = rest.split_at_mut(whole);
        let mut at = offset;
        for (part, aligned) in [(first, false), (pages, true), (last, false)] {
            let read = match (part.is_empty(), aligned) {
                (true, _) => Ok(()),
                (false, true) => self.pages(at, part, whole),
                (false, false) => self.through_spare(at, part),
            };
            read.map_err(|cause| cause.after(at - offset))?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Whole pages to their place and, in the same read, the pages at the ends that only begin or end in it to a
    /// spare buffer. False where that did not read everything: whoever reads in another way finds out why.
    fn at_once(&self, offset: u64, into: &mut [u8], pages: Range<usize>) -> Result<bool, Cause> {
        let (first, rest) = into.split_at_mut(pages.start);
        let (pages, last) = rest.split_at_mut(pages.len());
        let mut spare = self.take_spare(2 * PAGE)?;
        let (before, behind) = spare.split_at_mut(PAGE);
        let before = if first.is_empty() { &mut [][..] } else { before };
        let behind = if last.is_empty() { &mut [][..] } else { &mut behind[..PAGE] };
        let needed = before.len() + pages.len() + last.len();
        let mut parts = [&mut *before, pages, &mut *behind].map(IoSliceMut::new);
        let begin = offset / PAGE as u64 * PAGE as u64;
        let read = preadv(&self.file, &mut parts, begin).is_ok_and(|read| read >= needed);
        if read {
            first.copy_from_slice(&before[before.len() - first.len()..]);
            last.copy_from_slice(&behind[..last.len()]);
        }
        self.lock().push(spare);
        Ok(read)
    }
}

impl BlockReader for Direct {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let length = into.len() as u64;
        let end = |at: u64| page_behind(at.saturating_add(self.request as u64));
        in_requests(offset, into, end, |at, piece| self.request(at, piece))
            .map_err(|cause| ReadError { file: self.path.clone(), offset, length, cause })
    }
}
