//! Normalisation of rows.
//!
//! | | shape |
//! |---|---|
//! | `x` | rows x width, or rows x heads x head dimension for the norms of q and k |
//! | `weight`, `bias` | width |
//! | `out` | as `x` |
//!
//! A norm of q or k is [`rms_norm`] with the head's dimension as the width: each head is a row.

use crate::cpu::Cpu;
use crate::error::{self, ShapeError};
use crate::simd::vector::Dot;

/// `x / sqrt(mean(x^2) + epsilon) * weight` for each row; a row is as long as `weight`.
pub fn rms_norm(
    cpu: &Cpu,
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    check(x, weight, out)?;
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let square = cpu.run(Dot(x, x)) / width as f32;
        let factor = 1.0 / (square + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    }
    Ok(())
}

/// `(x - mean) / sqrt(variance + epsilon) * weight + bias` for each row; a row is as long as `weight`.
pub fn layer_norm(
    cpu: &Cpu,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    epsilon: f32,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    check(x, weight, out)?;
    error::length("bias", bias.len(), weight.len())?;
    let width = weight.len();
    let ones = vec![1.0; width];
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = cpu.run(Dot(x, &ones)) / width as f32;
        for (out, x) in out.iter_mut().zip(x) {
            *out = x - mean;
        }
        // From the differences: the mean of squares less the square of the mean cancels.
        let variance = cpu.run(Dot(out, out)) / width as f32;
        let factor = 1.0 / (variance + epsilon).sqrt();
        for ((out, weight), bias) in out.iter_mut().zip(weight).zip(bias) {
            *out = *out * factor * weight + bias;
        }
    }
    Ok(())
}

fn check(x: &[f32], weight: &[f32], out: &[f32]) -> Result<(), ShapeError> {
    if weight.is_empty() {
        return Err(ShapeError::Rule { what: "the width", found: 0, rule: "at least 1" });
    }
    let rows = x.len() / weight.len();
    error::length("x", x.len(), rows * weight.len())?;
    error::length("out", out.len(), x.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{layer_norm, rms_norm};
    use crate::Cpu;

    fn near(found: f32, expected: f64) {
        let tolerance = 1e-5 * expected.abs().max(1.0);
        assert!((f64::from(found) - expected).abs() <= tolerance, "{found} for {expected}");
    }

    proptest! {
        #[test]
        fn both_are_their_definitions(
            width in 1_usize..100,
            rows in 0_usize..4,
            seed in prop::collection::vec(-3.0_f32..3.0, 400),
        ) {
            let cpu = Cpu::new(1);
            let x = &seed[..width * rows];
            let (weight, bias) = (&seed[seed.len() - width..], &seed[200..200 + width]);
            let mut out = vec![0.0; x.len()];
            let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let n = width as f64;
            rms_norm(&cpu, x, weight, 0.01, &mut out).unwrap();
            for (x, out) in x.chunks(width).map(wide).zip(out.chunks(width)) {
                let root = (x.iter().map(|x| x * x).sum::<f64>() / n + 0.01).sqrt();
                for i in 0..width {
                    near(out[i], x[i] / root * f64::from(weight[i]));
                }
            }
            layer_norm(&cpu, x, weight, bias, 0.01, &mut out).unwrap();
            for (x, out) in x.chunks(width).map(wide).zip(out.chunks(width)) {
                let mean = x.iter().sum::<f64>() / n;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                let root = (variance + 0.01).sqrt();
                for i in 0..width {
                    let expected = (x[i] - mean) / root * f64::from(weight[i]);
                    near(out[i], expected + f64::from(bias[i]));
                }
            }
        }
    }

    #[test]
    fn shapes_are_checked() {
        let (cpu, mut out) = (Cpu::new(1), [0.0; 3]);
        assert!(rms_norm(&cpu, &[1.0; 3], &[], 0.0, &mut out).is_err());
        assert!(rms_norm(&cpu, &[1.0; 3], &[1.0; 2], 0.0, &mut out).is_err());
        assert!(layer_norm(&cpu, &[1.0; 3], &[1.0; 3], &[1.0; 2], 0.0, &mut out).is_err());
    }
}
