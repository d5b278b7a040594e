//! Rows of a cache as vectors.

use std::marker::PhantomData;

use crate::format::Matrix;
use crate::simd::aligned::Aligned;
use crate::simd::expand::expand;
use crate::simd::tile::{self, Activations, Chunks, Element, Row};
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

/// Numbers that are stored one after the other and fill whole vectors: they are read where they lie.
pub(super) struct Stored<E>(pub(super) PhantomData<E>);

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
        at.map(|row| Chunks::of(cache.row(row)))
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
        tile::rows(self.rows.vectors(), self.width, 0)
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
