//! Hidden states: in 16 bits, for each micro-batch chunk by chunk of the prompt, in each sequence by
//! sequence, so that a chunk's rows follow each other. In decode only the first row of each is there.

use pipo_plan::model::Part;
use pipo_plan::schedule::Tier;
use rayon::prelude::*;

use super::driver::Stream;
use super::{CudaBackend, Region, fault, length};
use crate::backend::Rows;
use crate::backend::sequence::tokens;
use crate::backend::unit::Weights;
use crate::executor::{Fault, Task};
use crate::memory::Buffer;
use crate::store::in_memory;

/// Positions of one sequence that are looked up together, by whoever is free.
const PIECE: usize = 64;

impl CudaBackend<'_> {
    /// Embeds the rows of a pass in host memory.
    pub(super) fn gather(&self, task: &Task) -> Result<(), Fault> {
        let unit = self.host.unit(task)?;
        let table = unit.kept(Tier::Pageable).ok_or_else(|| fault("there is no embedding"))?;
        let table = table.read()?;
        // In host memory it lies as it would in a slot.
        let weights = Weights { slot: Some(&table[..]), kept: None, embedding: None };
        let run = unit.run(Part::Embedding, &weights)?;
        let stays = self.hidden_home.get(usize::from(task.op.micro));
        let mut gathered = stays.map_or_else(|| self.gathered(task), Ok)?.write()?;
        let width = 2 * self.arithmetic.hidden();
        let mut rest = &mut gathered[..];
        for chunk in 0..self.host.frame.chunks(task.pass) {
            let shape = self.host.frame.rows(task.pass, chunk);
            let (first, count) =
                (in_memory(shape.context - shape.positions), in_memory(shape.positions));
            let rows = Rows { first, count, pass: task.pass, last_chunk: true };
            let tokens = tokens(&self.host.sequences(task.op.micro)?, rows)?;
            let (now, later) = rest
                .split_at_mut_checked(tokens.len() * width)
                .ok_or_else(|| fault("more rows are embedded than there is room for"))?;
            let tokens = tokens.chunks(count.max(1)).flat_map(|sequence| sequence.chunks(PIECE));
            let places = now.chunks_mut((count * width).max(1));
            let places = places.flat_map(|sequence| sequence.chunks_mut(PIECE * width));
            let starts = (first..first + count).step_by(PIECE).cycle();
            let pieces: Vec<_> = starts.zip(tokens.zip(places)).collect();
            pieces.into_par_iter().try_for_each(|(start, (tokens, place))| {
                // Rounded where the device rounds.
                let (positions, round) = (start..start + tokens.len(), crate::half::round);
                let embedded = self.decoder.embed_in(&run, tokens, positions, round)?;
                crate::half::store(&embedded, place);
                Ok::<(), Fault>(())
            })?;
            rest = later;
        }
        Ok(())
    }

    /// Rows into the device: embedded, or all hidden states of a unit.
    pub(super) fn load_hidden(&self, task: &Task, stream: &Stream) -> Result<(), Fault> {
        let stays = self.hidden_home.get(usize::from(task.op.micro));
        if task.op.unit == 0 && (stays.is_some() || self.gathered.is_empty()) {
            // Only tokens travel, and they are here already.
            return Ok(());
        }
        if task.op.unit > 0 && stays.is_none() {
            return Err(fault("hidden states are to be loaded that stay on the device"));
        }
        let length = length(task.work.bytes())?;
        let from = stays.map_or_else(|| self.gathered(task), Ok)?.read()?;
        let from = from.get(..length).ok_or_else(|| fault("rows are not there"))?;
        let to = self.hidden(task)?.slice(0, length as u64)?;
        // SAFETY: the buffer lives as long as the backend, and is written again only after the pass.
        unsafe { stream.upload(from, to) }
    }

    /// The hidden states of a unit into host memory.
    pub(super) fn save_hidden(&self, task: &Task, stream: &Stream) -> Result<(), Fault> {
        let last = usize::from(task.op.unit) + 1 == self.host.units.len();
        let stays = self.hidden_home.get(usize::from(task.op.micro)).filter(|_| !last);
        // The head leaves tokens, which travel with it.
        let Some(stays) = stays else { return Ok(()) };
        let length = length(task.work.bytes())?;
        let home = stays.read()?;
        let to = home.get(..length).ok_or_else(|| fault("there is no room for rows"))?;
        let from = self.hidden(task)?.slice(0, length as u64)?;
        // SAFETY: the buffer lives as long as the backend; who reads these rows waits for this operation.
        unsafe { stream.download(from, to.as_ptr().cast_mut(), length) }
    }

    /// The hidden states of a chunk.
    pub(super) fn chunk(&self, task: &Task, rows: Rows) -> Result<Region, Fault> {
        let (start, length) = self.place(rows);
        Ok(self.hidden(task)?.slice(start, length)?)
    }

    /// Where norms of a chunk are written. With one micro-batch there is room for its own; of several,
    /// each has room of its own where what is between may be needed by a later operation.
    pub(super) fn normed(&self, task: &Task, rows: Rows) -> Result<Region, Fault> {
        let (start, length) = self.place(rows);
        let each = self.host.frame.hidden(0).0;
        let own = u64::from(task.op.micro) * each;
        let base = if own + each <= self.normed.bytes() { own } else { 0 };
        Ok(self.normed.slice(base + start, length)?)
    }

    fn place(&self, rows: Rows) -> (u64, u64) {
        let row = 2 * self.arithmetic.hidden() as u64 * self.host.micro() as u64;
        let start = if rows.pass == 0 { rows.first as u64 * row } else { 0 };
        (start, rows.count as u64 * row)
    }

    fn hidden(&self, task: &Task) -> Result<Region, Fault> {
        if let Some(slot) = task.bound.hidden {
            return self.slot(slot);
        }
        let hidden = self.hidden.get(usize::from(task.op.micro)).copied();
        hidden.ok_or_else(|| fault("a micro-batch is not there"))
    }

    fn gathered(&self, task: &Task) -> Result<&Buffer, Fault> {
        let gathered = self.gathered.get(usize::from(task.op.micro));
        gathered.ok_or_else(|| fault("a micro-batch is not there"))
    }
}
