//! Explaining a schedule that can go no further.

use pipo_plan::schedule::{OpId, Slot};

use super::Engine;
use super::lane::Queued;
use crate::error::{Blocker, Waiting};

impl Engine<'_> {
    /// The head of every queue that is not empty, with what it waits for.
    pub(super) fn waiting(&mut self) -> Vec<Waiting> {
        (0..self.queues.len()).filter_map(|queue| self.head(queue)).collect()
    }

    fn head(&mut self, queue: usize) -> Option<Waiting> {
        let &Queued { place, turn } = self.queues[queue].line.front()?;
        let pass = self.window.pass(place);
        let op = &pass.ops[place.index as usize];
        let id = OpId(pass.first + place.index);
        let on = match (self.queues[queue].waits_for(pass.waits(op), &self.window), op.takes) {
            (Some(op), _) => Blocker::Op { op, description: self.describe(op) },
            (None, Some(slot)) if !self.slots.is_free(slot, turn) => self.slot_blocker(slot),
            (None, _) => Blocker::Lane,
        };
        Some(Waiting { op: id, description: self.describe(id), on })
    }

    fn slot_blocker(&self, slot: Slot) -> Blocker {
        let ring = self.schedule.layout.rings[usize::from(slot.ring.0)].name.clone();
        match self.slots.holder(slot) {
            Some(by) => {
                Blocker::Held { ring, index: slot.index, by, description: self.describe(by) }
            }
            None => Blocker::Turn { ring, index: slot.index },
        }
    }

    fn describe(&self, id: OpId) -> String {
        let Some((op, pass)) = self.window.find(id) else { return "of a finished pass".into() };
        self.schedule.layout.describe(op, pass)
    }
}
