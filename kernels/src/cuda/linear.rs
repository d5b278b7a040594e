//! Multiplication by a stored matrix.

use std::sync::PoisonError;

use super::activation::{Activation, by_columns};
use super::blas::Product;
use super::launch::Launch;
use super::operand::{DeviceMatrix, DeviceVector, Region};
use super::unit::{Unit, int};
use super::{CudaError, Kernels, Stream};
use crate::error::{self, ShapeError};
use crate::format::Format;

/// Rows up to which weights are decoded in registers whatever else there is. More of them take longer than
/// decoding once and multiplying by cuBLAS (measured on an H200); fp16 needs no decoding.
fn few(format: Format) -> usize {
    match format {
        Format::Fp16 => 16,
        Format::Bf16 => 48,
        _ => 64,
    }
}

/// Outputs of a tile of decoded weights, and results of it, that are worth a product of its own.
const TILE: usize = 256;
const RESULTS: usize = 1 << 19;

/// Matrices of one launch.
const TOGETHER: usize = 3;

/// How results are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    /// Activations.
    Fp16,
    /// Logits.
    Fp32,
}

/// What becomes of `x * matrix^T + bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is the result.
    Store,
    /// The result is a function of it; the same bits as [`Kernels::activate`] in a launch of its own.
    Activate(Activation),
    /// It is added to these rows, fp16, rows x outputs. They may be `out`, where that is fp16, and may
    /// not overlap it otherwise.
    Add(Region),
}

/// `out = then(x * matrix^T + bias)`.
///
/// An fp16 result is the sum rounded to fp16, then with the bias added and rounded again: the same bits as
/// from [`Kernels::add_bias`] in a launch of its own. Where rows are added, bias and row are added and
/// rounded first, and the sum is rounded once, with them. An fp32 result is rounded nowhere before.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// fp16, rows x inputs. Must not overlap `out`.
    pub x: Region,
    /// Rows of `x`.
    pub rows: usize,
    /// Outputs x inputs.
    pub matrix: &'a DeviceMatrix,
    /// One number for each output.
    pub bias: Option<&'a DeviceVector>,
    /// What follows.
    pub then: Then,
    /// Rows x outputs.
    pub out: Region,
    /// How `out` is stored; no activation follows fp32.
    pub out_type: Out,
    /// Memory that is overwritten; [`Kernels::linear_spare`] says how much helps.
    pub spare: Region,
}

impl Linear<'_> {
    fn check(&self) -> Result<(), CudaError> {
        let Self { x, rows, matrix, bias, then, out, out_type, .. } = *self;
        let layout = matrix.layout();
        x.holds("x", &[rows, layout.inputs], 2)?;
        out.holds("out", &[rows, layout.outputs], if out_type == Out::Fp32 { 4 } else { 2 })?;
        match then {
            Then::Add(residual) => {
                residual.holds("the residual", &[rows, layout.outputs], 2)?;
            }
            Then::Activate(_) if out_type == Out::Fp32 => {
                let what = "the width of activated numbers in bits";
                return Err(ShapeError::Rule { what, found: 32, rule: "16: fp16" }.into());
            }
            Then::Activate(_) | Then::Store => {}
        }
        if let Some(bias) = bias {
            error::length("the bias", bias.length(), layout.outputs)?;
        }
        Ok(())
    }

    fn residual(&self) -> Option<Region> {
        if let Then::Add(residual) = self.then { Some(residual) } else { None }
    }

    /// How rows and weights can be read.
    fn rows_are(&self) -> Rows {
        let layout = self.matrix.layout();
        let step = if layout.format == Format::Int8 { 16 } else { 8 };
        let regions = self.x.aligned() && self.matrix.region().aligned();
        match layout.inputs {
            inputs if !regions || !inputs.is_multiple_of(step) => Rows::Any,
            inputs if !inputs.is_multiple_of(CHUNK) => Rows::Aligned,
            _ => Rows::Chunks,
        }
    }

    /// Outputs of a tile for cuBLAS, or none where weights are decoded in registers.
    fn tile(&self) -> Option<usize> {
        let layout = self.matrix.layout();
        let whole = layout.inputs.is_multiple_of(8) && layout.outputs.is_multiple_of(8);
        let aligned =
            [self.x, self.matrix.region(), self.out, self.spare].iter().all(Region::aligned)
                && self.residual().is_none_or(|residual| residual.aligned());
        if self.rows <= few(layout.format) || !whole || !aligned {
            return None;
        }
        let row = layout.inputs.saturating_mul(2).max(1);
        let room = usize::try_from(self.spare.bytes()).unwrap_or(usize::MAX) / row / 128 * 128;
        let all = layout.format == Format::Fp16 || room >= layout.outputs;
        let tile = if all { layout.outputs } else { room };
        (all || tile >= TILE && tile.saturating_mul(self.rows) >= RESULTS).then_some(tile)
    }

    /// Whether one launch may compute both.
    fn joins(&self, other: &Self) -> bool {
        let (one, two) = (self.matrix.layout(), other.matrix.layout());
        (self.x, self.rows, self.out_type) == (other.x, other.rows, other.out_type)
            && (one.format, one.inputs) == (two.format, two.inputs)
            && self.rows_are() == other.rows_are()
            && self.function() == other.function()
    }

    /// What follows, as the kernels number it; -1 stands for an fp32 result.
    fn function(&self) -> i32 {
        match (self.out_type, self.then) {
            (Out::Fp32, _) => -1,
            (_, Then::Activate(kind)) => kind.code(),
            _ => 0,
        }
    }

    /// The matrix and what becomes of its sums, as the kernels read them.
    fn part(&self) -> [u64; 7] {
        let Self { matrix, bias, out, .. } = *self;
        [
            matrix.region().address(),
            matrix.scales(),
            bias.map_or(0, |bias| bias.region().address()),
            self.residual().map_or(0, |residual| residual.address()),
            out.address(),
            bias.map_or(0, DeviceVector::kind),
            matrix.layout().outputs as u64,
        ]
    }
}

/// How rows of `x` and of a matrix can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// 16 bytes at a time, in whole chunks.
    Chunks,
    /// 16 bytes at a time.
    Aligned,
    Any,
}

/// Inputs of which the kernels take whole numbers ahead, as linear.cu has it.
const CHUNK: usize = 128;

/// A kernel that decodes weights in registers, and what a block of it computes: outputs, for rows of `x`. More
/// outputs read `x` less often, fewer give every multiprocessor of a large GPU a block of a small matrix.
#[derive(Debug, Clone, Copy)]
struct Block {
    kernel: &'static str,
    outputs: usize,
    rows: usize,
}

impl Block {
    const ALIGNED: Self = Self::of("any_aligned", 16, 16);
    const ANY: Self = Self::of("any_unaligned", 16, 16);

    const fn of(kernel: &'static str, outputs: usize, rows: usize) -> Self {
        Self { kernel, outputs, rows }
    }

    /// For matrices that one launch computes, by their outputs, where rows can be read in whole chunks. None of them
    /// has fewer outputs than the block.
    fn of_chunks(format: Format, rows: usize, outputs: &[usize], multiprocessors: usize) -> Self {
        let all = outputs.iter().sum();
        let least = outputs.iter().copied().min().unwrap_or(0);
        let block = match (format, rows, all) {
            (Format::Int4, ..) => Self::of_int4(rows, outputs, multiprocessors),
            (_, ..=8, ..6144) => Self::of("few_16_8", 16, 8),
            (_, ..=8, _) => Self::of("few_32_8", 32, 8),
            (Format::Int8, _, 8192..) => Self::of("few_64_16", 64, 16),
            _ => Self::of("few_32_16", 32, 16),
        };
        if least < block.outputs { Self::ALIGNED } else { block }
    }

    /// A block of 4-bit weights takes as long as it has tiles of 16 outputs, and about one more (measured on an H200).
    /// What counts is how often each multiprocessor has two.
    fn of_int4(rows: usize, outputs: &[usize], multiprocessors: usize) -> Self {
        let blocks = match rows {
            0 | 1 => [Self::of("few_32_1", 32, 8), Self::of("few_16_1", 16, 8)],
            2..=8 => [Self::of("few_32_8", 32, 8), Self::of("few_16_8", 16, 8)],
            _ => [Self::of("few_32_16", 32, 16), Self::of("few_16_16", 16, 16)],
        };
        let fits = |block: &Self| outputs.iter().all(|outputs| *outputs >= block.outputs);
        let time = |block: &Self| {
            let count: usize = outputs.iter().map(|outputs| outputs.div_ceil(block.outputs)).sum();
            let count = count.saturating_mul(rows.div_ceil(block.rows));
            count.div_ceil(2 * multiprocessors.max(1)) * (block.outputs / 16 + 1)
        };
        blocks.into_iter().filter(fits).min_by_key(time).unwrap_or(Self::ALIGNED)
    }
}

impl Kernels {
    /// Bytes of spare memory with which a product is fastest; with fewer it is computed in tiles, or
    /// with weights decoded as they are used.
    pub fn linear_spare(rows: usize, format: Format, outputs: usize, inputs: usize) -> u64 {
        if rows <= few(format) || format == Format::Fp16 {
            return 0;
        }
        (outputs as u64).saturating_mul(inputs as u64).saturating_mul(2)
    }

    /// Multiplies rows of activations by a stored matrix.
    pub fn linear(&self, stream: Stream, linear: &Linear) -> Result<(), CudaError> {
        self.linears(stream, &[*linear])
    }

    /// Several products, none of which reads the result of another; the spare memory of one may be where a
    /// later one's result goes. Those of the same few rows are computed by one launch, with the bits of
    /// one product at a time.
    pub fn linears(&self, stream: Stream, mut linears: &[Linear]) -> Result<(), CudaError> {
        linears.iter().try_for_each(Linear::check)?;
        while let [first, ..] = linears {
            let tile = first.tile().filter(|_| self.has_cublas());
            let joins = |other: &&Linear| first.joins(other) && other.tile().is_none();
            let count = match tile {
                Some(_) => 1,
                None => 1 + linears[1..].iter().take(TOGETHER - 1).take_while(joins).count(),
            };
            let (now, later) = linears.split_at(count);
            match tile {
                Some(tile) => self.by_cublas(stream, first, tile)?,
                None => self.decoding(stream, first, now)?,
            }
            linears = later;
        }
        Ok(())
    }

    /// Decodes weights in registers, for products that join the first.
    fn decoding(&self, stream: Stream, first: &Linear, all: &[Linear]) -> Result<(), CudaError> {
        let (x, rows, layout) = (first.x, first.rows, first.matrix.layout());
        let each: Vec<usize> = all.iter().map(|linear| linear.matrix.layout().outputs).collect();
        // The sums are the same whatever the block.
        let block = match first.rows_are() {
            Rows::Chunks => {
                Block::of_chunks(layout.format, rows, &each, self.multiprocessors as usize)
            }
            Rows::Aligned => Block::ALIGNED,
            Rows::Any => Block::ANY,
        };
        let tiles = each.iter().copied().max().unwrap_or(0).div_ceil(block.outputs);
        let grid = [rows.div_ceil(block.rows), tiles, all.len()];
        let launch =
            Launch { unit: Unit::Linear(layout.format), name: block.kernel, grid, threads: 256 };
        let mut arguments = vec![
            x.address(),
            int("the rows", rows)?,
            int("the inputs", layout.inputs)?,
            u64::from(first.function().cast_unsigned()),
        ];
        for linear in all {
            int("the outputs", linear.matrix.layout().outputs)?;
            arguments.extend(linear.part());
        }
        arguments.resize(4 + 7 * TOGETHER, 0);
        if all.iter().any(|linear| linear.matrix.is_made_by_kernel()) {
            return self.launch_after(stream, launch, &arguments);
        }
        self.launch(stream, launch, &arguments)
    }

    /// Through cuBLAS, a tile of outputs at a time where weights must be decoded first.
    fn by_cublas(&self, stream: Stream, linear: &Linear, tile: usize) -> Result<(), CudaError> {
        let Linear { x, rows, matrix, bias, then, out, out_type, spare } = *linear;
        let layout = matrix.layout();
        let Some(blas) = &self.blas else { return Ok(()) };
        let blas = blas.lock().unwrap_or_else(PoisonError::into_inner);
        let wide = out_type == Out::Fp32;
        // What is added before the sum is rounded is put where the result goes: cuBLAS adds it in single
        // precision.
        let keep = linear.residual().is_some() || (wide && bias.is_some());
        if keep && (bias.is_some() || linear.residual() != Some(out)) {
            self.prefill(stream, linear)?;
        }
        for first in (0..layout.outputs).step_by(tile.max(1)) {
            let outputs = tile.min(layout.outputs - first);
            let weights = if layout.format == Format::Fp16 {
                matrix.region().address()
            } else {
                self.dequantise_rows(stream, matrix, first..first + outputs, spare)?;
                spare.address()
            };
            let size = if wide { 4 } else { 2 };
            let product = Product {
                x: x.address(),
                weights,
                out: out.address() + (first * size) as u64,
                rows,
                outputs,
                inputs: layout.inputs,
                stride: layout.outputs,
                wide,
                keep,
            };
            blas.multiply(stream, product)?;
        }
        match (bias.filter(|_| !keep), then) {
            (Some(bias), Then::Activate(kind)) => {
                self.add_bias_then(stream, out, rows, bias, Some(kind))
            }
            (Some(bias), _) => self.add_bias(stream, out, rows, bias),
            (None, Then::Activate(kind)) => self.activate(stream, kind, out, rows * layout.outputs),
            (None, _) => Ok(()),
        }
    }

    /// Writes bias and residual where the result goes.
    fn prefill(&self, stream: Stream, linear: &Linear) -> Result<(), CudaError> {
        let Linear { rows, matrix, bias, out, out_type, .. } = *linear;
        let outputs = matrix.layout().outputs;
        let grid = by_columns(rows, outputs);
        let launch = Launch { unit: Unit::Residual, name: "prefill", grid, threads: 256 };
        let arguments = [
            bias.map_or(0, |bias| bias.region().address()),
            bias.map_or(0, DeviceVector::kind),
            linear.residual().map_or(0, |residual| residual.address()),
            out.address(),
            u64::from(out_type == Out::Fp32),
            int("the rows", rows)?,
            int("the outputs", outputs)?,
        ];
        self.launch(stream, launch, &arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was fastest of both, measured on an H200 with 4-bit weights.
    #[test]
    fn int4_blocks_are_those_that_were_fastest() {
        for rows in [1, 8, 16] {
            for outputs in [4096, 5120, 8192, 12288, 14336, 28672] {
                let expected = if outputs == 4096 { 16 } else { 32 };
                let found = Block::of_int4(rows, &[outputs], 132);
                assert_eq!(found.outputs, expected, "{rows} x {outputs}");
                assert_eq!(found.rows, if rows <= 8 { 8 } else { 16 }, "{rows} x {outputs}");
            }
        }
        // Three matrices of one launch.
        assert_eq!(Block::of_int4(16, &[4096; 3], 132).kernel, "few_32_16");
    }

    /// With few multiprocessors, or rows for more than one block, every choice takes several rounds, and large blocks
    /// the least time; with no multiprocessors that are known there still is a choice.
    #[test]
    fn int4_blocks_are_large_where_there_are_many_for_each_multiprocessor() {
        assert_eq!(Block::of_int4(32, &[4096], 132).kernel, "few_32_16");
        for multiprocessors in [0, 1, 8] {
            for (rows, kernel) in [(1, "few_32_1"), (8, "few_32_8"), (16, "few_32_16")] {
                let found = Block::of_int4(rows, &[4096], multiprocessors).kernel;
                assert_eq!(found, kernel, "{rows} rows, {multiprocessors} multiprocessors");
            }
        }
    }

    /// A block never has more outputs than a matrix: it would begin before the first.
    #[test]
    fn small_matrices_have_small_blocks() {
        for format in [Format::Fp16, Format::Bf16, Format::Int8, Format::Int4] {
            for rows in [1, 2, 8, 9, 16, 64] {
                for outputs in [1, 15, 16, 17, 31, 32, 47, 63, 64, 100] {
                    let block = Block::of_chunks(format, rows, &[8192, outputs], 132);
                    let fits = block.outputs <= outputs || block.kernel == Block::ALIGNED.kernel;
                    assert!(fits, "{format}, {rows} rows, {outputs} outputs: {}", block.kernel);
                }
            }
        }
    }
}
