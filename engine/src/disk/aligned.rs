//! Memory that direct reads accept.

use std::ops::{Deref, DerefMut};

use super::PAGE;

/// Bytes whose first one lies on a page boundary. Zeroed; never moved or resized.
#[derive(Debug)]
pub struct AlignedBuf {
    /// A page more than asked for, so that it contains a boundary early enough.
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuf {
    /// `length` zeros, or none where the system has not so much memory.
    pub fn zeroed(length: usize) -> Option<Self> {
        let capacity = length.checked_add(PAGE)?;
        let mut memory = Vec::new();
        memory.try_reserve_exact(capacity).ok()?;
        memory.resize(capacity, 0);
        let start = memory.as_ptr().align_offset(PAGE);
        (start <= PAGE).then_some(Self { memory, start, length })
    }
}

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
