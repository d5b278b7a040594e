//! The cache: rows of keys and values in 16 bits, on the device or on their way.
//!
//! A buffer or slot for one layer and micro-batch holds, sequence by sequence, room for all keys and then
//! room for all values, each one row a position.

use std::ops::Range;

use super::{CpuBackend, fault, length};
use crate::executor::{Fault, Task};
use crate::memory::Buffer;
use crate::store::in_memory;

/// How rows lie in a buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Bytes of one position's keys, or values.
    pub(super) row: usize,
    /// Positions that there is room for.
    pub(super) context: usize,
}

impl Shape {
    /// Bytes of one sequence's keys, or values.
    pub(super) fn plane(self) -> usize {
        self.row * self.context
    }
}

impl CpuBackend<'_> {
    /// How rows lie in a buffer of so many bytes: where attention is not on the device, a slot has room
    /// for the prompt alone.
    pub(super) fn shape(&self, buffer: usize) -> Shape {
        let model = self.decoder.model();
        let row = in_memory(2 * u64::from(model.kv_heads) * model.head_dim).max(1);
        let sequences = in_memory(self.frame.plan.batch.micro).max(1);
        Shape { row, context: buffer / (2 * sequences * row) }
    }

    /// Where the cache of a task's layer and micro-batch stays.
    pub(super) fn home(&self, task: &Task) -> Result<&Buffer, Fault> {
        let layer = self.cache.get(self.unit(task)?.layer);
        let home = layer.and_then(|micros| micros.get(usize::from(task.op.micro)));
        home.ok_or_else(|| fault("a cache is not there"))
    }

    /// Everything before this pass, from host memory to the device.
    pub(super) fn load_cache(&self, task: &Task) -> Result<(), Fault> {
        let home = self.home(task)?.read()?;
        let mut slot = self.slot(task)?.write()?;
        self.copy(task, &home, &mut slot, 0..self.before(task))
    }

    /// The rows of this pass, from the device to host memory; with them the queries, where attention is
    /// not on the device.
    pub(super) fn save_cache(&self, task: &Task) -> Result<(), Fault> {
        if task.bound.cache.is_none() {
            return self.save_queries(task);
        }
        let slot = self.slot(task)?.read()?;
        let mut home = self.home(task)?.write()?;
        let before = self.before(task);
        let new = if task.pass == 0 { self.prompt() } else { 1 };
        self.copy(task, &slot, &mut home, before..before + new)
    }

    /// Positions that precede a pass.
    pub(super) fn before(&self, task: &Task) -> usize {
        if task.pass == 0 { 0 } else { self.prompt() + task.pass as usize - 1 }
    }

    pub(super) fn prompt(&self) -> usize {
        in_memory(self.frame.plan.workload.prompt)
    }

    fn slot(&self, task: &Task) -> Result<&Buffer, Fault> {
        let slot = task.bound.cache.ok_or_else(|| fault("a cache has no slot"))?;
        self.rings.slot(slot)
    }

    /// Copies some positions of every sequence, and checks that they are the bytes the schedule moves.
    fn copy(
        &self,
        task: &Task,
        from: &[u8],
        to: &mut [u8],
        positions: Range<usize>,
    ) -> Result<(), Fault> {
        let (source, target) = (self.shape(from.len()), self.shape(to.len()));
        let rows = positions.start * source.row..positions.end * source.row;
        let mut copied = 0;
        let planes = from
            .chunks_exact(source.plane().max(1))
            .zip(to.chunks_exact_mut(target.plane().max(1)));
        for (from, to) in planes {
            let (Some(from), Some(to)) = (from.get(rows.clone()), to.get_mut(rows.clone())) else {
                return Err(fault("the rows of a cache lie outside it"));
            };
            to.copy_from_slice(from);
            copied += rows.len();
        }
        if copied == length(task.work.bytes())? {
            return Ok(());
        }
        Err(fault("the rows of a cache are not the bytes that the schedule moves"))
    }
}
