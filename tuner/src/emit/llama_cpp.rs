//! llama.cpp: layers or tensors on one side or the other; what is not on the GPU is computed by the CPU.

use std::fmt::Write;

use pipo_plan::model::{Family, Precision};
use pipo_plan::plan::Plan;
use pipo_plan::schedule::Tier;
use pipo_plan::units::Bytes;

use super::placement::{LayerHome, Placement};
use super::with_notes;

pub(super) fn emit(plan: &Plan, placement: &Placement) -> String {
    let sequences = plan.batch.sequences();
    let context = plan.workload.context().saturating_mul(sequences);
    let batch = plan.batch.prefill_chunk.unwrap_or(plan.workload.prompt);
    let mut settings =
        format!("llama-server -m {}-{}.gguf", plan.model.name, file_type(plan.precision.weights));
    let exceptions = exceptions(placement);
    if exceptions.is_empty() {
        settings += " -ngl all";
    } else {
        settings += " -ngl all --fit off";
        for exception in &exceptions {
            let _ = write!(settings, " \\\n  -ot '{exception}=CPU'");
        }
    }
    let _ =
        write!(settings, " \\\n  -c {context} -np {sequences} -b {} -ub {batch}", batch.max(2048));
    let _ = write!(settings, " \\\n  -ctk {0} -ctv {0}", cache_type(plan.precision.kv));
    if plan.precision.kv.is_quantised() {
        settings += " -fa on"; // a quantised V cache needs it
    }
    if placement.cache.gpu == Bytes::ZERO {
        settings += " -nkvo";
    }
    if placement.weights.disk == Bytes::ZERO {
        settings += " --no-mmap";
    }
    settings.push('\n');
    with_notes(plan, &notes(plan, placement), &settings)
}

fn notes(plan: &Plan, placement: &Placement) -> Vec<String> {
    let mut notes = vec![
        "llama.cpp streams no weights in decode: tensors kept off the GPU are computed by the CPU,"
            .into(),
        "which `pipo simulate` shows as the strategy cpu-split. There are no buffers to choose."
            .into(),
    ];
    if plan.precision.weights == Precision::Int4 {
        notes.push(
            "int4 in groups of 64 with a minimum is 4.5 bits a weight; Q4_0 has the same size."
                .into(),
        );
    }
    if plan.model.family == Family::Opt {
        notes.push("llama.cpp has no OPT: take a model of the same shape that it has.".into());
    }
    if placement.weights.disk > Bytes::ZERO {
        notes.push("Weights on disk are read through a memory map, page by page.".into());
    }
    if placement.cache.gpu > Bytes::ZERO && placement.cache.host > Bytes::ZERO {
        notes.push(
            "The plan splits the cache; llama.cpp keeps a layer's cache beside its attention."
                .into(),
        );
    }
    if !placement.by_layer {
        notes.push(
            "The plan splits each tensor; here whole layers are placed, by their share.".into(),
        );
    }
    notes
}

/// Patterns of the tensors that stay off the GPU.
fn exceptions(placement: &Placement) -> Vec<String> {
    let numbers = |off: fn(&LayerHome) -> bool| -> Vec<String> {
        let layers = placement.layers.iter().enumerate();
        layers.filter(|(_, home)| off(home)).map(|(layer, _)| layer.to_string()).collect()
    };
    let attention = numbers(|home| home.attention != Tier::Gpu);
    let mlp = numbers(|home| home.mlp != Tier::Gpu);
    let mut patterns = Vec::new();
    for (layers, tensors) in [(attention, "attn"), (mlp, "ffn")] {
        if !layers.is_empty() {
            patterns.push(format!("blk\\.({})\\.{tensors}_.*", layers.join("|")));
        }
    }
    if placement.head != Tier::Gpu {
        patterns.push("^output\\.weight".into());
    }
    patterns
}

/// The file type of about the same size.
fn file_type(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp16 => "F16",
        Precision::Bf16 => "BF16",
        Precision::Int8 => "Q8_0",
        Precision::Int4 => "Q4_0",
    }
}

fn cache_type(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp16 => "f16",
        Precision::Bf16 => "bf16",
        Precision::Int8 => "q8_0",
        Precision::Int4 => "q4_0",
    }
}
