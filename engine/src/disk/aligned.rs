//! Memory that direct reads accept.

#![allow(unsafe_code, reason = "memory that begins where no safe container begins it")]

use std::alloc::{Layout, alloc, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use super::PAGE;

/// What huge pages begin at: 2 MiB on x86-64 and on 64-bit Arm with 4 KiB pages.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes whose first one lies on a page boundary. Zeroed; never moved or resized.
///
/// Where they fill half of a huge page they begin on one, and the system is asked for such pages: a request
/// of 4 MiB then goes to two stretches of memory and not to a thousand. How fast the disk is would otherwise
/// depend on how scattered the memory happens to be: from one buffer to the next of the same program, by a
/// factor of 1.4 on the virtual disk where that was seen. What is less than one huge page takes all of it.
#[derive(Debug)]
pub struct AlignedBuf {
    memory: NonNull<u8>,
    /// At least as large as what was asked for.
    layout: Layout,
    length: usize,
}

// SAFETY: the memory is this value's alone, and bytes may be used by any thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above; through a shared reference it is only read.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `length` zeros, or none where the system has not so much memory.
    pub fn zeroed(length: usize) -> Option<Self> {
        let alignment = if length >= HUGE_PAGE / 2 { HUGE_PAGE } else { PAGE };
        let layout = Layout::from_size_align(length.max(alignment), alignment).ok()?;
        // SAFETY: the size is not zero.
        let memory = NonNull::new(unsafe { alloc(layout) })?;
        if alignment == HUGE_PAGE {
            prefer_huge_pages(memory, layout);
        }
        // SAFETY: the allocation is at least so long.
        unsafe { memory.write_bytes(0, length) };
        Some(Self { memory, layout, length })
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody else holds it.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}

/// Asks for huge pages, as many as are whole, before memory is touched, which is when the system chooses. It
/// may have none; then everything works as well, and slower.
#[cfg(target_os = "linux")]
fn prefer_huge_pages(memory: NonNull<u8>, layout: Layout) {
    use rustix::mm::{Advice, madvise};

    let whole = layout.size() / HUGE_PAGE * HUGE_PAGE;
    // SAFETY: the range lies in an allocation that begins on a page boundary; the advice changes neither what
    // it holds nor how it may be used.
    let _ = unsafe { madvise(memory.as_ptr().cast(), whole, Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_: NonNull<u8>, _: Layout) {}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes were allocated and written, and live as long as this value.
        unsafe { slice::from_raw_parts(self.memory.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the reference to this value is the only one.
        unsafe { slice::from_raw_parts_mut(self.memory.as_ptr(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_begins_on_a_boundary_and_is_zero() {
        for length in [0, 1, PAGE, PAGE + 1, HUGE_PAGE / 2, HUGE_PAGE, 3 * HUGE_PAGE + 5] {
            let buffer = AlignedBuf::zeroed(length).unwrap();
            assert_eq!(buffer.len(), length);
            assert!(buffer.iter().all(|&byte| byte == 0));
            let boundary = if length >= HUGE_PAGE / 2 { HUGE_PAGE } else { PAGE };
            assert!(buffer.as_ptr().addr().is_multiple_of(boundary), "{length}");
        }
    }

    #[test]
    fn what_no_memory_has_is_refused() {
        assert!(AlignedBuf::zeroed(usize::MAX).is_none());
        assert!(AlignedBuf::zeroed(usize::MAX / 2 - HUGE_PAGE).is_none());
    }
}
