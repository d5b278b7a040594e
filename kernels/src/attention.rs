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

mod group;
mod rows;

use crate::cpu::Cpu;
use crate::error::{self, ShapeError};
use crate::format::{Layout, Matrix, dequantise_row};
use group::Group;

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

impl Heads {
    /// Query heads that share one of the cache.
    fn group(&self) -> usize {
        self.query / self.kv
    }
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
        let (width, size) = (heads.query * heads.dim, heads.group() * heads.dim);
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

/// The caches of sequences that lie one behind the other, the keys of each in front of its values: planes of this
/// layout, which has a row for each head of each position.
pub fn caches<'a>(
    plane: &Layout,
    bytes: &'a [u8],
) -> Result<Vec<(Matrix<'a>, Matrix<'a>)>, ShapeError> {
    let Layout { format, outputs, inputs, .. } = *plane;
    let matrix = |bytes| Matrix::new(format, outputs, inputs, bytes);
    // Without positions there is no plane, and nothing that could be one.
    let caches = bytes.chunks_exact((2 * plane.bytes()).max(1)).map(|cache| {
        let (keys, values) = cache.split_at(plane.bytes());
        Ok((matrix(keys)?, matrix(values)?))
    });
    caches.collect()
}

/// How many kv heads of a row one thread takes at a time. Their rows of the cache lie side by side, and are read
/// from memory up to three times as fast as one head at a time; but pieces must be enough that threads end
/// together.
fn together(kv_heads: usize, rows: usize, threads: usize) -> usize {
    let (rows, threads) = (rows.max(1), threads.max(1));
    let fewest = (TURNS * threads).div_ceil(rows).clamp(1, kv_heads);
    let most = (2 * fewest).min(kv_heads);
    let sizes = (fewest..=most).map(|pieces| (kv_heads.div_ceil(pieces), pieces));
    // What the busiest thread does; of equal ones the larger.
    let busiest = |size: usize, pieces: usize| (rows * pieces).div_ceil(threads) * size;
    let best = sizes.min_by_key(|&(size, pieces)| (busiest(size, pieces), pieces));
    best.map_or(1, |(size, _)| size)
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
    let group = heads.group();
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

#[cfg(test)]
mod tests {
    use super::together;

    /// Heads that each of twelve threads has at most, taking pieces as they come.
    fn busiest(kv_heads: usize, rows: usize) -> usize {
        let size = together(kv_heads, rows, 12);
        (rows * kv_heads.div_ceil(size)).div_ceil(12) * size
    }

    #[test]
    fn heads_stay_together_where_threads_end_together_all_the_same() {
        // All on one thread; a head each, where there are few rows; whole rows, where there are many.
        assert_eq!([together(32, 8, 1), together(32, 1, 12), together(8, 32, 12)], [32, 1, 8]);
        // 640 heads are 53.3 a thread. In halves of a row somebody would have 60.
        assert_eq!((together(40, 16, 12), busiest(40, 16)), (14, 56));
        // 256 heads are 21.3 a thread.
        assert_eq!((together(32, 8, 12), busiest(32, 8)), (11, 22));
    }
}
