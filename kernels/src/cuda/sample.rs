//! The most likely token.

use super::launch::Launch;
use super::operand::Region;
use super::unit::{Unit, int};
use super::{CudaError, Kernels, Stream};
use crate::error::ShapeError;

impl Kernels {
    /// What [`Kernels::argmax`] writes for a row that holds a number that is not finite.
    pub const NOT_FINITE: u32 = u32::MAX;

    /// [`crate::sample::greedy`] of every row: `logits` are `f32`, rows x vocabulary, `out` is one `u32`
    /// a row, the lowest index of the largest, or [`Kernels::NOT_FINITE`].
    pub fn argmax(
        &self,
        stream: Stream,
        logits: Region,
        rows: usize,
        vocabulary: usize,
        out: Region,
    ) -> Result<(), CudaError> {
        if vocabulary == 0 {
            let what = "the vocabulary";
            return Err(ShapeError::Rule { what, found: 0, rule: "at least 1" }.into());
        }
        logits.holds("the logits", &[rows, vocabulary], 4)?;
        out.holds("out", &[rows], 4)?;
        let launch =
            Launch { unit: Unit::Sample, name: "argmax", grid: [rows, 1, 1], threads: 1024 };
        let arguments = [logits.address(), int("the vocabulary", vocabulary)?, out.address()];
        self.launch(stream, launch, &arguments)
    }
}
