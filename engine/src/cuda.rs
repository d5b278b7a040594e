//! The CUDA backend: copies and kernels are queued on a device, which waits for them by itself.
//!
//! ```text
//! disk, host copies, lookups     threads of the host
//! H2D, D2H, GPU                  a stream each; events between them; the host only follows
//! ```
//!
//! The device's memory is one allocation of what the plan accounts for. What is needed beside it (tokens,
//! frequencies of the rotation, the scratch of cuBLAS) is allocated apart and belongs to the context.
//!
//! Numbers between kernels are 16-bit on this backend; every sum is in single precision. So tokens are
//! those of the CPU backend as far as rounding lets them, and bit for bit those of any other plan on the
//! same device with the same micro-batch, prompt chunks, fusion of dequantisation, and layers whose
//! attention is on the CPU.

#![allow(unsafe_code, reason = "the driver is a C interface; what it is given is kept alive here")]

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use pipo_kernels::Cpu;
use pipo_kernels::cuda::{CudaError, Region};
use pipo_plan::schedule::{HostMemory, LaneKind, Layout, OpKind, Slot, Tier, Work};
use pipo_plan::units::Bytes;

use crate::backend::accounts::Accounts;
use crate::backend::cache_file::CacheFile;
use crate::backend::knobs::Knobs;
use crate::backend::source::Source;
use crate::backend::unit::Unit;
use crate::backend::{self, Host, bound, fault, length};
use crate::decoder::{Bytes as Cut, Decoder};
use crate::executor::{Backend, ExecutionError, Fault, Interval, Queue, Task};
use crate::memory::{Buffer, Rings};
use crate::run::{GREEDY, Request, RunError};
use crate::shape::Pace;

mod apart;
mod arithmetic;
mod attention;
mod beside;
pub(crate) mod driver;
mod head;
mod held;
mod hidden;
mod mixture;
mod mlp;
mod queue;
mod transfer;

use apart::Apart;
use arithmetic::Arithmetic;
use beside::Crossing;
use driver::{Arena, Context, Part, Pin, Stream};
use held::Held;
pub(crate) use queue::Queues;

pub(crate) use driver::is_present;

/// The tiers that are the host's memory.
const HOST: [Tier; 2] = [Tier::Pinned, Tier::Pageable];

impl Cut for Region {
    fn cut(self, range: std::ops::Range<usize>) -> Option<Self> {
        self.slice(range.start as u64, range.len() as u64).ok()
    }
}

impl From<CudaError> for Fault {
    fn from(error: CudaError) -> Self {
        Self(error.to_string())
    }
}

/// A plan on a GPU. What is dropped first stands first: streams before memory, pins before their pages,
/// the context last.
pub(crate) struct CudaBackend<'a> {
    queues: Queues,
    arithmetic: Arithmetic,
    /// Looks tokens up where the plan keeps the table in host memory, and attends where it keeps the cache.
    decoder: Decoder,
    /// The multiprocessors that kernels run on, where those are not all.
    _part: Option<Part>,
    _pins: Vec<Pin>,
    host: Host<'a>,
    /// By unit: what stays on the device.
    kept: Vec<Option<Region>>,
    /// What the first unit has in pinned memory of the host, where kernels read it if it is not loaded.
    mapped: Option<Region>,
    /// By ring and slot; empty where a ring is the host's.
    rings: Vec<Vec<Region>>,
    /// By micro-batch; empty where hidden states stay in host memory.
    hidden: Vec<Region>,
    /// The same there.
    hidden_home: Vec<Buffer>,
    /// Norms of hidden states, for products to read.
    normed: Region,
    /// By layer and micro-batch, where the cache stays on the device.
    cache: Vec<Vec<Region>>,
    /// The same in host memory.
    cache_home: Vec<Vec<Buffer>>,
    /// By micro-batch: embedded rows on their way to the device.
    gathered: Vec<Buffer>,
    /// By micro-batch: an attention under way that is not on the device.
    crossings: Vec<Crossing>,
    apart: Apart,
    greedy: bool,
    /// Up and down, where the link stands in for a slower one.
    held: [Option<Held>; 2],
    /// What reads are held back to.
    pace: Option<Pace>,
    allocated: Vec<(Tier, Bytes)>,
    notes: Vec<String>,
    device: String,
    _arena: Arena,
    context: Context,
}

impl Drop for CudaBackend<'_> {
    /// A run that failed leaves work in the streams: nothing is given back before it is over.
    fn drop(&mut self) {
        let _ = self.context.synchronise();
    }
}

impl<'a> CudaBackend<'a> {
    /// Allocates everything and reads what stays in memory.
    pub(crate) fn new(
        request: &Request<'a>,
        layout: &Layout,
        cpu: Cpu,
        cancelled: &AtomicBool,
    ) -> Result<Self, RunError> {
        let knobs = Knobs::of(request.plan)?;
        let context = Context::open()?;
        let (plan, store) = (request.plan, request.store);
        let mut notes = Vec::new();
        let source = Source::open(request, layout, knobs.way, &mut notes)?;
        let decoder = Decoder::new(store.layout(), store.arithmetic(), cpu)?;
        let mut accounts = Accounts::new(layout);
        let count = plan.batch.count;
        let Knobs { frame, cache: cache_tiers, .. } = &knobs;

        // Counted first and allocated in one piece.
        let buffers = frame.units.len() as u64
            + (layout.rings.iter().map(|r| u64::from(r.slots)).sum::<u64>())
            + count * (u64::from(plan.model.layers) + 6);
        let bytes = layout.bytes(Tier::Gpu).0 + buffers * Arena::ALIGNMENT;
        let mut arena = Arena::new("everything on the device", bytes)?;
        let mut units = Vec::new();
        let mut kept = Vec::new();
        let mut bounce = transfer::Bounce::new()?;
        for index in 0..frame.units.len() {
            if cancelled.load(Ordering::Relaxed) {
                return Err(ExecutionError::Cancelled.into());
            }
            let mut unit = Unit::new(&knobs, index, store)?;
            unit.keep(index, &mut accounts, knobs.kept(index), &source, &HOST)?;
            kept.push(bounce.keep(&unit, index, &mut accounts, &source, &mut arena)?);
            units.push(unit);
        }
        let crossings = Crossing::all(&knobs, &mut accounts, &mut arena)?;
        let mut take = |bytes: Bytes| arena.take(bytes);
        let (mut hidden, mut hidden_home) = (Vec::new(), Vec::new());
        let mut beside = Bytes::ZERO;
        if knobs.hidden_in_host {
            hidden_home = accounts.many(Tier::Pinned, "hidden states", frame.hidden(0), count)?;
        } else {
            for _ in 0..count {
                let bytes = accounts.claim(Tier::Gpu, "hidden states", frame.hidden(0))?;
                hidden.push(take(bytes)?);
            }
            beside = accounts.claim_rest(Tier::Gpu, "hidden states")?;
        }
        beside += accounts.claim_rest(Tier::Gpu, "hidden states, result")?;
        let normed = take(beside)?;
        let workspace = take(accounts.claim_rest(Tier::Gpu, "workspace")?)?;
        let (mut cache, mut cache_home) = (Vec::new(), Vec::new());
        for tier in cache_tiers {
            let (mut here, mut home) = (Vec::new(), Vec::new());
            for _ in 0..count {
                let (name, room) = ("KV cache", frame.cache_room());
                match *tier {
                    Tier::Gpu => here.push(take(accounts.claim(*tier, name, room)?)?),
                    Tier::Disk => {}
                    _ => home.push(accounts.get(*tier, name).draw(room)?),
                }
            }
            cache.push(here);
            cache_home.push(home);
        }
        let mut rings = Vec::new();
        for ring in &layout.rings {
            let slots = if ring.tier == Tier::Gpu { ring.slots } else { 0 };
            rings.push((0..slots).map(|_| take(ring.slot_bytes)).collect::<Result<_, _>>()?);
        }
        let host_rings = Rings::new(layout, |tier| tier != Tier::Gpu)?;
        let allocated = accounts.close()?;

        let gathers = if knobs.gathers() && !knobs.hidden_in_host { count } else { 0 };
        let gathered = (0..gathers).map(|_| Buffer::apart("gathered rows", frame.hidden(0)));
        let gathered: Vec<Buffer> = gathered.collect::<Result<_, _>>()?;
        let apart = Apart::new(request, layout)?;
        let arithmetic = Arithmetic::new(request, &knobs, workspace, &context, &apart)?;
        arithmetic.warm(frame, arena.all(), &Stream::new()?)?;
        let host = Host {
            source,
            units,
            rings: host_rings,
            cache_file: CacheFile::for_plan(&knobs, store.data_path(), &mut notes)?,
            sequences: backend::sequences(request)?,
            observer: request.observer,
            frame: knobs.frame,
        };
        let pinned = host.units.iter().filter_map(|unit| unit.kept(Tier::Pinned));
        let pinned = pinned.chain(host.rings.at(layout, Tier::Pinned));
        let pinned = pinned.chain(cache_home.iter().flatten()).chain(&gathered).chain(&hidden_home);
        let pinned = pinned.chain(crossings.iter().map(|crossing| &crossing.home));
        let mut pins = Vec::new();
        for buffer in pinned.chain(apart.buffers()) {
            // SAFETY: buffers are never moved or resized, and pins are dropped before them.
            pins.extend(unsafe { Pin::new(&buffer.read()?) }?);
        }
        let mapped = host.units.first().and_then(|unit| unit.kept(Tier::Pinned));
        // SAFETY: pinned above, and pins outlive everything that reads what they hold.
        let mapped = mapped.map(|table| unsafe { driver::mapped(&table.read()?) }).transpose()?;
        let shape = request.shape;
        let part = shape.sms.map(|sms| Part::new(&context, sms)).transpose()?;
        let held = || shape.link.map(Held::new).transpose();
        Ok(Self {
            queues: Queues::new(layout, part.as_ref())?,
            _part: part,
            held: [held()?, held()?],
            pace: shape.disk.map(Pace::new),
            arithmetic,
            decoder,
            _pins: pins,
            host,
            kept,
            mapped,
            rings,
            hidden,
            hidden_home,
            normed,
            cache,
            cache_home,
            gathered,
            crossings,
            apart,
            greedy: request.sampling.temperature == GREEDY.temperature,
            allocated,
            notes,
            device: shape.name(&context.name()?),
            _arena: arena,
            context,
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

    /// The device's name.
    pub(crate) fn device(&self) -> &str {
        &self.device
    }

    /// After the run: whether every byte that was used has been checked.
    pub(crate) fn finish(&self) -> Result<(), RunError> {
        self.host.finish()
    }

    /// New tokens and last logits of every sequence.
    pub(crate) fn results(&self) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
        let micros = self.host.sequences.iter();
        let all = micros.flat_map(|micro| {
            let micro = micro.lock().unwrap_or_else(PoisonError::into_inner);
            micro.clone()
        });
        all.map(backend::sequence::Sequence::into_results).unzip()
    }

    fn slot(&self, slot: Slot) -> Result<Region, Fault> {
        let ring = self.rings.get(usize::from(slot.ring.0));
        let region = ring.and_then(|ring| ring.get(usize::from(slot.index)));
        region.copied().ok_or_else(|| fault("a slot of the device is not there"))
    }

    /// An operation of a lane of the device: queued.
    fn issue(&self, task: &Task) -> Result<(), Fault> {
        let pageable = HostMemory::Pageable;
        if let Work::H2d { memory, .. } | Work::D2h { memory, .. } = *task.work
            && memory == pageable
        {
            // The driver copies such memory before it returns: it must be what is meant by then.
            self.queues.wait_on_host(task)?;
        }
        let held = match task.work {
            Work::H2d { .. } => self.held[0].as_ref(),
            Work::D2h { .. } => self.held[1].as_ref(),
            _ => None,
        };
        self.queues.issue(task, |stream| match held {
            Some(held) => held.pass(stream, task.work.bytes(), || self.enqueue(task, stream)),
            None => self.enqueue(task, stream),
        })
    }

    /// What an operation of a lane of the device does.
    fn enqueue(&self, task: &Task, stream: &Stream) -> Result<(), Fault> {
        match task.op.kind {
            OpKind::LoadWeights => self.load_weights(task, stream),
            OpKind::LoadHidden => self.load_hidden(task, stream),
            OpKind::LoadCache => self.load_cache(task, stream),
            OpKind::SaveCache => self.save_cache(task, stream),
            OpKind::SaveHidden => self.save_hidden(task, stream),
            OpKind::Compute => self.compute(task, stream),
            _ => Err(fault("the CUDA backend does not know such an operation")),
        }
    }
}

impl Backend for CudaBackend<'_> {
    fn perform(&self, task: &Task) -> Result<(), Fault> {
        self.context.enter()?;
        match (&self.pace, task.work) {
            _ if self.queues.stream(task).is_some() => self.issue(task),
            (Some(pace), Work::DiskRead { .. }) => {
                pace.pass(task.work.bytes(), || self.at_once(task))
            }
            _ => self.at_once(task),
        }
    }

    fn queue(&self, lane: LaneKind) -> Option<&dyn Queue> {
        lane.is_of_gpu().then_some(self)
    }
}

impl CudaBackend<'_> {
    /// An operation of the host, which has ended when this returns.
    fn at_once(&self, task: &Task) -> Result<(), Fault> {
        match task.op.kind {
            OpKind::ReadWeights => self.host.read_weights(task),
            OpKind::StageWeights => self.host.stage_weights(task),
            OpKind::Gather => self.gather(task),
            OpKind::ReadCache => self.host.read_cache(task),
            OpKind::WriteCache => self.host.write_cache(task),
            OpKind::CpuCompute => self.attend_beside(task),
            // Its waits are all there is to it.
            OpKind::Barrier => Ok(()),
            _ => Err(fault("the CUDA backend does not know such an operation")),
        }
    }
}

impl Queue for CudaBackend<'_> {
    fn wait(&self, task: &Task) -> Result<Interval, Fault> {
        self.context.enter()?;
        let interval = self.queues.wait(task)?;
        self.follow(task)?;
        Ok(interval)
    }
}
