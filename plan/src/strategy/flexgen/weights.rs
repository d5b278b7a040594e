//! Where FlexGen puts each tensor, and in how many pieces it travels.
//!
//! Percentages are met only in the mean. The tensors of an attention or MLP part stand in a row by
//! size; disk, host and GPU own consecutive stretches of it, as long as their percentages; a tensor goes
//! to the owner of its middle. With 20 % on the GPU, attention keeps its last matrix there (25 %) and an
//! MLP of two equal matrices nothing.
//!
//! Vectors in host memory are always pinned and never compressed. A compressed matrix travels in two
//! pieces, its numbers and its scales.

use super::FlexGen;
use crate::model::{Part, Precision, Tensor, TensorKind};
use crate::schedule::{Layout, Op, Tier};
use crate::strategy::frame::Frame;
use crate::units::Bytes;

/// A tensor, or one of the two pieces of a compressed one: what one copy moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Where it lives.
    pub tier: Tier,
    /// Its size.
    pub bytes: Bytes,
    /// Its extent in the layout, if it is on disk.
    pub extent: u32,
}

/// Places every tensor of every unit, and notes the extents of those on disk.
pub fn place(frame: &Frame, knobs: &FlexGen, layout: &mut Layout) -> Vec<Vec<Stored>> {
    let mut of_unit = |tensors: &[(Part, Tensor)]| {
        let mut stored = Vec::new();
        // A whole layer is two parts, each with its own row of tensors.
        for part in tensors.chunk_by(|a, b| a.0 == b.0) {
            let total: u64 = part.iter().map(|(_, t)| t.parameters()).sum();
            let mut before = 0;
            for (_, tensor) in part {
                let tier = tier(tensor, before, total, knobs);
                before += tensor.parameters();
                for bytes in pieces(tensor, frame.style.weights) {
                    let extent = if tier == Tier::Disk {
                        layout.extents.push(bytes);
                        u32::try_from(layout.extents.len() - 1).unwrap_or(Op::NO_EXTENT)
                    } else {
                        Op::NO_EXTENT
                    };
                    stored.push(Stored { tier, bytes, extent });
                }
            }
        }
        stored
    };
    frame.units.iter().map(|unit| of_unit(&unit.tensors)).collect()
}

/// The owner of a tensor's middle, `before` parameters standing before it of `total`.
fn tier(tensor: &Tensor, before: u64, total: u64, knobs: &FlexGen) -> Tier {
    let disk = u128::from(100 - knobs.weights_gpu - knobs.weights_host);
    // Twice the middle, in hundredths of the total.
    let middle = 100 * (2 * u128::from(before) + u128::from(tensor.parameters()));
    let below = |percent: u128| middle < 2 * percent * u128::from(total);
    if below(disk) {
        Tier::Disk
    } else if !below(disk + u128::from(knobs.weights_host)) {
        Tier::Gpu
    } else if knobs.pin_weight || is_vector(tensor) {
        Tier::Pinned
    } else {
        Tier::Pageable
    }
}

/// A learned position table is stored like a vector, but FlexGen treats it like the matrix it is.
fn is_vector(tensor: &Tensor) -> bool {
    tensor.kind == TensorKind::Vector && tensor.inputs == 1
}

/// What is copied by one call each: a compressed matrix has one scale and one minimum of 16 bits for
/// each 32 bytes of numbers, a ninth of the whole.
fn pieces(tensor: &Tensor, precision: Precision) -> impl Iterator<Item = Bytes> {
    let all = tensor.bytes(precision);
    let compressed = tensor.kind == TensorKind::Matrix && precision == Precision::Int4;
    let scales = if compressed { Bytes(all.0 / 9) } else { Bytes::ZERO };
    [all - scales, scales].into_iter().filter(|&bytes| bytes > Bytes::ZERO)
}
