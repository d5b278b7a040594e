//! One row's query heads of some neighbouring kv heads: the softmax as blocks of positions pass.
//!
//! Positions come first and heads within them, as a cache has them, so that memory is read in its own order:
//! a head by itself is a few lines out of every row of the cache, which no processor foresees.

use std::array::from_fn;
use std::marker::PhantomData;

use super::Heads;
use super::rows::{Decoded, Rows, Stored, prefetch};
use crate::exponential::exp;
use crate::format::{Format, Matrix};
use crate::simd::aligned::Aligned;
use crate::simd::tile::{self, Bf16, Fp16, Int8, Row};
use crate::simd::{self, Job, LANES, Simd};

/// Positions whose scores become weights together.
const BLOCK: usize = 32;

/// Positions whose products stay in registers together.
const SIDE: usize = 4;

/// Bytes of a cache that are asked for before they are needed: enough for memory to answer, and few enough
/// to be still there.
const AHEAD: usize = 8 << 10;

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
        let (format, dim) = (self.keys.format(), self.heads.dim);
        let in_place = dim % LANES == 0 && format == self.values.format();
        match format {
            Format::Fp16 if in_place => self.over(simd, Stored::<Fp16>(PhantomData)),
            Format::Bf16 if in_place => self.over(simd, Stored::<Bf16>(PhantomData)),
            Format::Int8 if in_place => self.over(simd, Stored::<Int8>(PhantomData)),
            _ => self.over(simd, Decoded::new(SIDE, dim)),
        }
    }
}

impl Group<'_> {
    #[inline(always)]
    fn over<S: Simd, C: Rows>(self, simd: S, mut rows: C) {
        let mut state = State::new(&self);
        let mut begin = super::start(self.heads, self.position);
        while begin <= self.position {
            let end = (begin / BLOCK + 1) * BLOCK;
            let count = end.min(self.position + 1) - begin;
            self.block::<S, C, Scores>(simd, &mut rows, &mut state, (begin, count));
            state.weigh(self.heads.scale, count);
            self.block::<S, C, Values>(simd, &mut rows, &mut state, (begin, count));
            begin = end;
        }
        state.finish(self.out, self.heads.dim);
    }

    /// All heads at the positions of a block, [`SIDE`] at a time: from the first on, so many.
    #[inline(always)]
    fn block<S: Simd, C: Rows, W: Work>(
        &self,
        simd: S,
        rows: &mut C,
        state: &mut State,
        (begin, count): (usize, usize),
    ) {
        let whole = count / SIDE * SIDE;
        for index in (0..whole).step_by(SIDE) {
            self.side::<S, C, W, SIDE>(simd, rows, state, begin + index, index);
        }
        for index in whole..count {
            self.side::<S, C, W, 1>(simd, rows, state, begin + index, index);
        }
    }

    /// All heads at `O` neighbouring positions, the first of which is number `index` of the block.
    #[inline(always)]
    fn side<S: Simd, C: Rows, W: Work, const O: usize>(
        &self,
        simd: S,
        rows: &mut C,
        state: &mut State,
        position: usize,
        index: usize,
    ) {
        let (cache, group) = (W::cache(self), self.heads.group());
        for first in (0..state.scores.len()).step_by(group) {
            let own = self.head + first / group;
            let at: [usize; O] = from_fn(|o| (position + o) * self.heads.kv + own);
            for row in at {
                prefetch(simd, cache, row + state.ahead);
            }
            let rows = rows.get(simd, cache, at).map(|row| row.cut(state.width));
            let factors = at.map(|row| C::factor(cache, row));
            let mut done = 0;
            while done < group {
                let place = (first + done, index);
                // No more kinds than pay for their machine code, of which there is one for each of everything.
                match group - done {
                    4.. if O == SIDE && S::ROWS >= 4 => {
                        W::heads::<S, _, 4, O>(state, simd, rows, factors, place);
                        done += 4;
                    }
                    2.. if O == SIDE => {
                        W::heads::<S, _, 2, O>(state, simd, rows, factors, place);
                        done += 2;
                    }
                    _ => {
                        W::heads::<S, _, 1, O>(state, simd, rows, factors, place);
                        done += 1;
                    }
                }
            }
        }
    }
}

/// What is done with rows of a cache.
trait Work {
    /// The cache whose rows it takes.
    fn cache<'a>(of: &Group<'a>) -> &'a Matrix<'a>;

    /// For `R` heads and `O` rows, which are to be multiplied by factors: from this head and this position of the
    /// block on.
    fn heads<S: Simd, V: Row, const R: usize, const O: usize>(
        state: &mut State,
        simd: S,
        rows: [V; O],
        factors: [f32; O],
        place: (usize, usize),
    );
}

/// Scores of keys.
struct Scores;

impl Work for Scores {
    #[inline(always)]
    fn cache<'a>(of: &Group<'a>) -> &'a Matrix<'a> {
        of.keys
    }

    #[inline(always)]
    fn heads<S: Simd, V: Row, const R: usize, const O: usize>(
        state: &mut State,
        simd: S,
        rows: [V; O],
        factors: [f32; O],
        (head, index): (usize, usize),
    ) {
        let q = tile::rows::<R>(state.q.vectors(), state.width, head);
        let mut partial = [[simd.splat(0.0); R]; O];
        tile::add(simd, rows, q, state.width, &mut partial);
        let sums = tile::sums(simd, &partial);
        for r in 0..R {
            for o in 0..O {
                state.scores[head + r][index + o] = sums[o][r] * factors[o];
            }
        }
    }
}

/// Values, weighted by what their keys scored, added one after the other.
struct Values;

impl Work for Values {
    #[inline(always)]
    fn cache<'a>(of: &Group<'a>) -> &'a Matrix<'a> {
        of.values
    }

    #[inline(always)]
    fn heads<S: Simd, V: Row, const R: usize, const O: usize>(
        state: &mut State,
        simd: S,
        rows: [V; O],
        factors: [f32; O],
        (head, index): (usize, usize),
    ) {
        let width = state.width;
        let mut weights = [[simd.splat(0.0); O]; R];
        for r in 0..R {
            for o in 0..O {
                weights[r][o] = simd.splat(state.scores[head + r][index + o] * factors[o]);
            }
        }
        let out = &mut state.out.vectors_mut()[head * width..(head + R) * width];
        for k in 0..width {
            let mut row = [simd.splat(0.0); O];
            for o in 0..O {
                row[o] = rows[o].vector(simd, k);
            }
            for r in 0..R {
                let place = &mut out[r * width + k];
                let mut sum = simd.load(place);
                for o in 0..O {
                    sum = simd.mul_add(weights[r][o], row[o], sum);
                }
                simd.store(sum, place);
            }
        }
    }
}

/// The larger of two numbers; what is not a number, where there is one. `max` would hide it.
#[inline(always)]
fn larger(top: f32, score: f32) -> f32 {
    if score > top || score.is_nan() { score } else { top }
}

/// What is known of the row after some blocks. Heads are padded to whole vectors.
struct State {
    /// Vectors of a head.
    width: usize,
    /// Rows of the cache from one to that which is asked for meanwhile.
    ahead: usize,
    q: Aligned,
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
            scores: vec![[0.0; BLOCK]; count],
            largest: vec![f32::NEG_INFINITY; count],
            sums: vec![0.0; count],
            out: Aligned::zeros(count * width),
        }
    }

    /// Turns the scores of a block into weights, relative to the largest so far.
    #[inline(always)]
    fn weigh(&mut self, scale: f32, positions: usize) {
        let heads = self.scores.iter_mut().zip(&mut self.largest).zip(&mut self.sums);
        let outs = self.out.vectors_mut().chunks_exact_mut(self.width);
        for (((scores, largest), sum), out) in heads.zip(outs) {
            // All of a block, so that it has a length the compiler knows; what is beyond weighs nothing.
            for score in scores.iter_mut() {
                *score *= scale;
            }
            scores[positions..].fill(f32::NEG_INFINITY);
            let mut tops = [*largest; LANES];
            for scores in scores.as_chunks::<LANES>().0 {
                for (score, top) in scores.iter().zip(&mut tops) {
                    *top = larger(*top, *score);
                }
            }
            let top = tops.into_iter().fold(*largest, larger);
            // Nothing was summed before the first block, and its factor would not be a number.
            let keep = if *largest < top { exp(*largest - top) } else { 1.0 };
            for score in scores.iter_mut() {
                *score = exp(*score - top);
            }
            scores[positions..].fill(0.0);
            let mut sums = [0.0; LANES];
            for scores in scores.as_chunks::<LANES>().0 {
                for (score, sum) in scores.iter().zip(&mut sums) {
                    *sum += score;
                }
            }
            *sum = *sum * keep + simd::sum_of(sums);
            *largest = top;
            if keep < 1.0 {
                for out in out.as_flattened_mut() {
                    *out *= keep;
                }
            }
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
