//! Numbers to test with, and how far apart found and expected ones are.

use half::{bf16, f16};
use pipo_kernels::Format;
use pipo_kernels::cuda::DeviceVector;

use super::Buffer;

/// A plain generator: tests must be the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next()).unwrap() % limit
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Numbers around zero of about this size, as fp16 holds them.
    pub(crate) fn numbers(&mut self, count: usize, size: f32) -> Vec<f32> {
        let mut one = || (self.next() & 0xffff) as f32 / 32768.0 - 1.0;
        let next = |_| f16::from_f32((one() + one() + one()) * size).to_f32();
        (0..count).map(next).collect()
    }
}

/// The error's norm over the expectation's. Not a number where anything found is not.
pub(crate) fn error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let off = found.iter().zip(expected).map(|(f, e)| square(f64::from(*f) - f64::from(*e)));
    let off: f64 = off.sum();
    let size: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    if off == 0.0 { 0.0 } else { (off / size).sqrt() }
}

/// fp16 rounds to 2^-11 of a number at most; the rest is for operands that are rounded on the way.
pub(crate) const NEAR: f64 = 1e-3;

pub(crate) fn near(found: &[f32], expected: &[f32], what: &str) {
    let error = error(found, expected);
    assert!(error <= NEAR, "{what}: off by {error}");
}

/// A vector in a format, on the device and as numbers.
pub(crate) fn vector(
    values: &[f32],
    format: Format,
    offset: usize,
) -> (Buffer, DeviceVector, Vec<f32>) {
    let to = |v: &f32| match format {
        Format::Bf16 => (bf16::from_f32(*v).to_le_bytes(), bf16::from_f32(*v).to_f32()),
        _ => (f16::from_f32(*v).to_le_bytes(), f16::from_f32(*v).to_f32()),
    };
    let bytes: Vec<u8> = values.iter().flat_map(|v| to(v).0).collect();
    let (buffer, region) = Buffer::at(&bytes, offset);
    let vector = DeviceVector::new(format, values.len(), region).unwrap();
    (buffer, vector, values.iter().map(|v| to(v).1).collect())
}
