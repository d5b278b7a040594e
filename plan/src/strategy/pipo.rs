//! PIPO (arXiv 2504.03664), generalised.
//!
//! Four kinds of task on their own lanes: load weights, load cache, compute, save cache. Attention and
//! MLP are separate stages; weights run ahead as far as the slots allow; the cache of a layer is loaded
//! while the stage before it computes, and saved behind its stage; nothing waits for everything.
//!
//! ```text
//! disk   r3 r4 r5 r6 ...
//! H2D       W3 W4 W5 ...      W = weights of a unit, back to back
//! H2D       K2    K4          K = cache of the next attention
//! GPU       C2 C3 C4 ...
//! D2H          S2    S4       S = new cache rows
//! ```
//!
//! What the paper's pictures and abstract say is followed; its equations and code are not public, so
//! this is a reconstruction, and the knobs generalise it: granularity, buffers at each tier, block
//! sizes, resident weights, the cache's tier, micro-batches, attention on the CPU, routed experts.

use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::residency::{self, Order, Placed};
use super::shapes::Piece;
use super::stream::{self, Extents, Stream, Streamed};
use super::units::{Granularity, Unit};
use super::{KvTier, LowerError, Processor};
use crate::plan::Plan;
use crate::schedule::{
    Builder, DiskIo, HostMemory, LaneKind, Layout, OpId, OpKind, Phase, Program, QueueId, RingId,
    Schedule, Tier, Work,
};
use crate::units::Bytes;

/// Where host-resident weights are kept.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum HostWeights {
    /// In pinned memory: copied to the GPU directly.
    #[default]
    Pinned,
    /// In pageable memory: copied through pinned slots by a staging thread.
    Pageable,
}

/// How the weight file is read.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum FileReads {
    /// Past the page cache.
    #[default]
    Direct,
    /// Through the page cache, which keeps what host memory is left over.
    Buffered,
}

/// Where the embedding table is looked up.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Embedding {
    /// By the CPU in host memory; only the rows that are needed travel.
    #[default]
    Host,
    /// On the GPU, as a unit like any other.
    Unit,
}

/// Which experts are loaded.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ExpertLoads {
    /// All of a layer, ahead of time.
    #[default]
    All,
    /// Those the router picked, once it has.
    Routed,
}

/// The knobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipo {
    /// What is loaded and computed as one.
    pub granularity: Granularity,
    /// GPU buffers for streamed units.
    pub gpu_slots: u32,
    /// Pinned host buffers of one block each.
    pub host_slots: u32,
    /// Bytes moved by one transfer.
    pub block: Bytes,
    /// Bytes of one disk request.
    pub read_block: Bytes,
    /// Threads that read.
    pub disk_threads: u32,
    /// How the weight file is read.
    pub reads: FileReads,
    /// Weights kept on the GPU, at most.
    pub gpu_weights: Bytes,
    /// Weights kept in host memory, at most.
    pub host_weights: Bytes,
    /// Kind of that host memory.
    pub host_memory: HostWeights,
    /// Which units stay first.
    pub order: Order,
    /// Where the embedding is looked up.
    pub embedding: Embedding,
    /// Where the cache lives that is not kept on the GPU.
    pub kv: KvTier,
    /// Layers whose cache stays on the GPU although the others' does not.
    pub kv_gpu_layers: u32,
    /// GPU buffers for the cache of one layer and micro-batch.
    pub kv_slots: u32,
    /// Where decode attention over a cache in host memory is computed.
    pub attention: Processor,
    /// Where hidden states wait between units.
    pub hidden: Processor,
    /// Which experts are loaded.
    pub experts: ExpertLoads,
    /// Whether dequantisation is fused into the products.
    pub fused: bool,
}

impl Default for Pipo {
    /// The paper's pipeline as drawn: attention and MLP apart, two buffers, 32 MB blocks read in 8 MB
    /// requests, nothing resident.
    fn default() -> Self {
        Self {
            granularity: Granularity::Part,
            gpu_slots: 2,
            host_slots: 4,
            block: Bytes(32_000_000),
            read_block: Bytes(8_000_000),
            disk_threads: 1,
            reads: FileReads::Direct,
            gpu_weights: Bytes::ZERO,
            host_weights: Bytes::ZERO,
            host_memory: HostWeights::Pinned,
            order: Order::Spread,
            embedding: Embedding::Host,
            kv: KvTier::Gpu,
            kv_gpu_layers: 0,
            kv_slots: 2,
            attention: Processor::Gpu,
            hidden: Processor::Gpu,
            experts: ExpertLoads::All,
            fused: true,
        }
    }
}

struct Pipeline {
    frame: Frame,
    knobs: Pipo,
    placed: Vec<Placed>,
    kv_on_gpu: Vec<bool>,
    stream: Stream,
    gpu: QueueId,
    cpu: QueueId,
    kv_load: QueueId,
    hidden_load: QueueId,
    kv_save: QueueId,
    hidden_save: QueueId,
    disk_write: QueueId,
    kv_ring: RingId,
    kv_host_ring: RingId,
    hidden_ring: RingId,
}

/// Lowers a plan.
pub fn lower(plan: &Plan, knobs: &Pipo) -> Result<Schedule, LowerError> {
    check(plan, knobs)?;
    let frame = Frame::new(plan, knobs.granularity, knobs.fused);
    let mut layout = frame.layout();
    let placed = place(&frame, &placed_units(&frame, knobs), knobs);
    let kv_on_gpu = kv_layers_on_gpu(plan, knobs);
    allocate(&frame, knobs, &placed, &kv_on_gpu, &mut layout);

    let staged = knobs.host_memory == HostWeights::Pageable;
    let readers = (0..knobs.disk_threads).map(|_| layout.lane_queue(LaneKind::DiskRead)).collect();
    let disk_write = layout.lane_queue(LaneKind::DiskWrite);
    let stager = staged.then(|| layout.lane_queue(LaneKind::HostCopy));
    let h2d = layout.lane(LaneKind::H2d);
    let (weights, kv_load, hidden_load) = (layout.queue(h2d), layout.queue(h2d), layout.queue(h2d));
    let d2h = layout.lane(LaneKind::D2h);
    let (kv_save, hidden_save) = (layout.queue(d2h), layout.queue(d2h));
    let gpu = layout.lane_queue(LaneKind::Gpu);
    let cpu = layout.lane_queue(LaneKind::Cpu);

    let streams = placed.iter().any(|p| p.streamed() > Bytes::ZERO);
    let gpu_slots = if streams { knobs.gpu_slots } else { 1 };
    let gpu_ring = layout.ring("weight slots", Tier::Gpu, gpu_slots, stream::slot_bytes(&placed));
    let host_ring = stream::host_ring(&mut layout, &placed, staged, knobs.host_slots, knobs.block);
    let streams_kv = kv_on_gpu.iter().any(|&on| !on) && knobs.attention == Processor::Gpu;
    let room = frame.cache_room();
    // A cache that leaves the GPU needs room there for one layer's new rows while they are saved.
    let leaves = kv_on_gpu.iter().any(|&on| !on);
    let new_rows = if leaves { frame.new_cache(0) } else { Bytes::ZERO };
    let (kv_slots, kv_bytes) = if streams_kv { (knobs.kv_slots, room) } else { (1, new_rows) };
    let kv_ring = layout.ring("KV slots", Tier::Gpu, kv_slots, kv_bytes);
    let kv_host = if knobs.kv == KvTier::Disk && streams_kv { room } else { Bytes::ZERO };
    let kv_host_ring = layout.ring("KV slots", Tier::Pinned, 2, kv_host);
    let hidden_bytes = if knobs.hidden == Processor::Cpu { frame.hidden(0) } else { Bytes::ZERO };
    let hidden_ring = layout.ring("hidden states", Tier::Gpu, 3, hidden_bytes);

    layout.marks = Marks::new(&frame).count();
    let extents = Extents::new(&mut layout, &placed, knobs.block);
    let io = match knobs.reads {
        FileReads::Direct => DiskIo::Direct,
        FileReads::Buffered => DiskIo::Buffered,
    };
    let stream = Stream {
        readers,
        stager,
        h2d: weights,
        host_ring,
        gpu_ring,
        block: knobs.block,
        request: knobs.read_block,
        io,
        extents,
    };
    let program = Pipeline {
        frame,
        knobs: knobs.clone(),
        placed,
        kv_on_gpu,
        stream,
        gpu,
        cpu,
        kv_load,
        hidden_load,
        kv_save,
        hidden_save,
        disk_write,
        kv_ring,
        kv_host_ring,
        hidden_ring,
    };
    Ok(Schedule { layout, program: Box::new(program) })
}

fn check(plan: &Plan, knobs: &Pipo) -> Result<(), LowerError> {
    let at_least_one = [
        ("pipo.gpu_slots", knobs.gpu_slots),
        ("pipo.host_slots", knobs.host_slots),
        ("pipo.kv_slots", knobs.kv_slots),
        ("pipo.disk_threads", knobs.disk_threads),
    ];
    for (path, value) in at_least_one {
        if value == 0 || value > 1024 {
            let message = format!("it is {value}, from 1 to 1024 is possible");
            return Err(LowerError::new(path, message, "2 slots overlap, more only absorb jitter"));
        }
    }
    if knobs.disk_threads > 16 {
        let message = format!("it is {}, at most 16 threads are supported", knobs.disk_threads);
        return Err(LowerError::new("pipo.disk_threads", message, "1 to 4 saturate a disk"));
    }
    let units = super::units::cut(&plan.model, plan.precision.weights, knobs.granularity);
    let largest = units.iter().map(|u| u.bytes).max().unwrap_or(Bytes::ZERO);
    let smallest_block = Bytes(largest.0.div_ceil(stream::MOST_BLOCKS)).max(Bytes(4096));
    if knobs.block < smallest_block {
        let message = format!(
            "it is {}, but a unit of {largest} may have at most {} blocks, so at least {} is needed",
            knobs.block,
            stream::MOST_BLOCKS,
            smallest_block.exact()
        );
        return Err(LowerError::new(
            "pipo.block",
            message,
            "blocks of 4 MiB or more use a link well",
        ));
    }
    if knobs.read_block == Bytes::ZERO {
        return Err(LowerError::new("pipo.read_block", "it is 0B", "set it to 1MiB or more"));
    }
    if knobs.experts == ExpertLoads::Routed
        && (plan.model.experts.is_none() || knobs.granularity == Granularity::Tensor)
    {
        let message = "routed loads need a model with experts and granularity `layer` or `part`";
        return Err(LowerError::new("pipo.experts", message, "set it to \"all\""));
    }
    if knobs.attention == Processor::Cpu && knobs.hidden == Processor::Cpu {
        let message = "attention on the CPU keeps hidden states on the GPU between its two halves";
        return Err(LowerError::new("pipo.hidden", message, "set it to \"gpu\""));
    }
    if knobs.attention == Processor::Cpu && knobs.kv != KvTier::Host {
        let message = "attention on the CPU needs the cache in host memory";
        return Err(LowerError::new("pipo.attention", message, "set pipo.kv to \"host\""));
    }
    Ok(())
}

/// The units as they are placed: a table that is looked up in host memory is none of them.
pub fn placed_units(frame: &Frame, knobs: &Pipo) -> Vec<Unit> {
    let mut units = frame.units.clone();
    if knobs.embedding == Embedding::Host {
        // The lookup table is host memory of its own kind, noted in `allocate`.
        units[0].bytes = Bytes::ZERO;
    }
    units
}

/// Where the units of [`placed_units`] live.
pub fn place(frame: &Frame, units: &[Unit], knobs: &Pipo) -> Vec<Placed> {
    let host_weights = match knobs.embedding {
        Embedding::Host => knobs.host_weights - frame.units[0].bytes,
        Embedding::Unit => knobs.host_weights,
    };
    let homes = residency::assign(units, knobs.gpu_weights, host_weights, knobs.order);
    let experts = frame.plan.model.experts;
    let place = |(unit, home): (&Unit, residency::Home)| match experts {
        Some(e) if knobs.experts == ExpertLoads::Routed && unit.has_experts() => {
            Placed::experts(home, unit.expert_bytes(frame.style.weights), e.count)
        }
        _ => Placed::whole(home),
    };
    units.iter().zip(homes).map(place).collect()
}

/// For each layer, whether its cache stays on the GPU.
pub fn kv_layers_on_gpu(plan: &Plan, knobs: &Pipo) -> Vec<bool> {
    let layers = plan.model.layers;
    let on_gpu = match knobs.kv {
        KvTier::Gpu => layers,
        KvTier::Host | KvTier::Disk => knobs.kv_gpu_layers.min(layers),
    };
    // Evenly spread, so that the loads of the others come in even intervals.
    let count = |l: u32| u64::from(l) * u64::from(on_gpu) / u64::from(layers.max(1));
    (0..layers).map(|l| count(l + 1) > count(l)).collect()
}

fn allocate(
    frame: &Frame,
    knobs: &Pipo,
    placed: &[Placed],
    kv_on_gpu: &[bool],
    layout: &mut Layout,
) {
    let host = match knobs.host_memory {
        HostWeights::Pinned => Tier::Pinned,
        HostWeights::Pageable => Tier::Pageable,
    };
    frame.allocate_weights(layout, placed, host);
    if knobs.embedding == Embedding::Host {
        layout.allocate("embedding table", Tier::Pageable, frame.units[0].bytes);
    }
    let per_layer = frame.cache_room() * frame.plan.batch.count;
    let on_gpu = kv_on_gpu.iter().filter(|&&on| on).count() as u64;
    let elsewhere = kv_on_gpu.len() as u64 - on_gpu;
    layout.allocate("KV cache", Tier::Gpu, per_layer * on_gpu);
    let tier = if knobs.kv == KvTier::Disk { Tier::Disk } else { Tier::Pinned };
    layout.allocate("KV cache", tier, per_layer * elsewhere);
    if knobs.hidden == Processor::Gpu {
        layout.allocate("hidden states", Tier::Gpu, frame.activations());
    } else {
        layout.allocate("hidden states", Tier::Pinned, frame.activations());
    }
    layout.allocate("workspace", Tier::Gpu, frame.workspace());
}

/// Cross-pass references: the last save of each layer and micro-batch, the head of each micro-batch.
struct Marks {
    layers: usize,
    micros: usize,
}

impl Marks {
    fn new(frame: &Frame) -> Self {
        Self { layers: frame.plan.model.layers as usize, micros: usize::from(frame.micros()) }
    }
    fn cache(&self, layer: u32, micro: u16) -> usize {
        layer as usize * self.micros + usize::from(micro)
    }
    fn hidden(&self, micro: u16) -> usize {
        self.layers * self.micros + usize::from(micro)
    }
    fn token(&self, micro: u16) -> usize {
        (self.layers + 1) * self.micros + usize::from(micro)
    }
    fn count(&self) -> usize {
        (self.layers + 2) * self.micros
    }
}

impl Program for Pipeline {
    fn passes(&self) -> u32 {
        self.frame.passes()
    }

    fn phase(&self, pass: u32) -> Phase {
        self.frame.phase(pass)
    }

    fn emit(&self, pass: u32, out: &mut Builder) {
        let last = self.frame.units.len() - 1;
        let mut router = None;
        for index in 0..self.frame.units.len() {
            let unit = u16::try_from(index).unwrap_or(u16::MAX);
            if index == 0 && self.knobs.embedding == Embedding::Host {
                self.gather(out, pass);
                continue;
            }
            let routed = self.routed(index, pass);
            // Experts are known only once the attention before them has run.
            let after = routed.as_ref().and(router);
            let weights =
                self.stream.emit(out, unit, &self.placed[index], routed.as_deref(), after);
            router = self.unit(out, pass, unit, weights, index == last);
        }
    }
}

impl Pipeline {
    fn routed(&self, unit: usize, pass: u32) -> Option<Vec<bool>> {
        (self.placed[unit].segments.len() > 1)
            .then(|| self.frame.routed(&self.frame.units[unit], pass))
            .flatten()
    }

    /// The embedding lookup of every micro-batch on the CPU, and its rows on their way to the GPU.
    fn gather(&self, out: &mut Builder, pass: u32) {
        let marks = Marks::new(&self.frame);
        let bytes = self.frame.hidden(pass);
        let gather = out.work(Work::Gather { bytes });
        let load = out.work(Work::H2d { bytes, memory: HostMemory::Pinned });
        for micro in 0..self.frame.micros() {
            let token = out.marked(marks.token(micro));
            let rows = out.op(self.cpu, OpKind::Gather, gather).unit(0, micro).after(token).emit();
            let id = if self.knobs.hidden == Processor::Cpu {
                rows
            } else {
                out.op(self.hidden_load, OpKind::LoadHidden, load).unit(0, micro).after(rows).emit()
            };
            out.mark(marks.hidden(micro), id);
        }
    }

    /// One unit for every micro-batch; returns the last compute.
    fn unit(
        &self,
        out: &mut Builder,
        pass: u32,
        unit: u16,
        weights: Option<Streamed>,
        is_head: bool,
    ) -> Option<OpId> {
        let attends = self.frame.units[usize::from(unit)].attends;
        let layer = self.frame.units[usize::from(unit)].layer;
        let on_gpu = self.kv_on_gpu.get(layer as usize).copied().unwrap_or(true);
        let on_cpu = attends && !on_gpu && pass > 0 && self.knobs.attention == Processor::Cpu;
        let mut last = None;
        for micro in 0..self.frame.micros() {
            let step = Step { pass, unit, micro, layer, weights, is_head };
            last = Some(if on_cpu {
                self.attend_on_cpu(out, step)
            } else if attends && !on_gpu {
                self.attend_streamed(out, step)
            } else {
                self.compute(out, step, Piece::Whole, &[], None)
            });
        }
        last
    }

    /// The compute operations of a step, chunk by chunk; hidden states travel if they live on the host.
    fn compute(
        &self,
        out: &mut Builder,
        step: Step,
        piece: Piece,
        after: &[OpId],
        takes: Option<crate::schedule::Slot>,
    ) -> OpId {
        let marks = Marks::new(&self.frame);
        let unit = &self.frame.units[usize::from(step.unit)];
        let travels = self.knobs.hidden == Processor::Cpu;
        let begins = piece != Piece::AfterAttention;
        let ends = piece != Piece::BeforeAttention;
        let mut hidden_slot = None;
        let mut arrived = out.marked(marks.hidden(step.micro));
        if travels && begins && step.unit > 0 {
            let bytes = self.frame.hidden(step.pass);
            let work = out.work(Work::H2d { bytes, memory: HostMemory::Pinned });
            hidden_slot = Some(out.take(self.hidden_ring));
            let load = out.op(self.hidden_load, OpKind::LoadHidden, work);
            let load = load.unit(step.unit, step.micro).after(arrived).takes(hidden_slot);
            arrived = Some(load.emit());
        }
        let chunks = self.frame.chunks(step.pass);
        let mut last = None;
        for chunk in 0..chunks {
            let work = out.work(Work::Gpu(self.frame.compute(unit, step.pass, chunk, piece)));
            let is_last = chunk + 1 == chunks;
            let frees_weights = is_last && ends && step.micro + 1 == self.frame.micros();
            let token = (step.unit == 0).then(|| out.marked(marks.token(step.micro))).flatten();
            let op = out
                .op(self.gpu, OpKind::Compute, work)
                .unit(step.unit, step.micro)
                .block(chunk)
                .after(arrived)
                .after(token)
                .after(step.weights.map(|w| w.last))
                .after_all(after)
                .takes(if chunk == 0 { takes } else { None })
                .frees(step.weights.filter(|_| frees_weights).map(|w| w.slot))
                .ends_pass(is_last && step.is_head);
            last = Some(op.emit());
        }
        let Some(mut last) = last else { return OpId(0) };
        if step.is_head {
            out.mark(marks.token(step.micro), last);
        }
        if travels && ends {
            // The slot is freed when the outgoing copy of the same rows has ended.
            let bytes = self.frame.hidden(step.pass);
            let work = out.work(Work::D2h { bytes, memory: HostMemory::Pinned });
            let save = out.op(self.hidden_save, OpKind::SaveHidden, work);
            last = save.unit(step.unit, step.micro).after(last).frees(hidden_slot).emit();
        }
        out.mark(marks.hidden(step.micro), last);
        last
    }

    /// Attention over a cache that is loaded before and saved behind it.
    fn attend_streamed(&self, out: &mut Builder, step: Step) -> OpId {
        let marks = Marks::new(&self.frame);
        let mark = marks.cache(step.layer, step.micro);
        let slot = out.take(self.kv_ring);
        let mut loaded = None;
        if step.pass > 0 {
            let bytes = self.frame.old_cache(step.pass);
            let mut saved = out.marked(mark);
            let mut host_slot = None;
            if self.knobs.kv == KvTier::Disk {
                let request = self.knobs.read_block;
                let work = out.work(Work::DiskRead { bytes, request, io: DiskIo::Direct });
                host_slot = Some(out.take(self.kv_host_ring));
                let reader =
                    self.stream.readers[usize::from(step.micro) % self.stream.readers.len()];
                let read = out.op(reader, OpKind::ReadCache, work).unit(step.unit, step.micro);
                saved = Some(read.after(saved).takes(host_slot).emit());
            }
            let work = out.work(Work::H2d { bytes, memory: HostMemory::Pinned });
            let load = out.op(self.kv_load, OpKind::LoadCache, work).unit(step.unit, step.micro);
            loaded = Some(load.after(saved).takes(slot).frees(host_slot).emit());
        }
        let takes = loaded.is_none().then_some(slot);
        let after: Vec<OpId> = loaded.into_iter().collect();
        let computed = self.compute(out, step, Piece::Whole, &after, takes);
        let bytes = self.frame.new_cache(step.pass);
        let work = out.work(Work::D2h { bytes, memory: HostMemory::Pinned });
        let save = out.op(self.kv_save, OpKind::SaveCache, work).unit(step.unit, step.micro);
        let mut saved = save.after(computed).frees(slot).emit();
        if self.knobs.kv == KvTier::Disk {
            let work = out.work(Work::DiskWrite { bytes, request: self.knobs.read_block });
            let write = out.op(self.disk_write, OpKind::WriteCache, work);
            saved = write.unit(step.unit, step.micro).after(saved).emit();
        }
        out.mark(mark, saved);
        computed
    }

    /// Decode attention on the CPU: queries and new rows go down, outputs come back.
    fn attend_on_cpu(&self, out: &mut Builder, step: Step) -> OpId {
        let mark = Marks::new(&self.frame).cache(step.layer, step.micro);
        let unit = &self.frame.units[usize::from(step.unit)];
        let before = self.compute(out, step, Piece::BeforeAttention, &[], None);
        let down = self.frame.query(step.pass) + self.frame.new_cache(step.pass);
        let work = out.work(Work::D2h { bytes: down, memory: HostMemory::Pinned });
        let save = out.op(self.kv_save, OpKind::SaveCache, work).unit(step.unit, step.micro);
        let saved = save.after(before).emit();
        let prefilled = out.marked(mark);
        let shape = self.frame.compute(unit, step.pass, 0, Piece::AttentionOnly);
        let work = out.work(Work::Cpu(shape));
        let attend = out.op(self.cpu, OpKind::CpuCompute, work).unit(step.unit, step.micro);
        let attended = attend.after(saved).after(prefilled).emit();
        out.mark(mark, attended);
        let bytes = self.frame.query(step.pass);
        let work = out.work(Work::H2d { bytes, memory: HostMemory::Pinned });
        let load = out.op(self.hidden_load, OpKind::LoadHidden, work).unit(step.unit, step.micro);
        let loaded = load.after(attended).emit();
        self.compute(out, step, Piece::AfterAttention, &[loaded], None)
    }
}

/// One unit of one micro-batch in one pass.
#[derive(Debug, Clone, Copy)]
struct Step {
    pass: u32,
    unit: u16,
    micro: u16,
    layer: u32,
    weights: Option<Streamed>,
    is_head: bool,
}
