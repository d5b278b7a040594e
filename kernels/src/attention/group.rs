//! One row's query heads of some neighbouring kv heads: the softmax as blocks of positions pass.
//!
//! Positions come first and heads within them, as a cache has them, so that memory is read in its own order:
//! a head by itself is a few lines out of every row of the cache, which no processor foresees.

use std::ops::Range;

use super::Heads;
use crate::exponential::exp;
use crate::format::Matrix;
use crate::simd::aligned::Aligned;
use crate::simd::expand::expand;
use crate::simd::tile;
use crate::simd::{Job, LANES, Simd, sum};

/// Positions whose scores become weights together.
const BLOCK: usize = 32;

/// Positions that are decoded together, and whose products stay in registers.
const SIDE: usize = 4;

/// Bytes of a cache that are asked for before they are needed: enough for memory to answer, and few enough
/// to be still there.
const AHEAD: usize = 8 << 10;

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// A row's query heads of some neighbouring kv heads.
pub(super) struct Group<'a> {
    pub(super) heads: &'a Heads,
    pub(super) q: &'a [f32],
    pub(super) position: usize,
    /// The first of the cache.
    pub(super) head: usize,
    pub(super) keys: &'a Matrix<'a>,
    pub(super) values: &'a Matrix<'a>,
    pub(super) out: &'a mut [f32],
}

impl Job for Group<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut state = State::new(&self);
        let mut begin = super::start(self.heads, self.position);
        while begin <= self.position {
            let end = (begin / BLOCK + 1) * BLOCK;
            let positions = begin..end.min(self.position + 1);
            for at in positions.clone().step_by(SIDE) {
                let side = at..positions.end.min(at + SIDE);
                state.keys(simd, &self, side, at - begin);
            }
            state.weigh(self.heads.scale, positions.len());
            for at in positions.clone().step_by(SIDE) {
                let side = at..positions.end.min(at + SIDE);
                state.values(simd, &self, side, at - begin);
            }
            begin = end;
        }
        state.finish(self.out, self.heads.dim);
    }
}

/// What is known of the row after some blocks. Heads are padded to whole vectors.
struct State {
    /// Vectors of a head.
    width: usize,
    /// Rows of the cache from one to that which is asked for meanwhile.
    ahead: usize,
    q: Aligned,
    /// [`SIDE`] decoded rows of the cache, and what pads them is zero.
    rows: Aligned,
    /// What those are to be multiplied by.
    factors: [f32; SIDE],
    /// For each head, of a block: scores, then weights.
    scores: Vec<[f32; BLOCK]>,
    /// For each head, the largest score so far, the sum of weights, and the sum of weighted values.
    largest: Vec<f32>,
    sums: Vec<f32>,
    out: Aligned,
}

impl State {
    #[inline(always)]
    fn new(of: &Group) -> Self {
        let dim = of.heads.dim;
        let (count, width) = (of.q.len() / dim, dim.div_ceil(LANES));
        let together = count / of.heads.group() * SIDE;
        let steps = AHEAD.div_ceil((together * of.keys.row(0).len()).max(1));
        Self {
            width,
            ahead: steps * SIDE * of.heads.kv,
            q: Aligned::padded(of.q, dim, width),
            rows: Aligned::zeros(SIDE * width),
            factors: [1.0; SIDE],
            scores: vec![[0.0; BLOCK]; count],
            largest: vec![f32::NEG_INFINITY; count],
            sums: vec![0.0; count],
            out: Aligned::zeros(count * width),
        }
    }

    /// Scores of neighbouring positions, the first of which is number `index` of the block.
    #[inline(always)]
    fn keys<S: Simd>(&mut self, simd: S, of: &Group, side: Range<usize>, index: usize) {
        let count = side.len();
        let group = of.heads.group();
        for first in (0..self.scores.len()).step_by(group) {
            self.decode(simd, of.keys, of, side.clone(), first / group);
            let mut done = 0;
            while done < group {
                let head = first + done;
                match (group - done).min(S::ROWS) {
                    1 => self.dots::<S, 1>(simd, head, count, index),
                    2 => self.dots::<S, 2>(simd, head, count, index),
                    3 => self.dots::<S, 3>(simd, head, count, index),
                    _ => self.dots::<S, 4>(simd, head, count, index),
                }
                done += S::ROWS;
            }
        }
    }

    #[inline(always)]
    fn dots<S: Simd, const R: usize>(&mut self, simd: S, head: usize, count: usize, index: usize) {
        if count == SIDE {
            self.tile::<S, R, SIDE>(simd, head, 0, index);
        } else {
            for row in 0..count {
                self.tile::<S, R, 1>(simd, head, row, index + row);
            }
        }
    }

    /// Scores of `R` heads at `O` decoded rows.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const O: usize>(
        &mut self,
        simd: S,
        head: usize,
        row: usize,
        index: usize,
    ) {
        let rows = tile::rows::<O>(self.rows.vectors(), self.width, row);
        let q = tile::rows::<R>(self.q.vectors(), self.width, head);
        let mut partial = [[simd.splat(0.0); R]; O];
        tile::add_floats(simd, rows, q, &mut partial);
        for r in 0..R {
            for o in 0..O {
                self.scores[head + r][index + o] = sum(simd, partial[o][r]) * self.factors[row + o];
            }
        }
    }

    /// Turns the scores of a block into weights, relative to the largest so far.
    #[inline(always)]
    fn weigh(&mut self, scale: f32, positions: usize) {
        let heads = self.scores.iter_mut().zip(&mut self.largest).zip(&mut self.sums);
        let outs = self.out.vectors_mut().chunks_exact_mut(self.width);
        for (((scores, largest), sum), out) in heads.zip(outs) {
            let mut top = *largest;
            for score in &mut scores[..positions] {
                *score *= scale;
                // Not `max`, which would hide what is not a number.
                top = if *score > top || score.is_nan() { *score } else { top };
            }
            // Nothing was summed before the first block, and its factor would not be a number.
            let keep = if *largest < top { exp(*largest - top) } else { 1.0 };
            // All of a block, so that it has a length the compiler knows; the rest is not used.
            for score in scores.iter_mut() {
                *score = exp(*score - top);
            }
            *sum = scores[..positions].iter().fold(*sum * keep, |sum, s| sum + s);
            *largest = top;
            if keep < 1.0 {
                for out in out.as_flattened_mut() {
                    *out *= keep;
                }
            }
        }
    }

    /// Adds the weighted values of the positions that [`State::keys`] has scored.
    #[inline(always)]
    fn values<S: Simd>(&mut self, simd: S, of: &Group, side: Range<usize>, index: usize) {
        let count = side.len();
        let group = of.heads.group();
        for first in (0..self.scores.len()).step_by(group) {
            self.decode(simd, of.values, of, side.clone(), first / group);
            for head in first..first + group {
                if count == SIDE {
                    self.add::<S, SIDE>(simd, head, 0, index);
                } else {
                    for row in 0..count {
                        self.add::<S, 1>(simd, head, row, index + row);
                    }
                }
            }
        }
    }

    /// Adds `O` weighted rows to a head, one after the other.
    #[inline(always)]
    fn add<S: Simd, const O: usize>(&mut self, simd: S, head: usize, row: usize, index: usize) {
        let width = self.width;
        let rows = tile::rows::<O>(self.rows.vectors(), width, row);
        let mut weights = [simd.splat(0.0); O];
        for o in 0..O {
            weights[o] = simd.splat(self.scores[head][index + o] * self.factors[row + o]);
        }
        let out = &mut self.out.vectors_mut()[head * width..(head + 1) * width];
        for (k, out) in out.iter_mut().enumerate() {
            let mut sum = simd.load(out);
            for o in 0..O {
                sum = simd.mul_add(weights[o], simd.load(&rows[o][k]), sum);
            }
            simd.store(sum, out);
        }
    }

    /// Decodes one kv head of neighbouring positions, and asks for what comes after them.
    #[inline(always)]
    fn decode<S: Simd>(
        &mut self,
        simd: S,
        cache: &Matrix,
        of: &Group,
        side: Range<usize>,
        own: usize,
    ) {
        let rows = self.rows.vectors_mut().chunks_exact_mut(self.width);
        for ((position, to), factor) in side.zip(rows).zip(&mut self.factors) {
            let to = &mut to.as_flattened_mut()[..of.heads.dim];
            let row = position * of.heads.kv + of.head + own;
            for line in cache.row(row + self.ahead).chunks(LINE) {
                simd.prefetch(line);
            }
            expand(simd, cache, row, 0, to);
            *factor = cache.row_factor(row);
        }
    }

    #[inline(always)]
    fn finish(self, out: &mut [f32], dim: usize) {
        let heads = self.out.vectors().chunks_exact(self.width).zip(&self.sums);
        for (out, (found, sum)) in out.chunks_exact_mut(dim).zip(heads) {
            for (out, found) in out.iter_mut().zip(found.as_flattened()) {
                *out = found / sum;
            }
        }
    }
}
