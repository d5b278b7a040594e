//! Numbers to bytes, in the formats of the store: those of [`pipo_kernels::format`], which reads them back.
//!
//! A matrix is row-major and little-endian:
//!
//! - fp16, bf16: the numbers.
//! - int8: a plane of signed bytes, then a plane of one fp16 scale for each row; value = q * scale.
//! - int4: groups of 64 inputs, the last of each row padded with zeros; a plane of 32 bytes a group,
//!   then a plane of (scale, minimum) in fp16 a group; value = minimum + q * scale. Byte k of a group
//!   holds input k in its low nibble and input k + 32 in its high one, so that 32 bytes unpack into
//!   two contiguous runs.
//!
//! Scales are rounded up and minima down, so that the codes always reach the extremes and no number
//! is further from its value than half a step.

mod rounding;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pipo_kernels::format::GROUP;
use pipo_plan::model::Precision;
use rayon::prelude::*;

use self::rounding::{extremes, farthest, nearest, not_above, not_below};

/// A number that the format cannot hold, by its place among the numbers given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unrepresentable {
    /// Its index.
    pub index: usize,
    /// The number.
    pub value: f32,
}

/// Sums of squares, from which a relative error comes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Squares {
    /// Of the differences between source and stored.
    pub error: f64,
    /// Of the source.
    pub norm: f64,
}

impl Squares {
    /// ||w - stored|| / ||w||; 0 for a tensor of zeros, which every format holds exactly.
    pub fn relative(self) -> f64 {
        if self.norm > 0.0 { (self.error / self.norm).sqrt() } else { 0.0 }
    }

    /// Adds another part of the same tensor.
    pub fn add(&mut self, other: Self) {
        self.error += other.error;
        self.norm += other.norm;
    }

    /// Adds numbers in eight interleaved sums: in one, each addition would wait for the one before,
    /// and that would take longer than the rest of the conversion.
    fn note(&mut self, source: &[f32], stored: &[f32]) {
        const LANES: usize = 8;
        let (mut error, mut norm) = ([0.0_f64; LANES], [0.0_f64; LANES]);
        let mut add = |lane: usize, source: f32, stored: f32| {
            let difference = f64::from(source) - f64::from(stored);
            error[lane] += difference * difference;
            norm[lane] += f64::from(source) * f64::from(source);
        };
        let ((whole, rest), (whole_stored, rest_stored)) =
            (source.as_chunks::<LANES>(), stored.as_chunks::<LANES>());
        for (source, stored) in whole.iter().zip(whole_stored) {
            for lane in 0..LANES {
                add(lane, source[lane], stored[lane]);
            }
        }
        for (&source, &stored) in rest.iter().zip(rest_stored) {
            add(0, source, stored);
        }
        self.error += error.iter().sum::<f64>();
        self.norm += norm.iter().sum::<f64>();
    }
}

/// Rows of a matrix as they are stored.
#[derive(Debug, Default)]
pub struct Encoded {
    /// Bytes of the first plane.
    pub data: Vec<u8>,
    /// Bytes of the second plane: scales, or scales and minima. Empty in 16 bits.
    pub scales: Vec<u8>,
    /// What the rounding did.
    pub squares: Squares,
}

/// Stores whole rows of `inputs` numbers. Rows are worked on in parallel and summed in their order,
/// so that the result does not depend on the number of threads.
pub fn encode(
    precision: Precision,
    inputs: usize,
    rows: &[f32],
) -> Result<Encoded, Unrepresentable> {
    let inputs = inputs.max(1);
    let (data_row, scale_row) = match precision {
        // Vectors are columns: one number is too little for a task.
        Precision::Fp16 | Precision::Bf16 => return sixteen(precision, rows),
        Precision::Int8 => (inputs, 2),
        Precision::Int4 => (inputs.div_ceil(GROUP) * GROUP / 2, inputs.div_ceil(GROUP) * 4),
    };
    let count = rows.len() / inputs;
    let mut data = vec![0; count * data_row];
    let mut scales = vec![0; count * scale_row];
    let encode_row = if precision == Precision::Int8 { int8_row } else { int4_row };
    let squares = rows
        .par_chunks_exact(inputs)
        .zip(data.par_chunks_exact_mut(data_row))
        .zip(scales.par_chunks_exact_mut(scale_row))
        .enumerate()
        .map(|(row, ((numbers, data), scales))| {
            encode_row(numbers, data, scales)
                .map_err(|at| Unrepresentable { index: row * inputs + at.index, ..at })
        })
        .collect::<Vec<_>>();
    let squares = total(squares)?;
    Ok(Encoded { data, scales, squares })
}

fn total(parts: Vec<Result<Squares, Unrepresentable>>) -> Result<Squares, Unrepresentable> {
    let mut sum = Squares::default();
    for part in parts {
        sum.add(part?);
    }
    Ok(sum)
}

fn sixteen(precision: Precision, numbers: &[f32]) -> Result<Encoded, Unrepresentable> {
    const CHUNK: usize = 1 << 14;
    let mut data = vec![0; numbers.len() * 2];
    let squares = numbers
        .par_chunks(CHUNK)
        .zip(data.par_chunks_mut(2 * CHUNK))
        .enumerate()
        .map(|(chunk, (numbers, data))| {
            let mut stored = vec![0.0; numbers.len()];
            let bits: Vec<u16> = if precision == Precision::Bf16 {
                let mut narrow = vec![bf16::ZERO; numbers.len()];
                narrow.convert_from_f32_slice(numbers);
                narrow.convert_to_f32_slice(&mut stored);
                narrow.into_iter().map(bf16::to_bits).collect()
            } else {
                let mut narrow = vec![f16::ZERO; numbers.len()];
                narrow.convert_from_f32_slice(numbers);
                narrow.convert_to_f32_slice(&mut stored);
                narrow.into_iter().map(f16::to_bits).collect()
            };
            for (bytes, bits) in data.as_chunks_mut::<2>().0.iter_mut().zip(bits) {
                *bytes = bits.to_le_bytes();
            }
            let mut squares = Squares::default();
            if let Some(index) = stored.iter().position(|number| !number.is_finite()) {
                let value = numbers[index];
                return Err(Unrepresentable { index: chunk * CHUNK + index, value });
            }
            squares.note(numbers, &stored[..numbers.len()]);
            Ok(squares)
        })
        .collect();
    Ok(Encoded { data, scales: Vec::new(), squares: total(squares)? })
}

fn int8_row(
    numbers: &[f32],
    data: &mut [u8],
    scales: &mut [u8],
) -> Result<Squares, Unrepresentable> {
    let (low, high) = extremes(numbers)?;
    let largest = high.max(-low);
    let scale = not_below(largest / 127.0).ok_or_else(|| farthest(numbers))?;
    let step = scale.to_f32();
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    let mut squares = Squares::default();
    let mut stored = [0.0; GROUP];
    for (numbers, data) in numbers.chunks(GROUP).zip(data.chunks_mut(GROUP)) {
        for ((&number, byte), stored) in numbers.iter().zip(data).zip(&mut stored) {
            let code = nearest((number * inverse).clamp(-127.0, 127.0));
            #[allow(clippy::cast_possible_truncation, reason = "clamped to what fits")]
            let code = code as i8;
            *byte = code.cast_unsigned();
            *stored = f32::from(code) * step;
        }
        squares.note(numbers, &stored[..numbers.len()]);
    }
    scales.copy_from_slice(&scale.to_le_bytes());
    Ok(squares)
}

fn int4_row(
    numbers: &[f32],
    data: &mut [u8],
    scales: &mut [u8],
) -> Result<Squares, Unrepresentable> {
    let mut squares = Squares::default();
    let groups = numbers.chunks(GROUP).zip(data.chunks_exact_mut(GROUP / 2));
    for (group, ((numbers, data), scales)) in groups.zip(scales.chunks_exact_mut(4)).enumerate() {
        let shift = |at: Unrepresentable| Unrepresentable { index: group * GROUP + at.index, ..at };
        let (low, high) = extremes(numbers).map_err(shift)?;
        let limits = not_above(low)
            .and_then(|minimum| Some((not_below((high - minimum.to_f32()) / 15.0)?, minimum)));
        let (scale, minimum) = limits.ok_or_else(|| shift(farthest(numbers)))?;
        let (step, base) = (scale.to_f32(), minimum.to_f32());
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        let (mut codes, mut stored) = ([0_u8; GROUP], [0.0; GROUP]);
        for ((&number, code), stored) in numbers.iter().zip(&mut codes).zip(&mut stored) {
            let rounded = nearest(((number - base) * inverse).clamp(0.0, 15.0));
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "clamped to what fits"
            )]
            let rounded = rounded as u8;
            *code = rounded;
            *stored = base + f32::from(rounded) * step;
        }
        squares.note(numbers, &stored[..numbers.len()]);
        let (lower, upper) = codes.split_at(GROUP / 2);
        for ((byte, &low), &high) in data.iter_mut().zip(lower).zip(upper) {
            *byte = low | (high << 4);
        }
        scales[..2].copy_from_slice(&scale.to_le_bytes());
        scales[2..].copy_from_slice(&minimum.to_le_bytes());
    }
    Ok(squares)
}
