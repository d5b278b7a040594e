//! What a plan says of kernels on a GPU is what they do.
#![allow(clippy::unwrap_used, reason = "a model that is not there must stop the test")]

use pipo_kernels::Format;
use pipo_kernels::attention::Heads;
use pipo_kernels::cuda::Kernels;
use pipo_plan::model::{Precision, catalog};
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
        let width = |heads: u32| usize::try_from(heads).unwrap();
        let (query, kv) = (width(model.heads), width(model.kv_heads));
        let heads = Heads { query, kv, dim: 128, window: window.map(in_memory), scale: 1.0 };
        let units = cut(&model, Precision::Int4, Granularity::Part);
        let attention = units.iter().find(|unit| unit.attends).unwrap();
        for sequences in [1, 3, 4, 16, 40] {
            for positions in [1, 2, 16, 64, 65] {
                for context in [70, 511, 512, 513, 1024, 1025, 1700, 4097] {
                    let rows = Rows { sequences, positions, context };
                    let launches = |rows| {
                        let style = Style {
                            weights: Precision::Int4,
                            kv: Precision::Fp16,
                            fused: true,
                            all_logits: false,
                            kv_heads: u64::from(model.kv_heads),
                        };
                        compute(&model, attention, rows, style, Piece::AttentionOnly, 1)
                            .joined_launches
                    };
                    let whole = launches(Rows { context: positions, ..rows });
                    let [before, sequences, positions] =
                        [context - positions, sequences, positions].map(in_memory);
                    let spare = Kernels::attention_spare(&heads, sequences, before, positions);
                    let split = launches(rows) > whole;
                    assert_eq!(split, spare > 0, "{name}, {rows:?}: {spare} bytes");
                    seen[usize::from(split)] += 1;
                }
            }
        }
    }
    assert!(seen.iter().all(|&count| count > 100), "split and whole: {seen:?}");
}

fn in_memory(number: u64) -> usize {
    usize::try_from(number).unwrap()
}
