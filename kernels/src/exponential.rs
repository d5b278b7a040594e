//! The exponential function in single precision, the same bits on every machine.
//!
//! Without a branch that depends on another number and without a call, so that a loop over it becomes
//! vector instructions; products and sums are rounded one by one, because not every machine fuses them.

/// Beyond these the result would leave the normal floats; it stays at what it is there.
const RANGE: (f32, f32) = (-87.3, 88.3);

/// Added to a number below 2^22, it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Ln 2 in two parts, of which the first has few digits: its product with an integer is exact.
const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);

/// `e^x` to a relative error of 2e-7; not a number for what is none.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, and a polynomial for `e^r` (the coefficients are those of
/// Cephes' `expf`, by Moshier).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x > RANGE.1 { RANGE.1 } else { x };
    let x = if x < RANGE.0 { RANGE.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2.0 - n * LN_2.1;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let power = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    power * f32::from_bits(exponent << 23)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn it_is_the_exponential_to_a_few_units_in_the_last_place() {
        let mut worst: f64 = 0.0;
        for step in -873_000..=883_000 {
            #[expect(clippy::cast_possible_truncation, reason = "any float will do")]
            let x = (f64::from(step) * 1e-4) as f32;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2e-7, "{worst}");
    }

    #[test]
    fn what_is_no_number_stays_none_and_the_ends_are_finite() {
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert!(exp(f32::INFINITY).is_finite() && exp(1e30) > 1e38);
        assert!(exp(f32::NEG_INFINITY) > 0.0 && exp(-1e30) < 1e-37);
    }
}
