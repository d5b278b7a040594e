//! What stands between the two matrices of an MLP.

use crate::error::{self, ShapeError};
use crate::exponential::exp;

/// `max(x, 0)`; what is not a number stays so.
pub fn relu(x: &mut [f32]) {
    for x in x {
        *x = if *x < 0.0 { 0.0 } else { *x };
    }
}

/// `gate = silu(gate) * up`, with `silu(x) = x / (1 + exp(-x))`: the gated MLP of Llama.
pub fn silu_gated(gate: &mut [f32], up: &[f32]) -> Result<(), ShapeError> {
    error::length("up", up.len(), gate.len())?;
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = silu(*gate) * up;
    }
    Ok(())
}

/// Gelu by the hyperbolic tangent, which checkpoints call `gelu_new` or `gelu_pytorch_tanh`.
pub fn gelu_tanh(x: &mut [f32]) {
    let root = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
    for x in x {
        let inner = root * (0.044_715 * *x * *x).mul_add(*x, *x);
        *x = 0.5 * *x * (1.0 + inner.tanh());
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::{gelu_tanh, relu, silu_gated};

    /// To six digits, which is what the expected values below are given to.
    fn near(found: &[f32], expected: &[f32]) {
        for (found, expected) in found.iter().zip(expected) {
            let tolerance = 1e-6_f32.max(expected.abs() * 1e-6);
            assert!((found - expected).abs() <= tolerance, "{found} for {expected}");
        }
    }

    #[test]
    fn relu_cuts_and_keeps_nan() {
        let mut x = [-1.0, 0.0, 2.0, f32::NAN];
        relu(&mut x);
        near(&x[..3], &[0.0, 0.0, 2.0]);
        assert!(x[3].is_nan());
    }

    #[test]
    fn silu_is_that_of_its_definition() {
        let mut gate = [-2.0_f32, 0.0, 1.0, -200.0, 200.0];
        let expected = gate.map(|x| {
            let x = f64::from(x);
            #[expect(clippy::cast_possible_truncation, reason = "the result is a float")]
            let y = (3.0 * x / (1.0 + (-x).exp())) as f32;
            y
        });
        assert!(silu_gated(&mut gate, &[3.0; 5]).is_ok());
        near(&gate, &expected);
        assert!(silu_gated(&mut gate, &[3.0; 4]).is_err());
    }

    #[test]
    fn gelu_is_that_of_its_definition() {
        let mut x = [-1.0, 0.0, 1.0, 3.0];
        gelu_tanh(&mut x);
        near(&x, &[-0.158_808, 0.0, 0.841_192, 2.996_363]);
    }
}
