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

    /// Rows of `length` numbers, `width` vectors each, with zeros behind them: loops over vectors have no last
    /// step.
    pub(crate) fn padded(x: &[f32], length: usize, width: usize) -> Self {
        let mut copy = Self::zeros(x.len() / length.max(1) * width);
        if length > 0 {
            let rows = copy.vectors_mut().chunks_exact_mut(width);
            for (from, to) in x.chunks_exact(length).zip(rows) {
                to.as_flattened_mut()[..length].copy_from_slice(from);
            }
        }
        copy
    }

    pub(crate) fn vectors(&self) -> &[[f32; LANES]] {
        self.floats[self.start..].as_chunks().0
    }

    pub(crate) fn vectors_mut(&mut self) -> &mut [[f32; LANES]] {
        self.floats[self.start..].as_chunks_mut().0
    }
}
