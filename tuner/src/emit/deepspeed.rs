//! DeepSpeed ZeRO-Inference: all weights off the GPU, some buffers, some parameters kept.

use pipo_plan::model::Precision;
use pipo_plan::plan::Plan;
use pipo_plan::strategy::Strategy;
use pipo_plan::units::Bytes;
use serde_json::{Map, Value, json};

use super::placement::Placement;
use super::with_notes;

pub(super) fn emit(plan: &Plan, placement: &Placement) -> String {
    let on_disk = placement.weights.disk > Bytes::ZERO;
    // DeepSpeed counts parameters, and its buffers are 16-bit.
    let parameters = |bytes: Bytes| (bytes.as_f64() * 8.0 / plan.precision.weights.bits()).round();
    let (slots, threads, read_block) = match &plan.strategy {
        Strategy::Pipo(knobs) => (knobs.gpu_slots, knobs.disk_threads, knobs.read_block),
        _ => (2, 1, Bytes(1 << 20)),
    };
    let layer = plan.model.bytes(pipo_plan::model::Part::Attention, plan.precision.weights)
        + plan.model.bytes(pipo_plan::model::Part::Mlp, plan.precision.weights);
    let whole = |value: f64| Value::from(format!("{value:.0}").parse::<u64>().unwrap_or(0));
    let mut offload = Map::new();
    offload.insert("device".into(), json!(if on_disk { "nvme" } else { "cpu" }));
    offload.insert("pin_memory".into(), json!(placement.pinned));
    if on_disk {
        offload.insert("nvme_path".into(), json!("/local_nvme"));
        offload.insert("buffer_count".into(), json!(slots.max(2) * 5));
        offload.insert("buffer_size".into(), whole(parameters(layer)));
        offload.insert("max_in_cpu".into(), whole(parameters(placement.weights.host)));
    }
    let mut config = json!({
        "train_micro_batch_size_per_gpu": plan.batch.sequences(),
        "fp16": { "enabled": plan.precision.weights != Precision::Bf16 },
        "bf16": { "enabled": plan.precision.weights == Precision::Bf16 },
        "zero_optimization": {
            "stage": 3,
            "offload_param": offload,
            "stage3_prefetch_bucket_size": whole(parameters(layer) * f64::from(slots.max(2) - 1)),
            "stage3_max_live_parameters": whole(parameters(placement.weights.gpu + layer * u64::from(slots))),
            "stage3_param_persistence_threshold": 100_000,
        },
    });
    if on_disk {
        config["aio"] = json!({
            "block_size": read_block.0,
            "queue_depth": 32,
            "thread_count": threads,
            "single_submit": false,
            "overlap_events": true,
        });
    }
    if plan.precision.weights.is_quantised() {
        config["weight_quantization"] = json!({
            "quantized_initialization": {
                "num_bits": if plan.precision.weights == Precision::Int4 { 4 } else { 8 },
                "group_size": 64,
                "group_dim": 1,
                "symmetric": false,
            },
        });
    }
    let text = serde_json::to_string_pretty(&config).unwrap_or_default();
    with_notes(plan, &notes(plan, placement), &(text + "\n"))
}

fn notes(plan: &Plan, placement: &Placement) -> Vec<String> {
    let mut notes = vec![
        "DeepSpeed reads this with comments (hjson). ZeRO-Inference keeps no chosen layers on the GPU:".into(),
        format!(
            "stage3_max_live_parameters lets {} of the last used ones stay, which a cyclic scan seldom uses.",
            placement.weights.gpu.both()
        ),
    ];
    if placement.cache.host > Bytes::ZERO {
        notes.push("For a cache in host memory call model.set_kv_cache_offload(True, gen_len, pin, async).".into());
    }
    if placement.cache.disk > Bytes::ZERO {
        notes.push("A cache on disk is not expressible.".into());
    }
    if plan.batch.count > 1 {
        notes.push("There are no micro-batches: all sequences are one batch.".into());
    }
    notes
}
