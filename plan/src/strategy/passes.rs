//! Bytes that pipo's CUDA backend moves between its products and its attention, as [`launches`](super::launches)
//! counts what it launches: norms, biases, functions, new rows of the cache.
//!
//! What a product of few rows is followed by happens before its result is written, and costs nothing. Numbers
//! are of 16 bits: a pass that reads and writes each of them moves four bytes for it.

use super::launches::{bias_of, turns};
use super::shapes::{Rows, Style, kv_bytes};
use crate::model::{Model, Part, Tensor, TensorKind};
use crate::schedule::{Linear, Piece, Way};
use crate::units::Bytes;

/// Bytes of what is there of a unit: some of its tensors with the products by its matrices, and attention
/// where `piece` has it.
pub(super) fn of(
    model: &Model,
    tensors: &[&(Part, Tensor)],
    linears: &[Linear],
    attends: bool,
    (rows, piece, style): (Rows, Piece, Style),
) -> Bytes {
    let mut linears = linears.iter();
    let count = rows.count();
    let mut bytes: u64 = 0;
    for (part, tensor) in tensors {
        let there =
            |name: &str| tensors.iter().any(|(of, other)| (*of, other.name) == (*part, name));
        let width = tensor.outputs.max(tensor.inputs);
        let more = match (tensor.kind, tensor.name) {
            (TensorKind::Matrix, "tokens") => {
                4 * count.saturating_mul(tensor.inputs.min(tensor.outputs))
            }
            // The rows are read and written, and what is added is read.
            (TensorKind::Vector, "positions") => 6 * count.saturating_mul(model.hidden),
            (TensorKind::Vector, "norm") => 4 * count.saturating_mul(model.hidden),
            (TensorKind::Matrix, name) => linears.next().map_or(0, |linear| {
                let has = [there(bias_of(name)), there("fc1"), there("fc2")];
                around(&linear.on_all_rows(), name, has)
            }),
            // A bias whose matrix is in the operation before.
            (TensorKind::Vector, name) => match name.strip_suffix("_bias") {
                Some(matrix) if matrix != "norm" && !there(matrix) => {
                    4 * count.saturating_mul(width)
                }
                _ => 0,
            },
        };
        bytes = bytes.saturating_add(more);
    }
    let heads = |heads: u32| 4 * count.saturating_mul(u64::from(heads) * model.head_dim);
    if attends && turns(model) && matches!(piece, Piece::Whole | Piece::BeforeAttention) {
        bytes = bytes.saturating_add(heads(model.heads).saturating_add(heads(model.kv_heads)));
    }
    if attends && matches!(piece, Piece::Whole | Piece::AttentionOnly) {
        // Keys and values are read, and written as the cache has them.
        let stored = kv_bytes(model, style, rows.sequences, rows.positions);
        bytes = bytes.saturating_add(heads(model.kv_heads)).saturating_add(stored.0);
    }
    Bytes(bytes)
}

/// What stands around one product: `has` its bias, the first matrix of a plain MLP, and its second.
fn around(linear: &Linear, name: &str, [bias, fc1, fc2]: [bool; 3]) -> u64 {
    let of = |bytes: u64, width: u64| {
        let numbers = linear.rows.saturating_mul(u64::from(linear.copies)).saturating_mul(width);
        bytes.saturating_mul(numbers)
    };
    // cuBLAS leaves what follows to a pass of its own, and reads what it adds its sums to.
    let many = linear.way_as_planned() != Way::InRegisters;
    let closes = matches!(name, "o" | "down" | "fc2");
    let after = match (many, closes, bias || (name == "fc1" && fc2)) {
        (false, ..) | (true, false, false) => 0,
        (true, true, false) => 2,
        (true, false, true) => 4,
        (true, true, true) => 6,
    };
    // What is between the matrices of a part: two rows become one, or one is changed in place.
    let before = match name {
        "down" => of(6, linear.inputs),
        "fc2" if !fc1 => of(4, linear.inputs),
        _ => 0,
    };
    // What an expert says is added to the others'.
    let shares = if linear.copies > 1 && name == "down" { of(6, linear.outputs) } else { 0 };
    // The largest logit is looked for.
    let sampled = if name == "head" { of(4, linear.outputs) } else { 0 };
    of(after, linear.outputs).saturating_add(before).saturating_add(shares).saturating_add(sampled)
}

#[cfg(test)]
mod tests {
    use super::super::shapes::compute;
    use super::super::units::{Granularity, cut};
    use super::*;
    use crate::model::{Precision, catalog};

    /// Bytes for each row of a layer of so many rows, the cache in 16 bits.
    fn of_layer(name: &str, granularity: Granularity, positions: u64) -> u64 {
        let model = catalog::find(name).unwrap();
        let style = Style {
            weights: Precision::Fp16,
            kv: Precision::Fp16,
            fused: true,
            all_logits: false,
            kv_heads: u64::from(model.kv_heads),
        };
        let rows = Rows { sequences: 4, positions, context: positions };
        let units = cut(&model, Precision::Fp16, granularity);
        let layer = units.iter().filter(|unit| unit.name.starts_with("layer 0"));
        let all = layer.map(|unit| compute(&model, unit, rows, style, Piece::Whole, 2).passes);
        all.sum::<Bytes>().0 / rows.count()
    }

    /// Written out from `engine/src/cuda/`: who changes a pass there changes it here.
    #[test]
    fn many_rows_pass_for_each_thing_that_is_no_product() {
        let h = 2048;
        // Two norms; biases of q, k and v; new rows of the cache, read and written; o and fc2 begin with bias
        // and residual, which their sums are then added to; bias and function of fc1.
        let opt = 2 * 4 * h + 3 * 4 * h + 2 * 4 * h + 2 * 6 * h + 4 * 4 * h;
        assert_eq!(of_layer("opt-1.3b", Granularity::Layer, 512), opt);
        // The function has an operation of its own there.
        assert_eq!(of_layer("opt-1.3b", Granularity::Tensor, 512), opt + 4 * 4 * h);
        // Two norms; queries and keys turned; new rows; o and down; a gate.
        let (h, kv, ffn) = (4096, 1024, 14336);
        let llama = 2 * 4 * h + 4 * (h + kv) + 2 * 4 * kv + 2 * 2 * h + 6 * ffn;
        assert_eq!(of_layer("llama-3.1-8b", Granularity::Layer, 512), llama);
    }

    #[test]
    fn few_rows_pass_for_norms_and_the_cache_alone() {
        let h = 2048;
        assert_eq!(of_layer("opt-1.3b", Granularity::Layer, 1), 2 * 4 * h + 2 * 4 * h);
    }
}
