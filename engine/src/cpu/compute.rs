//! The arithmetic of a unit: rows out of a buffer, through the decoder, and back.

use std::ops::Range;

use pipo_kernels::{Format, Matrix};
use pipo_plan::model::Part;
use pipo_plan::schedule::Piece;

use super::{CpuBackend, Sequence, Unit, fault, half};
use crate::executor::{Fault, Task};
use crate::memory::Buffer;
use crate::run::NewToken;
use crate::store::in_memory;

/// The rows of a task: of every sequence the positions from `first` on.
#[derive(Debug, Clone, Copy)]
struct Rows {
    first: usize,
    count: usize,
    pass: u32,
    last_chunk: bool,
}

/// A unit's bytes by stretch, wherever they lie.
struct Weights<'a> {
    unit: &'a [u8],
    ranges: Vec<Range<usize>>,
    /// The table of a tied head that is kept elsewhere.
    table: Option<&'a [u8]>,
}

impl Weights<'_> {
    fn stretch(&self, index: usize) -> Result<&[u8], Fault> {
        let range = self.ranges.get(index).cloned();
        let bytes = range.clone().and_then(|range| self.unit.get(range));
        match (bytes, self.table, range) {
            (Some(bytes), _, _) => Ok(bytes),
            (None, Some(table), Some(range)) => {
                table.get(..range.len()).ok_or_else(|| fault("the embedding is too short"))
            }
            _ => Err(fault("a unit is shorter than its tensors")),
        }
    }
}

impl CpuBackend<'_> {
    /// Embeds the rows of a pass in host memory.
    pub(super) fn gather(&self, task: &Task) -> Result<(), Fault> {
        let unit = self.unit(task)?;
        let (table, _) = unit.kept(&self.units).ok_or_else(|| fault("there is no embedding"))?;
        let table = table.read()?;
        let prompt = self.prompt();
        let count = if task.pass == 0 { prompt } else { 1 };
        let first = if task.pass == 0 { 0 } else { prompt + task.pass as usize - 1 };
        let rows = Rows { first, count, pass: task.pass, last_chunk: true };
        let mut all = Vec::new();
        for sequence in self.sequences(task.op.micro)?.iter() {
            all.extend(self.decoder.embed(&table, sequence.tokens(rows)?, first)?);
        }
        *self.gathered(task)? = all;
        Ok(())
    }

    /// Embedded rows into the device.
    pub(super) fn load_hidden(&self, task: &Task) -> Result<(), Fault> {
        if task.op.unit > 0 {
            return self.load_attended(task);
        }
        let gathered = self.gathered(task)?;
        let mut hidden = self.hidden(task)?.write()?;
        let sequences = self.sequences(task.op.micro)?.len().max(1);
        let (from, to) = (gathered.len() / sequences, hidden.len() / sequences);
        if from == 0 || 2 * from > to {
            return Err(fault("embedded rows do not fit"));
        }
        for (rows, hidden) in gathered.chunks(from).zip(hidden.chunks_mut(to)) {
            half::store(rows, hidden);
        }
        Ok(())
    }

    /// A unit's arithmetic for one chunk of one micro-batch.
    pub(super) fn compute(&self, task: &Task) -> Result<(), Fault> {
        let unit = self.unit(task)?;
        let ranges = unit.ranges()?;
        if let Some(slot) = task.bound.weights {
            let slot = self.rings.slot(slot)?.read()?;
            return self.parts(task, unit, &Weights { unit: &slot, ranges, table: None });
        }
        let kept = unit.kept(&self.units).filter(|_| unit.on_device);
        let (kept, shared) = kept.ok_or_else(|| fault("a unit's weights are not on the device"))?;
        let kept = kept.read()?;
        let shared = shared.map(Buffer::read).transpose()?;
        let table = shared.as_ref().map(|table| &table[..]);
        self.parts(task, unit, &Weights { unit: &kept, ranges, table })
    }

    fn parts(&self, task: &Task, unit: &Unit, weights: &Weights) -> Result<(), Fault> {
        let shape = self.frame.rows(task.pass, task.op.block);
        let rows = Rows {
            first: in_memory(shape.context - shape.positions),
            count: in_memory(shape.positions),
            pass: task.pass,
            last_chunk: task.op.block + 1 == self.frame.chunks(task.pass),
        };
        let mut hidden = self.hidden(task)?.write()?;
        let mut sequences = self.sequences(task.op.micro)?;
        let each = hidden.len() / sequences.len().max(1);
        let row = 2 * in_memory(self.decoder.model().hidden);
        for (number, sequence) in sequences.iter_mut().enumerate() {
            // In decode the only row is the first one.
            let at = number * each + if rows.pass == 0 { rows.first * row } else { 0 };
            let place = hidden.get_mut(at..at + rows.count * row);
            let place = place.ok_or_else(|| fault("rows lie outside the hidden states"))?;
            if task.op.piece == Piece::BeforeAttention {
                let run = weights.stretch(0)?;
                let mut projected = self.decoder.project(run, &half::load(place), rows.first)?;
                half::round(&mut projected.queries);
                self.crossing(task)?.projected.push(projected);
                continue;
            }
            for (index, &part) in unit.parts.iter().enumerate() {
                let run = weights.stretch(index)?;
                let out = match part {
                    Part::Embedding => {
                        self.decoder.embed(run, sequence.tokens(rows)?, rows.first)?
                    }
                    Part::Attention if task.op.piece == Piece::AfterAttention => {
                        let crossing = self.crossing(task)?;
                        let attended = crossing.arrived.get(number);
                        let attended = attended.ok_or_else(|| fault("nothing was attended"))?;
                        self.decoder.after_attention(run, &half::load(place), attended)?
                    }
                    Part::Attention => {
                        self.attention(task, number, run, &half::load(place), rows)?
                    }
                    Part::Mlp => self.decoder.mlp(run, &half::load(place))?,
                    Part::Head if rows.last_chunk => {
                        let last = &place[(rows.count - 1) * row..];
                        let table = if self.decoder.model().tied_embeddings {
                            weights.stretch(index + 1)?
                        } else {
                            &[]
                        };
                        let logits = self.decoder.logits(run, table, &half::load(last))?;
                        (self.observer)(sequence.choose(logits)?);
                        continue;
                    }
                    Part::Head => continue,
                };
                half::store(&out, place);
            }
        }
        Ok(())
    }

    fn attention(
        &self,
        task: &Task,
        sequence: usize,
        run: &[u8],
        hidden: &[f32],
        rows: Rows,
    ) -> Result<Vec<f32>, Fault> {
        let missing = || fault("a cache is not there");
        let buffer = match task.bound.cache {
            Some(slot) => self.rings.slot(slot)?,
            None => self.home(task)?,
        };
        let mut cache = buffer.write()?;
        let shape = self.shape(cache.len());
        let plane = shape.plane();
        let mine = cache.get_mut(2 * plane * sequence..2 * plane * (sequence + 1));
        let (keys, values) = mine.ok_or_else(missing)?.split_at_mut(plane);
        let mut projected = self.decoder.project(run, hidden, rows.first)?;
        half::round(&mut projected.queries);
        let new = shape.row * rows.first..shape.row * (rows.first + rows.count);
        half::store(&projected.keys, keys.get_mut(new.clone()).ok_or_else(missing)?);
        half::store(&projected.values, values.get_mut(new).ok_or_else(missing)?);
        let matrix = |bytes| Matrix::new(Format::Fp16, shape.context, shape.row / 2, bytes);
        let (keys, values) = (matrix(keys)?, matrix(values)?);
        let mut attended = self.decoder.attend(&projected.queries, rows.first, &keys, &values)?;
        half::round(&mut attended);
        self.decoder.after_attention(run, hidden, &attended)
    }

    fn hidden(&self, task: &Task) -> Result<&Buffer, Fault> {
        let hidden = self.hidden.get(usize::from(task.op.micro));
        hidden.ok_or_else(|| fault("a micro-batch is not there"))
    }

    fn gathered(&self, task: &Task) -> Result<std::sync::MutexGuard<'_, Vec<f32>>, Fault> {
        let gathered = self.gathered.get(usize::from(task.op.micro));
        let gathered = gathered.ok_or_else(|| fault("a micro-batch is not there"))?;
        Ok(gathered.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Sequence {
    /// The tokens that a pass works on: of the prompt, or the newest.
    fn tokens(&self, rows: Rows) -> Result<&[u32], Fault> {
        let tokens = match rows.pass {
            0 => self.prompt.get(rows.first..rows.first + rows.count),
            pass => self.new.get(pass as usize - 1..pass as usize),
        };
        tokens.ok_or_else(|| fault("a token is not there yet"))
    }

    /// Takes the next token.
    fn choose(&mut self, logits: Vec<f32>) -> Result<NewToken, Fault> {
        let token = self.sampler.sample(&logits).map_err(|error| Fault(error.to_string()))?;
        let token = u32::try_from(token).map_err(|_| fault("a token has more than 32 bits"))?;
        self.new.push(token);
        self.logits = logits;
        Ok(NewToken { sequence: self.number, token })
    }
}
