//! The pipeline itself: its lanes and buffers, and the operations of each pass.

use super::{Embedding, HostWeights, Pipo, place, takes_turns};
use crate::schedule::{
    Builder, DiskIo, HostMemory, LaneKind, Layout, OpId, OpKind, Phase, Piece, Program, QueueId,
    RingId, Slot, Tier, Work,
};
use crate::strategy::frame::Frame;
use crate::strategy::residency::Placed;
use crate::strategy::stream::{self, Extents, Stream, Streamed};
use crate::strategy::{KvTier, Processor};
use crate::units::Bytes;

/// A PIPO plan ready to be emitted.
pub(super) struct Pipeline {
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
    /// New rows between the GPU and the disk.
    new_rows_ring: RingId,
}

impl Pipeline {
    /// Lays out lanes, rings and allocations for a plan.
    pub(super) fn new(frame: Frame, knobs: &Pipo, layout: &mut Layout) -> Self {
        let placed = place(&frame, &place::placed_units(&frame, knobs), knobs);
        let kv_on_gpu = place::kv_layers_on_gpu(&frame.plan, knobs);
        place::allocate(&frame, knobs, &placed, &kv_on_gpu, layout);

        let staged = knobs.host_memory == HostWeights::Pageable;
        let readers =
            (0..knobs.disk_threads).map(|_| layout.lane_queue(LaneKind::DiskRead)).collect();
        let disk_write = layout.lane_queue(LaneKind::DiskWrite);
        let stager = staged.then(|| layout.lane_queue(LaneKind::HostCopy));
        let h2d = layout.lane(LaneKind::H2d);
        let (weights, kv_load, hidden_load) =
            (layout.queue(h2d), layout.queue(h2d), layout.queue(h2d));
        let d2h = layout.lane(LaneKind::D2h);
        let (kv_save, hidden_save) = (layout.queue(d2h), layout.queue(d2h));
        let gpu = layout.lane_queue(LaneKind::Gpu);
        let cpu = layout.lane_queue(LaneKind::Cpu);

        let streams = placed.iter().any(|p| p.streamed() > Bytes::ZERO);
        let gpu_slots = if streams { knobs.gpu_slots } else { 1 };
        let gpu_ring =
            layout.ring("weight slots", Tier::Gpu, gpu_slots, stream::slot_bytes(&placed));
        let host_ring = stream::host_ring(layout, &placed, staged, knobs.host_slots, knobs.block);
        let streams_kv = kv_on_gpu.iter().any(|&on| !on) && knobs.attention == Processor::Gpu;
        let room = frame.cache_room();
        // A cache that leaves the GPU needs room there for one layer's new rows while they are saved.
        let leaves = kv_on_gpu.iter().any(|&on| !on);
        let new_rows = if leaves { frame.new_cache(0) } else { Bytes::ZERO };
        let (kv_slots, kv_bytes) = if streams_kv { (knobs.kv_slots, room) } else { (1, new_rows) };
        let kv_ring = layout.ring("KV slots", Tier::Gpu, kv_slots, kv_bytes);
        let kv_host = if knobs.kv == KvTier::Disk && streams_kv { room } else { Bytes::ZERO };
        let kv_host_ring = layout.ring("KV slots", Tier::Pinned, 2, kv_host);
        let hidden_bytes =
            if knobs.hidden == Processor::Cpu { frame.hidden(0) } else { Bytes::ZERO };
        let hidden_ring = layout.ring("hidden states", Tier::Gpu, 3, hidden_bytes);
        // One copy of rows arrives while the one before is written.
        let on_their_way = if knobs.kv == KvTier::Disk { new_rows } else { Bytes::ZERO };
        let new_rows_ring = layout.ring("new KV rows", Tier::Pinned, 2, on_their_way);

        layout.marks = Marks::new(&frame).count();
        let extents = Extents::new(layout, &placed, knobs.block);
        let stream = Stream {
            readers,
            stager,
            h2d: weights,
            host_ring,
            gpu_ring,
            block: knobs.block,
            request: knobs.read_block,
            io: knobs.reads.io(knobs.disk_threads),
            extents,
        };
        Self {
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
            new_rows_ring,
        }
    }
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
        if pass > 0 && takes_turns(&self.frame.plan, &self.knobs) {
            self.in_turns(out, pass);
            return;
        }
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
            router = self.unit(out, self.of(pass, index, weights));
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
            // Rows that stay in host memory are put where those of the pass before still are.
            let stay = self.knobs.hidden == Processor::Cpu;
            let saved = stay.then(|| out.marked(marks.hidden(micro))).flatten();
            let rows = out.op(self.cpu, OpKind::Gather, gather).unit(0, micro);
            let rows = rows.after(token).after(saved).emit();
            let id = if stay {
                rows
            } else {
                out.op(self.hidden_load, OpKind::LoadHidden, load).unit(0, micro).after(rows).emit()
            };
            out.mark(marks.hidden(micro), id);
        }
    }

    /// A decode step whose micro-batches take turns: while the CPU attends for one, the GPU takes the next from
    /// behind its last attention up to its next one, across units.
    ///
    /// ```text
    /// CPU   A3.0    A3.1    A4.0    A4.1          A3.1 = attention of layer 3, second micro-batch
    /// GPU   C3.1    C4.0    C4.1    C5.0          C4.0 = all before that of layer 4, first micro-batch
    /// ```
    ///
    /// The weights of all units in between are held until the last micro-batch has passed. Where there are not
    /// slots for them, all micro-batches pass them first.
    fn in_turns(&self, out: &mut Builder, pass: u32) {
        let mut behind: Vec<Behind> = Vec::new();
        for index in 0..self.frame.units.len() {
            let unit = u16::try_from(index).unwrap_or(u16::MAX);
            if index == 0 && self.knobs.embedding == Embedding::Host {
                self.gather(out, pass);
                continue;
            }
            let held = behind.iter().filter(|other| other.of.weights.is_some()).count();
            let streams = self.placed[index].streamed() > Bytes::ZERO;
            if streams && held >= self.knobs.gpu_slots as usize {
                self.pass_all(out, &mut behind);
            }
            let weights = self.stream.emit(out, unit, &self.placed[index], None, None);
            let of = self.of(pass, index, weights);
            if !self.attends_on_cpu(&of) {
                behind.push(Behind { of, attended: Vec::new() });
                continue;
            }
            let attend = |micro| {
                for other in &behind {
                    self.go_on(out, other, micro);
                }
                self.attend_on_cpu(out, of.step(micro))
            };
            let attended = (0..self.frame.micros()).map(attend).collect();
            behind = vec![Behind { of, attended }];
        }
        self.pass_all(out, &mut behind);
    }

    /// What was put off, for one micro-batch after the other.
    fn pass_all(&self, out: &mut Builder, behind: &mut Vec<Behind>) {
        for micro in 0..self.frame.micros() {
            for other in &*behind {
                self.go_on(out, other, micro);
            }
        }
        behind.clear();
    }

    /// What of a unit was put off, for one micro-batch.
    fn go_on(&self, out: &mut Builder, behind: &Behind, micro: u16) -> OpId {
        let step = behind.of.step(micro);
        match behind.attended.get(usize::from(micro)) {
            Some(&attended) => self.compute(out, step, Piece::AfterAttention, &[attended], None),
            None => self.compute(out, step, Piece::Whole, &[], None),
        }
    }

    /// A unit in a pass.
    fn of(&self, pass: u32, index: usize, weights: Option<Streamed>) -> Of {
        let unit = u16::try_from(index).unwrap_or(u16::MAX);
        let is_head = index + 1 == self.frame.units.len();
        Of { pass, unit, layer: self.frame.units[index].layer, weights, is_head }
    }

    /// Whether the cache of a unit that attends is not on the GPU.
    fn attends_off_gpu(&self, of: &Of) -> bool {
        let on_gpu = self.kv_on_gpu.get(of.layer as usize).copied().unwrap_or(true);
        self.frame.units[usize::from(of.unit)].attends && !on_gpu
    }

    fn attends_on_cpu(&self, of: &Of) -> bool {
        self.attends_off_gpu(of) && of.pass > 0 && self.knobs.attention == Processor::Cpu
    }

    /// One unit for every micro-batch; returns the last compute.
    fn unit(&self, out: &mut Builder, of: Of) -> Option<OpId> {
        let micros = 0..self.frame.micros();
        let on_cpu = self.attends_on_cpu(&of);
        let mut attended = Vec::new();
        if on_cpu {
            // First halves before second halves: the GPU takes them in this order, and goes on with the
            // next micro-batch while the CPU attends for this one.
            attended.extend(micros.clone().map(|micro| self.attend_on_cpu(out, of.step(micro))));
        }
        let streamed = self.attends_off_gpu(&of) && !on_cpu;
        let behind = Behind { of, attended };
        let mut last = None;
        for micro in micros {
            last = Some(if streamed {
                self.attend_streamed(out, of.step(micro))
            } else {
                self.go_on(out, &behind, micro)
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
        takes: Option<Slot>,
    ) -> OpId {
        let marks = Marks::new(&self.frame);
        let unit = &self.frame.units[usize::from(step.unit)];
        let travels = self.knobs.hidden == Processor::Cpu;
        let begins = piece != Piece::AfterAttention;
        let ends = piece != Piece::BeforeAttention;
        let mut hidden_slot = None;
        let mut arrived = out.marked(marks.hidden(step.micro));
        if travels && begins {
            hidden_slot = Some(out.take(self.hidden_ring));
        }
        // What the GPU looks up itself need not be loaded: the lookup takes the slot.
        let looked_up = hidden_slot.filter(|_| step.unit == 0);
        if travels && begins && step.unit > 0 {
            let bytes = self.frame.hidden(step.pass);
            let work = out.work(Work::H2d { bytes, memory: HostMemory::Pinned });
            let load = out.op(self.hidden_load, OpKind::LoadHidden, work);
            let load = load.unit(step.unit, step.micro).after(arrived).takes(hidden_slot);
            arrived = Some(load.emit());
        }
        let chunks = self.frame.chunks(step.pass);
        let mut last = None;
        for chunk in 0..chunks {
            let mut compute = match piece {
                Piece::AfterAttention => self.frame.behind_cpu(unit, step.pass),
                _ => self.frame.compute(unit, step.pass, chunk, piece),
            };
            if step.unit == 0 && self.knobs.embedding == Embedding::Mapped {
                compute.mapped = self.frame.looked_up(unit, step.pass, chunk);
            }
            let work = out.work(Work::Gpu(compute));
            let is_last = chunk + 1 == chunks;
            let frees_weights = is_last && ends && step.micro + 1 == self.frame.micros();
            let token = (step.unit == 0).then(|| out.marked(marks.token(step.micro))).flatten();
            let op = out
                .op(self.gpu, OpKind::Compute, work)
                .unit(step.unit, step.micro)
                .block(chunk)
                .piece(piece)
                .after(arrived)
                .after(token)
                .after(step.weights.map(|w| w.last))
                .after_all(after)
                .takes(takes.or(looked_up).filter(|_| chunk == 0))
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
                let io = DiskIo::Direct;
                let work = out.work(Work::DiskRead { bytes, request, io, jumps: true });
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
        let on_disk = self.knobs.kv == KvTier::Disk;
        let rows = on_disk.then(|| out.take(self.new_rows_ring));
        let save = out.op(self.kv_save, OpKind::SaveCache, work).unit(step.unit, step.micro);
        let mut saved = save.after(computed).takes(rows).frees(slot).emit();
        if rows.is_some() {
            let work = out.work(Work::DiskWrite { bytes, request: self.knobs.read_block });
            let write = out.op(self.disk_write, OpKind::WriteCache, work);
            saved = write.unit(step.unit, step.micro).after(saved).frees(rows).emit();
        }
        out.mark(mark, saved);
        computed
    }

    /// Decode attention on the CPU: queries and new rows go down. What follows attention is still to be
    /// computed: it waits for what this returns, and reads what was attended from host memory.
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
        let attended = attend.piece(Piece::AttentionOnly).after(saved).after(prefilled).emit();
        out.mark(mark, attended);
        attended
    }
}

/// One unit in one pass.
#[derive(Debug, Clone, Copy)]
struct Of {
    pass: u32,
    unit: u16,
    layer: u32,
    weights: Option<Streamed>,
    is_head: bool,
}

impl Of {
    fn step(&self, micro: u16) -> Step {
        let &Self { pass, unit, layer, weights, is_head } = self;
        Step { pass, unit, micro, layer, weights, is_head }
    }
}

/// A unit whose computations are put off: what is behind its attention, where that is under way for each
/// micro-batch, and otherwise all of them.
#[derive(Debug)]
struct Behind {
    of: Of,
    attended: Vec<OpId>,
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
