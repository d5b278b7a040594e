//! Which buffers an operation reads and writes.
//!
//! An operation says which slot it takes and which it frees. Whoever works in between (a copy that fills
//! the second block of a slot, a product that neither takes nor frees the weights it reads) uses the
//! slot that was taken last, in program order, for the same unit and micro-batch.

use std::collections::BTreeMap;

use pipo_plan::schedule::{Op, OpKind, Slot};

/// The slots that an operation uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bound {
    /// GPU slot with the unit's streamed weights.
    pub weights: Option<Slot>,
    /// GPU slot with the cache of the layer and micro-batch, or room for its new rows.
    pub cache: Option<Slot>,
    /// GPU slot with the micro-batch's hidden states.
    pub hidden: Option<Slot>,
    /// Host slot: the block or cache on its way, or new rows of a cache.
    pub host: Option<Slot>,
}

/// Follows a program and says of each operation which slots it uses.
#[derive(Debug, Default)]
pub struct Binder {
    weights: BTreeMap<u16, Slot>,
    cache: BTreeMap<(u16, u16), Slot>,
    hidden: BTreeMap<(u16, u16), Slot>,
}

impl Binder {
    /// The slots of the next operation in program order.
    pub fn bind(&mut self, op: &Op) -> Bound {
        let place = (op.unit, op.micro);
        let mut bound = Bound::default();
        match op.kind {
            OpKind::ReadWeights | OpKind::StageWeights | OpKind::ReadCache => {
                bound.host = op.takes;
            }
            OpKind::LoadWeights | OpKind::Decompress => {
                remember(&mut self.weights, op.unit, op.takes);
                bound.weights = self.weights.get(&op.unit).copied();
                bound.host = op.frees[0];
            }
            OpKind::LoadCache => {
                remember(&mut self.cache, place, op.takes);
                bound.cache = self.cache.get(&place).copied();
                bound.host = op.frees[0];
            }
            OpKind::LoadHidden => {
                remember(&mut self.hidden, place, op.takes);
                bound.hidden = self.hidden.get(&place).copied();
            }
            OpKind::Compute => {
                // A computation that takes a slot has nothing to load: it makes the first cache rows, or,
                // in the embedding, which has no cache, the first hidden states.
                if op.unit == 0 {
                    remember(&mut self.hidden, place, op.takes);
                } else {
                    remember(&mut self.cache, place, op.takes);
                }
                bound.weights = self.weights.get(&op.unit).copied();
                bound.cache = self.cache.get(&place).copied();
                bound.hidden = self.hidden.get(&place).copied();
            }
            OpKind::SaveCache => {
                bound.cache = self.cache.get(&place).copied();
                bound.host = op.takes;
            }
            OpKind::WriteCache => bound.host = op.frees[0],
            OpKind::SaveHidden => bound.hidden = self.hidden.get(&place).copied(),
            OpKind::Gather | OpKind::CpuCompute | OpKind::Barrier => {}
        }
        for slot in op.frees.into_iter().flatten() {
            self.weights.retain(|_, held| *held != slot);
            self.cache.retain(|_, held| *held != slot);
            self.hidden.retain(|_, held| *held != slot);
        }
        bound
    }
}

fn remember<K: Ord>(slots: &mut BTreeMap<K, Slot>, key: K, slot: Option<Slot>) {
    if let Some(slot) = slot {
        slots.insert(key, slot);
    }
}
