//! `pipo models`: the catalogue, or one model part by part.

use pipo_plan::model::{Model, Part, Precision, catalog};
use serde_json::json;

use crate::cli::Models;
use crate::input;
use crate::output::Printer;

/// Runs the command.
pub fn run(args: &Models, printer: &Printer) -> anyhow::Result<()> {
    match &args.model {
        Some(name) => show(&input::model(name)?, printer),
        None => list(printer),
    }
}

fn list(printer: &Printer) -> anyhow::Result<()> {
    let models: Vec<Model> = catalog::names().into_iter().filter_map(catalog::find).collect();
    let row = |m: &Model| {
        vec![
            m.name.clone(),
            m.family.to_string(),
            billions(m.total_parameters()),
            m.layers.to_string(),
            m.total_bytes(Precision::Fp16).to_string(),
            m.total_bytes(Precision::Int4).to_string(),
            m.kv_bytes_per_token(Precision::Fp16).to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = models.iter().map(row).collect();
    let header = ["model", "family", "parameters", "layers", "fp16", "int4", "KV a token"];
    printer.table(&header, &rows);
    printer.document(&models)
}

fn show(model: &Model, printer: &Printer) -> anyhow::Result<()> {
    let experts = model
        .experts
        .map_or(String::new(), |e| format!(", {} of {} experts for each token", e.active, e.count));
    printer.line(format!(
        "{}: {}, {} layers, hidden {}, {} heads ({} for KV) of {}, MLP {}, vocabulary {}{experts}",
        model.name,
        model.family,
        model.layers,
        model.hidden,
        model.heads,
        model.kv_heads,
        model.head_dim,
        model.ffn,
        model.vocab,
    ));
    let tied =
        if model.tied_embeddings { " (the head is the embedding, counted once)" } else { "" };
    printer.line(format!(
        "{} parameters{tied}, {} active for each token",
        model.total_parameters(),
        model.active_parameters()
    ));
    if !model.source.is_empty() {
        printer.line(format!("source: {}", model.source));
    }
    printer.line("");
    let header = ["part", "parameters", "fp16", "int8", "int4"];
    let mut rows: Vec<Vec<String>> = Part::ALL
        .into_iter()
        .map(|part| {
            let layer = matches!(part, Part::Attention | Part::Mlp);
            let name = if layer { format!("{part}, each layer") } else { part.to_string() };
            let bytes = |p| model.bytes(part, p).to_string();
            vec![
                name,
                model.parameters(part).to_string(),
                bytes(Precision::Fp16),
                bytes(Precision::Int8),
                bytes(Precision::Int4),
            ]
        })
        .collect();
    let total = |p| model.total_bytes(p).to_string();
    rows.push(vec![
        "total".into(),
        model.total_parameters().to_string(),
        total(Precision::Fp16),
        total(Precision::Int8),
        total(Precision::Int4),
    ]);
    printer.table(&header, &rows);
    printer.line(format!(
        "\nKV cache: {} a token in fp16, {} in int4",
        model.kv_bytes_per_token(Precision::Fp16).both(),
        model.kv_bytes_per_token(Precision::Int4).both()
    ));
    printer.document(&json!({
        "model": model,
        "parameters": model.total_parameters(),
        "active_parameters": model.active_parameters(),
        "fp16_bytes": model.total_bytes(Precision::Fp16).0,
        "int8_bytes": model.total_bytes(Precision::Int8).0,
        "int4_bytes": model.total_bytes(Precision::Int4).0,
        "kv_bytes_per_token_fp16": model.kv_bytes_per_token(Precision::Fp16).0,
    }))
}

fn billions(parameters: u64) -> String {
    format!("{:.2} B", parameters as f64 / 1e9)
}
