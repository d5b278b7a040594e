//! Some layers on the GPU, the others computed by the CPU: llama.cpp's `--n-gpu-layers`.
//!
//! The embedding is looked up by the CPU, the first layers run there, the last ones and the head on the
//! GPU, so hidden states cross the link once. In decode no weight crosses it at all. A prompt of at
//! least 32 rows is worth copying weights for: the CPU's layers are then computed on the GPU too, each
//! after a copy of its weights, one by one ("op offload").
//!
//! ```text
//! decode                      prefill, offloaded
//! CPU  E C1 C2 C3             E
//! H2D            h            h  W1    W2    W3
//! GPU              C4 C5 H          C1    C2    C3 C4 C5 H
//! ```
//!
//! Documented in llama.cpp's source: which layers go where, the embedding that stays on the CPU, the 32
//! rows, a weight copy before each operation in every micro-batch of the prompt (`prefill_chunk` here),
//! no overlap of copies and kernels. Reconstructed: a layer's copies and kernels are each one operation.
//! Simplified: weights in host memory are taken to be in the page cache of the memory map, and decode of
//! 32 or more sequences is left on the CPU, where llama.cpp would offload it as well.

use serde::{Deserialize, Serialize};

use super::LowerError;
use super::frame::Frame;
use super::residency::{Home, Placed};
use super::units::Granularity;
use crate::plan::Plan;
use crate::schedule::{
    Builder, HostMemory, LaneKind, OpId, OpKind, Phase, Piece, Program, QueueId, RingId, Schedule,
    Tier, Work,
};
use crate::units::Bytes;

/// The knobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuSplit {
    /// Layers on the GPU, the last ones of the model.
    pub gpu_layers: u32,
    /// Whether the head is on the GPU; needed where any layer is, because llama.cpp counts it first.
    pub gpu_head: bool,
    /// Whether a prompt of at least 32 rows is computed on the GPU throughout.
    pub offload_prefill: bool,
}

impl Default for CpuSplit {
    /// Everything on the CPU but the head and what the prefill offloads.
    fn default() -> Self {
        Self { gpu_layers: 0, gpu_head: true, offload_prefill: true }
    }
}

/// Rows from which copying a weight beats computing with it on the CPU, as llama.cpp has it
/// (`GGML_OP_OFFLOAD_MIN_BATCH`).
const OFFLOAD_ROWS: u64 = 32;

/// The only cross-pass reference: the operation that the next one waits for.
const LAST: usize = 0;

struct Layers {
    frame: Frame,
    offload_prefill: bool,
    on_gpu: Vec<bool>,
    h2d: QueueId,
    d2h: QueueId,
    gpu: QueueId,
    cpu: QueueId,
    slot: RingId,
    cache: RingId,
}

/// Lowers a plan.
pub fn lower(plan: &Plan, knobs: &CpuSplit) -> Result<Schedule, LowerError> {
    check(plan, knobs)?;
    let frame = Frame::new(plan, Granularity::Layer, true);
    let mut layout = frame.layout();
    let first_on_gpu = plan.model.layers - knobs.gpu_layers;
    let last = frame.units.len() - 1;
    let on_gpu: Vec<bool> = (frame.units.iter().enumerate())
        .map(|(index, unit)| match index {
            0 => false,
            i if i == last => knobs.gpu_head,
            _ => unit.layer >= first_on_gpu,
        })
        .collect();
    let placed: Vec<Placed> = (frame.units.iter().zip(&on_gpu))
        .map(|(unit, &on_gpu)| {
            let (gpu, host) =
                if on_gpu { (unit.bytes, Bytes::ZERO) } else { (Bytes::ZERO, unit.bytes) };
            Placed::whole(Home { gpu, host, disk: Bytes::ZERO })
        })
        .collect();
    frame.allocate_weights(&mut layout, &placed, Tier::Pageable);
    let cache = |layers: u32| frame.cache_room() * u64::from(layers);
    layout.allocate("KV cache", Tier::Gpu, cache(knobs.gpu_layers));
    layout.allocate("KV cache", Tier::Pageable, cache(first_on_gpu));

    let offloads = |pass: u32| knobs.offload_prefill && offloaded(&frame, pass, 0);
    let uses_gpu = on_gpu.contains(&true) || offloads(0);
    let streams = |i: &usize| offloads(0) && !on_gpu[*i] && (*i < last || head_offloaded(&frame));
    let slot_bytes = (1..=last).filter(streams).map(|i| frame.units[i].bytes).max();
    let slot_bytes = slot_bytes.unwrap_or(Bytes::ZERO);
    let streams_layers = offloads(0) && first_on_gpu > 0;
    let cache_bytes = if streams_layers { frame.cache_room() } else { Bytes::ZERO };
    // Input and output of one chunk of the prompt at a time; the CPU's kernels have the same scratch.
    let chunk = plan.batch.prefill_chunk.unwrap_or(plan.workload.prompt).min(plan.workload.prompt);
    let hidden = Bytes(2 * plan.model.hidden) * plan.batch.micro * chunk * 2;
    for tier in [Tier::Gpu, Tier::Pageable] {
        if tier == Tier::Pageable || uses_gpu {
            layout.allocate("hidden states", tier, hidden);
            layout.allocate("workspace", tier, frame.workspace());
        }
    }

    layout.marks = 1;
    let h2d = layout.lane_queue(LaneKind::H2d);
    let d2h = layout.lane_queue(LaneKind::D2h);
    let gpu = layout.lane_queue(LaneKind::Gpu);
    let cpu = layout.lane_queue(LaneKind::Cpu);
    let slot = layout.ring("offloaded layer", Tier::Gpu, 1, slot_bytes);
    let cache = layout.ring("offloaded layer's cache", Tier::Gpu, 1, cache_bytes);
    let offload_prefill = knobs.offload_prefill;
    let program = Layers { frame, offload_prefill, on_gpu, h2d, d2h, gpu, cpu, slot, cache };
    Ok(Schedule { layout, program: Box::new(program) })
}

fn check(plan: &Plan, knobs: &CpuSplit) -> Result<(), LowerError> {
    if knobs.gpu_layers > plan.model.layers {
        let message =
            format!("it is {}, the model has {} layers", knobs.gpu_layers, plan.model.layers);
        return Err(LowerError::new("cpu-split.gpu_layers", message, "ask for at most that many"));
    }
    if knobs.gpu_layers > 0 && !knobs.gpu_head {
        let message = "the head is the first to go to the GPU, before any layer";
        return Err(LowerError::new("cpu-split.gpu_head", message, "set it to true"));
    }
    if plan.batch.count != 1 {
        let message = format!("it is {}, all sequences decode together here", plan.batch.count);
        let help = "put all sequences into batch.micro; batch.prefill_chunk cuts the prompt";
        return Err(LowerError::new("batch.count", message, help));
    }
    Ok(())
}

/// Whether a chunk has enough rows to copy weights for.
fn offloaded(frame: &Frame, pass: u32, chunk: u16) -> bool {
    pass == 0 && frame.rows(pass, chunk).count() >= OFFLOAD_ROWS
}

/// The head has one row for each sequence, too few to copy it for in most prompts.
fn head_offloaded(frame: &Frame) -> bool {
    frame.plan.batch.micro >= OFFLOAD_ROWS
}

/// Where the hidden states are, and the last operation.
struct Walk {
    pass: u32,
    chunk: u16,
    hidden_on_gpu: bool,
    last: Option<OpId>,
}

impl Program for Layers {
    fn passes(&self) -> u32 {
        self.frame.passes()
    }

    fn phase(&self, pass: u32) -> Phase {
        self.frame.phase(pass)
    }

    /// The whole model for one chunk of the prompt, then for the next.
    fn emit(&self, pass: u32, out: &mut Builder) {
        let mut last = out.marked(LAST);
        for chunk in 0..self.frame.chunks(pass) {
            let mut walk = Walk { pass, chunk, hidden_on_gpu: false, last };
            for unit in 0..self.frame.units.len() {
                self.unit(out, &mut walk, unit);
            }
            last = walk.last;
        }
        if let Some(last) = last {
            out.mark(LAST, last);
        }
    }
}

impl Layers {
    fn unit(&self, out: &mut Builder, walk: &mut Walk, index: usize) {
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        let Walk { pass, chunk, .. } = *walk;
        let unit = &self.frame.units[index];
        let rows = self.frame.rows(pass, chunk);
        let hidden = Bytes(2 * self.frame.plan.model.hidden) * rows.count();
        if index == 0 {
            let work = out.work(Work::Gather { bytes: hidden });
            let gather = out.op(self.cpu, OpKind::Gather, work).unit(number, 0).block(chunk);
            walk.last = Some(gather.after(walk.last).emit());
            return;
        }
        let is_head = index + 1 == self.frame.units.len();
        let offloads = self.offload_prefill
            && offloaded(&self.frame, pass, chunk)
            && (!is_head || head_offloaded(&self.frame));
        let on_gpu = self.on_gpu[index] || offloads;
        if on_gpu != walk.hidden_on_gpu {
            let memory = HostMemory::Pinned;
            let (queue, kind, work) = if on_gpu {
                (self.h2d, OpKind::LoadHidden, Work::H2d { bytes: hidden, memory })
            } else {
                (self.d2h, OpKind::SaveHidden, Work::D2h { bytes: hidden, memory })
            };
            let work = out.work(work);
            let cross = out.op(queue, kind, work).unit(number, 0).block(chunk);
            walk.last = Some(cross.after(walk.last).emit());
            walk.hidden_on_gpu = on_gpu;
        }
        let mut slot = None;
        if on_gpu && !self.on_gpu[index] {
            let work = Work::H2d { bytes: unit.bytes, memory: HostMemory::Pageable };
            let work = out.work(work);
            slot = Some(out.take(self.slot));
            let load = out.op(self.h2d, OpKind::LoadWeights, work).unit(number, 0).block(chunk);
            walk.last = Some(load.after(walk.last).takes(slot).emit());
        }
        let cache = (slot.is_some() && unit.attends).then(|| out.take(self.cache));
        let before = rows.context - rows.positions;
        let mut takes = cache;
        if before > 0 && cache.is_some() {
            let work = Work::H2d { bytes: self.cache(before), memory: HostMemory::Pageable };
            let work = out.work(work);
            let load = out.op(self.h2d, OpKind::LoadCache, work).unit(number, 0).block(chunk);
            walk.last = Some(load.after(walk.last).takes(takes.take()).emit());
        }
        let shape = self.frame.compute(unit, pass, chunk, Piece::Whole);
        let (queue, kind, work) = if on_gpu {
            (self.gpu, OpKind::Compute, Work::Gpu(shape))
        } else {
            (self.cpu, OpKind::CpuCompute, Work::Cpu(shape))
        };
        let work = out.work(work);
        let compute = out.op(queue, kind, work).unit(number, 0).block(chunk).after(walk.last);
        let ends = is_head && chunk + 1 == self.frame.chunks(pass);
        walk.last = Some(compute.takes(takes).frees(slot).ends_pass(ends).emit());
        if cache.is_some() {
            let bytes = self.cache(rows.positions);
            let work = out.work(Work::D2h { bytes, memory: HostMemory::Pageable });
            let save = out.op(self.d2h, OpKind::SaveCache, work).unit(number, 0).block(chunk);
            walk.last = Some(save.after(walk.last).frees(cache).emit());
        }
    }

    /// The cache of one layer for some positions. That of an offloaded layer stays in host memory:
    /// earlier rows come to the GPU for a chunk, new rows go back.
    fn cache(&self, positions: u64) -> Bytes {
        let Frame { plan, style, .. } = &self.frame;
        super::shapes::kv_bytes(&plan.model, *style, plan.batch.micro, positions)
    }
}
