//! The CPU backend: device memory is a set of capped buffers, copies are copies, lanes are threads.
//!
//! What may have to travel is rounded to 16 bits wherever it stays: hidden states between the parts of a
//! layer, the cache, queries and what was attended. Other numbers are `f32`. So a result depends neither
//! on how the model was cut into units nor on where its pieces were computed.
//!
//! It runs the strategies `pipo`, `flexgen`, `accelerate` and `resident`. What it does not run is refused
//! by name before anything starts: see `backend/knobs.rs`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use pipo_kernels::Cpu;
use pipo_plan::schedule::{Layout, OpKind, Tier};
use pipo_plan::units::Bytes;

use crate::backend::accounts::Accounts;
use crate::backend::cache_file::CacheFile;
use crate::backend::knobs::Knobs;
use crate::backend::source::Source;
use crate::backend::unit::Unit;
use crate::backend::{self, Host, bound, fault, length};
use crate::decoder::Decoder;
use crate::executor::{Backend, ExecutionError, Fault, Task};
use crate::memory::{Buffer, Rings};
use crate::run::{Request, RunError};

mod beside;
mod cache;
mod compute;
mod hidden;

use beside::Crossing;
use compute::Flows;

/// The tiers that are memory: here all of them are the host's.
const MEMORY: [Tier; 3] = [Tier::Gpu, Tier::Pinned, Tier::Pageable];

/// A plan on the CPU.
pub(crate) struct CpuBackend<'a> {
    host: Host<'a>,
    decoder: Decoder,
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
    allocated: Vec<(Tier, Bytes)>,
    notes: Vec<String>,
    /// Held as the plan has it: the arithmetic here works in buffers of its own.
    _held: [Buffer; 5],
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
        let source = Source::open(request, layout, knobs.way, &mut notes)?;
        let decoder = Decoder::new(store.layout(), store.arithmetic(), cpu)?;
        let mut accounts = Accounts::new(layout);
        let mut units = Vec::new();
        for index in 0..knobs.frame.units.len() {
            if cancelled.load(Ordering::Relaxed) {
                return Err(ExecutionError::Cancelled.into());
            }
            let mut unit = Unit::new(&knobs, index, store)?;
            unit.keep(index, &mut accounts, knobs.kept(index), &source, &MEMORY)?;
            units.push(unit);
        }
        let gathers = if knobs.gathers() { plan.batch.count } else { 0 };
        let cache_file = CacheFile::for_plan(&knobs, store.data_path(), &mut notes)?;
        let Knobs { frame, cache, hidden_in_host, .. } = knobs;
        let tier = if hidden_in_host { Tier::Pinned } else { Tier::Gpu };
        let hidden = accounts.many(tier, "hidden states", frame.hidden(0), plan.batch.count)?;
        let [first, second] = [
            accounts.rest(tier, "hidden states")?,
            accounts.rest(Tier::Gpu, "hidden states, result")?,
        ];
        let workspace = accounts.rest(Tier::Gpu, "workspace")?;
        let [down, up] = [
            accounts.rest(Tier::Gpu, "queries and new rows")?,
            accounts.rest(Tier::Pinned, "queries")?,
        ];
        let layer = |tier| match tier {
            Tier::Disk => Ok(Vec::new()),
            _ => accounts.many(tier, "KV cache", frame.cache_room(), plan.batch.count),
        };
        let cache = cache.into_iter().map(layer).collect::<Result<_, _>>()?;
        let rings = Rings::new(layout, |_| true)?;
        let allocated = accounts.close()?;
        let sequences = backend::sequences(request)?;
        let observer = request.observer;
        Ok(Self {
            host: Host { source, frame, units, rings, cache_file, sequences, observer },
            decoder,
            hidden,
            hidden_in_host,
            cache,
            gathered: (0..gathers).map(|_| Mutex::default()).collect(),
            crossings: (0..plan.batch.count).map(|_| Mutex::default()).collect(),
            flows: Flows::default(),
            allocated,
            notes,
            _held: [first, second, workspace, down, up],
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
        self.host.finish()
    }

    /// New tokens and last logits of every sequence.
    pub(crate) fn into_results(self) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
        self.host.into_results()
    }

    /// One block from host memory into the device.
    fn load_weights(&self, task: &Task) -> Result<(), Fault> {
        let mut slot =
            self.host.rings.slot(bound(task.bound.weights, "a device slot")?)?.write()?;
        let unit = self.host.unit(task)?;
        let (start, length) = (unit.block(task.op)?, length(task.work.bytes())?);
        let into = start.checked_add(length).and_then(|end| slot.get_mut(start..end));
        let into = into.ok_or_else(|| fault("a block lies outside its slot"))?;
        match task.bound.host {
            Some(host) => {
                let host = self.host.rings.slot(host)?.read()?;
                let from = host.get(..length);
                into.copy_from_slice(from.ok_or_else(|| fault("a block is larger than its slot"))?);
                Ok(())
            }
            None => unit.copy(&self.host.units, start, into),
        }
    }
}

impl Backend for CpuBackend<'_> {
    fn perform(&self, task: &Task) -> Result<(), Fault> {
        match task.op.kind {
            OpKind::ReadWeights => self.host.read_weights(task),
            OpKind::StageWeights => self.host.stage_weights(task),
            OpKind::LoadWeights => self.load_weights(task),
            OpKind::Gather => self.gather(task),
            OpKind::LoadHidden => self.load_hidden(task),
            OpKind::SaveHidden => self.save_hidden(task),
            OpKind::ReadCache => self.host.read_cache(task),
            OpKind::WriteCache => self.host.write_cache(task),
            OpKind::LoadCache => self.load_cache(task),
            OpKind::SaveCache => self.save_cache(task),
            OpKind::CpuCompute => self.attend_beside(task),
            OpKind::Compute => self.compute(task),
            // Its waits are all there is to it.
            OpKind::Barrier => Ok(()),
            OpKind::Decompress => Err(fault("the CPU backend does not decompress")),
        }
    }
}
