//! Multiplication by a stored matrix.

use std::sync::PoisonError;

use super::blas::Product;
use super::launch::Launch;
use super::operand::{DeviceMatrix, DeviceVector, Region};
use super::unit::{Unit, int};
use super::{CudaError, Kernels, Stream};
use crate::error;
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

/// Outputs that a tile of decoded weights must have to be worth a product of its own.
const TILE: usize = 1024;

/// How results are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    /// Activations.
    Fp16,
    /// Logits.
    Fp32,
}

/// `out = x * matrix^T + bias + residual`.
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
    /// fp16, rows x outputs. May be `out`, where that is fp16; may not overlap it otherwise.
    pub residual: Option<Region>,
    /// Rows x outputs.
    pub out: Region,
    /// How `out` is stored.
    pub out_type: Out,
    /// Memory that is overwritten; [`Kernels::linear_spare`] says how much helps.
    pub spare: Region,
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
        let Linear { x, rows, matrix, bias, residual, out, out_type, spare } = *linear;
        let layout = matrix.layout();
        x.holds("x", &[rows, layout.inputs], 2)?;
        out.holds("out", &[rows, layout.outputs], if out_type == Out::Fp32 { 4 } else { 2 })?;
        if let Some(residual) = residual {
            residual.holds("the residual", &[rows, layout.outputs], 2)?;
        }
        if let Some(bias) = bias {
            error::length("the bias", bias.length(), layout.outputs)?;
        }
        let whole = layout.inputs.is_multiple_of(8) && layout.outputs.is_multiple_of(8);
        let aligned = [x, matrix.region(), out, spare].iter().all(Region::aligned)
            && residual.is_none_or(|residual| residual.aligned());
        let row = layout.inputs.saturating_mul(2).max(1);
        let room = usize::try_from(spare.bytes()).unwrap_or(usize::MAX) / row / 128 * 128;
        let tile = if layout.format == Format::Fp16 { layout.outputs } else { room };
        if rows > few(layout.format)
            && whole
            && aligned
            && tile >= layout.outputs.min(TILE)
            && self.has_cublas()
        {
            self.by_cublas(stream, linear, tile.min(layout.outputs))
        } else {
            self.decoding(stream, linear)
        }
    }

    /// Decodes weights in registers.
    fn decoding(&self, stream: Stream, linear: &Linear) -> Result<(), CudaError> {
        let Linear { x, rows, matrix, bias, residual, out, out_type, .. } = *linear;
        let layout = matrix.layout();
        let step = if layout.format == Format::Int8 { 16 } else { 8 };
        let aligned =
            x.aligned() && matrix.region().aligned() && layout.inputs.is_multiple_of(step);
        let columns = if aligned && rows <= 8 { 8 } else { 16 };
        let (name, outputs) = match (aligned, columns, tile(layout.outputs)) {
            (false, _, _) => ("few_unaligned", 16),
            (true, 8, 16) => ("few_narrow_8", 16),
            (true, 8, _) => ("few_wide_8", 32),
            (true, _, 16) => ("few_narrow_16", 16),
            (true, _, _) => ("few_wide_16", 32),
        };
        let grid = [rows.div_ceil(columns), layout.outputs.div_ceil(outputs), 1];
        let launch = Launch { unit: Unit::Linear(layout.format), name, grid, threads: 256 };
        let arguments = [
            x.address(),
            matrix.region().address(),
            matrix.scales(),
            bias.map_or(0, |bias| bias.region().address()),
            bias.map_or(0, DeviceVector::kind),
            residual.map_or(0, |residual| residual.address()),
            out.address(),
            u64::from(out_type == Out::Fp32),
            int("the rows", rows)?,
            int("the outputs", layout.outputs)?,
            int("the inputs", layout.inputs)?,
        ];
        self.launch(stream, launch, &arguments)
    }

    /// Through cuBLAS, a tile of outputs at a time where weights must be decoded first.
    fn by_cublas(&self, stream: Stream, linear: &Linear, tile: usize) -> Result<(), CudaError> {
        let Linear { x, rows, matrix, bias, residual, out, out_type, spare } = *linear;
        let layout = matrix.layout();
        let Some(blas) = &self.blas else { return Ok(()) };
        let blas = blas.lock().unwrap_or_else(PoisonError::into_inner);
        let wide = out_type == Out::Fp32;
        // What is added is put where the result goes: cuBLAS then adds in single precision.
        let keep = bias.is_some() || residual.is_some();
        if bias.is_some() || residual.is_some_and(|residual| residual != out) {
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
        Ok(())
    }

    /// Writes bias and residual where the result goes.
    fn prefill(&self, stream: Stream, linear: &Linear) -> Result<(), CudaError> {
        let Linear { rows, matrix, bias, residual, out, out_type, .. } = *linear;
        let outputs = matrix.layout().outputs;
        let grid = [outputs.div_ceil(256), rows.min(65535), 1];
        let launch = Launch { unit: Unit::Residual, name: "prefill", grid, threads: 256 };
        let arguments = [
            bias.map_or(0, |bias| bias.region().address()),
            bias.map_or(0, DeviceVector::kind),
            residual.map_or(0, |residual| residual.address()),
            out.address(),
            u64::from(out_type == Out::Fp32),
            int("the rows", rows)?,
            int("the outputs", outputs)?,
        ];
        self.launch(stream, launch, &arguments)
    }
}

/// Outputs of a block: more of them read x less often, fewer give every multiprocessor of a large GPU a block
/// of a small matrix. The sums are the same either way.
fn tile(outputs: usize) -> usize {
    if outputs < 6144 { 16 } else { 32 }
}
