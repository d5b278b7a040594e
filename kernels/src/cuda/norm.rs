//! Norms and rotation of rows.

use super::launch::Launch;
use super::operand::{DeviceVector, Region};
use super::unit::{Unit, int};
use super::{CudaError, Kernels, Stream};
use crate::attention::Heads;
use crate::error::{self, ShapeError};

/// Widths up to which a warp has a row of its own.
const NARROW: usize = 512;

/// New rows of q and k between their products and the attention.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// fp16, sequences x positions x query heads x head dimension.
    pub q: Region,
    /// fp16, sequences x positions x kv heads x head dimension.
    pub k: Region,
    /// Sequences.
    pub sequences: usize,
    /// Rows of every sequence.
    pub positions: usize,
    /// The position of the first row of every sequence.
    pub first_position: usize,
    /// The heads; their dimension is even.
    pub heads: &'a Heads,
    /// The weight of the norm of each head of q, where there is one.
    pub q_norm: Option<&'a DeviceVector>,
    /// The same of k.
    pub k_norm: Option<&'a DeviceVector>,
    /// What the norms add under the root.
    pub epsilon: f32,
    /// [`crate::rotary::Rotary::frequencies`], half as many floats as a head has dimensions; none where
    /// there is no rotation.
    pub frequencies: Option<Region>,
}

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

    /// Norms and turns the heads of new rows of q and k in place, as [`crate::norm::rms_norm`] and then
    /// [`crate::rotary::Rotary::apply`] do.
    pub fn turn(&self, stream: Stream, turn: &Turn) -> Result<(), CudaError> {
        let Turn { q, k, sequences, positions, heads, first_position, .. } = *turn;
        let (dim, widest) = (heads.dim, super::unit::WIDEST);
        if dim == 0 || dim > widest || !dim.is_multiple_of(2) {
            let what = "the head dimension";
            return Err(ShapeError::Rule { what, found: dim, rule: "even, from 2 to 256" }.into());
        }
        let rows = error::product("the rows", &[sequences, positions])?;
        let first = int("the first position", first_position)?;
        int("the last position", first_position.saturating_add(positions))?;
        if let Some(frequencies) = turn.frequencies {
            frequencies.holds("the frequencies", &[dim / 2], 4)?;
        }
        let mut arguments = vec![
            turn.frequencies.map_or(0, |frequencies| frequencies.address()),
            int("the rows", rows)?,
            int("the positions", positions)?,
            int("the head dimension", dim)?,
            first,
            u64::from(turn.epsilon.to_bits()),
        ];
        for (what, x, heads, norm) in
            [("q", q, heads.query, turn.q_norm), ("k", k, heads.kv, turn.k_norm)]
        {
            x.holds(what, &[rows, heads, dim], 2)?;
            int("the heads", heads)?;
            if let Some(norm) = norm {
                error::length("the norm of a head", norm.length(), dim)?;
            }
            arguments.extend([
                x.address(),
                norm.map_or(0, |norm| norm.region().address()),
                norm.map_or(0, DeviceVector::kind),
                heads as u64,
            ]);
        }
        // A block has 16 heads of a row.
        let grid = [rows, heads.query.max(heads.kv).div_ceil(16), 2];
        let launch = Launch { unit: Unit::Rotary, name: "turn", grid, threads: 128 };
        self.launch(stream, launch, &arguments)
    }
}
