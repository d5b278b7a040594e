//! The CPU backend: device memory is a set of capped buffers, copies are copies, lanes are threads.
//!
//! What may have to travel is rounded to 16 bits wherever it stays: hidden states between the parts of a
//! layer, the cache, queries and what was attended. Other numbers are `f32`. So a result depends neither
//! on how the model was cut into units nor on where its pieces were computed.
//!
//! It runs the strategies `pipo`, `flexgen`, `accelerate` and `resident`. What it does not run is refused
//! by name before anything starts: see `knobs.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pipo_kernels::Cpu;
use pipo_kernels::sample::Sampler;
use pipo_plan::schedule::{Layout, OpKind, Tier};
use pipo_plan::strategy::frame::Frame;
use pipo_plan::units::Bytes;

use crate::decoder::Decoder;
use crate::executor::{Backend, ExecutionError, Fault, Task};
use crate::memory::{Buffer, Rings};
use crate::run::{NewToken, Request, RunError, sampler};
use crate::store::in_memory;

mod accounts;
mod beside;
mod cache;
mod compute;
mod half;
mod hidden;
mod knobs;
mod source;
mod unit;

use accounts::Accounts;
use beside::Crossing;
use compute::Flows;
use knobs::Knobs;
use source::Source;
use unit::Unit;

/// A plan on the CPU.
pub(crate) struct CpuBackend<'a> {
    source: Source<'a>,
    frame: Frame,
    decoder: Decoder,
    units: Vec<Unit>,
    rings: Rings,
    /// For each micro-batch, where its hidden states stay.
    hidden: Vec<Buffer>,
    /// Whether that is in host memory.
    hidden_in_host: bool,
    /// For each layer and micro-batch: sequence by sequence, all keys and then all values. On the device,
    /// or in host memory where the schedule moves them.
    cache: Vec<Vec<Buffer>>,
    /// For each micro-batch: rows embedded in host memory, on their way to the device; empty where the
    /// device embeds.
    gathered: Vec<Mutex<Vec<f32>>>,
    /// For each micro-batch: an attention under way that is not on the device.
    crossings: Vec<Mutex<Crossing>>,
    flows: Flows,
    sequences: Vec<Mutex<Vec<Sequence>>>,
    observer: &'a (dyn Fn(NewToken) + Sync),
    allocated: Vec<(Tier, Bytes)>,
    notes: Vec<String>,
    /// Held as the plan has it: the arithmetic here works in buffers of its own.
    _held: [Buffer; 3],
}

/// One sequence of a micro-batch.
#[derive(Debug, Clone)]
struct Sequence {
    /// Its place among the prompts.
    number: usize,
    sampler: Sampler,
    prompt: Vec<u32>,
    new: Vec<u32>,
    logits: Vec<f32>,
}

impl<'a> CpuBackend<'a> {
    /// Allocates everything and reads what stays in memory.
    pub(crate) fn new(
        request: &Request<'a>,
        layout: &Layout,
        cpu: Cpu,
        cancelled: &AtomicBool,
    ) -> Result<Self, RunError> {
        let knobs = Knobs::of(request.plan)?;
        let (plan, store) = (request.plan, request.store);
        let mut notes = Vec::new();
        let source = Source::open(request, knobs.way, &mut notes)?;
        let decoder = Decoder::new(store.layout(), store.arithmetic(), cpu)?;
        let mut accounts = Accounts::new(layout);
        let mut units = Vec::new();
        for index in 0..knobs.frame.units.len() {
            if cancelled.load(Ordering::Relaxed) {
                return Err(ExecutionError::Cancelled.into());
            }
            let mut unit = Unit::new(&knobs, index, store)?;
            let embedding = knobs.embedding.filter(|_| index == 0);
            let name = embedding.unwrap_or("weights, resident");
            unit.keep(index, &mut accounts, name, &source)?;
            units.push(unit);
        }
        let Knobs { frame, cache_on_device, embedding, hidden_in_host, .. } = knobs;
        let gathers = if embedding.is_some() { plan.batch.count } else { 0 };
        let tier = if hidden_in_host { Tier::Pinned } else { Tier::Gpu };
        let hidden = accounts.many(tier, "hidden states", frame.hidden(0), plan.batch.count)?;
        let [first, second] = [
            accounts.rest(tier, "hidden states")?,
            accounts.rest(Tier::Gpu, "hidden states, result")?,
        ];
        let workspace = accounts.rest(Tier::Gpu, "workspace")?;
        let layer = |on_device: bool| {
            let tier = if on_device { Tier::Gpu } else { Tier::Pinned };
            accounts.many(tier, "KV cache", frame.cache_room(), plan.batch.count)
        };
        let cache = cache_on_device.into_iter().map(layer).collect::<Result<_, _>>()?;
        let rings = Rings::new(layout)?;
        let allocated = accounts.close()?;
        let micro = in_memory(plan.batch.micro);
        let sequence = |(number, prompt): (usize, &Vec<u32>)| {
            let sampler = sampler(request.sampling, number)?;
            let (new, logits) = (Vec::new(), Vec::new());
            Ok(Sequence { number, sampler, prompt: prompt.clone(), new, logits })
        };
        let sequences = request.prompts.iter().enumerate().map(sequence);
        let sequences: Vec<Sequence> = sequences.collect::<Result<_, RunError>>()?;
        let sequences = sequences.chunks(micro.max(1));
        Ok(Self {
            source,
            decoder,
            units,
            rings,
            hidden,
            hidden_in_host,
            cache,
            gathered: (0..gathers).map(|_| Mutex::default()).collect(),
            crossings: (0..plan.batch.count).map(|_| Mutex::default()).collect(),
            flows: Flows::default(),
            sequences: sequences.map(|micro| Mutex::new(micro.to_vec())).collect(),
            observer: request.observer,
            allocated,
            notes,
            _held: [first, second, workspace],
            frame,
        })
    }

    /// Bytes allocated at each tier of memory.
    pub(crate) fn allocated(&self) -> &[(Tier, Bytes)] {
        &self.allocated
    }

    /// What of the plan could not be followed to the letter.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// After the run: whether every byte that was used has been checked.
    pub(crate) fn finish(&self) -> Result<(), RunError> {
        self.units.iter().try_for_each(Unit::finish)
    }

    /// New tokens and last logits of every sequence.
    pub(crate) fn into_results(self) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
        let micros = self.sequences.into_iter();
        let all = micros.flat_map(|m| m.into_inner().unwrap_or_else(PoisonError::into_inner));
        all.map(|sequence| (sequence.new, sequence.logits)).unzip()
    }

    /// One block of a unit's weights from the store into a host slot.
    fn read_weights(&self, task: &Task) -> Result<(), Fault> {
        let mut slot = self.rings.slot(bound(task.bound.host, "a host slot")?)?.write()?;
        let length = length(task.work.bytes())?;
        let into =
            slot.get_mut(..length).ok_or_else(|| fault("a block is larger than its slot"))?;
        self.source.serves(task.work)?;
        let unit = self.unit(task)?;
        unit.read(&self.source, unit.block(task.op)?, into)
    }

    /// One block from pageable host memory into a pinned slot.
    fn stage_weights(&self, task: &Task) -> Result<(), Fault> {
        let mut slot = self.rings.slot(bound(task.bound.host, "a host slot")?)?.write()?;
        let length = length(task.work.bytes())?;
        let into =
            slot.get_mut(..length).ok_or_else(|| fault("a block is larger than its slot"))?;
        let unit = self.unit(task)?;
        unit.copy(&self.units, unit.block(task.op)?, into)
    }

    /// One block from host memory into the device.
    fn load_weights(&self, task: &Task) -> Result<(), Fault> {
        let mut slot = self.rings.slot(bound(task.bound.weights, "a device slot")?)?.write()?;
        let unit = self.unit(task)?;
        let (start, length) = (unit.block(task.op)?, length(task.work.bytes())?);
        let into = start.checked_add(length).and_then(|end| slot.get_mut(start..end));
        let into = into.ok_or_else(|| fault("a block lies outside its slot"))?;
        match task.bound.host {
            Some(host) => {
                let host = self.rings.slot(host)?.read()?;
                let from = host.get(..length);
                into.copy_from_slice(from.ok_or_else(|| fault("a block is larger than its slot"))?);
                Ok(())
            }
            None => unit.copy(&self.units, start, into),
        }
    }

    fn unit(&self, task: &Task) -> Result<&Unit, Fault> {
        let unit = self.units.get(usize::from(task.op.unit));
        unit.ok_or_else(|| fault("the schedule names a unit that is not there"))
    }

    fn sequences(&self, micro: u16) -> Result<MutexGuard<'_, Vec<Sequence>>, Fault> {
        let sequences = self.sequences.get(usize::from(micro));
        let sequences = sequences.ok_or_else(|| fault("a micro-batch is not there"))?;
        Ok(sequences.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Backend for CpuBackend<'_> {
    fn perform(&self, task: &Task) -> Result<(), Fault> {
        match task.op.kind {
            OpKind::ReadWeights => self.read_weights(task),
            OpKind::StageWeights => self.stage_weights(task),
            OpKind::LoadWeights => self.load_weights(task),
            OpKind::Gather => self.gather(task),
            OpKind::LoadHidden => self.load_hidden(task),
            OpKind::SaveHidden => self.save_hidden(task),
            OpKind::LoadCache => self.load_cache(task),
            OpKind::SaveCache => self.save_cache(task),
            OpKind::CpuCompute => self.attend_beside(task),
            OpKind::Compute => self.compute(task),
            // Its waits are all there is to it.
            OpKind::Barrier => Ok(()),
            other => Err(Fault(format!("the CPU backend does not {}", other.name()))),
        }
    }
}

fn fault(what: &str) -> Fault {
    Fault(format!("{what}; this is an error in pipo, please report it"))
}

fn bound<T>(slot: Option<T>, what: &str) -> Result<T, Fault> {
    slot.ok_or_else(|| fault(&format!("the operation is not bound to {what}")))
}

fn length(bytes: Bytes) -> Result<usize, Fault> {
    usize::try_from(bytes.0).map_err(|_| fault("a size cannot be addressed"))
}
