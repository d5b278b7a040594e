//! Rounding in the direction that keeps the promise of half a step.

use half::f16;

use super::Unrepresentable;

/// The nearest whole number, of two the even one, for numbers below 2^22.
///
/// At this size a float has no fraction bits left, so that the addition itself rounds. `f32::round` is
/// a call into the C library on processors that cannot be asked for more than the baseline.
pub(super) fn nearest(number: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    (number + SHIFT) - SHIFT
}

/// The least and the greatest; refuses what is not finite.
pub(super) fn extremes(numbers: &[f32]) -> Result<(f32, f32), Unrepresentable> {
    const LANES: usize = 8;
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let mut zero = [0.0_f32; LANES];
    let mut note = |lane: usize, number: f32| {
        low[lane] = if number < low[lane] { number } else { low[lane] };
        high[lane] = if number > high[lane] { number } else { high[lane] };
        // What is not finite makes this NaN, and NaN stays.
        zero[lane] += number * 0.0;
    };
    let (whole, rest) = numbers.as_chunks::<LANES>();
    for numbers in whole {
        for (lane, &number) in numbers.iter().enumerate() {
            note(lane, number);
        }
    }
    for &number in rest {
        note(0, number);
    }
    if !zero.iter().any(|zero| zero.is_nan()) {
        return Ok((
            low.into_iter().fold(f32::INFINITY, f32::min),
            high.into_iter().fold(f32::NEG_INFINITY, f32::max),
        ));
    }
    let index = numbers.iter().position(|number| !number.is_finite()).unwrap_or(0);
    Err(Unrepresentable { index, value: numbers[index] })
}

/// The number to blame where a scale or a minimum does not fit: the farthest from zero.
pub(super) fn farthest(numbers: &[f32]) -> Unrepresentable {
    let mut worst = Unrepresentable { index: 0, value: 0.0 };
    for (index, &value) in numbers.iter().enumerate() {
        if value.abs() > worst.value.abs() {
            worst = Unrepresentable { index, value };
        }
    }
    worst
}

/// The least half that is no less than a number; `None` where that is infinite.
pub(super) fn not_below(number: f32) -> Option<f16> {
    let near = f16::from_f32(number);
    let up = if near.to_f32() >= number { near } else { neighbour(near, true) };
    up.is_finite().then_some(up)
}

/// The greatest half that is no greater than a number.
pub(super) fn not_above(number: f32) -> Option<f16> {
    let near = f16::from_f32(number);
    let down = if near.to_f32() <= number { near } else { neighbour(near, false) };
    down.is_finite().then_some(down)
}

/// The next half upwards or downwards. Bits of halves of one sign are in the order of their size.
fn neighbour(half: f16, up: bool) -> f16 {
    let bits = half.to_bits();
    f16::from_bits(match (half.is_sign_negative(), up) {
        (false, true) | (true, false) => bits.wrapping_add(1),
        // Below +0 comes the smallest negative, above -0 the smallest positive.
        (false, false) if bits == 0 => 0x8001,
        (true, true) if bits == 0x8000 => 0x0001,
        (false, false) | (true, true) => bits.wrapping_sub(1),
    })
}
