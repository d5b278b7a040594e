//! The CPU backend: device memory is a set of capped buffers, copies are copies, lanes are threads.
//!
//! What may have to travel is rounded to 16 bits wherever it stays: hidden states between the parts of a
//! layer, the cache, queries and what was attended. Other numbers are `f32`. So a result depends neither
//! on how the model was cut into units nor on where its pieces were computed.
//!
//! It runs the strategies `pipo` and `resident`. A cache on disk or in another precision than fp16,
//! hidden states outside the device, routed experts and the cutting of layers into tensors are refused
//! before anything starts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pipo_kernels::Cpu;
use pipo_kernels::sample::Sampler;
use pipo_plan::model::{Part, Precision};
use pipo_plan::plan::Plan;
use pipo_plan::schedule::{DiskIo, Layout, OpKind, Tier};
use pipo_plan::strategy::frame::Frame;
use pipo_plan::strategy::pipo::{self, Embedding, ExpertLoads, FileReads, HostWeights, Pipo};
use pipo_plan::strategy::residency::{Home, Placed};
use pipo_plan::strategy::{Granularity, KvTier, Processor, Strategy};
use pipo_plan::units::Bytes;

use crate::decoder::Decoder;
use crate::executor::{Backend, ExecutionError, Fault, Task};
use crate::memory::{Account, Buffer, Rings};
use crate::run::{NewToken, Request, RunError, sampler};
use crate::store::in_memory;

mod beside;
mod cache;
mod compute;
mod half;
mod source;
mod unit;

use beside::Crossing;
use source::{Source, Way};
use unit::Unit;

/// A plan on the CPU.
pub(crate) struct CpuBackend<'a> {
    source: Source<'a>,
    frame: Frame,
    decoder: Decoder,
    units: Vec<Unit>,
    rings: Rings,
    /// For each micro-batch: sequence by sequence, position by position.
    hidden: Vec<Buffer>,
    /// For each layer and micro-batch: sequence by sequence, all keys and then all values. On the device,
    /// or in host memory where the schedule moves them.
    cache: Vec<Vec<Buffer>>,
    /// For each micro-batch: embedded rows on their way to the device.
    gathered: Vec<Mutex<Vec<f32>>>,
    /// For each micro-batch: an attention under way that is not on the device.
    crossings: Vec<Mutex<Crossing>>,
    sequences: Vec<Mutex<Vec<Sequence>>>,
    observer: &'a (dyn Fn(NewToken) + Sync),
    allocated: Vec<(Tier, Bytes)>,
    notes: Vec<String>,
    /// Held as the plan has it: the arithmetic here works in buffers of its own.
    _workspace: [Buffer; 2],
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

/// What of a plan the backend goes by.
struct Knobs {
    granularity: Granularity,
    fused: bool,
    pipo: Option<Pipo>,
}

impl Knobs {
    fn of(request: &Request) -> Result<Self, RunError> {
        let refuse = |what: &str, next_step| {
            Err(RunError::Unavailable {
                what: format!("the CPU backend does not run {what}"),
                next_step,
            })
        };
        let plan = request.plan;
        if plan.precision.kv != Precision::Fp16 {
            return refuse("a cache that is not fp16", "set precision.kv to \"fp16\"");
        }
        match &plan.strategy {
            Strategy::Resident(knobs) => {
                Ok(Self { granularity: Granularity::Part, fused: knobs.fused, pipo: None })
            }
            Strategy::Pipo(knobs) => {
                if knobs.granularity == Granularity::Tensor {
                    return refuse(
                        "parts of a layer cut into tensors",
                        "set pipo.granularity to \"part\"",
                    );
                }
                if knobs.kv == KvTier::Disk {
                    return refuse("a cache on disk", "set pipo.kv to \"host\" or \"gpu\"");
                }
                if knobs.hidden == Processor::Cpu {
                    return refuse(
                        "hidden states that leave the device",
                        "set pipo.hidden to \"gpu\"",
                    );
                }
                if knobs.experts == ExpertLoads::Routed {
                    return refuse(
                        "experts loaded as they are routed to",
                        "set pipo.experts to \"all\"",
                    );
                }
                let (granularity, fused) = (knobs.granularity, knobs.fused);
                Ok(Self { granularity, fused, pipo: Some(knobs.clone()) })
            }
            other => refuse(
                &format!("the strategy `{}`", other.name()),
                "use a plan of `pipo` or `resident`",
            ),
        }
    }

    /// Where each unit lives.
    fn homes(&self, frame: &Frame) -> Vec<Home> {
        match &self.pipo {
            None => frame.units.iter().map(|u| Home { gpu: u.bytes, ..Home::default() }).collect(),
            Some(knobs) => {
                let units = pipo::placed_units(frame, knobs);
                pipo::place(frame, &units, knobs).iter().map(Placed::total).collect()
            }
        }
    }

    /// For each layer, whether its cache stays on the device.
    fn cache_on_device(&self, plan: &Plan) -> Vec<bool> {
        match &self.pipo {
            None => vec![true; plan.model.layers as usize],
            Some(knobs) => pipo::kv_layers_on_gpu(plan, knobs),
        }
    }

    /// How weights are read; where nothing is streamed, once and through the page cache.
    fn way(&self) -> Way {
        let Some(knobs) = &self.pipo else {
            return Way { io: DiskIo::Buffered, request: Bytes(8 << 20) };
        };
        let io = match knobs.reads {
            FileReads::Direct => DiskIo::Direct,
            FileReads::Buffered => DiskIo::Buffered,
        };
        Way { io, request: knobs.read_block }
    }

    fn host_tier(&self) -> Tier {
        match self.pipo.as_ref().map(|knobs| knobs.host_memory) {
            Some(HostWeights::Pageable) => Tier::Pageable,
            _ => Tier::Pinned,
        }
    }

    fn table_in_host(&self) -> bool {
        self.pipo.as_ref().is_some_and(|knobs| knobs.embedding == Embedding::Host)
    }
}

impl<'a> CpuBackend<'a> {
    /// Allocates everything and reads what stays in memory.
    pub(crate) fn new(
        request: &Request<'a>,
        layout: &Layout,
        cpu: Cpu,
        cancelled: &AtomicBool,
    ) -> Result<Self, RunError> {
        let knobs = Knobs::of(request)?;
        let (plan, store) = (request.plan, request.store);
        let mut notes = Vec::new();
        let source = Source::open(request, knobs.way(), &mut notes)?;
        let frame = Frame::new(plan, knobs.granularity, knobs.fused);
        let decoder = Decoder::new(store.layout(), store.arithmetic(), cpu)?;
        let mut accounts = Accounts::new(layout);
        let homes = knobs.homes(&frame);
        let mut units = Vec::new();
        for (index, home) in homes.iter().enumerate() {
            if cancelled.load(Ordering::Relaxed) {
                return Err(ExecutionError::Cancelled.into());
            }
            let mut unit = Unit::new(&frame, index, store)?;
            unit.on_device = home.gpu > Bytes::ZERO;
            if index == 0 && knobs.table_in_host() {
                unit.keep(accounts.get(Tier::Pageable, "embedding table"), &source)?;
            } else if unit.on_device || home.host > Bytes::ZERO {
                let tier = if unit.on_device { Tier::Gpu } else { knobs.host_tier() };
                unit.keep_sharing(&units, accounts.get(tier, "weights, resident"), &source)?;
            }
            units.push(unit);
        }
        let hidden =
            accounts.many(Tier::Gpu, "hidden states", frame.hidden(0), plan.batch.count)?;
        let results = accounts.rest(Tier::Gpu, "hidden states")?;
        let workspace = accounts.rest(Tier::Gpu, "workspace")?;
        let layer = |on_device: bool| {
            let tier = if on_device { Tier::Gpu } else { Tier::Pinned };
            accounts.many(tier, "KV cache", frame.cache_room(), plan.batch.count)
        };
        let cache = knobs.cache_on_device(plan).into_iter().map(layer).collect::<Result<_, _>>()?;
        let rings = Rings::new(layout)?;
        let allocated = accounts.close(layout)?;
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
            cache,
            gathered: (0..plan.batch.count).map(|_| Mutex::default()).collect(),
            crossings: (0..plan.batch.count).map(|_| Mutex::default()).collect(),
            sequences: sequences.map(|micro| Mutex::new(micro.to_vec())).collect(),
            observer: request.observer,
            allocated,
            notes,
            _workspace: [results, workspace],
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
        self.unit(task)?.read(&self.source, task.op.offset.0, into)
    }

    /// One block from pageable host memory into a pinned slot.
    fn stage_weights(&self, task: &Task) -> Result<(), Fault> {
        let mut slot = self.rings.slot(bound(task.bound.host, "a host slot")?)?.write()?;
        let length = length(task.work.bytes())?;
        let into =
            slot.get_mut(..length).ok_or_else(|| fault("a block is larger than its slot"))?;
        self.unit(task)?.copy_from_host(&self.units, task.op.offset.0, into)
    }

    /// One block from host memory into the device.
    fn load_weights(&self, task: &Task) -> Result<(), Fault> {
        let mut slot = self.rings.slot(bound(task.bound.weights, "a device slot")?)?.write()?;
        let (start, length) = (length(task.op.offset)?, length(task.work.bytes())?);
        let into = start.checked_add(length).and_then(|end| slot.get_mut(start..end));
        let into = into.ok_or_else(|| fault("a block lies outside its slot"))?;
        match task.bound.host {
            Some(host) => {
                let host = self.rings.slot(host)?.read()?;
                let from = host.get(..length);
                into.copy_from_slice(from.ok_or_else(|| fault("a block is larger than its slot"))?);
                Ok(())
            }
            None => self.unit(task)?.copy_from_host(&self.units, task.op.offset.0, into),
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
            OpKind::LoadCache => self.load_cache(task),
            OpKind::SaveCache => self.save_cache(task),
            OpKind::CpuCompute => self.attend_beside(task),
            OpKind::Compute => self.compute(task),
            other => Err(Fault(format!("the CPU backend does not {}", other.name()))),
        }
    }
}

/// The lines of the plan's memory table that are drawn from.
struct Accounts<'a> {
    layout: &'a Layout,
    open: BTreeMap<(Tier, &'static str), Account>,
}

impl<'a> Accounts<'a> {
    fn new(layout: &'a Layout) -> Self {
        Self { layout, open: BTreeMap::new() }
    }

    fn get(&mut self, tier: Tier, name: &'static str) -> &mut Account {
        let layout = self.layout;
        self.open.entry((tier, name)).or_insert_with(|| Account::open(layout, tier, name))
    }

    fn many(
        &mut self,
        tier: Tier,
        name: &'static str,
        each: Bytes,
        count: u64,
    ) -> Result<Vec<Buffer>, RunError> {
        let account = self.get(tier, name);
        Ok((0..count).map(|_| account.draw(each)).collect::<Result<_, _>>()?)
    }

    fn rest(&mut self, tier: Tier, name: &'static str) -> Result<Buffer, RunError> {
        let account = self.get(tier, name);
        Ok(account.draw(account.left())?)
    }

    /// What the tiers of memory hold; every account must be used up, and the rings are added.
    fn close(self, layout: &Layout) -> Result<Vec<(Tier, Bytes)>, RunError> {
        let mut sums: BTreeMap<Tier, Bytes> = BTreeMap::new();
        for ((tier, _), account) in self.open {
            *sums.entry(tier).or_default() += account.close()?;
        }
        for ring in &layout.rings {
            *sums.entry(ring.tier).or_default() += ring.slot_bytes * u64::from(ring.slots);
        }
        Ok(sums.into_iter().collect())
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

/// The parts of a unit, in the order of the computation.
fn parts(part: Part, granularity_is_layer: bool) -> Vec<Part> {
    match (part, granularity_is_layer) {
        (Part::Attention, true) => vec![Part::Attention, Part::Mlp],
        (part, _) => vec![part],
    }
}
