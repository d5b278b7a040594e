//! What a plan keeps where: resident units, the cache's layers, and every allocation that follows.

use super::{ExpertLoads, HostWeights, Pipo};
use crate::plan::Plan;
use crate::schedule::{Layout, Tier};
use crate::strategy::frame::Frame;
use crate::strategy::residency::{self, Placed};
use crate::strategy::units::{Granularity, Unit};
use crate::strategy::{KvTier, Processor};
use crate::units::Bytes;

/// The units as they are placed: a table that is looked up in host memory is none of them.
pub fn placed_units(frame: &Frame, knobs: &Pipo) -> Vec<Unit> {
    let mut units = frame.units.clone();
    if knobs.embedding.apart().is_some() {
        // The lookup table is host memory of its own kind, noted in `allocate`.
        units[0].bytes = Bytes::ZERO;
    }
    units
}

/// Where the units of [`placed_units`] live.
pub fn place(frame: &Frame, units: &[Unit], knobs: &Pipo) -> Vec<Placed> {
    let table = knobs.embedding.apart().map_or(Bytes::ZERO, |_| frame.units[0].bytes);
    let host_weights = knobs.host_weights - table;
    let homes = residency::assign(units, knobs.gpu_weights, host_weights, knobs.order);
    let experts = frame.plan.model.experts;
    let place = |(unit, home): (&Unit, residency::Home)| match experts {
        Some(e) if knobs.experts == ExpertLoads::Routed && unit.has_experts() => {
            Placed::experts(home, unit.expert_bytes(frame.style.weights), e.count)
        }
        _ => Placed::whole(home),
    };
    units.iter().zip(homes).map(place).collect()
}

/// For each layer, whether its cache stays on the GPU.
pub fn kv_layers_on_gpu(plan: &Plan, knobs: &Pipo) -> Vec<bool> {
    let layers = plan.model.layers;
    let on_gpu = match knobs.kv {
        KvTier::Gpu => layers,
        KvTier::Host | KvTier::Disk => knobs.kv_gpu_layers.min(layers),
    };
    // Evenly spread, so that the loads of the others come in even intervals.
    let count = |l: u32| u64::from(l) * u64::from(on_gpu) / u64::from(layers.max(1));
    (0..layers).map(|l| count(l + 1) > count(l)).collect()
}

/// Notes what is held for the whole run.
pub(super) fn allocate(
    frame: &Frame,
    knobs: &Pipo,
    placed: &[Placed],
    kv_on_gpu: &[bool],
    layout: &mut Layout,
) {
    let host = match knobs.host_memory {
        HostWeights::Pinned => Tier::Pinned,
        HostWeights::Pageable => Tier::Pageable,
    };
    frame.allocate_weights(layout, placed, host);
    if let Some(tier) = knobs.embedding.apart() {
        layout.allocate("embedding table", tier, frame.units[0].bytes);
    }
    let per_layer = frame.cache_room() * frame.plan.batch.count;
    let on_gpu = kv_on_gpu.iter().filter(|&&on| on).count() as u64;
    let elsewhere = kv_on_gpu.len() as u64 - on_gpu;
    layout.allocate("KV cache", Tier::Gpu, per_layer * on_gpu);
    let tier = if knobs.kv == KvTier::Disk { Tier::Disk } else { Tier::Pinned };
    layout.allocate("KV cache", tier, per_layer * elsewhere);
    if knobs.hidden == Processor::Gpu {
        layout.allocate("hidden states", Tier::Gpu, frame.activations());
    } else {
        layout.allocate("hidden states", Tier::Pinned, frame.hidden(0) * frame.plan.batch.count);
        // What a unit computes from is beside what it adds to; for each micro-batch, where what one unit
        // leaves is the next one's.
        let beside =
            if frame.granularity == Granularity::Tensor { frame.plan.batch.count } else { 1 };
        layout.allocate("hidden states, result", Tier::Gpu, frame.hidden(0) * beside);
    }
    if knobs.attention == Processor::Cpu && elsewhere > 0 {
        // Each micro-batch has its own between the two halves of an attention: the first halves of all come
        // before the second ones. What was attended arrives where the queries were.
        let (queries, rows) = (frame.query(1), frame.new_cache(1));
        let count = frame.plan.batch.count;
        layout.allocate("queries and new rows", Tier::Gpu, (queries + rows) * count);
        layout.allocate("queries", Tier::Pinned, queries * count);
    }
    layout.allocate("workspace", Tier::Gpu, frame.workspace());
}
