//! Tiles of dot products: a few rows of a stored matrix times a few rows of activations, each weight
//! decoded once for all of them.

use half::f16;

use super::{LANES, Simd, sum};
use crate::format::{GROUP, GROUP_BYTES};

/// A row of activations, padded with zeros to whole groups of 64.
pub(crate) type Activations<'a> = &'a [[f32; LANES]];

/// `R` rows from `first` on, of `width` vectors each.
#[inline(always)]
pub(crate) fn rows<const R: usize>(
    vectors: Activations,
    width: usize,
    first: usize,
) -> [Activations; R] {
    let mut rows: [Activations; R] = [&[]; R];
    for r in 0..R {
        rows[r] = &vectors[(first + r) * width..(first + r + 1) * width];
    }
    rows
}

/// A row as vectors.
pub(crate) trait Row: Copy {
    /// The first of them: so many that a loop needs no checks of bounds.
    fn cut(self, width: usize) -> Self;
    /// One of them.
    fn vector<S: Simd>(self, simd: S, index: usize) -> S::V;
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

/// Numbers that are stored one after the other.
pub(crate) trait Element {
    /// Sixteen of them.
    type Chunk;
    /// Whether sums over a row are to be multiplied by its factor.
    const SCALED: bool;
    /// Whole chunks of a row, and what is left, padded with zeros.
    fn chunks(row: &[u8]) -> (&[Self::Chunk], Option<Self::Chunk>);
    /// Decodes sixteen.
    fn load<S: Simd>(simd: S, chunk: &Self::Chunk) -> S::V;
}

/// An element type, its bytes for sixteen, its decoder, and whether its rows have a factor.
macro_rules! element {
    ($name:ident, $bytes:literal, $load:ident, $scaled:literal) => {
        pub(crate) struct $name;

        impl Element for $name {
            type Chunk = [u8; $bytes];
            const SCALED: bool = $scaled;

            #[inline(always)]
            fn chunks(row: &[u8]) -> (&[Self::Chunk], Option<Self::Chunk>) {
                let (whole, rest) = row.as_chunks();
                (whole, padded(rest))
            }

            #[inline(always)]
            fn load<S: Simd>(simd: S, chunk: &Self::Chunk) -> S::V {
                simd.$load(chunk)
            }
        }
    };
}

element!(Fp32, 64, load_fp32, false);
element!(Fp16, 32, load_fp16, false);
element!(Bf16, 32, load_bf16, false);
element!(Int8, 16, load_int8, true);

/// The whole chunks of a row that is stored so: decoded where they are read.
pub(crate) struct Chunks<'a, E: Element>(&'a [E::Chunk]);

impl<'a, E: Element> Chunks<'a, E> {
    #[inline(always)]
    pub(crate) fn of(row: &'a [u8]) -> Self {
        Self(E::chunks(row).0)
    }
}

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

/// What is left of a row, filled up with zeros.
#[inline(always)]
pub(crate) fn padded<const N: usize>(rest: &[u8]) -> Option<[u8; N]> {
    if rest.is_empty() {
        return None;
    }
    let mut chunk = [0; N];
    let whole = chunk.get_mut(..rest.len())?;
    whole.copy_from_slice(rest);
    Some(chunk)
}

/// `O` rows of numbers stored one after the other, times `R` rows of activations.
///
/// All rows of weights have one length, and the activations cover it.
#[inline(always)]
pub(crate) fn plain<S: Simd, E: Element, const R: usize, const O: usize>(
    simd: S,
    weights: [&[u8]; O],
    x: [Activations; R],
) -> [[f32; R]; O] {
    let mut partial = [[simd.splat(0.0); R]; O];
    let rows = weights.map(Chunks::<E>::of);
    let count = rows[0].0.len();
    add(simd, rows, x, count, &mut partial);
    for o in 0..O {
        if let Some(chunk) = E::chunks(weights[o]).1 {
            let w = E::load(simd, &chunk);
            for r in 0..R {
                partial[o][r] = simd.mul_add(w, simd.load(&x[r][count]), partial[o][r]);
            }
        }
    }
    sums(simd, &partial)
}

/// Adds the first `count` vectors of `O` rows times those of `R` rows of activations to partial sums.
#[inline(always)]
pub(crate) fn add<S: Simd, W: Row, const R: usize, const O: usize>(
    simd: S,
    weights: [W; O],
    x: [Activations; R],
    count: usize,
    partial: &mut [[S::V; R]; O],
) {
    // Cut to one length, so that the loop needs no checks of bounds.
    let (mut rows, mut whole) = (weights, x);
    for o in 0..O {
        rows[o] = weights[o].cut(count);
    }
    for r in 0..R {
        whole[r] = x[r].cut(count);
    }
    for k in 0..count {
        for o in 0..O {
            let w = rows[o].vector(simd, k);
            for r in 0..R {
                partial[o][r] = simd.mul_add(w, simd.load(&whole[r][k]), partial[o][r]);
            }
        }
    }
}

/// Scales and minima of one row of int4, a pair for each group.
pub(crate) type Steps<'a> = &'a [[f32; 2]];

/// `O` rows of int4, given as nibbles and decoded scales, times `R` rows of activations.
///
/// Their places in the rows that come `next` are asked for early: decoding takes nearly as long as
/// reading, and a processor does not look far enough ahead by itself to do both at once (one row with
/// AVX-512, weights in no cache: 9.1 instead of 8.2 GiB/s, where 9.7 is the limit of the instructions).
#[inline(always)]
pub(crate) fn int4<S: Simd, const R: usize, const O: usize>(
    simd: S,
    weights: [(&[u8], Steps); O],
    next: [&[u8]; O],
    x: [Activations; R],
) -> [[f32; R]; O] {
    let mut partial = [[simd.splat(0.0); R]; O];
    let groups = weights[0].0.len() / GROUP_BYTES;
    // Cut to one length, so that the loop needs no checks of bounds.
    let mut rows: [&[[u8; GROUP_BYTES]]; O] = [&[]; O];
    let mut ahead = rows;
    let mut steps: [Steps; O] = [&[]; O];
    for o in 0..O {
        rows[o] = &weights[o].0.as_chunks().0[..groups];
        steps[o] = &weights[o].1[..groups];
        // After the last row, what is here already.
        ahead[o] = next[o].as_chunks().0.get(..groups).unwrap_or(rows[o]);
    }
    let mut whole: [&[[[f32; LANES]; GROUP / LANES]]; R] = [&[]; R];
    for r in 0..R {
        whole[r] = &x[r].as_chunks().0[..groups];
    }
    for g in 0..groups {
        for o in 0..O {
            simd.prefetch(&ahead[o][g]);
            let [scale, minimum] = steps[o][g];
            let w = group(simd, &rows[o][g], scale, minimum);
            for r in 0..R {
                let x = &whole[r][g];
                for quarter in 0..GROUP / LANES {
                    partial[o][r] = simd.mul_add(w[quarter], simd.load(&x[quarter]), partial[o][r]);
                }
            }
        }
    }
    sums(simd, &partial)
}

/// Decodes the scales and minima of a row. They go through memory, from which a broadcast is free; out
/// of registers it would cost as much as two weights.
#[inline(always)]
pub(crate) fn steps<S: Simd>(simd: S, scales: &[u8], out: &mut [[f32; LANES]]) {
    for (bytes, out) in scales.chunks(2 * LANES).zip(out) {
        *out = scales_of(simd, bytes);
    }
}

/// Scale and minimum of up to eight groups, one after the other.
#[inline(always)]
pub(crate) fn scales_of<S: Simd>(simd: S, bytes: &[u8]) -> [f32; LANES] {
    let mut floats = [0.0; LANES];
    if let Some(whole) = bytes.as_array::<{ 2 * LANES }>() {
        simd.store(simd.load_fp16(whole), &mut floats);
    } else {
        for (float, bytes) in floats.iter_mut().zip(bytes.as_chunks().0) {
            *float = f16::from_le_bytes(*bytes).to_f32();
        }
    }
    floats
}

/// The 64 weights of a group, in the order of the inputs.
#[inline(always)]
pub(crate) fn group<S: Simd>(
    simd: S,
    nibbles: &[u8; GROUP_BYTES],
    scale: f32,
    minimum: f32,
) -> [S::V; GROUP / LANES] {
    let table = simd.group(scale, minimum);
    let [first, second] = halves(nibbles);
    let (a, c) = simd.nibbles(table, first);
    let (b, d) = simd.nibbles(table, second);
    [a, b, c, d]
}

#[inline(always)]
fn halves(bytes: &[u8; GROUP_BYTES]) -> [&[u8; LANES]; 2] {
    match bytes.as_chunks::<LANES>().0 {
        [first, second] => [first, second],
        _ => [&[0; LANES]; 2],
    }
}

/// The sum of each, in the one order.
#[inline(always)]
pub(crate) fn sums<S: Simd, const R: usize, const O: usize>(
    simd: S,
    partial: &[[S::V; R]; O],
) -> [[f32; R]; O] {
    let mut out = [[0.0; R]; O];
    if let [a, b, c, d] = &partial[..] {
        for r in 0..R {
            let sums = simd.sums([a[r], b[r], c[r], d[r]]);
            for o in 0..O {
                out[o][r] = sums[o];
            }
        }
        return out;
    }
    for o in 0..O {
        for r in 0..R {
            out[o][r] = sum(simd, partial[o][r]);
        }
    }
    out
}
