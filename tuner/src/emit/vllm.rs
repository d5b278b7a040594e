//! vLLM: every so many layers, some are kept in host memory and fetched ahead.

use std::fmt::Write;

use pipo_plan::model::Precision;
use pipo_plan::plan::Plan;
use pipo_plan::strategy::Granularity;
use pipo_plan::strategy::Strategy;
use pipo_plan::units::Bytes;

use super::placement::Placement;
use super::with_notes;

pub(super) fn emit(plan: &Plan, placement: &Placement) -> String {
    let layers = placement.layers.len();
    let offloaded = layers - placement.whole_layers_on_gpu();
    let mut settings = format!(
        "vllm serve MODEL --max-model-len {} --max-num-seqs {}",
        plan.workload.context(),
        plan.batch.sequences()
    );
    if let Some(chunk) = plan.batch.prefill_chunk {
        let tokens = chunk.saturating_mul(plan.batch.micro);
        let _ = write!(settings, " --max-num-batched-tokens {tokens}");
    }
    if plan.precision.kv == Precision::Int8 {
        settings += " --kv-cache-dtype fp8";
    }
    if offloaded > 0 {
        let (size, in_group) = group(offloaded, layers);
        let _ = write!(
            settings,
            " \\\n  --offload-backend prefetch --offload-group-size {size} \
             --offload-num-in-group {in_group} --offload-prefetch-step {}",
            ahead(plan).max(in_group)
        );
    }
    settings.push('\n');
    with_notes(plan, &notes(plan, placement, offloaded), &settings)
}

/// The smallest group of at most 16 layers in which a whole number is off the GPU, at least the share
/// that the plan has there, and closest to it.
fn group(offloaded: usize, layers: usize) -> (usize, usize) {
    let needed = |size: usize| (offloaded * size).div_ceil(layers.max(1));
    let excess = |size: &usize| {
        // Layers more than needed, in units of 1 / (size * layers); compared across sizes as fractions.
        let over = needed(*size) * layers - offloaded * size;
        (over * 5040 / size.max(&1), *size)
    };
    let size = (1..=layers.clamp(1, 16)).min_by_key(excess).unwrap_or(1);
    (size, needed(size))
}

/// Layers fetched ahead: the GPU buffers, less the one in use.
fn ahead(plan: &Plan) -> usize {
    let units = match &plan.strategy {
        Strategy::Pipo(knobs) => match knobs.granularity {
            Granularity::Layer => knobs.gpu_slots,
            Granularity::Part => knobs.gpu_slots.div_ceil(2),
            Granularity::Tensor => knobs.gpu_slots.div_ceil(6),
        },
        _ => 2,
    };
    units.saturating_sub(1).max(1) as usize
}

fn notes(plan: &Plan, placement: &Placement, offloaded: usize) -> Vec<String> {
    let streamed = placement.weights.host + placement.weights.disk;
    let gib = |bytes: Bytes| bytes.as_f64() / (1_u64 << 30) as f64;
    let mut notes = vec![
        format!(
            "Set --gpu-memory-utilization to {:.2} GiB over the card's memory: it is a share of the card.",
            gib(plan.budget.gpu)
        ),
        format!(
            "{offloaded} of {} layers are fetched; vLLM fetches whole layers.",
            placement.layers.len()
        ),
    ];
    if offloaded > 0 {
        notes.push(format!(
            "With --offload-backend uva, say --cpu-offload-gb {:.1} instead: nothing is fetched ahead then.",
            gib(streamed)
        ));
    }
    if placement.weights.disk > Bytes::ZERO {
        notes.push("vLLM has no weights on disk: host memory must hold them all.".into());
    }
    if placement.cache.host + placement.cache.disk > Bytes::ZERO {
        notes.push(
            "vLLM's cache of running requests stays on the GPU: fewer sequences will fit.".into(),
        );
    }
    if plan.batch.count > 1 {
        notes.push("Micro-batches that share a load are not expressible.".into());
    }
    if plan.precision.weights.is_quantised() {
        notes.push(format!(
            "MODEL must be stored in a format of about {:.1} bits a weight (GPTQ, AWQ).",
            plan.precision.weights.bits()
        ));
    }
    notes
}
