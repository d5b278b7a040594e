//! HeadInfer (arXiv 2502.12574): the weights stay, the KV cache leaves, a group of heads at a time.
//!
//! The heads of a layer are cut into groups. While the GPU attends with one group, the cache of the
//! next is on its way up and the new rows of the last on their way down. Two slots of one group each
//! are all the cache that the GPU holds.
//!
//! ```text
//! H2D       K1 K2 K3 ...      K = cache of one group, all earlier positions
//! GPU    Q  A0 A1 A2 ... O M  Q = q, k, v of all heads; A = attention of one group; O, M = the rest
//! D2H          S0 S1 ...      S = new rows of one group
//! ```
//!
//! The prompt is worked on in chunks, each a pass of its own through all layers, so that activations
//! never exceed one chunk; only the last chunk's head makes a token. One group is layer-wise
//! offloading, and a cache on the GPU is the paper's baseline: the three share this lowering, so that
//! they differ in nothing else.

use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::residency::{Home, Placed};
use super::shapes::{self, Rows, Style};
use super::units::{Granularity, Unit};
use super::{KvTier, LowerError};
use crate::model::Part;
use crate::plan::Plan;
use crate::schedule::{
    Builder, Compute, HostMemory, LaneKind, OpId, OpKind, Phase, Piece, Program, QueueId, RingId,
    Schedule, Slot, Tier, Work,
};
use crate::units::Bytes;

/// Prompt positions in one chunk. The paper writes 10K; its 0.625 GB of activations are 10 * 1024
/// positions of 64 KiB.
pub const CHUNK: u64 = 10 * 1024;

/// The knobs. The size of a chunk is the plan's `batch.prefill_chunk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadInfer {
    /// Where the cache lives: `host` is HeadInfer, `gpu` its baseline.
    pub kv: KvTier,
    /// Groups into which the heads of a layer are cut; they must divide the key and value heads.
    pub head_groups: u32,
    /// GPU buffers for the cache of one group.
    pub kv_slots: u32,
}

impl Default for HeadInfer {
    fn default() -> Self {
        Self { kv: KvTier::Host, head_groups: 1, kv_slots: 2 }
    }
}

/// The paper's adaptive rule: one group up to 500K positions, two up to 1M, four up to 2M, then eight;
/// where that does not divide `kv_heads`, the next smaller number that does.
pub fn adaptive_groups(context: u64, kv_heads: u32) -> u32 {
    const K: u64 = 1024;
    let limits = [(500 * K, 1), (K * K, 2), (2 * K * K, 4)];
    let most = limits.iter().find(|(limit, _)| context <= *limit).map_or(8, |&(_, groups)| groups);
    (1..=most).rev().find(|groups| kv_heads.is_multiple_of(*groups)).unwrap_or(1)
}

struct HeadWise {
    frame: Frame,
    knobs: HeadInfer,
    /// The style of one group: its share of the key and value heads.
    group: Style,
    gpu: QueueId,
    load: QueueId,
    save: QueueId,
    ring: RingId,
}

/// Lowers a plan.
pub fn lower(plan: &Plan, knobs: &HeadInfer) -> Result<Schedule, LowerError> {
    check(plan, knobs)?;
    let frame = Frame::new(plan, Granularity::Part, true);
    let kv_heads = u64::from(plan.model.kv_heads / knobs.head_groups);
    let group = Style { kv_heads, ..frame.style };
    let mut layout = frame.layout();
    let resident = |u: &Unit| Placed::whole(Home { gpu: u.bytes, ..Home::default() });
    let placed: Vec<Placed> = frame.units.iter().map(resident).collect();
    frame.allocate_weights(&mut layout, &placed, Tier::Pinned);
    let cache = frame.cache_room() * (plan.batch.count * u64::from(plan.model.layers));
    let tier = if knobs.kv == KvTier::Gpu { Tier::Gpu } else { Tier::Pinned };
    layout.allocate("KV cache", tier, cache);
    // The paper's count: the gate and up projections, and one copy of the hidden states, which the
    // output of the MLP is added to in place. This is the workspace of the MLP; further micro-batches
    // keep their hidden states meanwhile.
    layout.allocate("activations", Tier::Gpu, frame.workspace());
    let waiting = frame.rows(0, 0).count() * (plan.batch.count - 1);
    layout.allocate("hidden states", Tier::Gpu, shapes::hidden_bytes(&plan.model, waiting));

    let gpu = layout.lane_queue(LaneKind::Gpu);
    let load = layout.lane_queue(LaneKind::H2d);
    let save = layout.lane_queue(LaneKind::D2h);
    let slot = match knobs.kv {
        KvTier::Gpu => Bytes::ZERO,
        _ => shapes::kv_bytes(&plan.model, group, plan.batch.micro, plan.workload.context()),
    };
    let ring = layout.ring("KV slots", Tier::Gpu, knobs.kv_slots, slot);
    // The last save of every layer and micro-batch.
    layout.marks = plan.model.layers as usize * usize::from(frame.micros());
    let program = HeadWise { frame, knobs: knobs.clone(), group, gpu, load, save, ring };
    Ok(Schedule { layout, program: Box::new(program) })
}

fn check(plan: &Plan, knobs: &HeadInfer) -> Result<(), LowerError> {
    let heads = plan.model.kv_heads;
    if knobs.head_groups == 0 || !heads.is_multiple_of(knobs.head_groups) {
        let message = format!("{} groups do not divide {heads} KV heads", knobs.head_groups);
        return Err(LowerError::new("headinfer.head_groups", message, "use a divisor"));
    }
    if knobs.kv_slots == 0 || knobs.kv_slots > 1024 {
        let message = format!("it is {}, from 1 to 1024 is possible", knobs.kv_slots);
        return Err(LowerError::new("headinfer.kv_slots", message, "2 slots overlap"));
    }
    let chunks = plan.batch.prefill_chunk.map_or(1, |c| plan.workload.prompt.div_ceil(c.max(1)));
    if chunks > u64::from(u16::MAX) {
        let message = format!("{chunks} chunks are more than can be numbered ({})", u16::MAX);
        return Err(LowerError::new("batch.prefill_chunk", message, "10240 is the paper's"));
    }
    if knobs.kv == KvTier::Disk {
        let message = "HeadInfer knows no cache on disk";
        return Err(LowerError::new("headinfer.kv", message, "set it to \"host\" or \"gpu\""));
    }
    Ok(())
}

/// One pass: a chunk of the prompt, or one new token.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Pass in the frame's count, to which the whole prompt is one.
    pass: u32,
    chunk: u16,
    /// Its rows, of one micro-batch.
    rows: Rows,
    /// Whether a token of every sequence comes out of it.
    makes_token: bool,
}

impl Program for HeadWise {
    fn passes(&self) -> u32 {
        u32::from(self.frame.chunks(0)) - 1 + self.frame.passes()
    }

    fn phase(&self, pass: u32) -> Phase {
        if pass < u32::from(self.frame.chunks(0)) { Phase::Prefill } else { Phase::Decode }
    }

    fn emit(&self, pass: u32, out: &mut Builder) {
        let step = self.step(pass);
        for (index, unit) in self.frame.units.iter().enumerate() {
            let number = u16::try_from(index).unwrap_or(u16::MAX);
            if unit.part == Part::Head && !step.makes_token {
                continue;
            }
            for micro in 0..self.frame.micros() {
                if unit.attends && self.knobs.kv != KvTier::Gpu {
                    self.compute(out, step, number, micro, Piece::BeforeAttention);
                    self.attend(out, step, number, micro);
                    self.compute(out, step, number, micro, Piece::AfterAttention);
                } else {
                    self.compute(out, step, number, micro, Piece::Whole);
                }
            }
        }
    }
}

impl HeadWise {
    fn step(&self, pass: u32) -> Step {
        let chunks = u32::from(self.frame.chunks(0));
        let last = pass.min(chunks - 1);
        let (pass, chunk) = (pass - last, u16::try_from(last).unwrap_or(u16::MAX));
        let chunk = if pass == 0 { chunk } else { 0 };
        let makes_token = last + 1 == chunks;
        Step { pass, chunk, rows: self.frame.rows(pass, chunk), makes_token }
    }

    fn compute(&self, out: &mut Builder, step: Step, unit: u16, micro: u16, piece: Piece) -> OpId {
        let of = &self.frame.units[usize::from(unit)];
        let work = Work::Gpu(self.frame.compute(of, step.pass, step.chunk, piece));
        let work = out.work(work);
        let op = out.op(self.gpu, OpKind::Compute, work).unit(unit, micro);
        op.block(step.chunk).piece(piece).ends_pass(of.part == Part::Head).emit()
    }

    /// Attention of every group over what is loaded before it; its new rows are saved behind it.
    fn attend(&self, out: &mut Builder, step: Step, unit: u16, micro: u16) {
        let of = &self.frame.units[usize::from(unit)];
        let mark = of.layer as usize * usize::from(self.frame.micros()) + usize::from(micro);
        // Saves are in order: where the last group's has ended, all have.
        let saved_before = out.marked(mark);
        let attention =
            self.one_group(self.frame.compute(of, step.pass, step.chunk, Piece::AttentionOnly));
        let attention = out.work(Work::Gpu(attention));
        let Rows { sequences, positions, context } = step.rows;
        let cache = |n| shapes::kv_bytes(&self.frame.plan.model, self.group, sequences, n);
        let (old, new) = (cache(context - positions), cache(positions));
        for group in 0..self.knobs.head_groups {
            let number = u16::try_from(group).unwrap_or(u16::MAX);
            let slot = out.take(self.ring);
            let loaded = (old > Bytes::ZERO).then(|| {
                let work = out.work(Work::H2d { bytes: old, memory: HostMemory::Pinned });
                let load = out.op(self.load, OpKind::LoadCache, work).unit(unit, micro);
                load.block(number).after(saved_before).takes(slot).emit()
            });
            let takes: Option<Slot> = loaded.is_none().then_some(slot);
            let attend = out.op(self.gpu, OpKind::Compute, attention).unit(unit, micro);
            let attend = attend.piece(Piece::AttentionOnly);
            let attended = attend.block(number).after(loaded).takes(takes).emit();
            let work = out.work(Work::D2h { bytes: new, memory: HostMemory::Pinned });
            let save = out.op(self.save, OpKind::SaveCache, work).unit(unit, micro);
            let saved = save.block(number).after(attended).frees(slot).emit();
            out.mark(mark, saved);
        }
    }

    /// The share of one group in a layer's attention.
    fn one_group(&self, mut compute: Compute) -> Compute {
        if let Some(attention) = &mut compute.attention {
            attention.heads /= u64::from(self.knobs.head_groups);
            attention.kv_heads = self.group.kv_heads;
        }
        compute
    }
}
