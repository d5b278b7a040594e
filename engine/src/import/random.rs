//! Random weights of the right shapes and sizes of numbers: for measuring, not for talking.

use pipo_plan::model::TensorKind;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use rayon::prelude::*;

use super::ImportError;
use super::source::{Rows, Wanted};
use crate::store::in_memory;

/// Vectors are columns of one number each: they are drawn as rows of so many.
const PIECE: usize = 1 << 12;

/// Draws each row from its own stream, which follows from the seed and the row's place alone, so that
/// rows can be drawn in any order and by any number of threads.
#[derive(Debug)]
pub(super) struct Random {
    pub(super) seed: u64,
}

impl Rows for Random {
    fn read(&mut self, wanted: &Wanted, first: u64, into: &mut [f32]) -> Result<(), ImportError> {
        let tensor = wanted.placed.tensor;
        let name = u64::from(crc32fast::hash(tensor.name.as_bytes()));
        let place = wanted.place;
        let expert = wanted.placed.expert.map_or(0, |e| u64::from(e) + 1);
        let stream = [place.part as u64, place.layer.into(), name, expert]
            .into_iter()
            .fold(mix(self.seed), |state, word| mix(state ^ word));
        let width = if tensor.inputs == 1 { PIECE } else { in_memory(tensor.inputs) };
        let first = if tensor.inputs == 1 { first / PIECE as u64 } else { first };
        let (centre, deviation) = match tensor.kind {
            TensorKind::Vector if tensor.inputs == 1 => {
                (if tensor.name.ends_with("norm") { 1.0 } else { 0.0 }, 0.02)
            }
            _ => (0.0, 1.0 / (tensor.inputs as f32).sqrt()),
        };
        into.par_chunks_mut(width.max(1)).enumerate().for_each(|(row, numbers)| {
            let mut random = Pcg64::seed_from_u64(mix(stream ^ (first + row as u64)));
            for number in numbers {
                *number = centre + deviation * bell(random.next_u64());
            }
        });
        Ok(())
    }
}

/// A number with mean 0 and deviation 1, near enough to normal: four uniform ones added.
fn bell(bits: u64) -> f32 {
    let uniform = |shift: u32| ((bits >> shift) & 0xffff) as f32;
    let sum = uniform(0) + uniform(16) + uniform(32) + uniform(48);
    // Four times 65535 / 2 is the mean; each has the variance 65536^2 / 12.
    (sum - 131_070.0) * (3.0_f32.sqrt() / 65_536.0)
}

/// Spreads the bits of a word over all of it (the finaliser of `SplitMix64`, Steele et al. 2014).
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
