//! Reading stored numbers back: the plain version, which everything faster is tested against.

use half::{bf16, f16};

use super::{Format, GROUP, GROUP_BYTES, Matrix};
use crate::error::{self, ShapeError};

/// Writes row `row` as floats; `out` has as many elements as the matrix has inputs.
pub fn dequantise_row(matrix: &Matrix, row: usize, out: &mut [f32]) -> Result<(), ShapeError> {
    error::index("the row", row, matrix.outputs())?;
    error::length("out", out.len(), matrix.inputs())?;
    let weights = matrix.row(row);
    match matrix.format() {
        Format::Fp32 => {
            for (out, bytes) in out.iter_mut().zip(weights.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        Format::Fp16 => {
            for (out, bytes) in out.iter_mut().zip(weights.as_chunks::<2>().0) {
                *out = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        Format::Bf16 => {
            for (out, bytes) in out.iter_mut().zip(weights.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        Format::Int8 => {
            let scale = matrix.row_factor(row);
            for (out, q) in out.iter_mut().zip(weights) {
                *out = f32::from(q.cast_signed()) * scale;
            }
        }
        Format::Int4 => {
            let groups = weights.as_chunks::<GROUP_BYTES>().0;
            let scales = matrix.row_scales(row).as_chunks::<4>().0;
            for ((out, nibbles), &[a, b, c, d]) in out.chunks_mut(GROUP).zip(groups).zip(scales) {
                let scale = f16::from_le_bytes([a, b]).to_f32();
                let minimum = f16::from_le_bytes([c, d]).to_f32();
                for (input, out) in out.iter_mut().enumerate() {
                    let byte = nibbles[input % GROUP_BYTES];
                    let q = if input < GROUP_BYTES { byte & 15 } else { byte >> 4 };
                    *out = f32::from(q).mul_add(scale, minimum);
                }
            }
        }
    }
    Ok(())
}
