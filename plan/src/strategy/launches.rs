//! How many launches a unit's arithmetic is on pipo's CUDA backend, copies within the device included.
//!
//! Other systems launch a kernel for each operation, which [`Compute::launches`](crate::schedule::Compute)
//! counts. The backend joins them: products of the same few rows are one launch, and so is what follows
//! each of them (`engine/src/cuda/`, `kernels/src/cuda/`).

use super::shapes::{Rows, Style};
use crate::model::{Model, Part, Precision, Tensor, TensorKind};
use crate::schedule::{Linear, Piece, Way};

/// Rows of a head up to which a context is split.
const SPLIT_ROWS: u64 = 64;

/// Products of the same rows that one launch may compute.
const TOGETHER: [&[&str]; 2] = [&["q", "k", "v"], &["gate", "up"]];

/// Launches of what is there of a unit: some of its tensors with the products by its matrices, and attention
/// where `piece` has it.
pub(super) fn of(
    model: &Model,
    tensors: &[&(Part, Tensor)],
    linears: &[Linear],
    attends: bool,
    (rows, piece, style): (Rows, Piece, Style),
) -> u32 {
    let mut linears = linears.iter();
    let mut launches: u32 = 0;
    for (part, tensor) in tensors {
        let there =
            |name: &str| tensors.iter().any(|(of, other)| (*of, other.name) == (*part, name));
        let more = match (tensor.kind, tensor.name) {
            // A table that is looked up, or added to what was.
            (TensorKind::Matrix, "tokens") | (TensorKind::Vector, "norm" | "positions") => 1,
            (TensorKind::Matrix, name) => linears.next().map_or(0, |linear| {
                let linear = linear.on_all_rows();
                // cuBLAS leaves what follows to a launch of its own; so does a first matrix elsewhere.
                let follows = there(bias_of(name)) || (name == "fc1" && there("fc2"));
                let apart = follows && linear.way_as_planned() != Way::InRegisters;
                // What is between the products of a part, where it is not the first one's.
                let between = name == "down" || (name == "fc2" && !there("fc1"));
                let more = u32::from(apart) + u32::from(between);
                // What an expert says is added to the others', and all of it to the rows.
                let of_experts = (more + 1).saturating_mul(linear.copies).saturating_add(1);
                let last = tensor.copies > 1 && name == "down";
                linear.launches().saturating_add(if last { of_experts } else { more })
            }),
            (TensorKind::Vector, "router") => 2,
            // A bias whose matrix is in the operation before.
            (TensorKind::Vector, name) => {
                let matrix = name.strip_suffix("_bias").filter(|_| name != "norm_bias");
                u32::from(matrix.is_some_and(|matrix| !there(matrix)))
            }
        };
        launches = launches.saturating_add(more);
    }
    if attends && matches!(piece, Piece::Whole | Piece::BeforeAttention) {
        launches += u32::from(turns(model));
    }
    if attends && piece == Piece::BeforeAttention {
        // Queries and new rows are put where they can travel from.
        launches += 2;
    }
    if attends && matches!(piece, Piece::Whole | Piece::AttentionOnly) {
        // New rows go into the cache; parts of a context that is split are put together.
        launches += 2 + u32::from(is_split(model, rows, style.kv));
    }
    if tensors.iter().any(|(part, tensor)| (*part, tensor.name) == (Part::Head, "head")) {
        // The last row of every sequence is copied, the largest logit found, the token copied to the host.
        launches = launches.saturating_add(u32::try_from(rows.sequences).unwrap_or(u32::MAX)) + 2;
    }
    launches
}

/// Whether heads are normed or rotated on their own, which is one pass over queries and keys.
pub(super) fn turns(model: &Model) -> bool {
    model.family.qk_norm() || !model.family.learned_positions()
}

/// Whether a product is of the same rows as one before it, and few of them are computed by one launch.
pub(super) fn is_joined(tensors: &[&(Part, Tensor)], part: Part, name: &str) -> bool {
    TOGETHER.iter().filter(|names| names.contains(&name)).any(|names| {
        let mut before = names.iter().take_while(|other| **other != name);
        before.any(|other| tensors.iter().any(|(of, t)| (*of, t.name) == (part, *other)))
    })
}

/// Numbers beside each row of a product's result that it may overwrite: what follows in the room for the
/// results of its part.
pub(super) fn beside(model: &Model, tensor: &Tensor) -> u64 {
    // Experts have a room for copies of their weights.
    if tensor.copies > 1 {
        return model.ffn.saturating_mul(2);
    }
    let name = tensor.name;
    let width = |heads: u32| u64::from(heads).saturating_mul(model.head_dim);
    let (query, cached) = (width(model.heads), width(model.kv_heads));
    let all: &[u64] = match name {
        "q" => &[cached, cached, model.hidden],
        "k" => &[cached, model.hidden],
        // What was attended to lies where queries were, or where the result will be.
        "o" if model.head_dim <= 128 => &[cached, cached, model.hidden],
        "o" => &[query, cached, cached],
        "gate" | "down" => &[model.ffn, model.hidden],
        "v" | "up" | "fc1" | "fc2" => &[model.hidden],
        _ => &[],
    };
    all.iter().fold(0, |sum, &width| sum.saturating_add(width))
}

pub(super) fn bias_of(matrix: &str) -> &'static str {
    match matrix {
        "q" => "q_bias",
        "k" => "k_bias",
        "v" => "v_bias",
        "o" => "o_bias",
        "gate" => "gate_bias",
        "up" => "up_bias",
        "down" => "down_bias",
        "fc1" => "fc1_bias",
        "fc2" => "fc2_bias",
        _ => "",
    }
}

/// Whether attention over the context is split along it, into parts of about the same length.
fn is_split(model: &Model, rows: Rows, kv: Precision) -> bool {
    let group = u64::from(model.heads / model.kv_heads.max(1));
    let heads = u64::from(model.kv_heads).saturating_mul(rows.sequences);
    let about = if heads < 128 || kv == Precision::Int4 { 512 } else { 1024 };
    let first = rows.context.saturating_sub(rows.positions);
    let start = model.sliding_window.map_or(0, |window| (first + 1).saturating_sub(window));
    let seen = rows.context.saturating_sub(start);
    let parts = (seen.saturating_add(about / 2) / about).max(1);
    let length = seen.div_ceil(parts).next_multiple_of(64).max(1);
    let last = rows.context.saturating_sub(1);
    rows.positions.saturating_mul(group) <= SPLIT_ROWS && last / length > start / length
}

#[cfg(test)]
mod tests {
    use super::super::shapes::compute;
    use super::super::units::{Granularity, Unit, cut};
    use super::*;
    use crate::model::catalog;

    fn launched(model: &Model, unit: &Unit, rows: Rows, fused: bool) -> u32 {
        let style = Style {
            weights: Precision::Int4,
            kv: Precision::Fp16,
            fused,
            all_logits: false,
            kv_heads: u64::from(model.kv_heads),
        };
        compute(model, unit, rows, style, Piece::Whole, 2).joined_launches
    }

    /// Launches of a layer and of the head, for a few sequences in decode and for many rows.
    fn of(name: &str, fused: bool) -> [u32; 4] {
        let model = catalog::find(name).unwrap();
        let units = cut(&model, Precision::Int4, Granularity::Layer);
        let decode = Rows { sequences: 4, positions: 1, context: 200 };
        let prompt = Rows { sequences: 4, positions: 2048, context: 2048 };
        let [layer, head] = [&units[1], &units[units.len() - 1]];
        let count = |unit, rows| launched(&model, unit, rows, fused);
        [count(layer, decode), count(layer, prompt), count(head, decode), count(head, prompt)]
    }

    /// Written out from `engine/src/cuda/`: who changes a launch there changes it here.
    #[test]
    fn layers_of_each_family_are_so_many_launches() {
        // Norm, qkv, append, attention, o; norm, fc1, fc2. Four last rows, norm, product, largest, copy.
        assert_eq!(of("opt-6.7b", true)[0], 8);
        assert_eq!(of("opt-6.7b", true)[2], 8);
        // Norm, qkv, turn, append, attention, o; norm, gate and up, function, down.
        for llama in ["llama-3.1-8b", "mistral-7b", "qwen2.5-7b", "qwen3-8b"] {
            assert_eq!(of(llama, true)[0], 10, "{llama}");
        }
        // Each product decodes first: seven launches more, and none joins another: three more.
        assert_eq!(of("llama-3.1-8b", false)[0], 20);
        // Whole: norm, 4 x (decode, multiply), 4 biases, append, attention; in tiles where there is not
        // room for a whole decoded matrix: v in 1 (of 8192 rows), fc1 in 2, fc2 in 2.
        assert_eq!(of("opt-6.7b", true)[1], 3 + 4 * 3 + 1 + (4 + 1) + (4 + 1));
    }

    #[test]
    fn every_expert_is_launched() {
        // Norm, qkv, turn, append, attention, o; norm, router, choice; gate and up, function, down, share of
        // each of eight; what all of them say.
        assert_eq!(of("mixtral-8x7b", true)[0], 6 + 3 + 8 * 4 + 1);
    }

    #[test]
    fn a_long_context_is_split_and_put_together() {
        let model = catalog::find("llama-3.1-8b").unwrap();
        let units = cut(&model, Precision::Int4, Granularity::Part);
        let rows = |positions, context| Rows { sequences: 1, positions, context };
        let attention = |rows| launched(&model, &units[1], rows, true);
        assert_eq!(attention(rows(1, 767)), 6);
        assert_eq!(attention(rows(1, 768)), 7);
        // Sixteen positions of four heads are as many as are split.
        assert_eq!(attention(rows(16, 800)), 7);
        assert_eq!(attention(rows(17, 801)), 6);
    }

    #[test]
    fn a_part_that_is_cut_pays_for_what_follows_apart() {
        let model = catalog::find("opt-6.7b").unwrap();
        let rows = Rows { sequences: 1, positions: 1, context: 100 };
        let all = |granularity| -> u32 {
            let units = cut(&model, Precision::Int4, granularity);
            let layer =
                units.iter().filter(|unit| unit.layer == 0 && unit.name.starts_with("layer 0"));
            layer.map(|unit| launched(&model, unit, rows, true)).sum()
        };
        assert_eq!(all(Granularity::Part), all(Granularity::Layer));
        assert!(all(Granularity::Tensor) > all(Granularity::Part));
    }
}
