//! Tokens and positions to rows, and stored numbers to fp16.

use std::ops::Range;

use super::launch::Launch;
use super::operand::{DeviceMatrix, Region};
use super::unit::{Unit, code, int};
use super::{CudaError, Kernels, Stream};
use crate::error;
use crate::format::{Format, Layout};

impl Kernels {
    /// Writes the row of each token: `tokens` are `count` `u32`, `out` is fp16, count x the table's
    /// inputs. A token that the table does not have becomes a row of NaN, which [`Kernels::argmax`]
    /// reports.
    pub fn embed(
        &self,
        stream: Stream,
        tokens: Region,
        count: usize,
        table: &DeviceMatrix,
        out: Region,
    ) -> Result<(), CudaError> {
        let layout = table.layout();
        tokens.holds("the tokens", &[count], 4)?;
        out.holds("out", &[count, layout.inputs], 2)?;
        let grid = [count, layout.inputs.div_ceil(256), 1];
        let launch = Launch { unit: Unit::Embedding, name: "embed", grid, threads: 256 };
        let arguments = [
            tokens.address(),
            code(layout.format),
            table.region().address(),
            table.scales(),
            int("the vocabulary", layout.outputs)?,
            int("the width", layout.inputs)?,
            out.address(),
        ];
        self.launch(stream, launch, &arguments)
    }

    /// Adds a learned position to each row of `x`, fp16, sequences x positions x the table's inputs:
    /// position `p` of every sequence gets the table's row `first_position + offset + p`.
    #[expect(clippy::too_many_arguments, reason = "each is a size of its own")]
    pub fn add_positions(
        &self,
        stream: Stream,
        table: &DeviceMatrix,
        first_position: usize,
        offset: usize,
        sequences: usize,
        positions: usize,
        x: Region,
    ) -> Result<(), CudaError> {
        let layout = table.layout();
        x.holds("x", &[sequences, positions, layout.inputs], 2)?;
        if sequences == 0 || positions == 0 {
            return Ok(());
        }
        let start = first_position.saturating_add(offset);
        error::index("the position", start.saturating_add(positions - 1), layout.outputs)?;
        let rows = error::product("the rows", &[sequences, positions])?;
        let grid = [rows, layout.inputs.div_ceil(256), 1];
        let launch = Launch { unit: Unit::Embedding, name: "add_positions", grid, threads: 256 };
        let arguments = [
            code(layout.format),
            table.region().address(),
            table.scales(),
            int("the width", layout.inputs)?,
            int("the position", start)?,
            int("the positions", positions)?,
            x.address(),
        ];
        self.launch(stream, launch, &arguments)
    }

    /// Writes a matrix as fp16, outputs x inputs, to the start of `out`, and returns that.
    pub fn dequantise(
        &self,
        stream: Stream,
        matrix: &DeviceMatrix,
        out: Region,
    ) -> Result<DeviceMatrix, CudaError> {
        let &Layout { outputs, inputs, .. } = matrix.layout();
        self.dequantise_rows(stream, matrix, 0..outputs, out)?;
        let bytes = Layout::new(Format::Fp16, outputs, inputs)?.bytes() as u64;
        let decoded = DeviceMatrix::new(Format::Fp16, outputs, inputs, out.slice(0, bytes)?)?;
        Ok(decoded.made_by_kernel())
    }

    /// Writes some rows of a matrix as fp16.
    pub(super) fn dequantise_rows(
        &self,
        stream: Stream,
        matrix: &DeviceMatrix,
        rows: Range<usize>,
        out: Region,
    ) -> Result<(), CudaError> {
        let layout = matrix.layout();
        out.holds("out", &[rows.len(), layout.inputs], 2)?;
        let aligned = matrix.region().aligned()
            && out.aligned()
            && layout.inputs.is_multiple_of(8)
            && layout.weights_row.is_multiple_of(16);
        // Stored bytes of a thread.
        let each = if matches!(layout.format, Format::Int8 | Format::Int4) { 8 } else { 16 };
        let vectors =
            error::product("the matrix", &[rows.len(), layout.weights_row.div_ceil(each)])?;
        let launch = Launch {
            unit: Unit::Dequantise,
            name: "dequantise",
            grid: [vectors.div_ceil(256), 1, 1],
            threads: 256,
        };
        let arguments = [
            code(layout.format),
            matrix.region().address() + layout.weights(rows.clone()).start as u64,
            matrix.region().address() + layout.scales(rows.clone()).start as u64,
            int("the rows", rows.len())?,
            int("the inputs", layout.inputs)?,
            out.address(),
            u64::from(aligned),
        ];
        self.launch(stream, launch, &arguments)
    }
}
