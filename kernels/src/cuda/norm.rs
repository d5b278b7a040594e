//! Norms and rotation of rows.

use super::launch::Launch;
use super::operand::{DeviceVector, Region};
use super::unit::{Unit, int};
use super::{CudaError, Kernels, Stream};
use crate::error::{self, ShapeError};

/// Widths up to which a warp has a row of its own.
const NARROW: usize = 512;

impl Kernels {
    /// [`crate::norm::layer_norm`] of fp16 rows as long as `weight`. `out` may be `x`.
    #[expect(clippy::too_many_arguments, reason = "as the reference")]
    pub fn layer_norm(
        &self,
        stream: Stream,
        x: Region,
        rows: usize,
        weight: &DeviceVector,
        bias: &DeviceVector,
        epsilon: f32,
        out: Region,
    ) -> Result<(), CudaError> {
        error::length("the bias", bias.length(), weight.length())?;
        self.norm(stream, ["layer_norm", "layer_norm_narrow"], x, rows, weight, bias, epsilon, out)
    }

    /// [`crate::norm::rms_norm`] of fp16 rows as long as `weight`: a head's norm has rows x heads rows.
    /// `out` may be `x`.
    pub fn rms_norm(
        &self,
        stream: Stream,
        x: Region,
        rows: usize,
        weight: &DeviceVector,
        epsilon: f32,
        out: Region,
    ) -> Result<(), CudaError> {
        self.norm(stream, ["rms_norm", "rms_norm_narrow"], x, rows, weight, weight, epsilon, out)
    }

    #[expect(clippy::too_many_arguments, reason = "as its callers")]
    fn norm(
        &self,
        stream: Stream,
        [wide, narrow]: [&'static str; 2],
        x: Region,
        rows: usize,
        weight: &DeviceVector,
        bias: &DeviceVector,
        epsilon: f32,
        out: Region,
    ) -> Result<(), CudaError> {
        let width = weight.length();
        if width == 0 {
            let what = "the width";
            return Err(ShapeError::Rule { what, found: 0, rule: "at least 1" }.into());
        }
        x.holds("x", &[rows, width], 2)?;
        out.holds("out", &[rows, width], 2)?;
        let (name, blocks) =
            if width <= NARROW { (narrow, rows.div_ceil(8)) } else { (wide, rows) };
        let launch = Launch { unit: Unit::Norm, name, grid: [blocks, 1, 1], threads: 256 };
        let aligned = x.aligned() && out.aligned() && width.is_multiple_of(8);
        let arguments = [
            x.address(),
            weight.region().address(),
            weight.kind(),
            bias.region().address(),
            bias.kind(),
            u64::from(epsilon.to_bits()),
            out.address(),
            int("the rows", rows)?,
            int("the width", width)?,
            u64::from(aligned),
        ];
        self.launch(stream, launch, &arguments)
    }

    /// Turns heads in place as [`crate::rotary::Rotary::apply`] does: `x` is fp16, sequences x positions
    /// x heads x head dimension, `frequencies` are `head_dim / 2` floats, those of
    /// [`crate::rotary::Rotary::frequencies`].
    #[expect(clippy::too_many_arguments, reason = "each is a size of its own")]
    pub fn rotate(
        &self,
        stream: Stream,
        x: Region,
        sequences: usize,
        positions: usize,
        heads: usize,
        head_dim: usize,
        first_position: usize,
        frequencies: Region,
    ) -> Result<(), CudaError> {
        if !head_dim.is_multiple_of(2) {
            let what = "the head dimension";
            return Err(ShapeError::Rule { what, found: head_dim, rule: "even" }.into());
        }
        x.holds("x", &[sequences, positions, heads, head_dim], 2)?;
        frequencies.holds("the frequencies", &[head_dim / 2], 4)?;
        let rows = error::product("the rows", &[sequences, positions])?;
        let last = first_position.saturating_add(positions);
        int("the last position", last)?;
        let pairs = error::product("the pairs", &[heads, head_dim / 2])?;
        let grid = [rows, pairs.div_ceil(256), 1];
        let launch = Launch { unit: Unit::Rotary, name: "rotate", grid, threads: 256 };
        let arguments = [
            x.address(),
            frequencies.address(),
            int("the positions", positions)?,
            int("the heads", heads)?,
            int("the head dimension", head_dim)?,
            int("the first position", first_position)?,
        ];
        self.launch(stream, launch, &arguments)
    }
}
