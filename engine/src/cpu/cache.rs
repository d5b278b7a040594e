//! The cache: rows of keys and values, on the device or on their way.

use std::ops::Range;

use pipo_kernels::format::{Format, quantise_rows};

use super::CpuBackend;
use crate::backend::cache_rows::{Shape, outside};
use crate::backend::{Host, fault, length, moved};
use crate::executor::{Fault, Task};
use crate::half;
use crate::memory::Buffer;

impl Shape {
    /// Writes new rows of every sequence where they belong, and says how many bytes they were.
    pub(super) fn write(
        self,
        buffer: &mut [u8],
        positions: Range<usize>,
        keys: &[f32],
        values: &[f32],
    ) -> Result<usize, Fault> {
        let each = (positions.len() * self.kv_heads * self.plane.inputs).max(1);
        let sequences = buffer.chunks_exact_mut(2 * self.plane());
        let mut written = 0;
        for ((keys, values), buffer) in keys.chunks(each).zip(values.chunks(each)).zip(sequences) {
            let (of_keys, of_values) = buffer.split_at_mut(self.plane());
            for (rows, plane) in [(keys, of_keys), (values, of_values)] {
                written += self.write_rows(plane, positions.clone(), rows)?;
            }
        }
        Ok(written)
    }

    fn write_rows(
        self,
        plane: &mut [u8],
        positions: Range<usize>,
        rows: &[f32],
    ) -> Result<usize, Fault> {
        let [weights, scales] = self.places(positions);
        let (all_weights, all_scales) =
            plane.split_at_mut(self.plane.weights(0..self.plane.outputs).end);
        let scales = scales.start - all_weights.len()..scales.end - all_weights.len();
        let weights = all_weights.get_mut(weights).ok_or_else(outside)?;
        let scales = all_scales.get_mut(scales).ok_or_else(outside)?;
        if self.plane.format == Format::Fp16 {
            half::store(rows, weights);
        } else {
            quantise_rows(&self.plane, rows, weights, scales)?;
        }
        Ok(weights.len() + scales.len())
    }
}

impl CpuBackend<'_> {
    /// Where the cache of a task's layer and micro-batch stays in memory.
    pub(super) fn home(&self, task: &Task) -> Result<&Buffer, Fault> {
        let layer = self.cache.get(self.host.unit(task)?.layer);
        let home = layer.and_then(|micros| micros.get(usize::from(task.op.micro)));
        home.ok_or_else(|| fault("a cache is not there"))
    }

    /// Everything before this pass, from host memory to the device.
    pub(super) fn load_cache(&self, task: &Task) -> Result<(), Fault> {
        let home = match task.bound.host {
            Some(slot) => self.host.rings.slot(slot)?,
            None => self.home(task)?,
        };
        let (mut slot, before) = (self.slot(task)?.write()?, 0..self.host.before(task));
        copy(&self.host, task, (&home.read()?, before.clone()), (&mut slot, before))
    }

    /// The rows of this pass, from the device to host memory; with them the queries, where attention is
    /// not on the device.
    pub(super) fn save_cache(&self, task: &Task) -> Result<(), Fault> {
        if task.bound.cache.is_none() {
            return self.save_queries(task);
        }
        let (slot, new) = (self.slot(task)?.read()?, self.host.new_positions(task));
        if let Some(rows) = task.bound.host {
            // Towards the disk: as in a cache that has room for them alone.
            let mut rows = self.host.rings.slot(rows)?.write()?;
            let rows = rows.get_mut(..length(task.work.bytes())?).ok_or_else(outside)?;
            let places = 0..new.len();
            return copy(&self.host, task, (&slot, new), (rows, places));
        }
        let mut home = self.home(task)?.write()?;
        copy(&self.host, task, (&slot, new.clone()), (&mut home, new))
    }

    pub(super) fn slot(&self, task: &Task) -> Result<&Buffer, Fault> {
        let slot = task.bound.cache.ok_or_else(|| fault("a cache has no slot"))?;
        self.host.rings.slot(slot)
    }
}

/// Copies some positions of every sequence, and checks that they are the bytes the schedule moves.
fn copy(
    host: &Host,
    task: &Task,
    (from, here): (&[u8], Range<usize>),
    (to, there): (&mut [u8], Range<usize>),
) -> Result<(), Fault> {
    let (source, target) = (host.shape(from.len())?, host.shape(to.len())?);
    let mut copied = 0;
    let planes = from.chunks_exact(source.plane()).zip(to.chunks_exact_mut(target.plane()));
    for (from, to) in planes {
        let places = source.places(here.clone()).into_iter();
        for (source, target) in places.zip(target.places(there.clone())) {
            let to = to.get_mut(target).ok_or_else(outside)?;
            to.copy_from_slice(from.get(source).ok_or_else(outside)?);
            copied += to.len();
        }
    }
    moved(task, copied)
}
