//! Rows of 16-bit numbers in a buffer, and of 32-bit numbers outside.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Numbers that are converted at once: as many as stay in the first cache.
const CHUNK: usize = 1024;

/// Reads numbers, behind those that are there.
pub(crate) fn load(bytes: &[u8], into: &mut Vec<f32>) {
    let mut chunk = [f16::ZERO; CHUNK];
    for bytes in bytes.chunks(2 * CHUNK) {
        let (halves, start) = (&mut chunk[..bytes.len() / 2], into.len());
        for (half, &bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(bytes);
        }
        into.resize(start + halves.len(), 0.0);
        halves.convert_to_f32_slice(&mut into[start..]);
    }
}

/// Rounds numbers to the nearest 16-bit ones.
pub(crate) fn round(numbers: &mut [f32]) {
    let mut chunk = [f16::ZERO; CHUNK];
    for numbers in numbers.chunks_mut(CHUNK) {
        let halves = &mut chunk[..numbers.len()];
        halves.convert_from_f32_slice(numbers);
        halves.convert_to_f32_slice(numbers);
    }
}

/// Writes numbers, rounded to the nearest.
pub(crate) fn store(numbers: &[f32], bytes: &mut [u8]) {
    let mut chunk = [f16::ZERO; CHUNK];
    for (numbers, bytes) in numbers.chunks(CHUNK).zip(bytes.chunks_mut(2 * CHUNK)) {
        let halves = &mut chunk[..numbers.len()];
        halves.convert_from_f32_slice(numbers);
        for (bytes, half) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
            *bytes = half.to_le_bytes();
        }
    }
}

/// Where 16-bit rows are computed with as 32-bit ones: memory that is kept, because half a megabyte of new memory took
/// 0.2 ms on a virtual machine.
#[derive(Debug, Default)]
pub(crate) struct Room {
    loaded: Vec<f32>,
    computed: Vec<f32>,
}

impl Room {
    /// Puts as many rows as there are in their place, rounded. All of them must be written by `compute`, which is
    /// given what was there.
    pub(crate) fn replace<E>(
        &mut self,
        bytes: &mut [u8],
        compute: impl FnOnce(&[f32], &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { loaded, computed } = self;
        loaded.clear();
        load(bytes, loaded);
        computed.resize(loaded.len(), 0.0);
        compute(loaded, computed)?;
        store(computed, bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More numbers, fewer, and none after a failure: nothing is left of what was computed before.
    #[test]
    fn rows_are_replaced_by_what_is_computed_of_them() {
        let mut room = Room::default();
        for count in [3_u16, 2000, 5] {
            let numbers: Vec<f32> = (0..count).map(|i| f32::from(i) / 4.0).collect();
            let mut bytes = vec![0; 2 * numbers.len()];
            store(&numbers, &mut bytes);
            let before = bytes.clone();
            let failed = room.replace(&mut bytes, |_, _| Err("no"));
            assert_eq!((failed, &bytes), (Err("no"), &before));
            let double = |from: &[f32], into: &mut [f32]| {
                assert_eq!((from, into.len()), (&numbers[..], numbers.len()));
                into.iter_mut().zip(from).for_each(|(into, from)| *into = 2.0 * from);
                Ok::<(), ()>(())
            };
            room.replace(&mut bytes, double).unwrap();
            let mut doubled = Vec::new();
            load(&bytes, &mut doubled);
            let expected: Vec<f32> = numbers.iter().map(|number| 2.0 * number).collect();
            assert_eq!(doubled, expected);
        }
    }

    /// Whole chunks and what is left over; ties, overflow and the smallest numbers among them.
    #[test]
    fn numbers_are_rounded_as_one_by_one() {
        let numbers: Vec<f32> =
            (0..2500_u32).map(|i| f32::from_bits(i.wrapping_mul(1_717_986_919))).collect();
        let numbers: Vec<f32> = numbers.into_iter().filter(|x| !x.is_nan()).collect();
        let expected: Vec<f32> = numbers.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
        let mut bytes = vec![0; 2 * numbers.len()];
        store(&numbers, &mut bytes);
        let mut loaded = vec![7.0];
        load(&bytes, &mut loaded);
        let mut rounded = numbers;
        round(&mut rounded);
        assert_eq!(loaded[1..], expected);
        assert_eq!(rounded, expected);
    }
}
