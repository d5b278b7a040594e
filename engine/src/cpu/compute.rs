//! The arithmetic of a unit: rows out of a buffer, through the decoder, and back.

use std::ops::Range;

use pipo_plan::model::Part;
use pipo_plan::schedule::Piece;

use super::{CpuBackend, Sequence, Unit, cache, fault, half};
use crate::decoder::Projected;
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

impl Rows {
    fn positions(self) -> Range<usize> {
        self.first..self.first + self.count
    }
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
        let tokens = tokens(&self.sequences(task.op.micro)?, rows)?;
        *self.gathered(task)? = self.decoder.embed_all(&table, &tokens, rows.positions())?;
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

    /// The parts of a unit, each once for all rows of the micro-batch.
    fn parts(&self, task: &Task, unit: &Unit, weights: &Weights) -> Result<(), Fault> {
        let rows = self.rows(task);
        let mut place = self.hidden(task)?.write()?;
        let mut hidden = self.load_rows(rows, &place)?;
        if task.op.piece == Piece::BeforeAttention {
            let mut crossing = self.crossing(task)?;
            crossing.projected = self.project(weights.stretch(0)?, &hidden, rows)?;
            return Ok(());
        }
        for (index, &part) in unit.parts.iter().enumerate() {
            let run = weights.stretch(index)?;
            hidden = match part {
                Part::Embedding => {
                    let sequences = self.sequences(task.op.micro)?;
                    self.decoder.embed_all(run, &tokens(&sequences, rows)?, rows.positions())?
                }
                Part::Attention if task.op.piece == Piece::AfterAttention => {
                    self.decoder.after_attention(run, &hidden, &self.crossing(task)?.arrived)?
                }
                Part::Attention => self.attention(task, run, &hidden, rows)?,
                Part::Mlp => self.decoder.mlp(run, &hidden)?,
                Part::Head => {
                    let tied = self.decoder.model().tied_embeddings;
                    let table = if tied { weights.stretch(index + 1)? } else { &[] };
                    return self.head(task, run, table, &hidden, rows);
                }
            };
            // Each part hands on 16-bit numbers, whether or not the next one is in the same unit.
            half::round(&mut hidden);
        }
        self.store_rows(rows, &hidden, &mut place)
    }

    /// The next token of every sequence, from its last row.
    fn head(
        &self,
        task: &Task,
        run: &[u8],
        table: &[u8],
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
        let mut sequences = self.sequences(task.op.micro)?;
        for (sequence, logits) in sequences.iter_mut().zip(logits.chunks_exact(vocabulary.max(1))) {
            (self.observer)(sequence.choose(logits.to_vec())?);
        }
        Ok(())
    }

    fn attention(
        &self,
        task: &Task,
        run: &[u8],
        hidden: &[f32],
        rows: Rows,
    ) -> Result<Vec<f32>, Fault> {
        let buffer = match task.bound.cache {
            Some(slot) => self.rings.slot(slot)?,
            None => self.home(task)?,
        };
        let mut cache = buffer.write()?;
        let projected = self.project(run, hidden, rows)?;
        let shape = self.shape(cache.len());
        cache::write(shape, &mut cache, rows.positions(), &projected.keys, &projected.values)?;
        let attended = self.attend(&projected.queries, &cache, rows.first)?;
        self.decoder.after_attention(run, hidden, &attended)
    }

    /// Queries are rounded because they may have to travel.
    fn project(&self, run: &[u8], hidden: &[f32], rows: Rows) -> Result<Projected, Fault> {
        let mut projected = self.decoder.project(run, hidden, rows.positions())?;
        half::round(&mut projected.queries);
        Ok(projected)
    }

    fn rows(&self, task: &Task) -> Rows {
        let shape = self.frame.rows(task.pass, task.op.block);
        Rows {
            first: in_memory(shape.context - shape.positions),
            count: in_memory(shape.positions),
            pass: task.pass,
            last_chunk: task.op.block + 1 == self.frame.chunks(task.pass),
        }
    }

    /// The rows of every sequence, one sequence after the other.
    fn load_rows(&self, rows: Rows, hidden: &[u8]) -> Result<Vec<f32>, Fault> {
        let mut loaded = Vec::with_capacity(hidden.len() / 2);
        for sequence in hidden.chunks_exact(self.room(hidden)) {
            half::load(sequence.get(self.place(rows)).ok_or_else(outside)?, &mut loaded);
        }
        Ok(loaded)
    }

    fn store_rows(&self, rows: Rows, numbers: &[f32], hidden: &mut [u8]) -> Result<(), Fault> {
        let room = self.room(hidden);
        let each = rows.count * in_memory(self.decoder.model().hidden);
        for (sequence, numbers) in hidden.chunks_exact_mut(room).zip(numbers.chunks(each.max(1))) {
            half::store(numbers, sequence.get_mut(self.place(rows)).ok_or_else(outside)?);
        }
        Ok(())
    }

    /// Bytes of one sequence's hidden states.
    fn room(&self, hidden: &[u8]) -> usize {
        (hidden.len() / in_memory(self.frame.plan.batch.micro).max(1)).max(1)
    }

    /// Where rows lie among those of their sequence: in decode the only row is the first one.
    fn place(&self, rows: Rows) -> Range<usize> {
        let row = 2 * in_memory(self.decoder.model().hidden);
        let start = if rows.pass == 0 { rows.first * row } else { 0 };
        start..start + rows.count * row
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

/// The tokens that a pass works on, one sequence after the other.
fn tokens(sequences: &[Sequence], rows: Rows) -> Result<Vec<u32>, Fault> {
    let mut all = Vec::with_capacity(sequences.len() * rows.count);
    for sequence in sequences {
        all.extend_from_slice(sequence.tokens(rows)?);
    }
    Ok(all)
}

fn outside() -> Fault {
    fault("rows lie outside the hidden states")
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
