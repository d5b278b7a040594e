//! Taking passes from the program: numbering, checks, prices, queues.

use pipo_plan::schedule::{Layout, Op, OpId, Pass, Slot};

use super::Engine;
use super::lane::{Prepared, Queued};
use crate::error::{Invalid, SimulationError};
use crate::slots::Slots;
use crate::window::Place;

/// Checks what does not depend on the operations.
pub(crate) fn check_layout(layout: &Layout) -> Result<(), Invalid> {
    let lanes = layout.lanes.len();
    for (queue, lane) in layout.queues.iter().enumerate() {
        if usize::from(lane.0) >= lanes {
            return Err(Invalid::QueueWithoutLane { queue, lane: lane.0, lanes });
        }
    }
    if let Some(ring) = layout.rings.iter().position(|r| r.slots == 0) {
        return Err(Invalid::EmptyRing(ring));
    }
    if layout.window == 0 { Err(Invalid::EmptyWindow) } else { Ok(()) }
}

impl Engine<'_> {
    /// Retires what has ended and emits as many passes as the window admits.
    pub(super) fn admit_passes(&mut self) -> Result<(), SimulationError> {
        loop {
            while self.window.retire() {}
            match self.window.next_pass() {
                Some(pass) if pass < self.schedule.program.passes() => self.emit(pass)?,
                _ => return Ok(()),
            }
        }
    }

    fn emit(&mut self, number: u32) -> Result<(), SimulationError> {
        let program = &self.schedule.program;
        program.emit(number, &mut self.builder);
        let pass = self.builder.finish(self.window.spare());
        let ops = u32::try_from(pass.ops.len()).ok();
        let numbered = ops.and_then(|n| pass.first.checked_add(n)).is_some();
        if !numbered || pass.number != number || pass.first != self.window.next_op() {
            return Err(Invalid::Numbering(number).into());
        }
        for work in &self.builder.works.as_slice()[self.prices.len()..] {
            self.prices.push(Prepared::new(&self.costs.price(work)?, self.hits));
        }
        let works = self.prices.len();
        for (index, op) in (0..).zip(&pass.ops) {
            check_op(&self.schedule.layout, works, &self.slots, &pass, op, index)?;
            let turn = op.takes.map_or(0, |slot| self.slots.promise(slot));
            let queued = Queued { place: Place { pass: number, index }, turn };
            self.queues[usize::from(op.queue.0)].line.push_back(queued);
        }
        self.window.release(pass, program.phase(number), self.now);
        Ok(())
    }
}

/// Checks one operation against everything it names, so that nothing later can be out of range.
fn check_op(
    layout: &Layout,
    works: usize,
    slots: &Slots,
    pass: &Pass,
    op: &Op,
    index: u32,
) -> Result<(), Invalid> {
    let id = OpId(pass.first + index);
    let named = |what, index: u32, count: usize| {
        if (index as usize) < count {
            Ok(())
        } else {
            Err(Invalid::Unknown { op: id, what, index, count })
        }
    };
    named("queue", op.queue.0.into(), layout.queues.len())?;
    named("work", op.work.0, works)?;
    if op.extent != Op::NO_EXTENT {
        named("extent", op.extent, layout.extents.len())?;
    }
    let slot = |slot: Slot| {
        if slots.exists(slot) {
            return Ok(());
        }
        named("ring", slot.ring.0.into(), layout.rings.len())?;
        let count = usize::from(layout.rings[usize::from(slot.ring.0)].slots);
        named("slot", slot.index.into(), count)
    };
    op.takes.into_iter().chain(op.frees.into_iter().flatten()).try_for_each(slot)?;
    match pass.waits(op).iter().find(|on| **on >= id) {
        Some(&on) => Err(Invalid::WaitsForward { op: id, on }),
        None => Ok(()),
    }
}
