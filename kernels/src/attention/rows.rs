//! Rows of a cache as vectors.

use std::marker::PhantomData;

use crate::format::Matrix;
use crate::simd::aligned::Aligned;
use crate::simd::expand::expand;
use crate::simd::tile::{Activations, Element};
use crate::simd::{LANES, Simd};

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// How rows of a cache become vectors.
pub(super) trait Rows {
    /// A row.
    type Row<'a>: Row
    where
        Self: 'a;

    /// Vectors of the rows `at`.
    fn get<'a, S: Simd, const O: usize>(
        &'a mut self,
        simd: S,
        cache: &Matrix<'a>,
        at: [usize; O],
    ) -> [Self::Row<'a>; O];

    /// What sums over a row are to be multiplied by.
    fn factor(cache: &Matrix, row: usize) -> f32;
}

/// A row as vectors.
pub(super) trait Row: Copy {
    /// The first of them: so many that a loop needs no checks of bounds.
    fn cut(self, width: usize) -> Self;
    /// One of them.
    fn vector<S: Simd>(self, simd: S, index: usize) -> S::V;
}

/// Numbers that are stored one after the other and fill whole vectors: they are read where they lie.
pub(super) struct Stored<E>(pub(super) PhantomData<E>);

/// A row of them.
pub(super) struct Chunks<'a, E: Element>(&'a [E::Chunk]);

impl<E: Element> Clone for Chunks<'_, E> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<E: Element> Copy for Chunks<'_, E> {}

impl<E: Element> Row for Chunks<'_, E> {
    #[inline(always)]
    fn cut(self, width: usize) -> Self {
        Self(&self.0[..width])
    }

    #[inline(always)]
    fn vector<S: Simd>(self, simd: S, index: usize) -> S::V {
        E::load(simd, &self.0[index])
    }
}

impl<E: Element> Rows for Stored<E> {
    type Row<'a>
        = Chunks<'a, E>
    where
        Self: 'a;

    #[inline(always)]
    fn get<'a, S: Simd, const O: usize>(
        &'a mut self,
        _: S,
        cache: &Matrix<'a>,
        at: [usize; O],
    ) -> [Chunks<'a, E>; O] {
        let mut rows = [Chunks(&[]); O];
        for o in 0..O {
            rows[o] = Chunks(E::chunks(cache.row(at[o])).0);
        }
        rows
    }

    #[inline(always)]
    fn factor(cache: &Matrix, row: usize) -> f32 {
        if E::SCALED { cache.row_factor(row) } else { 1.0 }
    }
}

/// Rows of any other kind: decoded into memory, padded with zeros.
pub(super) struct Decoded {
    dim: usize,
    width: usize,
    rows: Aligned,
}

impl Decoded {
    /// Room for up to so many rows of `dim` numbers.
    pub(super) fn new(rows: usize, dim: usize) -> Self {
        let width = dim.div_ceil(LANES);
        Self { dim, width, rows: Aligned::zeros(rows * width) }
    }
}

impl Row for Activations<'_> {
    #[inline(always)]
    fn cut(self, width: usize) -> Self {
        &self[..width]
    }

    #[inline(always)]
    fn vector<S: Simd>(self, simd: S, index: usize) -> S::V {
        simd.load(&self[index])
    }
}

impl Rows for Decoded {
    type Row<'a> = Activations<'a>;

    #[inline(always)]
    fn get<'a, S: Simd, const O: usize>(
        &'a mut self,
        simd: S,
        cache: &Matrix<'a>,
        at: [usize; O],
    ) -> [Activations<'a>; O] {
        let places = self.rows.vectors_mut().chunks_exact_mut(self.width);
        for (row, place) in at.into_iter().zip(places) {
            expand(simd, cache, row, 0, &mut place.as_flattened_mut()[..self.dim]);
        }
        crate::simd::tile::rows(self.rows.vectors(), self.width, 0)
    }

    #[inline(always)]
    fn factor(cache: &Matrix, row: usize) -> f32 {
        cache.row_factor(row)
    }
}

/// Asks memory for a row that is wanted soon.
#[inline(always)]
pub(super) fn prefetch<S: Simd>(simd: S, cache: &Matrix, row: usize) {
    for line in cache.row(row).chunks(LINE) {
        simd.prefetch(line);
    }
}
