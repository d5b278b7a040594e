//! Memory that direct reads accept.

use std::ops::{Deref, DerefMut};

use super::PAGE;

/// What huge pages begin at: 2 MiB on x86-64 and on 64-bit Arm with 4 KiB pages.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes whose first one lies on a page boundary. Zeroed; never moved or resized.
///
/// Where they fill a huge page they begin on one, and the system is asked for such pages: a request of
/// 4 MiB then goes to two stretches of memory and not to a thousand. How fast the disk is would otherwise
/// depend on how scattered the memory happens to be: from one buffer to the next of the same program, by a
/// factor of 1.4 on the virtual disk where that was seen.
#[derive(Debug)]
pub struct AlignedBuf {
    /// As much more than asked for as it takes to contain a boundary early enough.
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuf {
    /// `length` zeros, or none where the system has not so much memory.
    pub fn zeroed(length: usize) -> Option<Self> {
        let alignment = if length >= HUGE_PAGE { HUGE_PAGE } else { PAGE };
        let mut memory: Vec<u8> = Vec::new();
        memory.try_reserve_exact(length.checked_add(alignment)?).ok()?;
        let start = memory.as_ptr().align_offset(alignment);
        if start > alignment {
            return None;
        }
        if alignment == HUGE_PAGE {
            prefer_huge_pages(&mut memory, start, length);
        }
        memory.resize(start + length, 0);
        Some(Self { memory, start, length })
    }
}

/// Asks for huge pages before memory is touched, which is when the system chooses. It may have none; then
/// everything works as well, and slower.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "the call takes an address")]
fn prefer_huge_pages(memory: &mut Vec<u8>, start: usize, length: usize) {
    use rustix::mm::{Advice, madvise};

    let Some(reserved) = memory.spare_capacity_mut().get_mut(start..start + length) else { return };
    let whole = length / HUGE_PAGE * HUGE_PAGE;
    // SAFETY: the range is memory that was reserved here and begins on a page boundary; the advice changes
    // neither what it holds nor how it may be used.
    let _ = unsafe { madvise(reserved.as_mut_ptr().cast(), whole, Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_: &mut Vec<u8>, _: usize, _: usize) {}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_begins_on_a_boundary_and_is_zero() {
        for length in [0, 1, PAGE, PAGE + 1, HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE + 5] {
            let buffer = AlignedBuf::zeroed(length).unwrap();
            assert_eq!(buffer.len(), length);
            assert!(buffer.iter().all(|&byte| byte == 0));
            let boundary = if length >= HUGE_PAGE { HUGE_PAGE } else { PAGE };
            assert!(buffer.as_ptr().addr().is_multiple_of(boundary), "{length}");
        }
    }

    #[test]
    fn what_no_memory_has_is_refused() {
        assert!(AlignedBuf::zeroed(usize::MAX).is_none());
        assert!(AlignedBuf::zeroed(usize::MAX / 2 - HUGE_PAGE).is_none());
    }
}
