//! Experts: who works on a row, and the sum of what they say.

use super::launch::Launch;
use super::operand::Region;
use super::unit::{Unit, int};
use super::{CudaError, Kernels, Stream};
use crate::error::{self, ShapeError};

/// Experts among which a row can choose.
const MOST: usize = 256;

impl Kernels {
    /// [`crate::router::route`] as a table: `logits` and `weights` are `f32`, rows x experts, and the
    /// weight of an expert that a row is not sent to is 0.
    #[expect(clippy::too_many_arguments, reason = "as the reference")]
    pub fn route(
        &self,
        stream: Stream,
        logits: Region,
        rows: usize,
        experts: usize,
        top: usize,
        renormalise: bool,
        weights: Region,
    ) -> Result<(), CudaError> {
        if top == 0 || top > experts {
            let what = "the number of experts a row is sent to";
            return Err(ShapeError::Rule { what, found: top, rule: "from 1 to all experts" }.into());
        }
        if experts > MOST {
            let what = "the number of experts";
            return Err(ShapeError::Rule { what, found: experts, rule: "at most 256" }.into());
        }
        logits.holds("the logits", &[rows, experts], 4)?;
        weights.holds("the weights", &[rows, experts], 4)?;
        let grid = [rows.div_ceil(8), 1, 1];
        let launch = Launch { unit: Unit::Router, name: "route", grid, threads: 256 };
        let arguments = [
            logits.address(),
            int("the rows", rows)?,
            int("the experts", experts)?,
            int("the chosen experts", top)?,
            u64::from(renormalise),
            weights.address(),
        ];
        self.launch(stream, launch, &arguments)
    }

    /// Adds an expert's rows: `out += weight * x`, both fp16, rows x width, where `weight` is the number
    /// of the row and `expert` in the `weights` of [`Kernels::route`]. A row of weight 0 is left as it
    /// is, whatever `x` holds there. With `first`, `out` is written instead of added to, and such a row
    /// becomes 0.
    #[expect(clippy::too_many_arguments, reason = "each is a size of its own")]
    pub fn add_expert(
        &self,
        stream: Stream,
        weights: Region,
        experts: usize,
        expert: usize,
        x: Region,
        rows: usize,
        width: usize,
        first: bool,
        out: Region,
    ) -> Result<(), CudaError> {
        error::index("the expert", expert, experts)?;
        weights.holds("the weights", &[rows, experts], 4)?;
        x.holds("x", &[rows, width], 2)?;
        out.holds("out", &[rows, width], 2)?;
        let grid = [rows, width.div_ceil(256), 1];
        let launch = Launch { unit: Unit::Router, name: "add_expert", grid, threads: 256 };
        let arguments = [
            weights.address(),
            int("the experts", experts)?,
            int("the expert", expert)?,
            x.address(),
            int("the width", width)?,
            u64::from(first),
            out.address(),
        ];
        self.launch(stream, launch, &arguments)
    }
}
