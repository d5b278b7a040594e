//! Rows of 16-bit numbers in a buffer, and of 32-bit numbers outside.

use half::f16;

/// Reads numbers.
pub(super) fn load(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()
}

/// Rounds numbers to the nearest 16-bit ones.
pub(super) fn round(numbers: &mut [f32]) {
    for number in numbers {
        *number = f16::from_f32(*number).to_f32();
    }
}

/// Writes numbers, rounded to the nearest.
pub(super) fn store(numbers: &[f32], bytes: &mut [u8]) {
    for (bytes, &number) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(numbers) {
        *bytes = f16::from_f32(number).to_le_bytes();
    }
}
