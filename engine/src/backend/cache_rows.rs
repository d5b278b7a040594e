//! How the rows of a cache lie.
//!
//! A buffer or slot for one layer and micro-batch holds, sequence by sequence, a plane of all keys and
//! then one of all values. Each head of a position is a row of a plane, which is stored as a matrix of the
//! plan's precision is: its weights, and behind those of all rows the scales, where there are any.

use std::ops::Range;

use pipo_kernels::format::{Layout, matrix_bytes};
use pipo_plan::plan::Plan;

use super::fault;
use crate::decoder::format;
use crate::executor::Fault;
use crate::store::in_memory;

/// How rows lie in a buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// All keys of one sequence, or all values.
    pub(crate) plane: Layout,
    pub(crate) kv_heads: usize,
}

impl Shape {
    /// Of a buffer of so many bytes: where attention is not on the device, a slot has room for the prompt
    /// alone.
    pub(crate) fn new(plan: &Plan, buffer: usize) -> Result<Self, Fault> {
        let model = &plan.model;
        let format = format(plan.precision.kv);
        let row =
            matrix_bytes(format, u64::from(model.kv_heads), model.head_dim).unwrap_or(u64::MAX);
        let sequences = in_memory(plan.batch.micro);
        let each = in_memory(row).saturating_mul(2).saturating_mul(sequences).max(1);
        let kv_heads = model.kv_heads as usize;
        let plane = Layout::new(format, buffer / each * kv_heads, in_memory(model.head_dim))?;
        Ok(Self { plane, kv_heads })
    }

    /// Bytes of one sequence's keys, or values.
    pub(crate) fn plane(self) -> usize {
        self.plane.bytes().max(1)
    }

    /// Where the rows of some positions lie in a plane: their weights, and their scales.
    pub(crate) fn places(self, positions: Range<usize>) -> [Range<usize>; 2] {
        let rows = positions.start * self.kv_heads..positions.end * self.kv_heads;
        [self.plane.weights(rows.clone()), self.plane.scales(rows)]
    }
}

pub(crate) fn outside() -> Fault {
    fault("the rows of a cache lie outside it")
}
