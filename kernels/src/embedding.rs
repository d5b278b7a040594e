//! Tokens and positions to vectors.

use crate::error::{self, ShapeError};
use crate::format::{Matrix, dequantise_row};

/// OPT's table of positions starts with two rows that belong to no position.
pub const OPT_POSITION_OFFSET: usize = 2;

/// Writes the row of each token: `out` is tokens x the table's inputs.
pub fn lookup(table: &Matrix, tokens: &[u32], out: &mut [f32]) -> Result<(), ShapeError> {
    let width = table.inputs();
    error::length("out", out.len(), error::product("out", &[tokens.len(), width])?)?;
    // All checked before any is written.
    for &token in tokens {
        error::index("the token", row(token), table.outputs())?;
    }
    if width > 0 {
        for (&token, out) in tokens.iter().zip(out.chunks_exact_mut(width)) {
            dequantise_row(table, row(token), out)?;
        }
    }
    Ok(())
}

/// Adds a learned position to each row of `x`: row `r` is at position `first + r`, and its row of the
/// table is `offset` further on.
pub fn add_positions(
    table: &Matrix,
    first: usize,
    offset: usize,
    x: &mut [f32],
) -> Result<(), ShapeError> {
    let width = table.inputs();
    if width == 0 {
        return error::length("x", x.len(), 0);
    }
    let rows = x.len() / width;
    error::length("x", x.len(), rows * width)?;
    let start = first.saturating_add(offset);
    if rows > 0 {
        error::index("the position", start.saturating_add(rows - 1), table.outputs())?;
    }
    let mut position = vec![0.0; width];
    for (row, x) in x.chunks_exact_mut(width).enumerate() {
        dequantise_row(table, start + row, &mut position)?;
        for (x, position) in x.iter_mut().zip(&position) {
            *x += position;
        }
    }
    Ok(())
}

/// A row beyond what can be addressed is beyond the end of every table.
fn row(token: u32) -> usize {
    usize::try_from(token).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::{OPT_POSITION_OFFSET, add_positions, lookup};
    use crate::format::quantise;
    use crate::{Format, Matrix};

    #[test]
    fn rows_are_those_of_the_table() {
        let values: Vec<f32> = (0_u8..12).map(f32::from).collect();
        let (bytes, _) = quantise(Format::Fp16, &values, 4, 3).unwrap();
        let table = Matrix::new(Format::Fp16, 4, 3, &bytes).unwrap();
        let mut out = [0.0; 6];
        lookup(&table, &[3, 1], &mut out).unwrap();
        assert_eq!(out.map(f32::to_bits), [9_f32, 10., 11., 3., 4., 5.].map(f32::to_bits));
        add_positions(&table, 0, OPT_POSITION_OFFSET, &mut out).unwrap();
        assert_eq!(out.map(f32::to_bits), [15_f32, 17., 19., 12., 14., 16.].map(f32::to_bits));
        assert!(lookup(&table, &[4], &mut out[..3]).is_err());
        assert!(lookup(&table, &[0], &mut out[..2]).is_err());
        assert!(add_positions(&table, 1, OPT_POSITION_OFFSET, &mut out).is_err());
        assert!(add_positions(&table, usize::MAX, 2, &mut out).is_err());
    }
}
