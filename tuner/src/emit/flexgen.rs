//! FlexGen: six percentages, a batch and a number of batches.

use pipo_plan::model::{Family, Precision};
use pipo_plan::plan::Plan;
use pipo_plan::strategy::{Processor, Strategy};
use pipo_plan::units::Bytes;

use super::placement::{Placement, Split};
use super::{EmitError, percent, with_notes};

pub(super) fn emit(plan: &Plan, placement: &Placement) -> Result<String, EmitError> {
    let impossible = |why: &str| EmitError::Impossible {
        engine: "FlexGen",
        model: plan.model.name.clone(),
        why: why.into(),
    };
    if plan.model.family != Family::Opt {
        return Err(impossible("it knows OPT models alone"));
    }
    if plan.precision.weights == Precision::Int8 || plan.precision.kv == Precision::Int8 {
        return Err(impossible("it compresses to 4 bits or not at all"));
    }
    let (hidden_on_gpu, cpu_attention) = match &plan.strategy {
        Strategy::Pipo(knobs) => {
            (knobs.hidden == Processor::Gpu, knobs.attention == Processor::Cpu)
        }
        Strategy::FlexGen(knobs) => (knobs.hidden == Processor::Gpu, knobs.cpu_attention),
        _ => (true, false),
    };
    let (weights, cache) = match &plan.strategy {
        // Its own percentages, not those that rounding to whole tensors makes of them.
        Strategy::FlexGen(knobs) => (
            (u64::from(knobs.weights_gpu), u64::from(knobs.weights_host)),
            (u64::from(knobs.cache_gpu), u64::from(knobs.cache_host)),
        ),
        _ => (shares(&placement.weights), shares(&placement.cache)),
    };
    let hidden = if hidden_on_gpu { (100, 0) } else { (0, 100) };
    let mut settings = format!(
        "python -m flexgen.flex_opt --model facebook/{} \\\n  --percent {} {} {} {} {} {} \
         --gpu-batch-size {} --num-gpu-batches {} \\\n  --prompt-len {} --gen-len {} \
         --overlap True --sep-layer True --pin-weight {}",
        plan.model.name,
        weights.0,
        weights.1,
        cache.0,
        cache.1,
        hidden.0,
        hidden.1,
        plan.batch.micro,
        plan.batch.count,
        plan.workload.prompt,
        plan.workload.new_tokens,
        if placement.pinned { "True" } else { "False" },
    );
    if plan.precision.weights == Precision::Int4 {
        settings += " --compress-weight";
    }
    if plan.precision.kv == Precision::Int4 {
        settings += " --compress-cache";
    }
    if cpu_attention {
        settings += " --cpu-cache-compute";
    }
    settings.push('\n');
    Ok(with_notes(plan, &notes(plan, placement), &settings))
}

/// Per cent on the GPU and on the host; the rest is on disk. The host's is what is left where nothing is
/// on disk, so that rounding sends nothing there.
fn shares(split: &Split) -> (u64, u64) {
    let total = split.total().0;
    if total == 0 {
        return (100, 0);
    }
    let gpu = percent(split.gpu.0, total);
    let host = if split.disk == Bytes::ZERO { 100 - gpu } else { percent(split.host.0, total) };
    (gpu, host)
}

fn notes(plan: &Plan, placement: &Placement) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    if !matches!(plan.strategy, Strategy::FlexGen(_)) {
        notes.push("FlexGen waits for all copies after each layer and batch, and has two buffers; block sizes".into());
        notes.push("and slots are not expressible. Weights are dequantised before each product, not in it.".into());
        notes.push(
            "The share on the GPU is of each layer's tensors, rounded by FlexGen to whole tensors."
                .into(),
        );
    }
    if plan.batch.prefill_chunk.is_some() {
        notes.push("The prompt is worked on in one piece: its activations may not fit where the plan's do.".into());
    }
    if placement.weights.disk > Bytes::ZERO || placement.cache.disk > Bytes::ZERO {
        notes.push("Set --offload-dir to a directory on the disk.".into());
    }
    notes
}
