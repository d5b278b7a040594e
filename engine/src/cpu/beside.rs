//! Attention beside the device: queries and new rows go down, what was attended comes back.

use super::CpuBackend;
use crate::backend::{fault, fetched, moved};
use crate::decoder::Projected;
use crate::executor::{Fault, Task};

/// What is on its way between the pieces of an attention: rows of all sequences of the micro-batch.
#[derive(Debug, Default)]
pub(super) struct Crossing {
    /// On the device: before it goes down.
    pub(super) projected: Projected,
    /// In host memory.
    queries: Vec<f32>,
    /// In host memory, from where the second half fetches it.
    attended: Vec<f32>,
}

impl Crossing {
    /// What the second half goes on from.
    pub(super) fn attended(&self, task: &Task) -> Result<&[f32], Fault> {
        fetched(task, 2 * self.attended.len())?;
        Ok(&self.attended)
    }
}

impl CpuBackend<'_> {
    /// Queries and new rows of every sequence to host memory; the rows to where the cache stays.
    pub(super) fn save_queries(&self, task: &Task) -> Result<(), Fault> {
        let mut crossing = self.crossing(task)?;
        let mut home = self.home(task)?.write()?;
        let shape = self.host.shape(home.len())?;
        let Projected { queries, keys, values, .. } = std::mem::take(&mut crossing.projected);
        let first = self.host.before(task);
        let written = shape.write(&mut home, first..first + 1, &keys, &values)?;
        let bytes = written + 2 * queries.len();
        crossing.queries = queries;
        moved(task, bytes)
    }

    /// Attention over the cache in host memory.
    pub(super) fn attend_beside(&self, task: &Task) -> Result<(), Fault> {
        let mut crossing = self.crossing(task)?;
        let home = self.home(task)?.read()?;
        let before = self.host.before(task);
        crossing.attended = self.host.attend(&self.decoder, &crossing.queries, &home, before)?;
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
