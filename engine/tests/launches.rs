//! What a plan says of kernels on a GPU is what they do.
#![allow(clippy::unwrap_used, reason = "a model that is not there must stop the test")]

use pipo_kernels::Format;
use pipo_kernels::attention::Heads;
use pipo_kernels::cuda::Kernels;
use pipo_plan::model::{Model, Precision, catalog};
use pipo_plan::schedule::{Linear, Piece};
use pipo_plan::strategy::Granularity;
use pipo_plan::strategy::shapes::{Rows, Style, compute};
use pipo_plan::strategy::units::cut;

#[test]
fn few_rows_are_as_many_for_the_plan_as_for_the_kernels() {
    let formats = [
        (Precision::Bf16, Format::Bf16),
        (Precision::Int8, Format::Int8),
        (Precision::Int4, Format::Int4),
    ];
    for (precision, format) in formats {
        let few = usize::try_from(Linear::few(precision)).unwrap_or(usize::MAX);
        // Weights that are decoded in registers need no room beside.
        let spare = |rows| Kernels::linear_spare(rows, format, 4096, 4096);
        assert_eq!(spare(few), 0, "{few} rows of {precision}");
        assert!(spare(few + 1) > 0, "{} rows of {precision}", few + 1);
    }
}

/// Attention of one token or a few, over contexts and windows that are and are not split into parts: where the
/// kernels need room to put parts together, the plan counts the launch that does it.
#[test]
fn a_context_is_split_for_the_plan_where_it_is_for_the_kernels() {
    let mut seen = [0, 0];
    for (name, window) in [("opt-6.7b", None), ("llama-3.1-8b", None), ("mistral-7b", Some(600))] {
        let mut model = catalog::find(name).unwrap();
        model.sliding_window = window;
        for cache in [(Precision::Fp16, Format::Fp16), (Precision::Int4, Format::Int4)] {
            for sequences in [1, 3, 4, 16, 40] {
                for positions in [1, 2, 16, 64, 65] {
                    for context in [70, 511, 767, 768, 1025, 1535, 1536, 4097] {
                        let rows = Rows { sequences, positions, context };
                        seen[usize::from(is_split(&model, cache, rows))] += 1;
                    }
                }
            }
        }
    }
    assert!(seen.iter().all(|&count| count > 100), "split and whole: {seen:?}");
}

/// Whether both say so.
fn is_split(model: &Model, (kv, format): (Precision, Format), rows: Rows) -> bool {
    let units = cut(model, Precision::Int4, Granularity::Part);
    let attention = units.iter().find(|unit| unit.attends).unwrap();
    let launches = |rows| {
        let (weights, kv_heads) = (Precision::Int4, u64::from(model.kv_heads));
        let style = Style { weights, kv, fused: true, all_logits: false, kv_heads };
        compute(model, attention, rows, style, Piece::AttentionOnly, 1).joined_launches
    };
    let planned = launches(rows) > launches(Rows { context: rows.positions, ..rows });
    let [query, kv_heads] = [model.heads, model.kv_heads].map(|heads| in_memory(heads.into()));
    let window = model.sliding_window.map(in_memory);
    let heads = Heads { query, kv: kv_heads, dim: 128, window, scale: 1.0 };
    let before = rows.context - rows.positions;
    let [before, sequences, positions] = [before, rows.sequences, rows.positions].map(in_memory);
    let spare = Kernels::attention_spare(format, &heads, sequences, before, positions);
    assert_eq!(planned, spare > 0, "{}, {kv}, {rows:?}: {spare} bytes", model.name);
    planned
}

fn in_memory(number: u64) -> usize {
    usize::try_from(number).unwrap()
}
