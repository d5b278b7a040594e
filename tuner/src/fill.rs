//! Resident weights fill what the other knobs leave.

use pipo_plan::strategy::Order;
use pipo_plan::strategy::residency::{Home, assign};
use pipo_plan::strategy::units::Unit;
use pipo_plan::units::Bytes;

/// Units that are to be placed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Units<'a> {
    /// In order of use.
    pub(crate) all: &'a [Unit],
    /// What head and embedding have in common: kept at the same tier, it is kept once.
    pub(crate) tied_table: Bytes,
    /// Which stay first.
    pub(crate) order: Order,
}

impl Units<'_> {
    pub(crate) fn total(&self) -> Bytes {
        self.all.iter().map(|u| u.bytes).sum()
    }

    fn held(&self, homes: &[Home], tier: fn(&Home) -> Bytes) -> Bytes {
        let all: Bytes = homes.iter().map(tier).sum();
        match (homes.first(), homes.last()) {
            (Some(first), Some(last)) => all - self.tied_table.min(tier(first)).min(tier(last)),
            _ => all,
        }
    }

    /// Host memory that holds all weights which are not on the GPU.
    pub(crate) fn held_off_gpu(&self, gpu: Bytes) -> Bytes {
        let homes = assign(self.all, gpu, Bytes::ZERO, self.order);
        self.held(&homes, Home::streamed)
    }

    /// GPU bytes of resident weights and slots when at most `weights` stay.
    fn on_gpu(&self, weights: Bytes, slots: u32) -> Bytes {
        let homes = assign(self.all, weights, Bytes::ZERO, self.order);
        let slot = homes.iter().map(Home::streamed).max().unwrap_or(Bytes::ZERO);
        self.held(&homes, |h| h.gpu) + slot * u64::from(slots)
    }

    /// The most weights that may stay on the GPU if `room` bytes must hold them and the slots for the
    /// others; none if not even the slots fit.
    ///
    /// A slot is as large as the largest unit that is streamed. So the room is what the slots of one of
    /// the sizes leave: each size is tried, the smallest first, which leaves most for weights. Whole
    /// units leave a remainder, which is offered again, because a smaller unit may fit into it.
    pub(crate) fn fill_gpu(&self, room: Bytes, slots: u32) -> Option<Bytes> {
        let total = self.total();
        if self.on_gpu(total, slots) <= room {
            return Some(total);
        }
        let mut sizes: Vec<Bytes> = self.all.iter().map(|u| u.bytes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let ring = |size: &Bytes| *size * u64::from(slots);
        let offers = sizes.iter().filter(|s| ring(s) <= room).map(|s| room - ring(s));
        let used = |weights: Bytes| self.on_gpu(weights, slots);
        let fitting = offers.filter(|weights| *weights < total).map(|w| (w, used(w)));
        let (weights, taken) = fitting.into_iter().find(|(_, taken)| *taken <= room)?;
        Some(offer_remainder((weights, taken), room, total, used))
    }

    /// The most weights that may stay in `room` bytes of host memory with a ring of at most `ring` bytes
    /// beside them. `gpu` says what stays on the GPU; where `staged`, all weights pass through the ring.
    pub(crate) fn fill_host(&self, gpu: Bytes, room: Bytes, ring: Bytes, staged: bool) -> Bytes {
        let homes = assign(self.all, gpu, Bytes::ZERO, self.order);
        let total: Bytes = homes.iter().map(Home::streamed).sum();
        // All that is not on the GPU, head and embedding once if they are one matrix.
        let held = self.held(&homes, Home::streamed);
        if held <= if staged { room - ring } else { room } {
            return total;
        }
        let used = |weights: Bytes| {
            let homes = assign(self.all, gpu, weights, self.order);
            self.held(&homes, |h| h.host) + ring
        };
        let first = room - ring;
        offer_remainder((first, used(first)), room, total, used)
    }
}

/// Raises an offer, given with what it uses, by what it leaves unused, as long as the result fits and
/// takes more.
fn offer_remainder(
    (mut offer, mut taken): (Bytes, Bytes),
    room: Bytes,
    total: Bytes,
    used: impl Fn(Bytes) -> Bytes,
) -> Bytes {
    // Each round that helps adds a unit; what is left after a few is less than the smallest.
    for _ in 0..4 {
        let more = (offer + (room - taken)).min(total);
        let by_more = used(more);
        if more <= offer || by_more > room || by_more == taken {
            break;
        }
        (offer, taken) = (more, by_more);
    }
    offer
}
