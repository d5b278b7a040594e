//! The arithmetic of a unit: which matrix products and attention it performs for how many rows.

use super::units::{Unit, is_output_projection};
use super::{launches, passes};
use crate::model::{Model, Part, Precision, Tensor, TensorKind};
use crate::schedule::{Attention, Compute, Linear, Piece};
use crate::units::Bytes;

/// Rows of one compute operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Sequences of the micro-batch.
    pub sequences: u64,
    /// New positions of each.
    pub positions: u64,
    /// Positions attended to by the last of them, itself included.
    pub context: u64,
}

impl Rows {
    /// Rows of the activation.
    pub fn count(&self) -> u64 {
        self.sequences * self.positions
    }
}

/// How a strategy computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// How weights are stored.
    pub weights: Precision,
    /// How the cache is stored.
    pub kv: Precision,
    /// Whether dequantisation is fused into the products.
    pub fused: bool,
    /// Whether the head works on every prompt position instead of the last alone.
    pub all_logits: bool,
    /// Key and value heads the implementation keeps: all of them where it does not know grouped heads.
    pub kv_heads: u64,
}

/// The arithmetic of a unit, or of a piece of it; `active` experts are distinct ones hit by these rows.
pub fn compute(
    model: &Model,
    unit: &Unit,
    rows: Rows,
    style: Style,
    piece: Piece,
    active: u32,
) -> Compute {
    let mut out = Compute::default();
    let mut attention_passed = false;
    let wanted = |&(part, tensor): &&(Part, Tensor)| {
        attention_passed |= is_output_projection(*part, tensor) || *part == Part::Mlp;
        match piece {
            Piece::BeforeAttention => !attention_passed,
            Piece::AfterAttention => attention_passed,
            Piece::Whole => true,
            Piece::AttentionOnly => false,
        }
    };
    let wanted: Vec<&(Part, Tensor)> = unit.tensors.iter().filter(wanted).collect();
    for (part, tensor) in &wanted {
        let joined = launches::is_joined(&wanted, *part, tensor.name);
        add_tensor(&mut out, model, (*part, tensor), rows, style, active, joined);
    }
    out.joined_launches =
        launches::of(model, &wanted, &out.linears, unit.attends, (rows, piece, style));
    out.passes = passes::of(model, &wanted, &out.linears, unit.attends, (rows, piece, style));
    if unit.attends && matches!(piece, Piece::Whole | Piece::AttentionOnly) {
        out.attention = Some(Attention {
            sequences: rows.sequences,
            rows: rows.positions,
            // The first of the rows sees a window that ends at it.
            context: model.sliding_window.map_or(rows.context, |window| {
                rows.context.min(window.saturating_add(rows.positions.saturating_sub(1)))
            }),
            window: model.sliding_window,
            heads: u64::from(model.heads),
            kv_heads: style.kv_heads,
            head_dim: model.head_dim,
            precision: style.kv,
            fused: style.fused,
        });
        // Rotary embedding or scaling, writing the new cache rows, the attention itself.
        out.launches += 3;
    }
    out
}

fn add_tensor(
    out: &mut Compute,
    model: &Model,
    (part, tensor): (Part, &Tensor),
    rows: Rows,
    style: Style,
    active: u32,
    joined: bool,
) {
    let count = match part {
        Part::Head if !style.all_logits => rows.sequences,
        _ => rows.count(),
    };
    match tensor.kind {
        TensorKind::Matrix if part == Part::Embedding => {
            // A lookup reads one 16-bit row (dequantised) for each position and writes it.
            out.elementwise += Bytes(product([4, count, tensor.inputs.min(tensor.outputs)]));
            out.launches += 1;
        }
        TensorKind::Matrix => {
            let (copies, rows) = match model.experts {
                Some(experts) if tensor.copies > 1 => {
                    let active = active.clamp(1, tensor.copies);
                    (active, (count * u64::from(experts.active)).div_ceil(u64::from(active)))
                }
                _ => (1, count),
            };
            out.linears.push(Linear {
                rows,
                outputs: tensor.outputs,
                inputs: tensor.inputs,
                copies,
                all_rows: count,
                all_copies: if model.experts.is_some() { tensor.copies } else { 1 },
                precision: style.weights,
                fused: style.fused,
                joined,
                beside: launches::beside(model, tensor),
            });
            // A product is followed by about one pass over its output: activation, residual or bias.
            out.elementwise += Bytes(product([4, rows, u64::from(copies), tensor.outputs]));
            let dequantise = u32::from(!style.fused && style.weights.is_quantised());
            out.launches += copies * (1 + dequantise)
                + u32::from(
                    tensor.name == "o" || tensor.name.ends_with('2') || tensor.name == "down",
                );
        }
        TensorKind::Vector if tensor.name.contains("norm") && !tensor.name.contains("bias") => {
            // A norm reads and writes its rows once.
            out.elementwise += Bytes(product([4, count, model.hidden]));
            out.launches += 1;
        }
        TensorKind::Vector => {}
    }
}

/// Bytes of hidden states for a number of rows; activations are 16-bit everywhere.
pub fn hidden_bytes(model: &Model, rows: u64) -> Bytes {
    Bytes(product([2, model.hidden, rows]))
}

/// A product of counts of which a hostile file may choose each, within a range: as large as a number can be where it
/// would be larger, which no budget has room for.
fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

/// Bytes of the cache of one layer for some sequences and positions.
pub fn kv_bytes(model: &Model, style: Style, sequences: u64, positions: u64) -> Bytes {
    // Each head's vector is its own row, so that quantisation groups never straddle heads.
    style.kv.matrix_bytes(product([2, sequences, positions, style.kv_heads]), model.head_dim)
}

/// The largest scratch that any part needs for `rows`, or any unit that is more than one: its inner activations, the logits, and, where
/// dequantisation is not fused, one dense copy of the largest matrix.
pub fn workspace(model: &Model, units: &[Unit], rows: Rows, style: Style) -> Bytes {
    let of_units = |units: &[Unit]| {
        let tensors = units.iter().flat_map(|unit| &unit.tensors);
        let inner: Bytes = tensors
            .filter(|(p, _)| *p != Part::Embedding)
            .map(|(part, t)| {
                if t.kind != TensorKind::Matrix {
                    return routing_bytes(model, t, rows);
                }
                let (count, width) = match part {
                    Part::Head if style.all_logits => (rows.count(), 2),
                    // Sampling works on single-precision logits of the last position.
                    Part::Head => (rows.sequences, 4),
                    _ => (rows.count(), 2),
                };
                Bytes(product([width, count, spread(model, t, units.len() > 1), t.outputs]))
            })
            .sum();
        inner
    };
    // A part that is cut into units is still one thing: queries wait for keys and values.
    let parts = units.chunk_by(|a, b| (a.part, a.layer) == (b.part, b.layer));
    let inner = parts.map(of_units).max().unwrap_or(Bytes::ZERO);
    if style.fused || !style.weights.is_quantised() {
        return inner;
    }
    let dense = units
        .iter()
        .flat_map(|u| &u.tensors)
        .filter(|(p, t)| t.kind == TensorKind::Matrix && *p != Part::Embedding)
        .map(|(_, t)| Bytes(product([2, t.outputs, t.inputs])))
        .max();
    inner + dense.unwrap_or(Bytes::ZERO)
}

/// How many results of a matrix there are for one row. Experts work one after the other on all rows, and what
/// one says is added up at once. What matrices before the last leave in a part that is cut must stay until the
/// next unit computes: of every expert, for where a row goes is known on the device alone.
fn spread(model: &Model, tensor: &Tensor, is_cut: bool) -> u64 {
    let is_last = matches!(tensor.name, "down" | "fc2");
    match model.experts.filter(|_| tensor.copies > 1 && is_cut && !is_last) {
        Some(experts) => u64::from(experts.count),
        None => 1,
    }
}

/// What a mixture needs beside its matrices' results: for each row and expert a logit and a share in single
/// precision, in multiples of 16 bytes; the sum of what the experts say; and twice what is inside an expert,
/// for copies of its weights in 16 bits.
fn routing_bytes(model: &Model, tensor: &Tensor, rows: Rows) -> Bytes {
    match model.experts.filter(|_| tensor.name == "router") {
        Some(experts) => {
            let numbers = 8 * u64::from(experts.count).next_multiple_of(2);
            let width = product([2, model.hidden]).saturating_add(product([4, model.ffn]));
            Bytes(product([rows.count(), numbers.saturating_add(width)]))
        }
        None => Bytes::ZERO,
    }
}
