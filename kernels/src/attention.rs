//! Causal attention of grouped heads over a cache, for prefill and decode alike.
//!
//! | | shape |
//! |---|---|
//! | `q`, `out` | rows x heads x head dimension |
//! | `keys`, `values` | (positions (capacity) x kv heads) x head dimension, in any format |
//!
//! Each head of a position is a row of the cache, so that its scales are its own.
//! Row `r` of `q` is at position `first + r` of its sequence, whose cache must already hold that position.
//! Query head `h` reads kv head `h / (heads / kv_heads)`.
//!
//! The softmax is computed as positions pass (Milakov and Gimelshein, arXiv 1805.02867), a block of
//! positions at a time. Blocks are counted from the start of the sequence, so a row's result depends on
//! its position alone: prefilling in pieces, or one by one, gives the same bits.

use crate::cpu::Cpu;
use crate::error::{self, ShapeError};
use crate::exponential::exp;
use crate::format::{Matrix, dequantise_row};
use crate::simd::expand::expand;
use crate::simd::vector::{add_scaled, dot};
use crate::simd::{Job, LANES, Simd};

/// Positions whose keys and values are decoded together: 16 KiB each at a head dimension of 128.
const BLOCK: usize = 32;

/// Turns of every thread at least, where heads are taken together: one that is late does not hold up the rest
/// for long.
const TURNS: usize = 2;

/// The heads of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Heads of the queries.
    pub query: usize,
    /// Heads of the cache; they divide the heads of the queries.
    pub kv: usize,
    /// Numbers in a head.
    pub dim: usize,
    /// How many positions back a row sees, its own included; all where there is no window.
    pub window: Option<usize>,
    /// What a score is multiplied by: usually `dim^-0.5`.
    pub scale: f32,
}

/// Attention of the rows of `q`, the first of which is at position `first`.
pub fn attention(
    cpu: &Cpu,
    heads: &Heads,
    q: &[f32],
    first: usize,
    keys: &Matrix,
    values: &Matrix,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    attentions(cpu, heads, q, first, &[(*keys, *values)], out)
}

/// The same for several sequences that are equally far, over the keys and values of each: the rows of the
/// first come first. Threads share all of the work, and not that of each sequence.
pub fn attentions(
    cpu: &Cpu,
    heads: &Heads,
    q: &[f32],
    first: usize,
    caches: &[(Matrix, Matrix)],
    out: &mut [f32],
) -> Result<(), ShapeError> {
    error::length("out", out.len(), q.len())?;
    let each = q.len() / caches.len().max(1);
    error::length("q", q.len(), each * caches.len())?;
    if each == 0 {
        return Ok(());
    }
    let mut tasks = Vec::new();
    let sequences = q.chunks(each).zip(out.chunks_mut(each)).zip(caches);
    for ((q, out), (keys, values)) in sequences {
        let rows = check(heads, q, first, keys, values, out)?;
        let together = together(heads.kv, caches.len() * rows, cpu.pool().threads());
        let (width, size) = (heads.query * heads.dim, heads.query / heads.kv * heads.dim);
        let rows = q.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate();
        for (row, (q, out)) in rows {
            let some = q.chunks(together * size).zip(out.chunks_mut(together * size)).enumerate();
            tasks.extend(some.map(|(index, (q, out))| Group {
                heads,
                q,
                position: first + row,
                head: index * together,
                keys,
                values,
                out,
            }));
        }
    }
    cpu.pool().for_each(tasks, |task: Group| cpu.run(task));
    Ok(())
}

/// How many kv heads of a row one thread takes at a time. Their rows of the cache lie side by side, and a
/// processor that reads ahead reads what it needs itself: twice as fast from memory as one head at a time.
fn together(kv_heads: usize, rows: usize, threads: usize) -> usize {
    (kv_heads * rows / (TURNS * threads.max(1))).max(1)
}

/// The same in two passes with sums in `f64`: what [`attention`] is tested against.
pub fn reference(
    heads: &Heads,
    q: &[f32],
    first: usize,
    keys: &Matrix,
    values: &Matrix,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    check(heads, q, first, keys, values, out)?;
    let group = heads.query / heads.kv;
    let mut cached = vec![0.0; heads.dim];
    for (index, (q, out)) in q.chunks(heads.dim).zip(out.chunks_mut(heads.dim)).enumerate() {
        let position = first + index / heads.query;
        let head = index % heads.query / group;
        let seen = start(heads, position)..position + 1;
        let mut scores = Vec::with_capacity(seen.len());
        for position in seen.clone() {
            dequantise_row(keys, position * heads.kv + head, &mut cached)?;
            let terms = q.iter().zip(&cached).map(|(q, k)| f64::from(*q) * f64::from(*k));
            scores.push(terms.sum::<f64>() * f64::from(heads.scale));
        }
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut mixed = vec![0.0; heads.dim];
        for (position, score) in seen.zip(scores) {
            dequantise_row(values, position * heads.kv + head, &mut cached)?;
            for (mixed, v) in mixed.iter_mut().zip(&cached) {
                *mixed += (score - largest).exp() / sum * f64::from(*v);
            }
        }
        for (out, mixed) in out.iter_mut().zip(mixed) {
            #[expect(clippy::cast_possible_truncation, reason = "the result is a float")]
            let mixed = mixed as f32;
            *out = mixed;
        }
    }
    Ok(())
}

/// The first position that a row at `position` sees.
fn start(heads: &Heads, position: usize) -> usize {
    heads.window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Checks the shapes and returns the number of rows.
fn check(
    heads: &Heads,
    q: &[f32],
    first: usize,
    keys: &Matrix,
    values: &Matrix,
    out: &[f32],
) -> Result<usize, ShapeError> {
    for (what, found) in [("the head dimension", heads.dim), ("the number of kv heads", heads.kv)] {
        if found == 0 {
            return Err(ShapeError::Rule { what, found, rule: "at least 1" });
        }
    }
    if heads.query == 0 || !heads.query.is_multiple_of(heads.kv) {
        let what = "the number of query heads";
        let rule = "a multiple of the number of kv heads, and not zero";
        return Err(ShapeError::Rule { what, found: heads.query, rule });
    }
    if heads.window == Some(0) {
        return Err(ShapeError::Rule { what: "the window", found: 0, rule: "at least 1" });
    }
    let width = error::product("a row of q", &[heads.query, heads.dim])?;
    let rows = q.len() / width;
    error::length("q", q.len(), rows * width)?;
    error::length("out", out.len(), q.len())?;
    error::length("a row of keys", keys.inputs(), heads.dim)?;
    error::length("a row of values", values.inputs(), heads.dim)?;
    if rows > 0 {
        let last = first.saturating_add(rows - 1);
        error::index("the position", last, keys.outputs().min(values.outputs()) / heads.kv)?;
    }
    Ok(rows)
}

/// One row's query heads of some neighbouring kv heads.
struct Group<'a> {
    heads: &'a Heads,
    q: &'a [f32],
    position: usize,
    /// The first of the cache.
    head: usize,
    keys: &'a Matrix<'a>,
    values: &'a Matrix<'a>,
    out: &'a mut [f32],
}

impl Job for Group<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Heads { query, kv, dim, scale, .. } = *self.heads;
        let (group, count) = (query / kv, self.q.len() / dim);
        let padded = dim.next_multiple_of(LANES);
        let mut block = vec![0.0; BLOCK * padded];
        // For each head: the largest score so far, the sum of exponentials, and their sum of values.
        let mut largest = vec![f32::NEG_INFINITY; count];
        let mut sums = vec![0.0; count];
        let mut scores = vec![[0.0; BLOCK]; group];
        self.out.fill(0.0);

        let mut begin = start(self.heads, self.position);
        while begin <= self.position {
            let end = (begin / BLOCK + 1) * BLOCK;
            let positions = end.min(self.position + 1) - begin;
            for own in 0..count / group {
                let rows = || (begin * kv + self.head + own..).step_by(kv).take(positions);
                decode(simd, self.keys, rows(), &mut block, [dim, padded]);
                for (head, scores) in (own * group..).zip(&mut scores) {
                    let q = &self.q[head * dim..(head + 1) * dim];
                    let mut top = largest[head];
                    for index in 0..positions {
                        let k = &block[index * padded..index * padded + dim];
                        let score = dot(simd, q, k) * scale;
                        scores[index] = score;
                        // Not `max`, which would hide what is not a number.
                        top = if score > top || score.is_nan() { score } else { top };
                    }
                    // Nothing was summed before the first block, and its factor would not be a number.
                    let keep = if largest[head] < top { exp(largest[head] - top) } else { 1.0 };
                    // All of a block, so that it has a length the compiler knows; the rest is not used.
                    for score in scores.iter_mut() {
                        *score = exp(*score - top);
                    }
                    let sum = scores[..positions].iter().fold(sums[head] * keep, |sum, s| sum + s);
                    (largest[head], sums[head]) = (top, sum);
                    if keep < 1.0 {
                        for out in &mut self.out[head * dim..(head + 1) * dim] {
                            *out *= keep;
                        }
                    }
                }
                decode(simd, self.values, rows(), &mut block, [dim, padded]);
                for (head, scores) in (own * group..).zip(&scores) {
                    let out = &mut self.out[head * dim..(head + 1) * dim];
                    for index in 0..positions {
                        let v = &block[index * padded..index * padded + dim];
                        add_scaled(simd, scores[index], v, out);
                    }
                }
            }
            begin = end;
        }
        for (out, sum) in self.out.chunks_exact_mut(dim).zip(&sums) {
            for out in out {
                *out /= sum;
            }
        }
    }
}

/// Decodes one head of some positions, `padded` floats a position.
#[inline(always)]
fn decode<S: Simd>(
    simd: S,
    cache: &Matrix,
    rows: impl Iterator<Item = usize>,
    block: &mut [f32],
    [dim, padded]: [usize; 2],
) {
    for (row, out) in rows.zip(block.chunks_exact_mut(padded)) {
        let out = &mut out[..dim];
        expand(simd, cache, row, 0, out);
        if cache.format() == crate::Format::Int8 {
            let factor = cache.row_factor(row);
            for out in out {
                *out *= factor;
            }
        }
    }
}
