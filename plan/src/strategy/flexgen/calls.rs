//! The six calls of a step, and the barrier.

use super::split;
use super::weights::Stored;
use super::zigzag::{LAST, Step, Zigzag};
use crate::schedule::{
    Builder, DiskIo, HostMemory, NewOp, OpId, OpKind, Piece, QueueId, Slot, Tier, Work,
};
use crate::strategy::Processor;
use crate::units::Bytes;

/// Bytes that the kernel reads or writes at once for a memory map: read-ahead is 128 KiB.
pub const REQUEST: Bytes = Bytes(128 << 10);

/// Bytes of one token's number.
const TOKEN: Bytes = Bytes(4);

/// The calls of one pass as they are issued.
pub(super) struct Calls<'a> {
    run: &'a Zigzag,
    out: &'a mut Builder,
    /// Where nothing overlaps: the operations of the call before, which everything waits for.
    before: Vec<OpId>,
    /// Operations of this call.
    call: Vec<OpId>,
    /// The last operation on the stream that computes, in this step.
    stream: Option<OpId>,
    /// The last copy that held up the issuing thread, in this step.
    blocked: Option<OpId>,
    /// Buffers that belong to the step after their call: loaded cache, and new rows to be stored.
    loaded: Option<Slot>,
    unsaved: Option<Slot>,
}

impl<'a> Calls<'a> {
    pub(super) fn new(run: &'a Zigzag, out: &'a mut Builder) -> Self {
        let before = if run.knobs.overlap { None } else { out.marked(LAST) };
        Self {
            run,
            out,
            before: before.into_iter().collect(),
            call: Vec::new(),
            stream: None,
            blocked: None,
            loaded: None,
            unsaved: None,
        }
    }

    /// Loads the weights of a unit, tensor by tensor. The barrier before has freed the buffer, so it
    /// does not matter that copies of both queues write to it and only the first to be issued takes it.
    pub(super) fn load_weights(&mut self, step: Step) {
        let run = self.run;
        let Some(slot) = run.weight_slot(step) else { return };
        let taken = self.out.take(run.rings.weights);
        debug_assert_eq!(taken, slot, "slots come round robin");
        let mut takes = Some(slot);
        let mut number = 0;
        for &Stored { tier, bytes, extent } in run.loaded(step.unit) {
            let memory =
                if tier == Tier::Pageable { HostMemory::Pageable } else { HostMemory::Pinned };
            let work = Work::H2d { bytes, memory };
            let id = if tier == Tier::Disk {
                let relay = self.out.take(run.rings.relays);
                let thread = run.queues.read[usize::from(relay.index)];
                let io = DiskIo::PageFault;
                let read = Work::DiskRead { bytes, request: REQUEST, io, jumps: true };
                let read = self.start(thread, OpKind::ReadWeights, read, step);
                let read = read.block(number).extent(extent).takes(relay).emit();
                let copy = self.by_thread(run.queues.relayed, OpKind::LoadWeights, work, step);
                copy.block(number).after(read).takes(takes.take()).frees(relay).emit()
            } else {
                let copy = self.start(run.queues.weights, OpKind::LoadWeights, work, step);
                copy.block(number).takes(takes.take()).emit()
            };
            self.done(id, memory);
            number = number.saturating_add(1);
        }
        self.end();
    }

    /// Loads the cache of a layer and micro-batch, and returns the buffer that it is in.
    pub(super) fn load_cache(&mut self, step: Step) -> Option<Slot> {
        let run = self.run;
        if step.pass == 0 || !self.leaves_gpu(step) {
            return None;
        }
        let positions = run.frame.plan.workload.prompt + u64::from(step.pass) - 1;
        let (host, disk) = (run.cache.host, run.cache.disk);
        let disk = split::bytes(&run.frame, disk, positions);
        if run.knobs.cpu_attention {
            for bytes in halves(disk) {
                let relay = self.out.take(run.rings.relays);
                let id = self.read_cache(bytes, relay, step).frees(relay).emit();
                self.done(id, HostMemory::Pinned);
            }
            self.end();
            return None;
        }
        let slot = self.out.take(run.rings.cache);
        let mut takes = Some(slot);
        let host = split::bytes(&run.frame, host, positions);
        if host > Bytes::ZERO {
            let memory = HostMemory::Pageable;
            let work = Work::H2d { bytes: host, memory };
            let op = self.start(run.queues.cache_load, OpKind::LoadCache, work, step);
            let id = op.takes(takes.take()).emit();
            self.done(id, memory);
        }
        for bytes in halves(disk) {
            let relay = self.out.take(run.rings.relays);
            let read = self.read_cache(bytes, relay, step).emit();
            let work = Work::H2d { bytes, memory: HostMemory::Pinned };
            let copy = self.by_thread(run.queues.cache_load, OpKind::LoadCache, work, step);
            let id = copy.after(read).takes(takes.take()).frees(relay).emit();
            self.done(id, HostMemory::Pinned);
        }
        self.end();
        Some(slot)
    }

    fn read_cache(&mut self, bytes: Bytes, relay: Slot, step: Step) -> NewOp<'_> {
        let thread = self.run.queues.read[usize::from(relay.index)];
        let io = DiskIo::PageFault;
        let work = Work::DiskRead { bytes, request: REQUEST, io, jumps: true };
        self.start(thread, OpKind::ReadCache, work, step).takes(relay)
    }

    /// Stores the new rows of a layer and micro-batch; those of the last token are not needed.
    pub(super) fn store_cache(&mut self, step: Step) {
        let run = self.run;
        let Some(slot) = self.unsaved.take() else { return };
        let positions = run.frame.rows(step.pass, 0).positions;
        let host = split::bytes(&run.frame, run.cache.host, positions);
        let disk = split::bytes(&run.frame, run.cache.disk, positions);
        let queue = run.queues.cache_save;
        if host > Bytes::ZERO {
            let memory = HostMemory::Pageable;
            let save =
                self.start(queue, OpKind::SaveCache, Work::D2h { bytes: host, memory }, step);
            let id = save.frees((disk == Bytes::ZERO).then_some(slot)).emit();
            self.done(id, memory);
        }
        let mut jobs = halves(disk).peekable();
        while let Some(bytes) = jobs.next() {
            let relay = self.out.take(run.rings.relays);
            let memory = HostMemory::Pinned;
            let save = self.start(queue, OpKind::SaveCache, Work::D2h { bytes, memory }, step);
            let saved = save.takes(relay).frees(jobs.peek().is_none().then_some(slot)).emit();
            let thread = run.queues.write[usize::from(relay.index)];
            let work = Work::DiskWrite { bytes, request: REQUEST };
            let write = self.by_thread(thread, OpKind::WriteCache, work, step);
            let id = write.after(saved).frees(relay).emit();
            self.done(id, memory);
        }
        self.end();
    }

    /// Fetches hidden states, or, for the first unit, the tokens.
    pub(super) fn load_hidden(&mut self, step: Step) {
        let run = self.run;
        let (bytes, memory) = if step.unit == 0 {
            (TOKEN * run.frame.rows(step.pass, 0).count(), HostMemory::Pageable)
        } else if run.knobs.hidden == Processor::Cpu {
            (run.frame.hidden(step.pass), HostMemory::Pinned)
        } else {
            return;
        };
        let (stream, slot) = (self.stream, run.hidden_slot(step));
        let work = Work::H2d { bytes, memory };
        let load = self.start(run.queues.hidden_load, OpKind::LoadHidden, work, step);
        let id = load.after(stream).takes(slot).emit();
        self.stream = Some(id);
        self.done(id, memory);
        self.end();
    }

    /// Puts hidden states away, or, from the last unit, the new tokens.
    pub(super) fn store_hidden(&mut self, step: Step) {
        let run = self.run;
        let (bytes, memory) = if step.unit + 1 == run.units() {
            (TOKEN * run.frame.plan.batch.micro, HostMemory::Pageable)
        } else if run.knobs.hidden == Processor::Cpu {
            (run.frame.hidden(step.pass), HostMemory::Pinned)
        } else {
            return;
        };
        let (stream, slot) = (self.stream, run.hidden_slot(step));
        let work = Work::D2h { bytes, memory };
        let save = self.start(run.queues.hidden_save, OpKind::SaveHidden, work, step);
        let id = save.after(stream).frees(slot).emit();
        self.stream = Some(id);
        self.done(id, memory);
        self.end();
    }

    /// Computes a step, and returns the buffer of new cache rows that must be stored.
    pub(super) fn compute(&mut self, step: Step) -> Option<Slot> {
        let run = self.run;
        let leaves = self.leaves_gpu(step);
        let keeps = leaves && step.pass + 1 < run.frame.passes();
        let rows = keeps.then(|| self.out.take(run.rings.new_rows));
        if leaves && step.pass > 0 && run.knobs.cpu_attention {
            self.kernels(step, Piece::BeforeAttention, rows);
            self.attend_on_cpu(step);
            self.kernels(step, Piece::AfterAttention, None);
        } else {
            self.kernels(step, Piece::Whole, rows);
        }
        self.end();
        rows
    }

    fn kernels(&mut self, step: Step, piece: Piece, takes: Option<Slot>) {
        let run = self.run;
        let unit = &run.frame.units[usize::from(step.unit)];
        let ends = piece != Piece::BeforeAttention;
        let last_micro = step.micro + 1 == run.frame.micros();
        let weights = if ends && last_micro { run.weight_slot(step) } else { None };
        let cache = if ends { self.loaded.take() } else { None };
        let stream = self.stream;
        let work = Work::Gpu(run.frame.compute(unit, step.pass, 0, piece));
        let op = self.start(run.queues.gpu, OpKind::Compute, work, step).piece(piece).after(stream);
        let is_head = step.unit + 1 == run.units();
        let id = op.takes(takes).frees(weights).frees(cache).ends_pass(is_head).emit();
        self.stream = Some(id);
        self.call.push(id);
    }

    /// Queries and new rows go to the CPU, which attends over the sequences whose cache is not on the
    /// GPU, and the results come back; the GPU attends over the others meanwhile.
    fn attend_on_cpu(&mut self, step: Step) {
        let run = self.run;
        let unit = &run.frame.units[usize::from(step.unit)];
        let whole = run.frame.compute(unit, step.pass, 0, Piece::AttentionOnly);
        let projected = self.stream;
        if run.cache.gpu > 0 {
            let mut part = whole.clone();
            part.attention.iter_mut().for_each(|a| a.sequences = run.cache.gpu);
            let op = self.start(run.queues.gpu, OpKind::Compute, Work::Gpu(part), step);
            let id = op.piece(Piece::AttentionOnly).after(projected).emit();
            self.call.push(id);
        }
        let outside = run.cache.outside();
        let query = Bytes(run.frame.query(step.pass).0 / run.frame.plan.batch.micro) * outside;
        let down = query + split::bytes(&run.frame, outside, 1);
        let memory = HostMemory::Pageable;
        let work = Work::D2h { bytes: down, memory };
        let save = self.start(run.queues.hidden_save, OpKind::SaveHidden, work, step);
        let saved = save.after(projected).emit();
        let mut part = whole;
        part.attention.iter_mut().for_each(|a| a.sequences = outside);
        let op = self.start(run.queues.cpu, OpKind::CpuCompute, Work::Cpu(part), step);
        let attended = op.piece(Piece::AttentionOnly).after(saved).emit();
        let work = Work::H2d { bytes: query, memory };
        let load = self.start(run.queues.hidden_load, OpKind::LoadHidden, work, step);
        let id = load.after(attended).emit();
        self.stream = Some(id);
        self.done(id, memory);
    }

    /// Hands buffers to the next step: cache that was loaded for it, rows that it will store.
    pub(super) fn hold(&mut self, loaded: Option<Slot>, unsaved: Option<Slot>) {
        self.loaded = self.loaded.or(loaded);
        self.unsaved = self.unsaved.or(unsaved);
    }

    /// Waits for everything.
    pub(super) fn barrier(&mut self, step: Step) {
        self.out.barrier(self.run.queues.host, step.unit, step.micro);
        self.stream = None;
        self.blocked = None;
    }

    /// Leaves the last operation for the next pass to wait for.
    pub(super) fn end_of_pass(&mut self) {
        if let Some(&last) = self.before.last() {
            self.out.mark(LAST, last);
        }
    }

    /// Whether a step is attention over a cache that is not all on the GPU.
    fn leaves_gpu(&self, step: Step) -> bool {
        self.run.cache.outside() > 0 && self.run.frame.units[usize::from(step.unit)].attends
    }

    /// Starts an operation that the issuing thread issues itself.
    fn start(&mut self, queue: QueueId, kind: OpKind, work: Work, step: Step) -> NewOp<'_> {
        let blocked = self.blocked;
        self.by_thread(queue, kind, work, step).after(blocked)
    }

    /// Starts an operation that a copy thread goes on with, whatever holds up the issuing thread.
    fn by_thread(&mut self, queue: QueueId, kind: OpKind, work: Work, step: Step) -> NewOp<'_> {
        let work = self.out.work(work);
        self.out.op(queue, kind, work).unit(step.unit, step.micro).after_all(&self.before)
    }

    /// Notes an emitted copy; one that meets unpinned memory holds up the issuing thread.
    fn done(&mut self, op: OpId, memory: HostMemory) {
        if memory == HostMemory::Pageable {
            self.blocked = Some(op);
        }
        self.call.push(op);
    }

    /// Ends a call.
    fn end(&mut self) {
        if !self.run.knobs.overlap && !self.call.is_empty() {
            self.before.clone_from(&self.call);
        }
        self.call.clear();
    }
}

/// Keys and values are separate files, each a job of its own.
fn halves(bytes: Bytes) -> impl Iterator<Item = Bytes> {
    let keys = Bytes(bytes.0.div_ceil(2));
    [keys, bytes - keys].into_iter().filter(|&half| half > Bytes::ZERO)
}
