//! One axis type for linear and logarithmic scales, with round ticks.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

/// How values become lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps for equal differences.
    Linear,
    /// Equal steps for equal ratios; only positive values can be shown.
    Log,
}

impl Scale {
    /// Whether a value can be shown at all.
    pub(super) fn shows(self, value: f64) -> bool {
        value.is_finite() && value.abs() < 1e100 && (self == Self::Linear || value > 1e-100)
    }
}

/// A scale between two bounds.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// An axis that shows all values; a linear one begins at zero unless values are negative.
    pub(super) fn around(scale: Scale, values: impl Iterator<Item = f64>, headroom: f64) -> Self {
        let (low, high) = bounds(scale, values);
        match scale {
            Scale::Linear => {
                let low = low.min(0.0);
                let span = if high > low { high - low } else { 1.0 };
                Self::linear(low, low + span * headroom)
            }
            Scale::Log => {
                let decades = (high / low).log10().max(0.5);
                Self::log(below(low), high * 10_f64.powf(decades * (headroom - 1.0)).max(1.1))
            }
        }
    }

    /// An axis for what runs across: like [`Axis::around`], but no wider than it must be.
    pub(super) fn across(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        match scale {
            Scale::Linear => Self::around(scale, values, 1.03),
            Scale::Log => {
                let (low, high) = bounds(scale, values);
                Self::log(low / 1.1, high * 1.1)
            }
        }
    }

    fn linear(low: f64, high: f64) -> Self {
        let rough = (high - low) / 6.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power);
        let step = step.into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let first = (low / step).ceil();
        let ticks = (0..20).map(|i| (first + f64::from(i)) * step).take_while(|t| *t <= high);
        Self { scale: Scale::Linear, low, high, ticks: ticks.collect() }
    }

    fn log(low: f64, high: f64) -> Self {
        // Within three decades 1, 2 and 5 are labelled, beyond only powers of ten.
        let fine = (high / low).log10() <= 3.0;
        let mantissas: &[f64] = if fine { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let first = low.log10().floor();
        let all = (0..250)
            .flat_map(|i| mantissas.iter().map(move |m| m * 10_f64.powf(first + f64::from(i))));
        let ticks = all.skip_while(|t| *t < low * 0.999).take_while(|t| *t <= high).collect();
        Self { scale: Scale::Log, low, high, ticks }
    }

    /// Lower end, where bars begin.
    pub(super) fn low(&self) -> f64 {
        self.low
    }

    fn share(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        }
    }
}

/// Least and largest of the values that can be shown; 1 where there are none.
fn bounds(scale: Scale, values: impl Iterator<Item = f64>) -> (f64, f64) {
    let shown = values.filter(|&v| scale.shows(v));
    let (low, high) = shown.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    if low > high { (1.0, 1.0) } else { (low, high) }
}

/// The nearest of 1, 2, 5 times a power of ten that is clearly below.
fn below(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let found = [5.0, 2.0, 1.0].into_iter().map(|m| m * power).find(|b| *b < value * 0.9);
    found.unwrap_or(power / 2.0)
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    #[allow(clippy::cast_possible_truncation, reason = "clamped to the picture's pixels")]
    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = self.share(*value).clamp(0.0, 1.0);
        limit.0 + (f64::from(limit.1 - limit.0) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::significant;
    use proptest::prelude::*;

    fn ticks(scale: Scale, values: &[f64]) -> String {
        let axis = Axis::around(scale, values.iter().copied(), 1.1);
        axis.ticks.iter().map(|t| significant(*t)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ticks_are_round() {
        insta::assert_snapshot!(ticks(Scale::Linear, &[3.0, 97.0]), @"0 20 40 60 80 100");
        insta::assert_snapshot!(ticks(Scale::Linear, &[]), @"0 0.2 0.4 0.6 0.8 1");
        insta::assert_snapshot!(ticks(Scale::Log, &[0.6, 7.3, 69.0]), @"0.5 1 2 5 10 20 50 100");
        insta::assert_snapshot!(ticks(Scale::Log, &[0.01, 1000.0]), @"0.01 0.1 1 10 100 1000");
        insta::assert_snapshot!(ticks(Scale::Log, &[8.0, 0.0, f64::NAN]), @"5");
    }

    proptest! {
        #[test]
        fn every_value_has_a_place(values in proptest::collection::vec(any::<f64>(), 0..6)) {
            for scale in [Scale::Linear, Scale::Log] {
                let axis = Axis::around(scale, values.iter().copied(), 1.1);
                prop_assert!(axis.ticks.len() <= 250);
                for value in values.iter().filter(|v| scale.shows(**v)) {
                    prop_assert!((0..=500).contains(&axis.map(value, (0, 500))));
                }
            }
        }
    }
}
