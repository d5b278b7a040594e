//! Hidden states: in 16 bits, for each micro-batch sequence by sequence, position by position.
//!
//! They stay on the device, or in host memory and are on the device for one unit at a time. In decode only
//! the first row of each sequence's room is used.

use std::ops::Range;
use std::sync::{MutexGuard, PoisonError};

use pipo_plan::model::Part;
use pipo_plan::schedule::Tier;

use super::CpuBackend;
use crate::backend::sequence::tokens;
use crate::backend::unit::Weights;
use crate::backend::{Rows, fault, moved};
use crate::executor::{Fault, Task};
use crate::half;
use crate::memory::Buffer;
use crate::store::in_memory;

impl CpuBackend<'_> {
    /// Embeds the rows of a pass in host memory.
    pub(super) fn gather(&self, task: &Task) -> Result<(), Fault> {
        let unit = self.host.unit(task)?;
        let table = unit.kept(Tier::Pageable).ok_or_else(|| fault("there is no embedding"))?;
        let table = table.read()?;
        // In host memory it lies as it would in a slot.
        let weights = Weights { slot: Some(&table[..]), kept: None, embedding: None };
        let run = unit.run(Part::Embedding, &weights)?;
        let rows = self.host.all_rows(task);
        let tokens = tokens(&self.host.sequences(task.op.micro)?, rows)?;
        let embedded = self.decoder.embed_all(&run, &tokens, rows.positions())?;
        if self.hidden_in_host {
            return self.store_rows(rows, &embedded, &mut self.stays(task)?.write()?);
        }
        *self.gathered(task)? = embedded;
        Ok(())
    }

    /// Rows into the device: embedded, or all hidden states of a unit.
    pub(super) fn load_hidden(&self, task: &Task) -> Result<(), Fault> {
        match (task.op.unit, self.hidden_in_host) {
            (0, _) if self.gathered.is_empty() || self.hidden_in_host => {
                // Only tokens travel, and they are here already.
                Ok(())
            }
            (0, _) => {
                let mut hidden = self.hidden(task)?.write()?;
                self.store_rows(self.host.all_rows(task), &self.gathered(task)?, &mut hidden)
            }
            (_, true) => {
                let from = self.stays(task)?.read()?;
                self.copy_hidden(task, &from, &mut self.slot_of_hidden(task)?.write()?)
            }
            (_, false) => Err(fault("hidden states are to be loaded that stay on the device")),
        }
    }

    /// The hidden states of a unit into host memory.
    pub(super) fn save_hidden(&self, task: &Task) -> Result<(), Fault> {
        let last = usize::from(task.op.unit) + 1 == self.host.units.len();
        if last {
            // New tokens are there already.
            return Ok(());
        }
        let from = self.slot_of_hidden(task)?.read()?;
        self.copy_hidden(task, &from, &mut self.stays(task)?.write()?)
    }

    /// Copies the rows of a pass, and checks that they are the bytes the schedule moves.
    fn copy_hidden(&self, task: &Task, from: &[u8], to: &mut [u8]) -> Result<(), Fault> {
        let (room, place) = (self.room(from), self.place(self.host.all_rows(task)));
        let mut copied = 0;
        for (from, to) in from.chunks_exact(room).zip(to.chunks_exact_mut(room)) {
            let to = to.get_mut(place.clone()).ok_or_else(outside)?;
            to.copy_from_slice(from.get(place.clone()).ok_or_else(outside)?);
            copied += place.len();
        }
        moved(task, copied)
    }

    /// Where a computation finds hidden states, and leaves them.
    pub(super) fn hidden(&self, task: &Task) -> Result<&Buffer, Fault> {
        match task.bound.hidden {
            Some(slot) => self.host.rings.slot(slot),
            None => self.stays(task),
        }
    }

    fn slot_of_hidden(&self, task: &Task) -> Result<&Buffer, Fault> {
        self.host.rings.slot(task.bound.hidden.ok_or_else(|| fault("hidden states have no slot"))?)
    }

    /// Where the hidden states of a micro-batch stay.
    fn stays(&self, task: &Task) -> Result<&Buffer, Fault> {
        let hidden = self.hidden.get(usize::from(task.op.micro));
        hidden.ok_or_else(|| fault("a micro-batch is not there"))
    }

    fn gathered(&self, task: &Task) -> Result<MutexGuard<'_, Vec<f32>>, Fault> {
        let gathered = self.gathered.get(usize::from(task.op.micro));
        let gathered = gathered.ok_or_else(|| fault("a micro-batch is not there"))?;
        Ok(gathered.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rows of every sequence, one sequence after the other.
    pub(super) fn load_rows(&self, rows: Rows, hidden: &[u8]) -> Result<Vec<f32>, Fault> {
        let mut loaded = Vec::with_capacity(hidden.len() / 2);
        for sequence in hidden.chunks_exact(self.room(hidden)) {
            half::load(sequence.get(self.place(rows)).ok_or_else(outside)?, &mut loaded);
        }
        Ok(loaded)
    }

    pub(super) fn store_rows(
        &self,
        rows: Rows,
        numbers: &[f32],
        hidden: &mut [u8],
    ) -> Result<(), Fault> {
        let (room, each) = (self.room(hidden), self.place(rows).len() / 2);
        for (sequence, numbers) in hidden.chunks_exact_mut(room).zip(numbers.chunks(each.max(1))) {
            half::store(numbers, sequence.get_mut(self.place(rows)).ok_or_else(outside)?);
        }
        Ok(())
    }

    /// Bytes of one sequence's hidden states.
    fn room(&self, hidden: &[u8]) -> usize {
        (hidden.len() / self.host.micro()).max(1)
    }

    /// Where rows lie among those of their sequence: in decode the only row is the first one.
    fn place(&self, rows: Rows) -> Range<usize> {
        let row = 2 * in_memory(self.decoder.model().hidden);
        let start = if rows.pass == 0 { rows.first * row } else { 0 };
        start..start + rows.count * row
    }
}

fn outside() -> Fault {
    fault("rows lie outside the hidden states")
}
