//! Hugging Face Accelerate's offloading hooks: everything in series.
//!
//! Whole layers go to the GPU until it is full, then to host memory, the rest to disk (`device_map`).
//! Before an offloaded module runs, a hook copies its weights to the GPU; after it has run, another
//! drops them. Hooks sit on leaf modules, so a unit is one matrix with its vectors.
//!
//! ```text
//! disk   r1          r2          r3
//! H2D       W1          W2          W3
//! GPU          C1          C2          C3
//! ```
//!
//! Documented in the source of its `hooks.py`: one leaf at a time, no stream, no prefetch, weights in
//! unpinned host memory or a memory map. Reconstructed: the copy of a mapped tensor is a page-fault read
//! of all of it and then a copy. The growing cache, which is concatenated anew in each step, is counted
//! once and its copying is not charged.

use serde::{Deserialize, Serialize};

use super::LowerError;
use super::frame::Frame;
use super::residency::{Home, Placed};
use super::stream;
use super::units::{Granularity, Unit};
use crate::plan::Plan;
use crate::schedule::{
    Builder, DiskIo, HostMemory, LaneKind, OpId, OpKind, Phase, Piece, Program, QueueId, RingId,
    Schedule, Tier, Work,
};
use crate::units::Bytes;

/// The knobs: `max_memory` as a person would give it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accelerate {
    /// Weights on the GPU, at most.
    pub gpu_weights: Bytes,
    /// Weights in host memory, at most; the rest is on disk.
    pub host_weights: Bytes,
}

impl Default for Accelerate {
    /// No GPU weights, and host memory for any model in the catalogue.
    fn default() -> Self {
        Self { gpu_weights: Bytes::ZERO, host_weights: Bytes(1 << 40) }
    }
}

/// Bytes that the kernel reads at once for a memory map: read-ahead is 128 KiB.
pub const REQUEST: Bytes = Bytes(128 << 10);

/// The only cross-pass reference: the operation that the next one waits for.
const LAST: usize = 0;

struct Hooks {
    frame: Frame,
    placed: Vec<Placed>,
    disk: QueueId,
    h2d: QueueId,
    gpu: QueueId,
    slot: RingId,
    mapped: RingId,
    first_extent: Vec<u32>,
}

/// Lowers a plan.
pub fn lower(plan: &Plan, knobs: &Accelerate) -> Result<Schedule, LowerError> {
    check(plan)?;
    let frame = frame(plan);
    let mut layout = frame.layout();
    let placed = place(&frame.units, knobs);
    frame.allocate_weights(&mut layout, &placed, Tier::Pageable);
    let cache = frame.cache_room() * u64::from(plan.model.layers);
    layout.allocate("KV cache", Tier::Gpu, cache);
    layout.allocate("hidden states", Tier::Gpu, frame.activations());
    layout.allocate("workspace", Tier::Gpu, frame.workspace());

    let mut first_extent = Vec::new();
    for unit in &placed {
        first_extent.push(u32::try_from(layout.extents.len()).unwrap_or(u32::MAX));
        layout.extents.extend(Some(unit.total().disk).filter(|&bytes| bytes > Bytes::ZERO));
    }
    layout.marks = 1;
    let disk = layout.lane_queue(LaneKind::DiskRead);
    let h2d = layout.lane_queue(LaneKind::H2d);
    let gpu = layout.lane_queue(LaneKind::Gpu);
    let slot = layout.ring("weights in use", Tier::Gpu, 1, stream::slot_bytes(&placed));
    let largest = placed.iter().map(|p| p.total().disk).max().unwrap_or(Bytes::ZERO);
    let mapped = layout.ring("mapped weights", Tier::Pageable, 1, largest);
    let program = Hooks { frame, placed, disk, h2d, gpu, slot, mapped, first_extent };
    Ok(Schedule { layout, program: Box::new(program) })
}

/// The plan's units: one matrix each, dequantised before each product.
pub fn frame(plan: &Plan) -> Frame {
    Frame::new(plan, Granularity::Tensor, false)
}

fn check(plan: &Plan) -> Result<(), LowerError> {
    if plan.batch.count != 1 {
        let message = format!("it is {}, a forward pass has no micro-batches", plan.batch.count);
        let help = "put all sequences into batch.micro";
        return Err(LowerError::new("batch.count", message, help));
    }
    if plan.batch.prefill_chunk.is_some() {
        let message = "a forward pass takes the prompt in one piece";
        return Err(LowerError::new("batch.prefill_chunk", message, "remove it"));
    }
    Ok(())
}

/// Fills the GPU, then the host, layer by layer in order of use; a layer is not split, and once one
/// does not fit, no later one goes there.
pub fn place(units: &[Unit], knobs: &Accelerate) -> Vec<Placed> {
    let budgets = [knobs.gpu_weights, knobs.host_weights];
    let mut tier = 0;
    let mut used = Bytes::ZERO;
    let mut placed = Vec::new();
    // Embedding, layers and head are told apart by layer and by whether they are in a layer at all.
    let module = |unit: &Unit| (unit.layer, unit.name.starts_with("layer"));
    for group in units.chunk_by(|a, b| module(a) == module(b)) {
        let bytes: Bytes = group.iter().map(|u| u.bytes).sum();
        while budgets.get(tier).is_some_and(|&budget| used + bytes > budget) {
            tier += 1;
            used = Bytes::ZERO;
        }
        used += bytes;
        placed.extend(group.iter().map(|unit| {
            let home = match tier {
                0 => Home { gpu: unit.bytes, ..Home::default() },
                1 => Home { host: unit.bytes, ..Home::default() },
                _ => Home { disk: unit.bytes, ..Home::default() },
            };
            Placed::whole(home)
        }));
    }
    placed
}

impl Program for Hooks {
    fn passes(&self) -> u32 {
        self.frame.passes()
    }

    fn phase(&self, pass: u32) -> Phase {
        self.frame.phase(pass)
    }

    fn emit(&self, pass: u32, out: &mut Builder) {
        let mut last = out.marked(LAST);
        for (index, unit) in self.frame.units.iter().enumerate() {
            let number = u16::try_from(index).unwrap_or(u16::MAX);
            let home = self.placed[index].total();
            let mut slot = None;
            if home.streamed() > Bytes::ZERO {
                let mut mapped = None;
                if home.disk > Bytes::ZERO {
                    let io = DiskIo::PageFault;
                    let (bytes, request) = (home.disk, REQUEST);
                    let work = out.work(Work::DiskRead { bytes, request, io, jumps: true });
                    mapped = Some(out.take(self.mapped));
                    let read = out.op(self.disk, OpKind::ReadWeights, work).unit(number, 0);
                    let read = read.extent(self.first_extent[index]).takes(mapped);
                    last = Some(read.after(last).emit());
                }
                let (bytes, memory) = (home.streamed(), HostMemory::Pageable);
                let work = out.work(Work::H2d { bytes, memory });
                slot = Some(out.take(self.slot));
                let load = out.op(self.h2d, OpKind::LoadWeights, work).unit(number, 0);
                last = Some(load.after(last).takes(slot).frees(mapped).emit());
            }
            let work = out.work(Work::Gpu(self.frame.compute(unit, pass, 0, Piece::Whole)));
            let compute = out.op(self.gpu, OpKind::Compute, work).unit(number, 0);
            let is_head = index + 1 == self.frame.units.len();
            let id: OpId = compute.after(last).frees(slot).ends_pass(is_head).emit();
            last = Some(id);
        }
        if let Some(last) = last {
            out.mark(LAST, last);
        }
    }
}
