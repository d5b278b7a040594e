//! Endor (arXiv 2406.11674): pruned weights travel packed and are expanded on the GPU.
//!
//! A pruned matrix is stored as its values that are not zero and a bitmap of where they belong: for
//! values of `b` bits at sparsity `s` that is `1 - s + 1/b` of the dense size. The rest is Hugging Face
//! Accelerate, into which it was built: each layer is fetched when it is due, and nothing overlaps.
//!
//! ```text
//! layer on disk:  read -> load -> decompress -> compute, then the next layer
//!     ... direct: read to GPU  -> decompress -> compute
//! layer in host:          load -> decompress -> compute
//! layer on GPU:                                 compute
//! ```
//!
//! At sparsity 0 nothing is packed and nothing expanded: that is the dense baseline of the paper.

use serde::{Deserialize, Serialize};

use super::LowerError;
use super::frame::Frame;
use super::residency::{Home, Placed};
use super::units::{Granularity, Unit};
use crate::model::{Part, Precision, Tensor, TensorKind};
use crate::plan::Plan;
use crate::schedule::{
    Builder, DiskIo, HostMemory, LaneKind, Layout, Op, OpId, OpKind, Phase, Piece, Program,
    QueueId, RingId, Schedule, Slot, Tier, Work,
};
use crate::units::Bytes;

/// The knobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endor {
    /// Thousandths of the weights of each matrix that are zero.
    pub sparsity: u32,
    /// Layers whose weights stay on the GPU, dense, from the first on.
    pub gpu_layers: u32,
    /// Layers after these whose weights stay in host memory, packed.
    pub host_layers: u32,
    /// Whether the layers on disk go to the GPU without passing through host memory.
    pub direct: bool,
}

impl Default for Endor {
    /// Half of the weights pruned, everything on disk.
    fn default() -> Self {
        Self { sparsity: 500, gpu_layers: 0, host_layers: 0, direct: false }
    }
}

/// Stored size of a packed tensor. Norms and biases are not pruned, and neither are the scales of a
/// quantised matrix; a bitmap is cut to whole bytes for each copy.
pub fn packed(tensor: &Tensor, precision: Precision, sparsity: u32) -> Bytes {
    let dense = tensor.bytes(precision);
    if tensor.kind == TensorKind::Vector || sparsity == 0 {
        return dense;
    }
    let value_bits = match precision {
        Precision::Fp16 | Precision::Bf16 => 16,
        Precision::Int8 => 8,
        Precision::Int4 => 4,
    };
    let copies = u64::from(tensor.copies);
    let elements = tensor.outputs * tensor.inputs;
    let values = Bytes((elements * value_bits).div_ceil(8));
    let kept = (elements * u64::from(1000_u32.saturating_sub(sparsity))).div_ceil(1000);
    let packed = Bytes((kept * value_bits).div_ceil(8) + elements.div_ceil(8));
    dense - values * copies + packed * copies
}

/// Where a layer's weights are when they are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Gpu,
    Host,
    Disk,
}

/// A unit with its sizes.
#[derive(Debug, Clone, Copy)]
struct Weights {
    at: At,
    dense: Bytes,
    packed: Bytes,
    /// Number of its file, see [`Layout::extents`].
    extent: u32,
}

struct Serial {
    frame: Frame,
    knobs: Endor,
    weights: Vec<Weights>,
    disk: QueueId,
    h2d: QueueId,
    gpu: QueueId,
    host_ring: RingId,
    packed_ring: RingId,
    dense_ring: RingId,
}

/// Lowers a plan.
pub fn lower(plan: &Plan, knobs: &Endor) -> Result<Schedule, LowerError> {
    check(plan, knobs)?;
    let frame = Frame::new(plan, Granularity::Layer, true);
    let mut layout = frame.layout();
    let mut weights = Vec::new();
    for unit in &frame.units {
        weights.push(place(plan, knobs, unit, &mut layout));
    }
    let placed: Vec<Placed> = weights.iter().map(|w| Placed::whole(w.home())).collect();
    frame.allocate_weights(&mut layout, &placed, Tier::Pageable);
    let cache = frame.cache_room() * (plan.batch.count * u64::from(plan.model.layers));
    layout.allocate("KV cache", Tier::Gpu, cache);
    layout.allocate("hidden states", Tier::Gpu, frame.activations());
    layout.allocate("workspace", Tier::Gpu, frame.workspace());

    let reads = if knobs.direct { LaneKind::DiskToGpu } else { LaneKind::DiskRead };
    let disk = layout.lane_queue(reads);
    let h2d = layout.lane_queue(LaneKind::H2d);
    let gpu = layout.lane_queue(LaneKind::Gpu);
    // One buffer of each: nothing overlaps.
    let largest = |size: fn(&Weights) -> Bytes, wanted: &dyn Fn(&Weights) -> bool| {
        weights.iter().filter(|w| wanted(w)).map(size).max().unwrap_or(Bytes::ZERO)
    };
    let through_host = largest(|w| w.packed, &|w| w.at == At::Disk && !knobs.direct);
    let travelling = largest(|w| w.packed, &|w| w.at != At::Gpu && knobs.sparsity > 0);
    let expanded = largest(|w| w.dense, &|w| w.at != At::Gpu);
    let host_ring = layout.ring("layer read", Tier::Pageable, 1, through_host);
    let packed_ring = layout.ring("packed layer", Tier::Gpu, 1, travelling);
    let dense_ring = layout.ring("dense layer", Tier::Gpu, 1, expanded);
    layout.marks = 1;
    let knobs = knobs.clone();
    let program =
        Serial { frame, knobs, weights, disk, h2d, gpu, host_ring, packed_ring, dense_ring };
    Ok(Schedule { layout, program: Box::new(program) })
}

fn check(plan: &Plan, knobs: &Endor) -> Result<(), LowerError> {
    if knobs.sparsity >= 1000 {
        let message = format!("{} thousandths would leave no weights", knobs.sparsity);
        return Err(LowerError::new("endor.sparsity", message, "500 is half of the weights"));
    }
    let (layers, resident) = (plan.model.layers, knobs.gpu_layers.checked_add(knobs.host_layers));
    if resident.is_none_or(|r| r > layers) {
        let message = format!(
            "{} layers on the GPU and {} in host memory, the model has {layers}",
            knobs.gpu_layers, knobs.host_layers
        );
        return Err(LowerError::new("endor.host_layers", message, "keep fewer layers"));
    }
    Ok(())
}

/// Decides where a unit lives. Embedding and head are small and stay on the GPU, as in the paper.
fn place(plan: &Plan, knobs: &Endor, unit: &Unit, layout: &mut Layout) -> Weights {
    let is_layer = !matches!(unit.part, Part::Embedding | Part::Head);
    let at = if !is_layer || unit.layer < knobs.gpu_layers {
        At::Gpu
    } else if unit.layer < knobs.gpu_layers + knobs.host_layers {
        At::Host
    } else {
        At::Disk
    };
    let size = |(_, tensor)| packed(tensor, plan.precision.weights, knobs.sparsity);
    let packed = unit.tensors.iter().map(|(part, tensor)| size((part, tensor))).sum();
    let mut extent = Op::NO_EXTENT;
    if at == At::Disk && !knobs.direct {
        extent = u32::try_from(layout.extents.len()).unwrap_or(u32::MAX);
        layout.extents.push(packed);
    }
    Weights { at, dense: unit.bytes, packed, extent }
}

impl Weights {
    fn home(&self) -> Home {
        match self.at {
            At::Gpu => Home { gpu: self.dense, ..Home::default() },
            At::Host => Home { host: self.packed, ..Home::default() },
            At::Disk => Home { disk: self.packed, ..Home::default() },
        }
    }
}

/// A layer that has been fetched: what to wait for, and the slot to free when it has been used.
#[derive(Debug, Clone, Copy)]
struct Fetched {
    last: OpId,
    slot: Slot,
}

/// The mark of the last compute operation, for which everything waits.
const COMPUTED: usize = 0;

impl Program for Serial {
    fn passes(&self) -> u32 {
        self.frame.passes()
    }

    fn phase(&self, pass: u32) -> Phase {
        self.frame.phase(pass)
    }

    fn emit(&self, pass: u32, out: &mut Builder) {
        for unit in 0..self.frame.units.len() {
            let fetched = self.fetch(out, unit);
            self.compute(out, pass, unit, fetched);
        }
    }
}

impl Serial {
    /// Brings a unit's weights to the GPU, once the unit before it has been computed.
    fn fetch(&self, out: &mut Builder, unit: usize) -> Option<Fetched> {
        let Weights { at, dense, packed, extent } = self.weights[unit];
        let number = u16::try_from(unit).unwrap_or(u16::MAX);
        let due = out.marked(COMPUTED);
        let is_packed = self.knobs.sparsity > 0;
        let arrival = if is_packed { self.packed_ring } else { self.dense_ring };
        let (arrived, slot) = match at {
            At::Gpu => return None,
            At::Disk if self.knobs.direct => {
                let work = out.work(Work::DiskToGpu { bytes: packed });
                let slot = out.take(arrival);
                let read = out.op(self.disk, OpKind::ReadWeights, work).unit(number, 0);
                (read.after(due).takes(slot).emit(), slot)
            }
            At::Host => self.load(out, number, packed, due, None, arrival),
            At::Disk => {
                // Accelerate maps its files, so pages are faulted in one after another.
                let (bytes, request, io) = (packed, packed, DiskIo::PageFault);
                let work = out.work(Work::DiskRead { bytes, request, io, jumps: true });
                let host = out.take(self.host_ring);
                let read = out.op(self.disk, OpKind::ReadWeights, work).unit(number, 0);
                let read = read.extent(extent).after(due).takes(host).emit();
                self.load(out, number, packed, Some(read), Some(host), arrival)
            }
        };
        if !is_packed {
            return Some(Fetched { last: arrived, slot });
        }
        let work = out.work(Work::Decompress { compressed: packed, dense });
        let room = out.take(self.dense_ring);
        let expand = out.op(self.gpu, OpKind::Decompress, work).unit(number, 0);
        let last = expand.after(arrived).takes(room).frees(slot).emit();
        Some(Fetched { last, slot: room })
    }

    /// Copies a layer from pageable memory into a slot of `arrival`.
    fn load(
        &self,
        out: &mut Builder,
        unit: u16,
        bytes: Bytes,
        after: Option<OpId>,
        host: Option<Slot>,
        arrival: RingId,
    ) -> (OpId, Slot) {
        let work = out.work(Work::H2d { bytes, memory: HostMemory::Pageable });
        let slot = out.take(arrival);
        let load = out.op(self.h2d, OpKind::LoadWeights, work).unit(unit, 0);
        (load.after(after).takes(slot).frees(host).emit(), slot)
    }

    fn compute(&self, out: &mut Builder, pass: u32, unit: usize, fetched: Option<Fetched>) {
        let number = u16::try_from(unit).unwrap_or(u16::MAX);
        let (micros, chunks) = (self.frame.micros(), self.frame.chunks(pass));
        let is_head = unit + 1 == self.frame.units.len();
        for micro in 0..micros {
            for chunk in 0..chunks {
                let shape = self.frame.compute(&self.frame.units[unit], pass, chunk, Piece::Whole);
                let work = out.work(Work::Gpu(shape));
                let ends = chunk + 1 == chunks;
                let frees = fetched.filter(|_| ends && micro + 1 == micros).map(|f| f.slot);
                let op = out.op(self.gpu, OpKind::Compute, work).unit(number, micro).block(chunk);
                let op = op.after(fetched.map(|f| f.last)).frees(frees);
                let computed = op.ends_pass(is_head && ends).emit();
                out.mark(COMPUTED, computed);
            }
        }
    }
}
