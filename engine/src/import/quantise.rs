//! Numbers to bytes, in the formats of the store: those of [`pipo_kernels::format`], which reads them back.
//!
//! What a format cannot hold is refused here, where computing with a cache would clip it; and what the
//! rounding did is summed up.

use pipo_kernels::format::{GROUP, Saturation, dequantise_row, quantise};
use pipo_kernels::{Format, Matrix, ShapeError};
use pipo_plan::model::Precision;
use rayon::prelude::*;

/// Why numbers cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refused {
    /// A number that the format cannot hold: the first that is not finite, or else the farthest from zero
    /// of its row.
    Number {
        /// Its index among the numbers given.
        index: usize,
        /// The number.
        value: f32,
    },
    /// A shape that cannot be addressed.
    Shape(ShapeError),
}

impl From<ShapeError> for Refused {
    fn from(error: ShapeError) -> Self {
        Self::Shape(error)
    }
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
pub fn encode(precision: Precision, inputs: usize, rows: &[f32]) -> Result<Encoded, Refused> {
    /// Of 16 bits, which know no rows: vectors are columns, and one number is too little for a task.
    const CHUNK: usize = 1 << 14;
    let inputs = inputs.max(1);
    let groups = inputs.div_ceil(GROUP);
    let (format, inputs, data_row, scale_row) = match precision {
        Precision::Fp16 => (Format::Fp16, CHUNK, 2 * CHUNK, 0),
        Precision::Bf16 => (Format::Bf16, CHUNK, 2 * CHUNK, 0),
        Precision::Int8 => (Format::Int8, inputs, inputs, 2),
        Precision::Int4 => (Format::Int4, inputs, groups * GROUP / 2, groups * 4),
    };
    let stored = rows
        .par_chunks(inputs)
        .enumerate()
        .map(|(row, numbers)| encode_row(format, numbers, row * inputs))
        .collect::<Result<Vec<_>, _>>()?;
    let mut all = Encoded::default();
    all.data.reserve_exact(stored.len() * data_row);
    all.scales.reserve_exact(stored.len() * scale_row);
    for (bytes, squares) in &stored {
        let (data, scales) = bytes.split_at(bytes.len() - scale_row);
        all.data.extend_from_slice(data);
        all.scales.extend_from_slice(scales);
        all.squares.add(*squares);
    }
    Ok(all)
}

/// Both planes of one row, whose first number has the index `first`.
fn encode_row(format: Format, row: &[f32], first: usize) -> Result<(Vec<u8>, Squares), Refused> {
    let (bytes, saturation) = quantise(format, row, 1, row.len())?;
    if saturation != Saturation::default() {
        let (index, value) = culprit(row);
        return Err(Refused::Number { index: first + index, value });
    }
    let mut stored = vec![0.0; row.len()];
    dequantise_row(&Matrix::new(format, 1, row.len(), &bytes)?, 0, &mut stored)?;
    let mut squares = Squares::default();
    squares.note(row, &stored);
    Ok((bytes, squares))
}

/// The number of a row to blame where one does not fit.
fn culprit(row: &[f32]) -> (usize, f32) {
    let mut worst = (0, 0.0_f32);
    for (index, &value) in row.iter().enumerate() {
        if !value.is_finite() {
            return (index, value);
        }
        if value.abs() > worst.1.abs() {
            worst = (index, value);
        }
    }
    worst
}
