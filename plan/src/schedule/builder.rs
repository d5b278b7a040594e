//! The one way in which operations come into being.

use super::{Layout, Op, OpId, OpKind, Piece, QueueId, RingId, Slot, Work, WorkId, WorkTable};
use crate::units::Bytes;

/// The operations of one pass, in program order.
#[derive(Debug, Clone, Default)]
pub struct Pass {
    /// Number of the pass.
    pub number: u32,
    /// Position of `ops[0]` in program order.
    pub first: u32,
    /// The operations.
    pub ops: Vec<Op>,
    waits: Vec<OpId>,
}

impl Pass {
    /// What an operation of this pass waits for.
    pub fn waits(&self, op: &Op) -> &[OpId] {
        &self.waits[op.waits.0 as usize..op.waits.1 as usize]
    }
}

/// Builds one pass after another, keeping what crosses passes: ring positions, marks, the last barrier.
#[derive(Debug)]
pub struct Builder {
    /// Distinct works seen so far.
    pub works: WorkTable,
    pass: Pass,
    ring_slots: Vec<u16>,
    ring_next: Vec<u16>,
    last_in_queue: Vec<Option<OpId>>,
    marks: Vec<Option<OpId>>,
    fence: Option<OpId>,
}

impl Builder {
    /// An empty builder for a layout.
    pub fn new(layout: &Layout) -> Self {
        Self {
            works: WorkTable::default(),
            pass: Pass::default(),
            ring_slots: layout.rings.iter().map(|r| r.slots).collect(),
            ring_next: vec![0; layout.rings.len()],
            last_in_queue: vec![None; layout.queues.len()],
            marks: vec![None; layout.marks],
            fence: None,
        }
    }

    /// The id of a work, for reuse over many operations.
    pub fn work(&mut self, work: Work) -> WorkId {
        self.works.intern(work)
    }

    /// Starts an operation; its unit, waits and slots are added to what this returns.
    pub fn op(&mut self, queue: QueueId, kind: OpKind, work: WorkId) -> NewOp<'_> {
        let at = self.pass.waits.len();
        let at = u32::try_from(at).unwrap_or(u32::MAX);
        let op = Op {
            kind,
            queue,
            work,
            unit: 0,
            micro: 0,
            block: 0,
            piece: Piece::Whole,
            offset: Bytes::ZERO,
            extent: Op::NO_EXTENT,
            takes: None,
            frees: [None; 2],
            ends_pass: false,
            waits: (at, at),
        };
        if let Some(fence) = self.fence {
            self.pass.waits.push(fence);
        }
        NewOp { builder: self, op }
    }

    /// Takes the next slot of a ring for an operation about to be emitted.
    pub fn take(&mut self, ring: RingId) -> Slot {
        let at = usize::from(ring.0);
        let index = self.ring_next[at];
        self.ring_next[at] = (index + 1) % self.ring_slots[at];
        Slot { ring, index }
    }

    /// Emits a barrier on `queue`: it waits for everything before it, everything after waits for it.
    pub fn barrier(&mut self, queue: QueueId, unit: u16, micro: u16) -> OpId {
        let work = self.work(Work::Barrier);
        let last: Vec<OpId> = self.last_in_queue.iter().flatten().copied().collect();
        let id = self.op(queue, OpKind::Barrier, work).unit(unit, micro).after_all(&last).emit();
        self.fence = Some(id);
        id
    }

    /// Remembers an operation under a number, across passes; see [`Layout::marks`].
    pub fn mark(&mut self, mark: usize, op: OpId) {
        self.marks[mark] = Some(op);
    }

    /// The operation last remembered under a number.
    pub fn marked(&self, mark: usize) -> Option<OpId> {
        self.marks[mark]
    }

    /// Hands over the finished pass and begins the next; `into` is a used pass whose memory is reused.
    pub fn finish(&mut self, mut into: Pass) -> Pass {
        into.ops.clear();
        into.waits.clear();
        into.number = self.pass.number + 1;
        into.first = self.next_id().0;
        std::mem::replace(&mut self.pass, into)
    }

    fn next_id(&self) -> OpId {
        OpId(self.pass.first + u32::try_from(self.pass.ops.len()).unwrap_or(u32::MAX))
    }
}

/// An operation under construction; nothing exists until [`NewOp::emit`].
#[derive(Debug)]
#[must_use = "an operation exists only after emit()"]
pub struct NewOp<'a> {
    builder: &'a mut Builder,
    op: Op,
}

impl NewOp<'_> {
    /// Names the unit and micro-batch.
    pub fn unit(mut self, unit: u16, micro: u16) -> Self {
        self.op.unit = unit;
        self.op.micro = micro;
        self
    }

    /// Names the block or chunk.
    pub fn block(mut self, block: u16) -> Self {
        self.op.block = block;
        self
    }

    /// Names the part of the unit that is computed.
    pub fn piece(mut self, piece: Piece) -> Self {
        self.op.piece = piece;
        self
    }

    /// Says where in the unit's stored run the weights begin that are moved.
    pub fn offset(mut self, offset: Bytes) -> Self {
        self.op.offset = offset;
        self
    }

    /// Names the file extent that is read.
    pub fn extent(mut self, extent: u32) -> Self {
        self.op.extent = extent;
        self
    }

    /// Waits for an operation, if there is one.
    pub fn after(self, op: impl Into<Option<OpId>>) -> Self {
        if let Some(op) = op.into() {
            self.builder.pass.waits.push(op);
        }
        self
    }

    /// Waits for several operations.
    pub fn after_all(self, ops: &[OpId]) -> Self {
        self.builder.pass.waits.extend_from_slice(ops);
        self
    }

    /// Takes a slot, if there is one, when it starts.
    pub fn takes(mut self, slot: impl Into<Option<Slot>>) -> Self {
        self.op.takes = slot.into();
        self
    }

    /// Frees a slot, if there is one, when it ends; at most two.
    pub fn frees(mut self, slot: impl Into<Option<Slot>>) -> Self {
        if let Some(slot) = slot.into() {
            debug_assert!(self.op.frees[1].is_none(), "an operation frees at most two slots");
            self.op.frees[1] = self.op.frees[0].replace(slot);
        }
        self
    }

    /// Its end is the end of the pass as a user sees it.
    pub fn ends_pass(mut self, ends: bool) -> Self {
        self.op.ends_pass = ends;
        self
    }

    /// Appends it to the program.
    pub fn emit(mut self) -> OpId {
        let id = self.builder.next_id();
        let end = u32::try_from(self.builder.pass.waits.len()).unwrap_or(u32::MAX);
        self.op.waits.1 = end;
        // An unknown queue is refused with the pass, by name; here it must only not panic.
        if let Some(last) = self.builder.last_in_queue.get_mut(usize::from(self.op.queue.0)) {
            *last = Some(id);
        }
        self.builder.pass.ops.push(self.op);
        id
    }
}
