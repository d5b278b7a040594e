//! Stored numbers to floats in memory: for panels of a matrix that many rows of activations share, and
//! for rows of a cache.

use super::tile::{Bf16, Element, Fp16, Fp32, Int8, group, scales_of};
use super::{LANES, Simd};
use crate::format::{Format, GROUP, GROUP_BYTES, Matrix};

/// Writes columns `start..` of a row to `out`, which says how many.
///
/// Numbers of int8 are left unscaled: the row's factor belongs to the sum.
#[inline(always)]
pub(crate) fn expand<S: Simd>(simd: S, matrix: &Matrix, row: usize, start: usize, out: &mut [f32]) {
    let (weights, scales) = (matrix.row(row), matrix.row_scales(row));
    match matrix.format() {
        Format::Fp32 => plain::<S, Fp32>(simd, &weights[4 * start..4 * (start + out.len())], out),
        Format::Fp16 => plain::<S, Fp16>(simd, &weights[2 * start..2 * (start + out.len())], out),
        Format::Bf16 => plain::<S, Bf16>(simd, &weights[2 * start..2 * (start + out.len())], out),
        Format::Int8 => plain::<S, Int8>(simd, &weights[start..start + out.len()], out),
        Format::Int4 => int4(simd, weights, scales, start, out),
    }
}

#[inline(always)]
fn plain<S: Simd, E: Element>(simd: S, weights: &[u8], out: &mut [f32]) {
    let (whole, rest) = E::chunks(weights);
    let (out, out_rest) = out.as_chunks_mut::<LANES>();
    for (chunk, out) in whole.iter().zip(out) {
        simd.store(E::load(simd, chunk), out);
    }
    if let Some(chunk) = rest {
        let mut floats = [0.0; LANES];
        simd.store(E::load(simd, &chunk), &mut floats);
        out_rest.copy_from_slice(&floats[..out_rest.len()]);
    }
}

#[inline(always)]
fn int4<S: Simd>(simd: S, weights: &[u8], scales: &[u8], start: usize, out: &mut [f32]) {
    let nibbles = weights.as_chunks::<GROUP_BYTES>().0;
    let scales = scales.as_chunks::<4>().0;
    let (mut index, mut within, mut rest) = (start / GROUP, start % GROUP, out);
    while !rest.is_empty() {
        let steps = scales_of(simd, &scales[index]);
        let weights = group(simd, &nibbles[index], steps[0], steps[1]);
        let (here, after) = rest.split_at_mut((GROUP - within).min(rest.len()));
        if let Some(here) = here.as_mut_array::<GROUP>() {
            store(simd, weights, here);
        } else {
            let mut floats = [0.0; GROUP];
            store(simd, weights, &mut floats);
            here.copy_from_slice(&floats[within..within + here.len()]);
        }
        (index, within, rest) = (index + 1, 0, after);
    }
}

#[inline(always)]
fn store<S: Simd>(simd: S, weights: [S::V; GROUP / LANES], to: &mut [f32; GROUP]) {
    let to = to.as_chunks_mut::<LANES>().0;
    for (weights, to) in weights.into_iter().zip(to) {
        simd.store(weights, to);
    }
}
