//! Multiplication by a stored matrix: `out = x * matrix^T + bias`.
//!
//! | | shape |
//! |---|---|
//! | `x` | rows x inputs |
//! | `matrix` | outputs x inputs, in any format |
//! | `bias` | outputs |
//! | `out` | rows x outputs |
//!
//! For few rows, weights are decoded in registers and used at once: for one or two the time is that of
//! reading them. For more rows a panel is decoded to floats in the cache and used by all rows.
//! Both make the same sums in the same order.

mod panel;

use crate::cpu::Cpu;
use crate::error::{self, ShapeError};
use crate::format::{Format, GROUP, Matrix, dequantise_row};
use crate::simd::aligned::Aligned;
use crate::simd::tile::{self, Activations, Bf16, Element, Fp16, Fp32, Int8, Steps};
use crate::simd::{Job, LANES, Simd};

/// Outputs that are computed together: enough independent sums to hide the latency of an addition.
const OUTPUTS: usize = 4;

/// Multiply-adds below which a second thread costs more than it saves.
const ALONE: usize = 64 * 1024;

/// Multiplies rows of activations by a stored matrix.
///
/// Allocates a copy of `x`, and up to 0.7 MB a thread where there are many rows.
pub fn linear(
    cpu: &Cpu,
    x: &[f32],
    rows: usize,
    matrix: &Matrix,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    check(x, rows, matrix, bias, out)?;
    let (outputs, inputs) = (matrix.outputs(), matrix.inputs());
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    let width = inputs.next_multiple_of(step(matrix.format())) / LANES;
    let x = Aligned::padded(x, inputs, width);
    let x = x.vectors();
    // Several tasks a thread, so that a thread that lost its core for a while is not waited for.
    let work = rows.saturating_mul(outputs).saturating_mul(inputs);
    let tasks = if work < ALONE { 1 } else { 4 * cpu.pool().threads() };
    let tasks = if cpu.pool().threads() == 1 { 1 } else { tasks };
    let chunk = outputs.div_ceil(tasks).next_multiple_of(OUTPUTS);
    let mut parts: Vec<Part> = (0..outputs.div_ceil(chunk))
        .map(|task| Part { first: task * chunk, out: Vec::with_capacity(rows) })
        .collect();
    for row in out.chunks_exact_mut(outputs) {
        for (part, out) in parts.iter_mut().zip(row.chunks_mut(chunk)) {
            part.out.push(out);
        }
    }
    cpu.pool().for_each(parts, |part| {
        cpu.run(Multiply { x, width, matrix, bias, part });
    });
    Ok(())
}

/// The same with sums in `f64`, one output at a time: what [`linear`] is tested against.
pub fn reference(
    x: &[f32],
    rows: usize,
    matrix: &Matrix,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    check(x, rows, matrix, bias, out)?;
    let (outputs, inputs) = (matrix.outputs(), matrix.inputs());
    let mut weights = vec![0.0; inputs];
    for output in 0..outputs {
        dequantise_row(matrix, output, &mut weights)?;
        let bias = bias.map_or(0.0, |bias| f64::from(bias[output]));
        for row in 0..rows {
            let x = &x[row * inputs..(row + 1) * inputs];
            let terms = x.iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
            #[expect(clippy::cast_possible_truncation, reason = "the result is a float")]
            let sum = (terms.sum::<f64>() + bias) as f32;
            out[row * outputs + output] = sum;
        }
    }
    Ok(())
}

fn check(
    x: &[f32],
    rows: usize,
    matrix: &Matrix,
    bias: Option<&[f32]>,
    out: &[f32],
) -> Result<(), ShapeError> {
    error::length("x", x.len(), error::product("x", &[rows, matrix.inputs()])?)?;
    error::length("out", out.len(), error::product("out", &[rows, matrix.outputs()])?)?;
    bias.map_or(Ok(()), |bias| error::length("bias", bias.len(), matrix.outputs()))
}

/// Inputs that are taken at once.
fn step(format: Format) -> usize {
    if format == Format::Int4 { GROUP } else { LANES }
}

/// A range of outputs, for all rows.
struct Part<'a> {
    first: usize,
    /// For each row its outputs of the range.
    out: Vec<&'a mut [f32]>,
}

/// The product for a range of outputs.
struct Multiply<'a> {
    /// Rows one after the other, `width` vectors each.
    x: &'a [[f32; LANES]],
    width: usize,
    matrix: &'a Matrix<'a>,
    bias: Option<&'a [f32]>,
    part: Part<'a>,
}

/// Rows of activations up to which weights are decoded in registers. Where four rows fit into them,
/// decoding twice still takes less than writing a panel out (measured with AVX-512: 8 rows of int4 in
/// 5.1 ms instead of 6.7).
const fn direct<S: Simd>() -> usize {
    if S::ROWS < 4 { S::ROWS } else { 2 * S::ROWS }
}

impl Job for Multiply<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        if self.part.out.len() <= direct::<S>() {
            match self.matrix.format() {
                Format::Fp32 => self.direct::<S, PlainRows<Fp32>>(simd),
                Format::Fp16 => self.direct::<S, PlainRows<Fp16>>(simd),
                Format::Bf16 => self.direct::<S, PlainRows<Bf16>>(simd),
                Format::Int8 => self.direct::<S, PlainRows<Int8>>(simd),
                Format::Int4 => self.direct::<S, Int4Rows>(simd),
            }
        } else {
            panel::multiply(simd, &mut self);
        }
    }
}

/// A tile of dot products straight from a stored matrix.
trait Rows {
    fn tile<S: Simd, const R: usize, const O: usize>(
        simd: S,
        matrix: &Matrix,
        first: usize,
        scratch: &mut [[f32; LANES]],
        x: [Activations; R],
    ) -> [[f32; R]; O];
}

struct PlainRows<E>(std::marker::PhantomData<E>);

impl<E: Element> Rows for PlainRows<E> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const O: usize>(
        simd: S,
        matrix: &Matrix,
        first: usize,
        _: &mut [[f32; LANES]],
        x: [Activations; R],
    ) -> [[f32; R]; O] {
        let mut rows: [&[u8]; O] = [&[]; O];
        for o in 0..O {
            rows[o] = matrix.row(first + o);
        }
        tile::plain::<S, E, R, O>(simd, rows, x)
    }
}

struct Int4Rows;

impl Rows for Int4Rows {
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const O: usize>(
        simd: S,
        matrix: &Matrix,
        first: usize,
        scratch: &mut [[f32; LANES]],
        x: [Activations; R],
    ) -> [[f32; R]; O] {
        let size = scratch.len() / OUTPUTS;
        for o in 0..O {
            let to = &mut scratch[o * size..(o + 1) * size];
            tile::steps(simd, matrix.row_scales(first + o), to);
        }
        let mut rows: [(&[u8], Steps); O] = [(&[], &[]); O];
        let mut next: [&[u8]; O] = [&[]; O];
        for o in 0..O {
            next[o] = matrix.row(first + O + o);
            let steps = scratch[o * size..(o + 1) * size].as_flattened();
            rows[o] = (matrix.row(first + o), steps.as_chunks().0);
        }
        tile::int4::<S, R, O>(simd, rows, next, x)
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn direct<S: Simd, W: Rows>(&mut self, simd: S) {
        let (count, first) = (self.part.out[0].len(), self.part.first);
        // Of int4: a vector holds the scale and minimum of eight groups.
        let groups = self.matrix.inputs().div_ceil(GROUP);
        let mut scratch = vec![[0.0; LANES]; OUTPUTS * groups.div_ceil(LANES / 2)];
        let mut output = 0;
        while output + OUTPUTS <= count {
            self.strips::<S, W, OUTPUTS>(simd, first, output, &mut scratch);
            output += OUTPUTS;
        }
        while output < count {
            self.strips::<S, W, 1>(simd, first, output, &mut scratch);
            output += 1;
        }
    }

    /// Some outputs for all rows, as many rows at once as there are registers for.
    #[inline(always)]
    fn strips<S: Simd, W: Rows, const O: usize>(
        &mut self,
        simd: S,
        first: usize,
        output: usize,
        scratch: &mut [[f32; LANES]],
    ) {
        let rows = self.part.out.len();
        let mut row = 0;
        while row < rows {
            match (rows - row).min(S::ROWS) {
                1 => self.strip::<S, W, 1, O>(simd, row, first, output, scratch),
                2 => self.strip::<S, W, 2, O>(simd, row, first, output, scratch),
                3 => self.strip::<S, W, 3, O>(simd, row, first, output, scratch),
                _ => self.strip::<S, W, 4, O>(simd, row, first, output, scratch),
            }
            row += S::ROWS;
        }
    }

    #[inline(always)]
    fn strip<S: Simd, W: Rows, const R: usize, const O: usize>(
        &mut self,
        simd: S,
        row: usize,
        first: usize,
        output: usize,
        scratch: &mut [[f32; LANES]],
    ) {
        let x = tile::rows::<R>(self.x, self.width, row);
        let sums = W::tile::<S, R, O>(simd, self.matrix, first + output, scratch, x);
        self.write(row, output, sums);
    }

    #[inline(always)]
    fn write<const R: usize, const O: usize>(
        &mut self,
        row: usize,
        output: usize,
        sums: [[f32; R]; O],
    ) {
        for o in 0..O {
            for r in 0..R {
                self.finish(row + r, output + o, sums[o][r]);
            }
        }
    }

    /// Writes one output from its sum.
    #[inline(always)]
    fn finish(&mut self, row: usize, output: usize, sum: f32) {
        let index = self.part.first + output;
        let value = sum * self.matrix.row_factor(index);
        self.part.out[row][output] = self.bias.map_or(value, |bias| value + bias[index]);
    }
}
