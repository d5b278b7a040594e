//! The cache and attention over it.

use super::launch::Launch;
use super::operand::{DeviceCache, Region};
use super::unit::{Unit, code, int};
use super::{CudaError, Kernels, Stream};
use crate::attention::Heads;
use crate::error::{self, ShapeError};
use crate::format::Format;

/// Positions of one part of a split context, about: fewer where there are few sequences and heads, so that every
/// multiprocessor of a large GPU has a part, and more where they alone are that many, but for 4-bit numbers
/// (chosen by measurement on an H200).
fn part_of_context(format: Format, heads: &Heads, sequences: usize) -> usize {
    let few = sequences.saturating_mul(heads.kv) < 128;
    if few || format == Format::Int4 { 512 } else { 1024 }
}

/// What the warps of a block take in turn.
const TURN: usize = 64;

/// Dimensions of the values that a warp sums.
const HALF: usize = 128;

/// Rows that a warp works on at once.
const TILE: usize = 16;

/// Rows of a kv head up to which the products are turned round.
const FEW: usize = 8;

/// New rows of a cache.
#[derive(Debug, Clone, Copy)]
pub struct Append<'a> {
    /// fp16, the cache's sequences x positions x kv heads x head dimension.
    pub keys: Region,
    /// The same.
    pub values: Region,
    /// Where they go.
    pub cache: &'a DeviceCache,
    /// The position of the first row of every sequence.
    pub first_position: usize,
    /// New positions of every sequence.
    pub positions: usize,
}

/// Attention of new rows over a cache that holds them already.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// fp16, the cache's sequences x positions x query heads x head dimension.
    pub q: Region,
    /// As `q`, and may be `q` where the head dimension is at most 128; must not overlap it otherwise.
    pub out: Region,
    /// Keys and values.
    pub cache: &'a DeviceCache,
    /// The heads; those of the cache must be the cache's.
    pub heads: &'a Heads,
    /// The position of the first row of every sequence.
    pub first_position: usize,
    /// Rows of every sequence.
    pub positions: usize,
    /// Memory that is overwritten, of [`Kernels::attention_spare`] bytes.
    pub spare: Region,
}

/// How an attention is cut up: a function of its shapes.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// The first part of the context that any row sees.
    first: usize,
    /// How many parts; none where the context is not split.
    parts: usize,
    /// Positions of a part.
    length: usize,
}

impl Cut {
    fn new(
        format: Format,
        heads: &Heads,
        sequences: usize,
        first_position: usize,
        positions: usize,
    ) -> Self {
        let group = heads.query / heads.kv.max(1);
        // More rows than this keep a GPU busy without splitting.
        if positions.saturating_mul(group) > 4 * TILE {
            return Self { first: 0, parts: 0, length: 0 };
        }
        let start = heads.window.map_or(0, |w| (first_position + 1).saturating_sub(w));
        let stop = first_position.saturating_add(positions.max(1));
        // All take as long: a part with little in it would not be worth putting it together with the others.
        let (seen, about) = (stop - start, part_of_context(format, heads, sequences));
        let count = (seen.saturating_add(about / 2) / about).max(1);
        let length = seen.div_ceil(count).next_multiple_of(TURN);
        let first = start / length;
        Self { first, parts: (stop - 1) / length - first + 1, length }
    }

    /// Bytes in which the parts of so many rows are kept until they are put together.
    fn spare(&self, heads: &Heads, sequences: usize, positions: usize) -> u64 {
        if self.parts < 2 {
            return 0;
        }
        let rows = [positions, heads.query, self.parts, heads.dim.saturating_add(2), 4];
        rows.into_iter().fold(sequences as u64, |a, b| a.saturating_mul(b as u64))
    }
}

impl Kernels {
    /// Bytes of spare memory that an attention of such shapes needs. A longer context may need less: its parts
    /// are other ones.
    pub fn attention_spare(
        format: Format,
        heads: &Heads,
        sequences: usize,
        first_position: usize,
        positions: usize,
    ) -> u64 {
        let cut = Cut::new(format, heads, sequences, first_position, positions);
        cut.spare(heads, sequences, positions)
    }

    /// Stores new rows of a cache, each head's row as [`crate::format::quantise_rows`] does, bit by bit.
    pub fn append_cache(&self, stream: Stream, append: &Append) -> Result<(), CudaError> {
        let Append { keys, values, cache, first_position, positions } = *append;
        let DeviceCache { plane, sequences, capacity, kv_heads, region } = *cache;
        let dim = plane.inputs;
        keys.holds("the keys", &[sequences, positions, kv_heads, dim], 2)?;
        values.holds("the values", &[sequences, positions, kv_heads, dim], 2)?;
        let end = first_position.saturating_add(positions);
        if end > capacity {
            let what = "the last position";
            return Err(ShapeError::Index { what, index: end - 1, limit: capacity }.into());
        }
        let rows = error::product("the rows", &[positions, kv_heads])?;
        let launch = Launch {
            unit: Unit::Append,
            name: "append",
            grid: [rows.div_ceil(8), sequences, 2],
            threads: 256,
        };
        let weights = plane.weights(first_position * kv_heads..first_position * kv_heads).start;
        let scales = plane.scales(first_position * kv_heads..first_position * kv_heads).start;
        let arguments = [
            keys.address(),
            values.address(),
            code(plane.format),
            region.address() + weights as u64,
            region.address() + scales as u64,
            plane.bytes() as u64,
            int("the rows", rows)?,
            int("the head dimension", dim)?,
        ];
        self.launch(stream, launch, &arguments)
    }

    /// [`crate::attention::attention`] of fp16 rows, for all sequences of a cache.
    pub fn attention(&self, stream: Stream, attention: &Attention) -> Result<(), CudaError> {
        let Attention { q, out, cache, heads, first_position, positions, spare } = *attention;
        let DeviceCache { plane, sequences, kv_heads, region, .. } = *cache;
        check(attention)?;
        let group = heads.query / kv_heads;
        let rows = error::product("the rows of a head", &[positions, group])?;
        if rows == 0 || sequences == 0 {
            return Ok(());
        }
        let aligned = region.aligned()
            && q.aligned()
            && plane.bytes().is_multiple_of(16)
            && plane.weights_row.is_multiple_of(16)
            && plane.inputs.is_multiple_of(if plane.format == Format::Int8 { 16 } else { 8 });
        let unit = Unit::attention(plane.format, heads.dim, aligned)?;
        let cut = Cut::new(plane.format, heads, sequences, first_position, positions);
        let needed = cut.spare(heads, sequences, positions);
        if spare.bytes() < needed {
            let found = spare.bytes();
            return Err(CudaError::Small { what: "the spare memory", needed, found });
        }
        let halves = heads.dim.div_ceil(HALF);
        let pairs = error::product("the heads", &[sequences, kv_heads])?;
        let tiles = error::product("the tiles", &[sequences, rows.div_ceil(TILE)])?;
        let (name, grid) = match (cut.parts, rows) {
            (0, _) => ("whole", [rows.div_ceil(4 * TILE), pairs, halves]),
            (parts, ..=FEW) => ("split_few", [kv_heads * halves, parts, sequences]),
            (parts, _) => ("split", [kv_heads * halves, parts, tiles]),
        };
        let window = heads.window.map_or(i32::MAX, |w| i32::try_from(w).unwrap_or(i32::MAX));
        let direct = cut.parts < 2;
        let arguments = [
            q.address(),
            out.address(),
            if direct { 0 } else { spare.address() },
            region.address(),
            plane.bytes() as u64,
            plane.scales(0..0).start as u64,
            int("the kv heads", kv_heads)?,
            int("the group", group)?,
            int("the head dimension", heads.dim)?,
            int("the first position", first_position)?,
            int("the positions", positions)?,
            u64::from(window.cast_unsigned()),
            u64::from(heads.scale.to_bits()),
            int("the part", cut.first)?,
            int("the positions of a part", cut.length)?,
        ];
        self.launch(stream, Launch { unit, name, grid, threads: 128 }, &arguments)?;
        if direct {
            return Ok(());
        }
        let all = error::product("the rows", &[pairs, rows])?;
        let grid = [all, 1, 1];
        let launch = Launch { unit: Unit::Combine, name: "combine", grid, threads: 128 };
        let arguments = [
            spare.address(),
            out.address(),
            int("the parts", cut.parts)?,
            int("the kv heads", kv_heads)?,
            int("the group", group)?,
            int("the head dimension", heads.dim)?,
            int("the positions", positions)?,
            int("the rows", all)?,
        ];
        self.launch(stream, launch, &arguments)
    }
}

fn check(attention: &Attention) -> Result<(), CudaError> {
    let Attention { q, out, cache, heads, first_position, positions, .. } = *attention;
    let DeviceCache { plane, sequences, capacity, kv_heads, .. } = *cache;
    for (what, found) in [("the head dimension", heads.dim), ("the number of kv heads", heads.kv)] {
        if found == 0 {
            return Err(ShapeError::Rule { what, found, rule: "at least 1" }.into());
        }
    }
    if heads.query == 0 || !heads.query.is_multiple_of(heads.kv) {
        let what = "the number of query heads";
        let rule = "a multiple of the number of kv heads, and not zero";
        return Err(ShapeError::Rule { what, found: heads.query, rule }.into());
    }
    if heads.window == Some(0) {
        let what = "the window";
        return Err(ShapeError::Rule { what, found: 0, rule: "at least 1" }.into());
    }
    error::length("the kv heads of the cache", kv_heads, heads.kv)?;
    error::length("a row of the cache", plane.inputs, heads.dim)?;
    q.holds("q", &[sequences, positions, heads.query, heads.dim], 2)?;
    out.holds("out", &[sequences, positions, heads.query, heads.dim], 2)?;
    let end = |region: Region| region.address().saturating_add(region.bytes());
    let overlap = q.address() < end(out) && out.address() < end(q);
    if heads.dim > HALF && overlap {
        let (what, rule) = ("the head dimension", "at most 128 where out is q");
        return Err(ShapeError::Rule { what, found: heads.dim, rule }.into());
    }
    if positions > 0 {
        error::index("the position", first_position.saturating_add(positions - 1), capacity)?;
    }
    Ok(())
}
