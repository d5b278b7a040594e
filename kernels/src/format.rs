//! How a matrix of `outputs` rows and `inputs` columns is stored.
//!
//! | format | bytes |
//! |---|---|
//! | fp32, fp16, bf16 | numbers, row by row, little endian |
//! | int8 | a plane of `outputs * inputs` signed bytes, row by row; then a plane of one fp16 scale a row: `value = q * scale` |
//! | int4 | a plane of 32 bytes a group, row by row; then a plane of an fp16 scale and an fp16 minimum a group: `value = minimum + q * scale` |
//!
//! A group of int4 is 64 inputs; the last of a row is padded. Byte `k` of a group holds input `k` in its
//! low nibble and input `k + 32` in its high nibble, so that a vector of bytes gives two vectors of
//! neighbours by a mask and a shift. Both planes go row by row, so any range of rows is one run of
//! bytes in each, and rows can be stored as they are read.

mod dequantise;
mod quantise;

use std::fmt;
use std::ops::Range;

pub use dequantise::dequantise_row;
pub use quantise::{Saturation, quantise, quantise_rows};

use crate::error::ShapeError;

/// Inputs that share one scale and one minimum in [`Format::Int4`].
pub const GROUP: usize = 64;

/// Bytes of a group's nibbles.
pub(crate) const GROUP_BYTES: usize = GROUP / 2;

/// How a matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// IEEE single precision: for checks, where rounding of weights must play no part.
    Fp32,
    /// IEEE half precision.
    Fp16,
    /// The upper half of a float.
    Bf16,
    /// 8 bits, symmetric, with one fp16 scale a row.
    Int8,
    /// 4 bits in groups of 64 inputs with an fp16 scale and minimum each: 4.5 bits a weight.
    Int4,
}

impl Format {
    /// Every format, from the widest down.
    pub const ALL: [Self; 5] = [Self::Fp32, Self::Fp16, Self::Bf16, Self::Int8, Self::Int4];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bytes of a row in the plane of weights and in the plane of scales.
    fn row_bytes(self, inputs: u64) -> Option<(u64, u64)> {
        match self {
            Self::Fp32 => Some((inputs.checked_mul(4)?, 0)),
            Self::Fp16 | Self::Bf16 => Some((inputs.checked_mul(2)?, 0)),
            Self::Int8 => Some((inputs, 2)),
            Self::Int4 => {
                let groups = inputs.div_ceil(GROUP as u64);
                Some((groups.checked_mul(GROUP_BYTES as u64)?, groups.checked_mul(4)?))
            }
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Exact size of a stored matrix, scales and padding included; `None` where it passes 64 bits.
pub fn matrix_bytes(format: Format, outputs: u64, inputs: u64) -> Option<u64> {
    let (weights, scales) = format.row_bytes(inputs)?;
    weights.checked_add(scales)?.checked_mul(outputs)
}

/// Where the rows of a matrix lie in its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// How it is stored.
    pub format: Format,
    /// Rows: the numbers it produces.
    pub outputs: usize,
    /// Columns: the numbers it consumes.
    pub inputs: usize,
    /// Bytes of a row in the first plane.
    pub weights_row: usize,
    /// Bytes of a row in the second plane, which starts where the first ends; 0 where there is none.
    pub scales_row: usize,
}

impl Layout {
    /// Lays out a matrix; an error where it cannot be addressed.
    pub fn new(format: Format, outputs: usize, inputs: usize) -> Result<Self, ShapeError> {
        let too_large = ShapeError::TooLarge { what: "the matrix" };
        let total = matrix_bytes(format, outputs as u64, inputs as u64).ok_or(too_large)?;
        let addressable = |size: u64| isize::try_from(size).map_err(|_| too_large);
        addressable(total)?;
        let (weights, scales) = format.row_bytes(inputs as u64).ok_or(too_large)?;
        Ok(Self {
            format,
            outputs,
            inputs,
            weights_row: addressable(weights)?.unsigned_abs(),
            scales_row: addressable(scales)?.unsigned_abs(),
        })
    }

    /// Bytes of the whole matrix.
    pub fn bytes(&self) -> usize {
        (self.weights_row + self.scales_row) * self.outputs
    }

    /// Where some rows lie in the plane of weights.
    pub fn weights(&self, rows: Range<usize>) -> Range<usize> {
        self.weights_row * rows.start..self.weights_row * rows.end
    }

    /// Where the scales of some rows lie, counted from the start of the matrix.
    pub fn scales(&self, rows: Range<usize>) -> Range<usize> {
        let plane = self.weights_row * self.outputs;
        plane + self.scales_row * rows.start..plane + self.scales_row * rows.end
    }
}

/// A stored matrix, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    layout: Layout,
    weights: &'a [u8],
    scales: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Reads `bytes` as a matrix; an error unless they are exactly as many as it takes.
    pub fn new(
        format: Format,
        outputs: usize,
        inputs: usize,
        bytes: &'a [u8],
    ) -> Result<Self, ShapeError> {
        let layout = Layout::new(format, outputs, inputs)?;
        let (expected, found) = (layout.bytes(), bytes.len());
        if expected != found {
            return Err(ShapeError::MatrixBytes { format, outputs, inputs, expected, found });
        }
        let (weights, scales) = bytes.split_at(layout.weights_row * outputs);
        Ok(Self { layout, weights, scales })
    }

    /// How it is stored.
    pub fn format(&self) -> Format {
        self.layout.format
    }

    /// Rows: the numbers it produces.
    pub fn outputs(&self) -> usize {
        self.layout.outputs
    }

    /// Columns: the numbers it consumes.
    pub fn inputs(&self) -> usize {
        self.layout.inputs
    }

    /// Where its rows lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The weights of a row; empty beyond the last.
    pub(crate) fn row(&self, row: usize) -> &'a [u8] {
        let size = self.layout.weights_row;
        self.weights.get(size * row..size * (row + 1)).unwrap_or_default()
    }

    /// The scales of a row; empty beyond the last, and where the format has none.
    pub(crate) fn row_scales(&self, row: usize) -> &'a [u8] {
        let size = self.layout.scales_row;
        self.scales.get(size * row..size * (row + 1)).unwrap_or_default()
    }

    /// What a row's sum is multiplied by: the scale of int8, otherwise 1.
    pub(crate) fn row_factor(&self, row: usize) -> f32 {
        match (self.layout.format, self.row_scales(row)) {
            (Format::Int8, &[low, high]) => half::f16::from_le_bytes([low, high]).to_f32(),
            _ => 1.0,
        }
    }
}
