//! Attention beside the device: queries and new rows go down, what was attended comes back.

use pipo_kernels::{Format, Matrix};

use super::{CpuBackend, fault, half, length};
use crate::decoder::Projected;
use crate::executor::{Fault, Task};

/// What is on its way between the pieces of an attention, one entry a sequence of the micro-batch.
#[derive(Debug, Default)]
pub(super) struct Crossing {
    /// On the device: before it goes down.
    pub(super) projected: Vec<Projected>,
    /// In host memory.
    queries: Vec<Vec<f32>>,
    /// In host memory.
    attended: Vec<Vec<f32>>,
    /// On the device again.
    pub(super) arrived: Vec<Vec<f32>>,
}

impl CpuBackend<'_> {
    /// Queries and new rows of every sequence to host memory; the rows to where the cache stays.
    pub(super) fn save_queries(&self, task: &Task) -> Result<(), Fault> {
        let mut crossing = self.crossing(task)?;
        let mut home = self.home(task)?.write()?;
        let shape = self.shape(home.len());
        let at = self.before(task) * shape.row;
        let projected = std::mem::take(&mut crossing.projected);
        let mut moved = 0;
        crossing.queries.clear();
        let planes = home.chunks_exact_mut(2 * shape.plane().max(1));
        for (projected, home) in projected.into_iter().zip(planes) {
            let (keys, values) = home.split_at_mut(shape.plane());
            for (rows, plane) in [(&projected.keys, keys), (&projected.values, values)] {
                let place = plane.get_mut(at..at + 2 * rows.len());
                half::store(rows, place.ok_or_else(|| fault("a cache is too short"))?);
                moved += 2 * rows.len();
            }
            moved += 2 * projected.queries.len();
            crossing.queries.push(projected.queries);
        }
        if moved == length(task.work.bytes())? {
            return Ok(());
        }
        Err(fault("queries and rows are not the bytes that the schedule moves"))
    }

    /// Attention over the cache in host memory.
    pub(super) fn attend_beside(&self, task: &Task) -> Result<(), Fault> {
        let mut crossing = self.crossing(task)?;
        let home = self.home(task)?.read()?;
        let shape = self.shape(home.len());
        let first = self.before(task);
        let planes = home.chunks_exact(2 * shape.plane().max(1));
        let attend = |(queries, home): (&Vec<f32>, &[u8])| {
            let (keys, values) = home.split_at(shape.plane());
            let matrix = |bytes| Matrix::new(Format::Fp16, shape.context, shape.row / 2, bytes);
            let (keys, values) = (matrix(keys)?, matrix(values)?);
            let mut out = self.decoder.attend(queries, first, &keys, &values)?;
            half::round(&mut out);
            Ok(out)
        };
        let attended: Vec<_> =
            crossing.queries.iter().zip(planes).map(attend).collect::<Result<_, Fault>>()?;
        crossing.attended = attended;
        Ok(())
    }

    /// What was attended, into the device.
    pub(super) fn load_attended(&self, task: &Task) -> Result<(), Fault> {
        let mut crossing = self.crossing(task)?;
        let Crossing { attended, arrived, .. } = &mut *crossing;
        arrived.clone_from(attended);
        Ok(())
    }

    pub(super) fn crossing(
        &self,
        task: &Task,
    ) -> Result<std::sync::MutexGuard<'_, Crossing>, Fault> {
        let crossing = self.crossings.get(usize::from(task.op.micro));
        let crossing = crossing.ok_or_else(|| fault("a micro-batch is not there"))?;
        Ok(crossing.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
