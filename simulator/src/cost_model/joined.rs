//! Products as pipo's CUDA backend launches them: some together, some in pieces.

use pipo_plan::model::Precision;
use pipo_plan::schedule::{Compute, Linear, Way};

use super::kernels::Kernels;

/// The products, those that one launch computes as one: its weights are read like those of one matrix.
pub(super) fn launches(linears: &[Linear]) -> Vec<Linear> {
    let linears: Vec<Linear> = linears.iter().map(Linear::on_all_rows).collect();
    let in_registers = |one: &Linear| one.fused && one.way(one.precision) == Way::InRegisters;
    let together =
        move |one: &Linear, next: &Linear| next.joined && in_registers(one) && in_registers(next);
    let joined = linears.chunk_by(together).filter_map(|all| {
        let outputs = all.iter().fold(0, |sum: u64, one| sum.saturating_add(one.outputs));
        all.first().map(|first| Linear { outputs, ..*first })
    });
    joined.collect()
}

/// Nanoseconds of one copy of a product from a table; none without a table.
///
/// A product in tiles is several of fewer outputs. Weights that are decoded in registers for more rows than
/// that is made for are decoded once for each so many of them.
pub(super) fn time(kernels: &Kernels, linear: &Linear, precision: Precision) -> Option<f64> {
    let of = |rows, outputs| kernels.time(&Linear { rows, outputs, ..*linear }, precision);
    let few = Linear::few(precision);
    match linear.way(precision) {
        Way::Tiles(outputs) if outputs < linear.outputs => {
            let (tiles, rest) = (linear.outputs / outputs.max(1), linear.outputs % outputs.max(1));
            let last = if rest > 0 { of(linear.rows, rest)? } else { 0.0 };
            Some(tiles as f64 * of(linear.rows, outputs)? + last)
        }
        Way::InRegisters if linear.rows > few => {
            Some(of(few, linear.outputs)? * linear.rows as f64 / few as f64)
        }
        Way::Tiles(_) | Way::InRegisters => of(linear.rows, linear.outputs),
    }
}

/// Launches of products and of attention: these were measured one after another, so that what is between
/// them is in their times. A copy that is decoded first was not.
pub(super) fn measured(compute: &Compute) -> u32 {
    let products = compute.linears.iter().map(Linear::on_all_rows).map(|linear| {
        let apart = !linear.fused && linear.precision.is_quantised();
        linear.launches().saturating_sub(if apart { linear.copies } else { 0 })
    });
    let products = products.fold(0, u32::saturating_add);
    products.saturating_add(u32::from(compute.attention.is_some()))
}
