//! Many rows of activations times a matrix, through panels of floats.
//!
//! A panel is a stretch of inputs of some outputs. It is decoded once and used by a block of rows, whose
//! stretch of activations stays in the second-level cache beside it; the partial sums wait in memory
//! for the next stretch. They are the same sixteen as ever, taken up where they were left, so nothing
//! of this changes a bit.

use super::{Multiply, OUTPUTS};
use crate::format::{Format, GROUP};
use crate::simd::aligned::Aligned;
use crate::simd::expand::expand;
use crate::simd::tile::{Activations, add};
use crate::simd::{LANES, Simd, sum};

/// Rows that are computed together in registers: with four outputs, 24 sums.
const ROWS: usize = 6;

/// Rows that share a decoded panel.
const BLOCK: usize = 16 * ROWS;

/// Outputs of a panel.
const DEEP: usize = 64;

/// Vectors of a panel's stretch of inputs: 4 KiB of floats an output, whole groups of int4.
const STRETCH: usize = 64;

const _: () = assert!((STRETCH * LANES).is_multiple_of(GROUP) && DEEP.is_multiple_of(OUTPUTS));

/// A panel, and the partial sums it is added to.
struct Panel {
    /// Output by output, `size` vectors each.
    weights: Aligned,
    size: usize,
    outputs: usize,
    /// Row by row, [`DEEP`] each.
    partial: Aligned,
}

/// The product for all rows.
#[inline(always)]
pub(super) fn multiply<S: Simd>(simd: S, work: &mut Multiply) {
    let (count, rows) = (work.part.out[0].len(), work.part.out.len());
    // What pads a row must be what the direct way multiplies by, zero for zero: the stored padding of a
    // group, or zeros.
    let is_int4 = work.matrix.format() == Format::Int4;
    let stored = if is_int4 { work.width * LANES } else { work.matrix.inputs() };
    let mut panel = Panel {
        weights: Aligned::zeros(DEEP * STRETCH),
        size: 0,
        outputs: 0,
        partial: Aligned::zeros(DEEP * BLOCK.min(rows)),
    };
    for output in (0..count).step_by(DEEP) {
        panel.outputs = DEEP.min(count - output);
        for row in (0..rows).step_by(BLOCK) {
            let rows = BLOCK.min(rows - row);
            panel.partial.vectors_mut().fill([0.0; LANES]);
            for first in (0..work.width).step_by(STRETCH) {
                panel.size = STRETCH.min(work.width - first);
                for index in 0..panel.outputs {
                    let to = &mut panel.weights.vectors_mut()
                        [index * panel.size..(index + 1) * panel.size];
                    let to = to.as_flattened_mut();
                    let (here, padding) = to.split_at_mut(to.len().min(stored - first * LANES));
                    expand(
                        simd,
                        work.matrix,
                        work.part.first + output + index,
                        first * LANES,
                        here,
                    );
                    padding.fill(0.0);
                }
                panel.block(simd, work, first, row, rows);
            }
            for r in 0..rows {
                for o in 0..panel.outputs {
                    let partial = simd.load(&panel.partial.vectors()[r * DEEP + o]);
                    work.finish(row + r, output + o, sum(simd, partial));
                }
            }
        }
    }
}

impl Panel {
    /// Adds the products of `rows` rows from `row` on, whose stretch starts at vector `first`.
    #[inline(always)]
    fn block<S: Simd>(&mut self, simd: S, work: &Multiply, first: usize, row: usize, rows: usize) {
        let mut done = 0;
        while done < rows {
            let x = &work.x[(row + done) * work.width + first..];
            match rows - done {
                1 => self.strip::<S, 1>(simd, x, work.width, done),
                2 => self.strip::<S, 2>(simd, x, work.width, done),
                3 => self.strip::<S, 3>(simd, x, work.width, done),
                4 => self.strip::<S, 4>(simd, x, work.width, done),
                5 => self.strip::<S, 5>(simd, x, work.width, done),
                _ => self.strip::<S, ROWS>(simd, x, work.width, done),
            }
            done += ROWS;
        }
    }

    /// Adds the products of `R` rows, `width` vectors apart in `x`; the first is row `row` of the block.
    #[inline(always)]
    fn strip<S: Simd, const R: usize>(
        &mut self,
        simd: S,
        x: Activations,
        width: usize,
        row: usize,
    ) {
        let mut rows: [Activations; R] = [&[]; R];
        for r in 0..R {
            rows[r] = &x[r * width..r * width + self.size];
        }
        let mut output = 0;
        while output + OUTPUTS <= self.outputs {
            self.tile::<S, R, OUTPUTS>(simd, rows, row, output);
            output += OUTPUTS;
        }
        while output < self.outputs {
            self.tile::<S, R, 1>(simd, rows, row, output);
            output += 1;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const O: usize>(
        &mut self,
        simd: S,
        x: [Activations; R],
        row: usize,
        output: usize,
    ) {
        let mut partial = [[simd.splat(0.0); R]; O];
        let mut weights: [Activations; O] = [&[]; O];
        for o in 0..O {
            let index = output + o;
            weights[o] = &self.weights.vectors()[index * self.size..(index + 1) * self.size];
            for r in 0..R {
                partial[o][r] = simd.load(&self.partial.vectors()[(row + r) * DEEP + index]);
            }
        }
        add(simd, weights, x, self.size, &mut partial);
        for o in 0..O {
            for r in 0..R {
                simd.store(
                    partial[o][r],
                    &mut self.partial.vectors_mut()[(row + r) * DEEP + output + o],
                );
            }
        }
    }
}
