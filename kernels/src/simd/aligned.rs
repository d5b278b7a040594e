//! Vectors that do not straddle lines of the cache.

use super::LANES;

/// Bytes of a line, and of a vector.
const LINE: usize = 64;

/// Vectors of zeros that start at a line of the cache. A load of sixteen floats that straddles two lines
/// costs two.
pub(crate) struct Aligned {
    floats: Vec<f32>,
    start: usize,
}

impl Aligned {
    /// This many vectors.
    pub(crate) fn zeros(vectors: usize) -> Self {
        let floats = vec![0.0; vectors.saturating_mul(LANES).saturating_add(LANES - 1)];
        // Capped, because the offset is allowed to be unknown: the vectors are then only slower.
        let start = floats.as_ptr().align_offset(LINE).min(LANES - 1);
        Self { floats, start }
    }

    pub(crate) fn vectors(&self) -> &[[f32; LANES]] {
        self.floats[self.start..].as_chunks().0
    }

    pub(crate) fn vectors_mut(&mut self) -> &mut [[f32; LANES]] {
        self.floats[self.start..].as_chunks_mut().0
    }
}
