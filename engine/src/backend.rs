//! What the backends share: what of a plan they go by, where weights lie and come from, which rows an
//! operation is about, and everything that happens in host memory alone.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pipo_plan::schedule::Work;
use pipo_plan::strategy::frame::Frame;
use pipo_plan::units::Bytes;

use crate::executor::{Fault, Task};
use crate::memory::Rings;
use crate::run::{NewToken, Request, RunError, sampler};
use crate::store::in_memory;

pub(crate) mod accounts;
mod attend;
pub(crate) mod cache_file;
pub(crate) mod cache_rows;
pub(crate) mod knobs;
pub(crate) mod sequence;
pub(crate) mod source;
pub(crate) mod unit;

use cache_file::CacheFile;
use cache_rows::Shape;
use sequence::Sequence;
use source::Source;
use unit::Unit;

/// The host's side of a run.
pub(crate) struct Host<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) frame: Frame,
    pub(crate) units: Vec<Unit>,
    pub(crate) rings: Rings,
    /// The cache of layers that have it on disk.
    pub(crate) cache_file: Option<CacheFile>,
    /// By micro-batch.
    pub(crate) sequences: Vec<Mutex<Vec<Sequence>>>,
    pub(crate) observer: &'a (dyn Fn(NewToken) + Sync),
}

/// The rows of a task: of every sequence the positions from `first` on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) pass: u32,
    pub(crate) last_chunk: bool,
}

impl Rows {
    pub(crate) fn positions(self) -> Range<usize> {
        self.first..self.first + self.count
    }
}

/// The sequences of a request by micro-batch, at their beginning.
pub(crate) fn sequences(request: &Request) -> Result<Vec<Mutex<Vec<Sequence>>>, RunError> {
    let sequence = |(number, prompt): (usize, &Vec<u32>)| {
        Ok(Sequence::new(number, sampler(request.sampling, number)?, prompt))
    };
    let sequences = request.prompts.iter().enumerate().map(sequence);
    let sequences: Vec<Sequence> = sequences.collect::<Result<_, RunError>>()?;
    let micros = sequences.chunks(in_memory(request.plan.batch.micro).max(1));
    Ok(micros.map(|micro| Mutex::new(micro.to_vec())).collect())
}

impl Host<'_> {
    /// After the run: whether every byte that was used has been checked.
    pub(crate) fn finish(&self) -> Result<(), RunError> {
        self.units.iter().try_for_each(Unit::finish)
    }

    /// New tokens and last logits of every sequence.
    pub(crate) fn into_results(self) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
        let micros = self.sequences.into_iter();
        let all = micros.flat_map(|m| m.into_inner().unwrap_or_else(PoisonError::into_inner));
        all.map(Sequence::into_results).unzip()
    }

    /// One block of a unit's weights from the store into a host slot.
    pub(crate) fn read_weights(&self, task: &Task) -> Result<(), Fault> {
        let mut slot = self.rings.slot(bound(task.bound.host, "a host slot")?)?.write()?;
        let length = length(task.work.bytes())?;
        let into =
            slot.get_mut(..length).ok_or_else(|| fault("a block is larger than its slot"))?;
        self.source.serves(task.work)?;
        let unit = self.unit(task)?;
        unit.read(&self.source, unit.block(task.op)?, into)
    }

    /// One block from pageable host memory into a pinned slot.
    pub(crate) fn stage_weights(&self, task: &Task) -> Result<(), Fault> {
        let mut slot = self.rings.slot(bound(task.bound.host, "a host slot")?)?.write()?;
        let length = length(task.work.bytes())?;
        let into =
            slot.get_mut(..length).ok_or_else(|| fault("a block is larger than its slot"))?;
        let unit = self.unit(task)?;
        unit.copy(&self.units, unit.block(task.op)?, into)
    }

    /// The cache of a layer and micro-batch before this pass, from disk into a host slot.
    pub(crate) fn read_cache(&self, task: &Task) -> Result<(), Fault> {
        self.cache_file()?.read(self, task)
    }

    /// The rows of this pass, from a host slot to disk.
    pub(crate) fn write_cache(&self, task: &Task) -> Result<(), Fault> {
        self.cache_file()?.write(self, task)
    }

    fn cache_file(&self) -> Result<&CacheFile, Fault> {
        self.cache_file.as_ref().ok_or_else(|| fault("there is no cache on disk"))
    }

    pub(crate) fn unit(&self, task: &Task) -> Result<&Unit, Fault> {
        let unit = self.units.get(usize::from(task.op.unit));
        unit.ok_or_else(|| fault("the schedule names a unit that is not there"))
    }

    pub(crate) fn sequences(&self, micro: u16) -> Result<MutexGuard<'_, Vec<Sequence>>, Fault> {
        let sequences = self.sequences.get(usize::from(micro));
        let sequences = sequences.ok_or_else(|| fault("a micro-batch is not there"))?;
        Ok(sequences.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rows of a task's chunk.
    pub(crate) fn rows(&self, task: &Task) -> Rows {
        let shape = self.frame.rows(task.pass, task.op.block);
        Rows {
            first: in_memory(shape.context - shape.positions),
            count: in_memory(shape.positions),
            pass: task.pass,
            last_chunk: task.op.block + 1 == self.frame.chunks(task.pass),
        }
    }

    /// The rows of a task's pass.
    pub(crate) fn all_rows(&self, task: &Task) -> Rows {
        let count = if task.pass == 0 { self.prompt() } else { 1 };
        Rows { first: self.before(task), count, pass: task.pass, last_chunk: true }
    }

    /// Positions that precede a pass.
    pub(crate) fn before(&self, task: &Task) -> usize {
        if task.pass == 0 { 0 } else { self.prompt() + task.pass as usize - 1 }
    }

    /// Positions of a pass.
    pub(crate) fn new_positions(&self, task: &Task) -> Range<usize> {
        self.all_rows(task).positions()
    }

    pub(crate) fn prompt(&self) -> usize {
        in_memory(self.frame.plan.workload.prompt)
    }

    /// Sequences of a micro-batch, at least one.
    pub(crate) fn micro(&self) -> usize {
        in_memory(self.frame.plan.batch.micro).max(1)
    }

    /// How rows lie in a cache of so many bytes.
    pub(crate) fn shape(&self, buffer: usize) -> Result<Shape, Fault> {
        Shape::new(&self.frame.plan, buffer)
    }
}

pub(crate) fn fault(what: &str) -> Fault {
    Fault(format!("{what}; this is an error in pipo, please report it"))
}

pub(crate) fn bound<T>(slot: Option<T>, what: &str) -> Result<T, Fault> {
    slot.ok_or_else(|| fault(&format!("the operation is not bound to {what}")))
}

pub(crate) fn length(bytes: Bytes) -> Result<usize, Fault> {
    usize::try_from(bytes.0).map_err(|_| fault("a size cannot be addressed"))
}

/// Checks that so many bytes are those the schedule moves.
pub(crate) fn moved(task: &Task, bytes: usize) -> Result<(), Fault> {
    as_planned(bytes, task.work.bytes())
}

/// Checks that so many bytes are those that an operation's arithmetic fetches from host memory itself.
pub(crate) fn fetched(task: &Task, bytes: usize) -> Result<(), Fault> {
    let planned = if let Work::Gpu(compute) = task.work { compute.mapped } else { Bytes::ZERO };
    as_planned(bytes, planned)
}

fn as_planned(bytes: usize, planned: Bytes) -> Result<(), Fault> {
    if bytes == length(planned)? {
        return Ok(());
    }
    Err(fault("what is moved are not the bytes that the schedule moves"))
}
