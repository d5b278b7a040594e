//! The cache: rows of keys and values in 16 bits, on the device or on their way.
//!
//! A buffer or slot for one layer and micro-batch holds, sequence by sequence, room for all keys and then
//! room for all values, each one row a position.

use std::ops::Range;

use pipo_kernels::{Format, Matrix};

use super::{CpuBackend, fault, half, length};
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

/// Writes new rows of every sequence where they belong in a buffer, and says how many bytes they were.
pub(super) fn write(
    shape: Shape,
    buffer: &mut [u8],
    positions: Range<usize>,
    keys: &[f32],
    values: &[f32],
) -> Result<usize, Fault> {
    let place = shape.row * positions.start..shape.row * positions.end;
    // Two bytes a number.
    let each = (shape.row / 2 * positions.len()).max(1);
    let sequences = buffer.chunks_exact_mut(2 * shape.plane().max(1));
    for ((keys, values), buffer) in keys.chunks(each).zip(values.chunks(each)).zip(sequences) {
        let (key_plane, value_plane) = buffer.split_at_mut(shape.plane());
        for (rows, plane) in [(keys, key_plane), (values, value_plane)] {
            let place = plane.get_mut(place.clone()).filter(|place| place.len() == 2 * rows.len());
            half::store(rows, place.ok_or_else(|| fault("new rows do not fit into their cache"))?);
        }
    }
    Ok(2 * (keys.len() + values.len()))
}

impl CpuBackend<'_> {
    /// Attention of rows from position `first` on, of every sequence over its part of a buffer.
    pub(super) fn attend(
        &self,
        queries: &[f32],
        buffer: &[u8],
        first: usize,
    ) -> Result<Vec<f32>, Fault> {
        let shape = self.shape(buffer.len());
        let sequences = in_memory(self.frame.plan.batch.micro).max(1);
        let each = (queries.len() / sequences).max(1);
        let mut attended = Vec::with_capacity(queries.len());
        let buffers = buffer.chunks_exact(2 * shape.plane().max(1));
        for (queries, buffer) in queries.chunks(each).zip(buffers) {
            let (keys, values) = buffer.split_at(shape.plane());
            let matrix = |bytes| Matrix::new(Format::Fp16, shape.context, shape.row / 2, bytes);
            let (keys, values) = (matrix(keys)?, matrix(values)?);
            attended.extend(self.decoder.attend(queries, first, &keys, &values)?);
        }
        half::round(&mut attended);
        Ok(attended)
    }

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
