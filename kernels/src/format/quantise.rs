//! Storing numbers.
//!
//! Scales are rounded up and minima down to fp16, so that a row or group always spans its values: the
//! error of a weight is then at most half a step, whatever fp16 did to the step.

use half::{bf16, f16};

use super::{Format, GROUP, GROUP_BYTES, Layout};
use crate::error::{self, ShapeError};

/// Values that a format could not hold, and what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Saturation {
    /// Infinite, or beyond the format's largest: stored as the largest that the format, row or group
    /// holds.
    pub clipped: u64,
    /// Not a number: stored as zero.
    pub nan: u64,
}

impl Saturation {
    /// The value to store instead of `value`, with `limit` the largest.
    fn limit(&mut self, value: f32, limit: f32) -> f32 {
        if value.is_nan() {
            self.nan += 1;
            return 0.0;
        }
        self.clipped += u64::from(value.abs() > limit);
        value.clamp(-limit, limit)
    }
}

impl std::ops::AddAssign for Saturation {
    fn add_assign(&mut self, other: Self) {
        self.clipped += other.clipped;
        self.nan += other.nan;
    }
}

const F16_MAX: f32 = 65504.0;

/// Stores a whole matrix, given row by row.
pub fn quantise(
    format: Format,
    values: &[f32],
    outputs: usize,
    inputs: usize,
) -> Result<(Vec<u8>, Saturation), ShapeError> {
    let layout = Layout::new(format, outputs, inputs)?;
    error::length("values", values.len(), error::product("the matrix", &[outputs, inputs])?)?;
    let mut bytes = vec![0; layout.bytes()];
    let (weights, scales) = bytes.split_at_mut(layout.weights_row * outputs);
    let saturation = quantise_rows(&layout, values, weights, scales)?;
    Ok((bytes, saturation))
}

/// Stores some rows of the matrix that `layout` describes.
///
/// `values` are whole rows. `weights` and `scales` are their places in the two planes, at
/// [`Layout::weights`] and [`Layout::scales`] of the same rows; an importer therefore needs memory for
/// a few rows only.
pub fn quantise_rows(
    layout: &Layout,
    values: &[f32],
    weights: &mut [u8],
    scales: &mut [u8],
) -> Result<Saturation, ShapeError> {
    let mut saturation = Saturation::default();
    if layout.inputs == 0 {
        error::length("values", values.len(), 0)?;
        return Ok(saturation);
    }
    let rows = values.len() / layout.inputs;
    error::length("values", values.len(), rows * layout.inputs)?;
    error::length("weights", weights.len(), rows * layout.weights_row)?;
    error::length("scales", scales.len(), rows * layout.scales_row)?;
    for (row, values) in values.chunks_exact(layout.inputs).enumerate() {
        let weights = &mut weights[row * layout.weights_row..(row + 1) * layout.weights_row];
        let scales = &mut scales[row * layout.scales_row..(row + 1) * layout.scales_row];
        match layout.format {
            Format::Fp32 => {
                for (value, out) in values.iter().zip(weights.as_chunks_mut::<4>().0) {
                    *out = saturation.limit(*value, f32::MAX).to_le_bytes();
                }
            }
            Format::Fp16 => {
                for (value, out) in values.iter().zip(weights.as_chunks_mut::<2>().0) {
                    *out = f16::from_f32(saturation.limit(*value, F16_MAX)).to_le_bytes();
                }
            }
            Format::Bf16 => {
                let limit = bf16::MAX.to_f32();
                for (value, out) in values.iter().zip(weights.as_chunks_mut::<2>().0) {
                    *out = bf16::from_f32(saturation.limit(*value, limit)).to_le_bytes();
                }
            }
            Format::Int8 => int8_row(values, weights, scales, &mut saturation),
            Format::Int4 => {
                let groups = weights.as_chunks_mut::<GROUP_BYTES>().0;
                let scales = scales.as_chunks_mut::<4>().0;
                for ((values, nibbles), scale) in values.chunks(GROUP).zip(groups).zip(scales) {
                    *scale = int4_group(values, nibbles, &mut saturation);
                }
            }
        }
    }
    Ok(saturation)
}

fn int8_row(values: &[f32], weights: &mut [u8], scales: &mut [u8], saturation: &mut Saturation) {
    let finite = values.iter().filter(|v| v.is_finite());
    let largest = finite.fold(0.0_f32, |largest, v| largest.max(v.abs()));
    let scale = smallest(largest / 127.0, |scale| scale * 127.0 >= largest);
    scales.copy_from_slice(&scale.to_le_bytes());
    let scale = scale.to_f32();
    for (value, out) in values.iter().zip(weights) {
        let value = saturation.limit(*value, 127.0 * scale);
        let q = if scale > 0.0 { (value / scale).round_ties_even() } else { 0.0 };
        #[expect(clippy::cast_possible_truncation, reason = "limited to 127 steps")]
        let q = q.clamp(-127.0, 127.0) as i8;
        *out = q.cast_unsigned();
    }
}

/// Stores a group's nibbles and returns its scale and minimum.
fn int4_group(
    values: &[f32],
    nibbles: &mut [u8; GROUP_BYTES],
    saturation: &mut Saturation,
) -> [u8; 4] {
    let mut finite = values.iter().copied().filter(|v| v.is_finite());
    // What is not a number is stored as zero, so zero must then be in the range.
    let start = if values.iter().any(|v| v.is_nan()) { Some(0.0) } else { finite.next() };
    let start = start.unwrap_or_default();
    let (low, high) = finite.fold((start, start), |(low, high), v| (low.min(v), high.max(v)));
    let minimum = at_most(low);
    let base = minimum.to_f32();
    // A group that lies below the smallest fp16 ends where that begins.
    let high = high.max(base);
    // Halves, because the difference of two floats can overflow.
    let scale = smallest((high / 2.0 - base / 2.0) / 7.5, |step| base + 15.0 * step >= high);
    let step = scale.to_f32();
    let top = base + 15.0 * step;
    nibbles.fill(0);
    for (input, &value) in values.iter().enumerate() {
        let value = if value.is_nan() {
            saturation.nan += 1;
            0.0
        } else {
            saturation.clipped += u64::from(value < base || value > top);
            value.clamp(base, top)
        };
        let q = if step > 0.0 { ((value - base) / step).round_ties_even() } else { 0.0 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 15")]
        let q = q.clamp(0.0, 15.0) as u8;
        nibbles[input % GROUP_BYTES] |= if input < GROUP_BYTES { q } else { q << 4 };
    }
    let ([a, b], [c, d]) = (scale.to_le_bytes(), minimum.to_le_bytes());
    [a, b, c, d]
}

/// The smallest fp16 near `value`, which is not negative, that is `enough`; the largest finite one where
/// there is none.
fn smallest(value: f32, enough: impl Fn(f32) -> bool) -> f16 {
    let near = f16::from_f32(value.min(F16_MAX));
    // Positive halves are in the order of their bits.
    let up = if enough(near.to_f32()) { near } else { f16::from_bits(near.to_bits() + 1) };
    if up.is_finite() { up } else { f16::MAX }
}

/// The largest finite fp16 that is not above `value`; the smallest where there is none.
fn at_most(value: f32) -> f16 {
    let near = f16::from_f32(value.clamp(-F16_MAX, F16_MAX));
    if near.to_f32() <= value {
        return near;
    }
    let bits = near.to_bits();
    let down = match bits {
        0x0000 | 0x8000 => f16::from_bits(0x8001),
        1..0x8000 => f16::from_bits(bits - 1),
        _ => f16::from_bits(bits + 1),
    };
    if down.is_finite() { down } else { f16::MIN }
}
