//! Accelerate: a `device_map` of whole layers.

use pipo_plan::model::{Family, Precision};
use pipo_plan::plan::Plan;
use pipo_plan::schedule::Tier;
use pipo_plan::units::Bytes;

use super::placement::Placement;
use super::with_notes;

pub(super) fn emit(plan: &Plan, placement: &Placement) -> String {
    let mut map: Vec<(String, &str)> = Vec::new();
    let prefix = if plan.model.family == Family::Opt { "model.decoder" } else { "model" };
    // The lookup runs on the GPU too, but its table need not stay there.
    map.push((format!("{prefix}.embed_tokens"), device(Tier::Pinned)));
    if plan.model.family.learned_positions() {
        map.push((format!("{prefix}.embed_positions"), device(Tier::Gpu)));
    } else {
        map.push((format!("{prefix}.rotary_emb"), device(Tier::Gpu)));
    }
    for (layer, home) in placement.layers.iter().enumerate() {
        map.push((format!("{prefix}.layers.{layer}"), device(home.attention.max(home.mlp))));
    }
    if !plan.model.post_norm {
        let norm = if plan.model.family == Family::Opt { "final_layer_norm" } else { "norm" };
        map.push((format!("{prefix}.{norm}"), device(Tier::Gpu)));
    }
    map.push(("lm_head".into(), device(placement.head)));
    let lines: Vec<String> =
        map.iter().map(|(module, device)| format!("    \"{module}\": {device},\n")).collect();
    let settings = format!(
        "device_map = {{\n{}}}\n# Or let Accelerate choose whole layers within the same bytes:\n\
         max_memory = {{0: \"{}MiB\", \"cpu\": \"{}MiB\"}}\n\
         model = AutoModelForCausalLM.from_pretrained(\n    MODEL, device_map=device_map, \
         offload_folder=\"offload\", dtype=torch.{}\n)\n",
        lines.concat(),
        mebibytes(placement.weights.gpu),
        mebibytes(placement.weights.host),
        if plan.precision.weights == Precision::Bf16 { "bfloat16" } else { "float16" },
    );
    with_notes(plan, &notes(plan), &settings)
}

fn notes(plan: &Plan) -> Vec<String> {
    let mut notes: Vec<String> = [
        "Accelerate copies each module when it is needed and drops it afterwards: nothing overlaps,",
        "which `pipo simulate` shows as the strategy accelerate. The cache stays on the GPU.",
        "A layer of which a part is off the GPU is off the GPU here: hooks work on whole layers.",
    ]
    .map(Into::into)
    .to_vec();
    if plan.precision.weights.is_quantised() {
        notes.push(format!(
            "The plan counts {} weights. Add a quantization_config; a quantised layer cannot always \
             be offloaded, and 16-bit layers are four times as large as 4-bit ones.",
            plan.precision.weights
        ));
    }
    if plan.batch.count > 1 {
        let all = plan.batch.sequences();
        notes.push(format!("There are no micro-batches: give it all {all} sequences, or fewer."));
    }
    notes
}

fn device(tier: Tier) -> &'static str {
    match tier {
        Tier::Gpu => "0",
        Tier::Pinned | Tier::Pageable => "\"cpu\"",
        Tier::Disk => "\"disk\"",
    }
}

/// Rounded down, so that what is asked for fits.
fn mebibytes(bytes: Bytes) -> u64 {
    bytes.0 >> 20
}
