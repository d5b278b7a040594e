//! Rotary position embedding.
//!
//! `x` is rows x heads x head dimension; row `r` is at position `first + r`. Element `i` of the first half
//! of a head turns with element `i` of the second half (the convention of Llama's checkpoints at Hugging
//! Face; pairs of neighbours are another). Angles are computed in `f32`, as their references do.

use crate::error::{self, ShapeError};

/// How frequencies are stretched for contexts longer than those of the training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// As trained.
    None,
    /// Every position is divided by the factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Llama 3: long waves are divided by the factor, short ones kept, those between interpolated.
    Llama3 {
        /// The factor of long waves.
        factor: f32,
        /// A wave longer than the original context divided by this is long.
        low_freq_factor: f32,
        /// A wave shorter than the original context divided by this is short.
        high_freq_factor: f32,
        /// Positions of the training.
        original_positions: u32,
    },
}

/// The frequencies of a head.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Radians a position, one for each pair.
    frequencies: Vec<f32>,
}

impl Rotary {
    /// The frequencies `theta^(-2 i / head_dim)`, stretched.
    pub fn new(head_dim: usize, theta: f64, scaling: Scaling) -> Result<Self, ShapeError> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            let what = "the head dimension";
            return Err(ShapeError::Rule { what, found: head_dim, rule: "even and not zero" });
        }
        let frequency = |i: usize| {
            #[expect(clippy::cast_possible_truncation, reason = "frequencies are floats")]
            let frequency = theta.powf(-2.0 * i as f64 / head_dim as f64) as f32;
            scaled(frequency, scaling)
        };
        Ok(Self { frequencies: (0..head_dim / 2).map(frequency).collect() })
    }

    /// Radians a position, one for each pair of a head.
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// Turns the heads of every row in place.
    pub fn apply(&self, x: &mut [f32], heads: usize, first: usize) -> Result<(), ShapeError> {
        let half = self.frequencies.len();
        let width = error::product("the heads", &[heads, 2 * half])?;
        if width == 0 {
            return error::length("x", x.len(), 0);
        }
        let rows = x.len() / width;
        error::length("x", x.len(), rows * width)?;
        let mut turns = vec![(0.0, 0.0); half];
        for (row, x) in x.chunks_exact_mut(width).enumerate() {
            let position = first.saturating_add(row) as f32;
            for (turn, frequency) in turns.iter_mut().zip(&self.frequencies) {
                *turn = (position * frequency).sin_cos();
            }
            for head in x.chunks_exact_mut(2 * half) {
                let (low, high) = head.split_at_mut(half);
                for ((a, b), (sin, cos)) in low.iter_mut().zip(high).zip(&turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
        Ok(())
    }
}

fn scaled(frequency: f32, scaling: Scaling) -> f32 {
    match scaling {
        Scaling::None => frequency,
        Scaling::Linear { factor } => frequency / factor,
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
            let original = original_positions as f32;
            let wave = std::f32::consts::TAU / frequency;
            if wave > original / low_freq_factor {
                frequency / factor
            } else if wave < original / high_freq_factor {
                frequency
            } else {
                let span = high_freq_factor - low_freq_factor;
                let smooth = (original / wave - low_freq_factor) / span;
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Rotary, Scaling};

    #[test]
    fn halves_turn_together() {
        let rotary = Rotary::new(4, 10_000.0, Scaling::None).unwrap();
        // Two rows at positions 2 and 3, of one head.
        let mut x = [1.0, 2.0, 3.0, 4.0, 1.0, 0.0, 0.0, 0.0];
        rotary.apply(&mut x, 1, 2).unwrap();
        let turned = |a: f64, b: f64, angle: f64| {
            [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
        };
        let ([a, c], [b, d]) = (turned(1.0, 3.0, 2.0), turned(2.0, 4.0, 0.02));
        let [e, g] = turned(1.0, 0.0, 3.0);
        for (found, expected) in x.into_iter().zip([a, b, c, d, e, 0.0, g, 0.0]) {
            assert!((f64::from(found) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling = Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 8192,
        };
        let plain = Rotary::new(128, 500_000.0, Scaling::None).unwrap().frequencies;
        let stretched = Rotary::new(128, 500_000.0, scaling).unwrap().frequencies;
        let linear = Rotary::new(128, 500_000.0, Scaling::Linear { factor: 8.0 }).unwrap();
        assert_eq!(plain[0].to_bits(), stretched[0].to_bits());
        assert_eq!(linear.frequencies[63].to_bits(), stretched[63].to_bits());
        for (plain, stretched) in plain.iter().zip(&stretched) {
            assert!(*stretched <= *plain && *stretched >= plain / 8.0);
        }
        // The stretch never bends back: a slower pair stays slower.
        assert!(stretched.is_sorted_by(|a, b| a > b));
    }

    #[test]
    fn shapes_are_checked() {
        assert!(Rotary::new(3, 1e4, Scaling::None).is_err());
        assert!(Rotary::new(0, 1e4, Scaling::None).is_err());
        let rotary = Rotary::new(4, 1e4, Scaling::None).unwrap();
        assert!(rotary.apply(&mut [0.0; 6], 1, 0).is_err());
        assert!(rotary.apply(&mut [0.0; 6], usize::MAX, 0).is_err());
    }
}
