//! Buffer slots: who holds each, who freed it last, and whose turn it is.

use pipo_plan::schedule::{OpId, Ring, Slot};
use pipo_plan::units::Nanos;

use crate::window::Ended;

/// One slot of one ring.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    held_by: Option<OpId>,
    freed: Option<Ended>,
    /// Turns handed out to operations as they were emitted.
    promised: u32,
    /// Turns taken up by operations that started.
    served: u32,
}

/// Every slot of every ring.
#[derive(Debug)]
pub(crate) struct Slots {
    rings: Vec<Vec<State>>,
    held: Vec<u16>,
    high_water: Vec<u16>,
}

impl Slots {
    pub(crate) fn new(rings: &[Ring]) -> Self {
        Self {
            rings: rings.iter().map(|r| vec![State::default(); usize::from(r.slots)]).collect(),
            held: vec![0; rings.len()],
            high_water: vec![0; rings.len()],
        }
    }

    /// Whether the slot exists.
    pub(crate) fn exists(&self, slot: Slot) -> bool {
        self.rings.get(usize::from(slot.ring.0)).is_some_and(|r| usize::from(slot.index) < r.len())
    }

    /// Hands out the next turn at a slot, in program order.
    pub(crate) fn promise(&mut self, slot: Slot) -> u32 {
        let state = self.state(slot);
        let turn = state.promised;
        // Only equality is ever asked, and far fewer than 2^32 turns are open at once.
        state.promised = turn.wrapping_add(1);
        turn
    }

    /// Whether the operation with this turn may take the slot now.
    pub(crate) fn is_free(&self, slot: Slot, turn: u32) -> bool {
        let state = self.peek(slot);
        state.held_by.is_none() && state.served == turn
    }

    /// The operation that holds the slot.
    pub(crate) fn holder(&self, slot: Slot) -> Option<OpId> {
        self.peek(slot).held_by
    }

    /// Who freed the slot last, and when.
    pub(crate) fn freed(&self, slot: Slot) -> Option<Ended> {
        self.peek(slot).freed
    }

    /// Takes a free slot.
    pub(crate) fn take(&mut self, slot: Slot, op: OpId) {
        let state = self.state(slot);
        state.held_by = Some(op);
        state.served = state.served.wrapping_add(1);
        let ring = usize::from(slot.ring.0);
        self.held[ring] += 1;
        self.high_water[ring] = self.high_water[ring].max(self.held[ring]);
    }

    /// Frees a slot; false when nothing held it.
    pub(crate) fn free(&mut self, slot: Slot, op: OpId, now: Nanos) -> bool {
        let state = self.state(slot);
        if state.held_by.take().is_none() {
            return false;
        }
        state.freed = Some((now, op));
        self.held[usize::from(slot.ring.0)] -= 1;
        true
    }

    /// The most slots of each ring ever held at once.
    pub(crate) fn into_high_water(self) -> Vec<u16> {
        self.high_water
    }

    fn peek(&self, slot: Slot) -> &State {
        &self.rings[usize::from(slot.ring.0)][usize::from(slot.index)]
    }

    fn state(&mut self, slot: Slot) -> &mut State {
        &mut self.rings[usize::from(slot.ring.0)][usize::from(slot.index)]
    }
}
