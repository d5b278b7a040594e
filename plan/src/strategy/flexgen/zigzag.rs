//! The order of the calls: unit by unit, micro-batch by micro-batch, a barrier after each step.

use super::calls::Calls;
use super::split::{self, Split};
use super::weights::Stored;
use super::{FlexGen, RELAY};
use crate::schedule::{Builder, LaneKind, Layout, Phase, Program, QueueId, RingId, Slot, Tier};
use crate::strategy::Processor;
use crate::strategy::frame::Frame;
use crate::units::Bytes;

/// A step: one unit of one micro-batch in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) pass: u32,
    pub(super) unit: u16,
    pub(super) micro: u16,
}

/// Where calls are issued to. FlexGen has one stream each for loading weights, loading cache and storing
/// cache; hidden states share the default stream with the kernels.
pub(super) struct Queues {
    /// One for each copy thread.
    pub(super) read: Vec<QueueId>,
    /// The same threads, when they write.
    pub(super) write: Vec<QueueId>,
    /// Weights from host memory.
    pub(super) weights: QueueId,
    /// Weights from the relays.
    pub(super) relayed: QueueId,
    pub(super) cache_load: QueueId,
    pub(super) hidden_load: QueueId,
    pub(super) cache_save: QueueId,
    pub(super) hidden_save: QueueId,
    pub(super) gpu: QueueId,
    pub(super) cpu: QueueId,
    pub(super) host: QueueId,
}

/// Bounded buffers. The barriers alone would keep a buffer from being overwritten; the rings say which
/// buffer it is, and count it.
pub(super) struct Rings {
    /// A unit's weights on the GPU.
    pub(super) weights: RingId,
    /// The cache of one layer and micro-batch on the GPU, loaded.
    pub(super) cache: RingId,
    /// New rows of the cache on the GPU, not yet stored.
    pub(super) new_rows: RingId,
    /// Hidden states on the GPU, where they live on the host.
    pub(super) hidden: RingId,
    /// One pinned relay for each copy thread.
    pub(super) relays: RingId,
}

/// The program.
pub(super) struct Zigzag {
    pub(super) frame: Frame,
    pub(super) knobs: FlexGen,
    pub(super) weights: Vec<Vec<Stored>>,
    pub(super) cache: Split,
    pub(super) queues: Queues,
    pub(super) rings: Rings,
    /// For each unit, how many before it load weights.
    streamed_before: Vec<u64>,
    /// How many load weights in all.
    streamed: u64,
    weight_slots: u64,
}

/// Slots of the ring of hidden states: one is computed on while the next is loaded.
const HIDDEN_SLOTS: u32 = 2;

/// The only cross-pass reference: the last operation of a pass in which nothing overlaps.
pub(super) const LAST: usize = 0;

impl Zigzag {
    /// Adds lanes and rings to the layout.
    pub(super) fn new(
        frame: Frame,
        knobs: FlexGen,
        weights: Vec<Vec<Stored>>,
        cache: Split,
        layout: &mut Layout,
    ) -> Self {
        layout.marks = 1;
        let threads = 0..knobs.disk_threads;
        let read = threads.clone().map(|_| layout.lane_queue(LaneKind::DiskRead)).collect();
        let write = threads.map(|_| layout.lane_queue(LaneKind::DiskWrite)).collect();
        let h2d = layout.lane(LaneKind::H2d);
        let d2h = layout.lane(LaneKind::D2h);
        let queues = Queues {
            read,
            write,
            weights: layout.queue(h2d),
            relayed: layout.queue(h2d),
            cache_load: layout.queue(h2d),
            hidden_load: layout.queue(h2d),
            cache_save: layout.queue(d2h),
            hidden_save: layout.queue(d2h),
            gpu: layout.lane_queue(LaneKind::Gpu),
            cpu: layout.lane_queue(LaneKind::Cpu),
            host: layout.lane_queue(LaneKind::Host),
        };

        let sizes: Vec<Bytes> =
            weights.iter().map(|unit| moved(unit).map(|t| t.bytes).sum()).collect();
        let loads: Vec<u64> = sizes.iter().map(|&s| u64::from(s > Bytes::ZERO)).collect();
        let streamed_before = (0..loads.len()).map(|unit| loads[..unit].iter().sum()).collect();
        let streamed = loads.iter().sum();
        let largest = sizes.iter().copied().max().unwrap_or(Bytes::ZERO);
        let double = if knobs.overlap { 2 } else { 1 };
        let weight_slots = if streamed > 0 { double } else { 1 };

        let outside = cache.outside();
        // A cache that is partly elsewhere is gathered on the GPU as a whole.
        let gathered = outside > 0 && !knobs.cpu_attention;
        let gathered = if gathered { frame.cache_room() } else { Bytes::ZERO };
        let new_rows = split::bytes(&frame, outside, frame.plan.workload.prompt);
        let hidden = if knobs.hidden == Processor::Cpu { frame.hidden(0) } else { Bytes::ZERO };
        let rings = Rings {
            weights: layout.ring("weight buffers", Tier::Gpu, weight_slots, largest),
            cache: layout.ring("cache buffers", Tier::Gpu, double, gathered),
            new_rows: layout.ring("new cache rows", Tier::Gpu, double, new_rows),
            hidden: layout.ring("hidden states", Tier::Gpu, HIDDEN_SLOTS, hidden),
            relays: layout.ring("copy relays", Tier::Pinned, knobs.disk_threads, RELAY),
        };
        let weight_slots = u64::from(weight_slots);
        Self {
            frame,
            knobs,
            weights,
            cache,
            queues,
            rings,
            streamed_before,
            streamed,
            weight_slots,
        }
    }

    /// Tensors that a unit loads.
    pub(super) fn loaded(&self, unit: u16) -> impl Iterator<Item = &Stored> {
        moved(&self.weights[usize::from(unit)])
    }

    /// The buffer that holds a unit's weights in a pass, if it loads any. Loading and computing may fall
    /// into different passes, so the round-robin position is worked out rather than remembered.
    pub(super) fn weight_slot(&self, step: Step) -> Option<Slot> {
        self.loaded(step.unit).next()?;
        let before = self.streamed_before[usize::from(step.unit)];
        let index = (u64::from(step.pass) * self.streamed + before) % self.weight_slots;
        Some(Slot { ring: self.rings.weights, index: u16::try_from(index).unwrap_or(0) })
    }

    /// The buffer that holds the hidden states of a step, where they live on the host.
    pub(super) fn hidden_slot(&self, step: Step) -> Option<Slot> {
        let units = u64::from(self.units());
        let unit = u64::from(step.pass) * units + u64::from(step.unit);
        let index = unit * u64::from(self.frame.micros()) + u64::from(step.micro);
        let index = u16::try_from(index % u64::from(HIDDEN_SLOTS)).unwrap_or(0);
        (self.knobs.hidden == Processor::Cpu).then_some(Slot { ring: self.rings.hidden, index })
    }

    /// Number of units.
    pub(super) fn units(&self) -> u16 {
        u16::try_from(self.frame.units.len()).unwrap_or(u16::MAX)
    }

    /// The step of the next micro-batch, unit or pass.
    fn next(&self, step: Step) -> Option<Step> {
        if step.micro + 1 < self.frame.micros() {
            Some(Step { micro: step.micro + 1, ..step })
        } else {
            self.next_unit(step)
        }
    }

    /// The first step of the next unit or pass.
    fn next_unit(&self, step: Step) -> Option<Step> {
        if step.unit + 1 < self.units() {
            Some(Step { unit: step.unit + 1, micro: 0, ..step })
        } else {
            (step.pass + 1 < self.frame.passes()).then_some(Step {
                pass: step.pass + 1,
                unit: 0,
                micro: 0,
            })
        }
    }

    fn previous(&self, step: Step) -> Option<Step> {
        let last_micro = self.frame.micros() - 1;
        if step.micro > 0 {
            Some(Step { micro: step.micro - 1, ..step })
        } else if step.unit > 0 {
            Some(Step { unit: step.unit - 1, micro: last_micro, ..step })
        } else {
            let pass = step.pass.checked_sub(1)?;
            Some(Step { pass, unit: self.units() - 1, micro: last_micro })
        }
    }

    /// Calls of different micro-batches together, a barrier after each step. With one micro-batch,
    /// hidden states have no neighbour to overlap with and belong to the step itself.
    fn overlapped(&self, pass: u32, calls: &mut Calls) {
        let several = self.frame.micros() > 1;
        let first = Step { pass, unit: 0, micro: 0 };
        if pass == 0 {
            calls.load_weights(first);
            if several {
                calls.load_hidden(first);
            }
            calls.barrier(first);
        }
        let mut step = first;
        loop {
            let (next, previous) = (self.next(step), self.previous(step));
            if step.micro == 0
                && let Some(unit) = self.next_unit(step)
            {
                calls.load_weights(unit);
            }
            let loaded = next.and_then(|next| calls.load_cache(next));
            let (stored, fetched) = if several { (previous, next) } else { (None, Some(step)) };
            if let Some(stored) = stored {
                calls.store_hidden(stored);
            }
            if let Some(fetched) = fetched {
                calls.load_hidden(fetched);
            }
            let rows = calls.compute(step);
            if let Some(previous) = previous {
                calls.store_cache(previous);
            }
            calls.hold(loaded, rows);
            if !several {
                calls.store_hidden(step);
            }
            calls.barrier(step);
            match next {
                Some(next) if next.pass == pass => step = next,
                _ => break,
            }
        }
        if several && self.next(step).is_none() {
            calls.store_hidden(step);
        }
    }

    /// Each call after the one before it.
    fn serial(&self, pass: u32, calls: &mut Calls) {
        for unit in 0..self.units() {
            calls.load_weights(Step { pass, unit, micro: 0 });
            for micro in 0..self.frame.micros() {
                let step = Step { pass, unit, micro };
                let loaded = calls.load_cache(step);
                calls.hold(loaded, None);
                calls.load_hidden(step);
                let rows = calls.compute(step);
                calls.hold(None, rows);
                calls.store_hidden(step);
                calls.store_cache(step);
            }
        }
        calls.end_of_pass();
    }
}

/// Tensors that are not on the GPU.
fn moved(unit: &[Stored]) -> impl Iterator<Item = &Stored> {
    unit.iter().filter(|t| t.tier != Tier::Gpu)
}

impl Program for Zigzag {
    fn passes(&self) -> u32 {
        self.frame.passes()
    }

    fn phase(&self, pass: u32) -> Phase {
        self.frame.phase(pass)
    }

    fn emit(&self, pass: u32, out: &mut Builder) {
        let mut calls = Calls::new(self, out);
        if self.knobs.overlap {
            self.overlapped(pass, &mut calls);
        } else {
            self.serial(pass, &mut calls);
        }
    }
}
