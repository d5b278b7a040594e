//! The arithmetic of a unit: rows out of a buffer, through the decoder, and back.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use pipo_plan::model::Part;
use pipo_plan::schedule::{Piece, Tier};

use super::CpuBackend;
use crate::backend::Rows;
use crate::backend::sequence::tokens;
use crate::backend::unit::{Unit, Weights};
use crate::decoder::{Inner, Projected, Run};
use crate::executor::{Fault, Task};
use crate::half;
use crate::memory::Buffer;
use crate::store::in_memory;

/// What a part that is cut into units has computed so far.
#[derive(Debug, Default)]
pub(super) struct Flow {
    projected: Projected,
    inner: Inner,
}

/// Parts under way, by micro-batch and chunk of the prompt.
pub(super) type Flows = Mutex<BTreeMap<(u16, u16), Flow>>;

impl CpuBackend<'_> {
    /// A unit's arithmetic for one chunk of one micro-batch.
    ///
    /// A plan may want dequantised copies of matrices made first; the products here decode as they go,
    /// because a rounded copy would give other numbers. Room for it is held all the same.
    pub(super) fn compute(&self, task: &Task) -> Result<(), Fault> {
        let unit = self.host.unit(task)?;
        // What stays in host memory and is loaded nowhere is read from there.
        let slot = match task.bound.weights {
            Some(slot) => Some(self.host.rings.slot(slot)?.read()?),
            None => unit.kept(Tier::Pinned).map(Buffer::read).transpose()?,
        };
        let kept = unit.kept(Tier::Gpu).map(Buffer::read).transpose()?;
        let embedding = self.host.units.first().and_then(|unit| unit.kept(Tier::Gpu));
        let embedding = embedding.map(Buffer::read).transpose()?;
        let weights = Weights {
            slot: slot.as_ref().map(|bytes| &bytes[..]),
            kept: kept.as_ref().map(|bytes| &bytes[..]),
            embedding: embedding.as_ref().map(|bytes| &bytes[..]),
        };
        self.parts(task, unit, &weights)
    }

    /// The parts of a unit, each once for all rows of the micro-batch.
    fn parts(&self, task: &Task, unit: &Unit, weights: &Weights<&[u8]>) -> Result<(), Fault> {
        let rows = self.host.rows(task);
        let mut place = self.hidden(task)?.write()?;
        let mut hidden = self.load_rows(rows, &place)?;
        let mut flow = self.take_flow(task);
        for &part in &unit.parts {
            let run = unit.run(part, weights)?;
            let out = match part {
                Part::Embedding => {
                    let sequences = self.host.sequences(task.op.micro)?;
                    let tokens = tokens(&sequences, rows)?;
                    Some(self.decoder.embed_all(&run, &tokens, rows.positions())?)
                }
                Part::Attention => {
                    self.attention(task, &run, &hidden, rows, &mut flow.projected)?
                }
                Part::Mlp => self.decoder.mlp_step(&run, &hidden, &mut flow.inner)?,
                Part::Head => {
                    let table = unit.run(Part::Embedding, weights)?;
                    return self.head(task, run, table, &hidden, rows);
                }
            };
            let Some(out) = out else {
                self.keep_flow(task, flow);
                return Ok(());
            };
            hidden = out;
            // Each part hands on 16-bit numbers, whether or not the next one is in the same unit.
            half::round(&mut hidden);
        }
        self.store_rows(rows, &hidden, &mut place)
    }

    fn take_flow(&self, task: &Task) -> Flow {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.remove(&(task.op.micro, task.op.block)).unwrap_or_default()
    }

    fn keep_flow(&self, task: &Task, flow: Flow) {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.insert((task.op.micro, task.op.block), flow);
    }

    /// The next token of every sequence, from its last row.
    fn head(
        &self,
        task: &Task,
        run: Run<&[u8]>,
        table: Run<&[u8]>,
        hidden: &[f32],
        rows: Rows,
    ) -> Result<(), Fault> {
        if !rows.last_chunk {
            return Ok(());
        }
        let model = self.decoder.model();
        let (width, vocabulary) = (in_memory(model.hidden), in_memory(model.vocab));
        let last = hidden.chunks_exact(width.max(1)).skip(rows.count - 1).step_by(rows.count);
        let last: Vec<f32> = last.flatten().copied().collect();
        let logits = self.decoder.logits(run, table, &last)?;
        let mut sequences = self.host.sequences(task.op.micro)?;
        for (sequence, logits) in sequences.iter_mut().zip(logits.chunks_exact(vocabulary.max(1))) {
            (self.host.observer)(sequence.choose(logits.to_vec())?);
        }
        Ok(())
    }

    /// What is there of an attention; its result, once all of it is.
    fn attention(
        &self,
        task: &Task,
        run: &Run<&[u8]>,
        hidden: &[f32],
        rows: Rows,
        projected: &mut Projected,
    ) -> Result<Option<Vec<f32>>, Fault> {
        if task.op.piece == Piece::AfterAttention {
            let crossing = self.crossing(task)?;
            let attended = crossing.attended(task)?;
            return self.decoder.after_attention(run, hidden, attended).map(Some);
        }
        self.decoder.project(run, hidden, rows.positions(), projected)?;
        if !self.host.unit(task)?.attends {
            return Ok(None);
        }
        // Queries are rounded because they may have to travel.
        half::round(&mut projected.queries);
        if task.op.piece == Piece::BeforeAttention {
            self.crossing(task)?.projected = std::mem::take(projected);
            return Ok(None);
        }
        let buffer = match task.bound.cache {
            Some(slot) => self.host.rings.slot(slot)?,
            None => self.home(task)?,
        };
        let mut cache = buffer.write()?;
        let shape = self.host.shape(cache.len())?;
        shape.write(&mut cache, rows.positions(), &projected.keys, &projected.values)?;
        let attended = self.host.attend(&self.decoder, &projected.queries, &cache, rows.first)?;
        self.decoder.after_attention(run, hidden, &attended).map(Some)
    }
}
