//! The vectors of any machine.
//!
//! Without a fused multiply-add in hardware each one is a call, and slow: right, not fast, is what this
//! version is for.

use half::{bf16, f16};

use super::{Job, LANES, Simd};

/// The vectors of any machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    type V = [f32; LANES];
    type Group = [f32; 2];
    const ROWS: usize = 2;

    fn enter<J: Job>(self, job: J) -> J::Out {
        job.run(self)
    }

    fn splat(self, value: f32) -> Self::V {
        [value; LANES]
    }

    fn load(self, from: &[f32; LANES]) -> Self::V {
        *from
    }

    fn store(self, value: Self::V, to: &mut [f32; LANES]) {
        *to = value;
    }

    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    fn load_fp32(self, from: &[u8; 64]) -> Self::V {
        let bytes = from.as_chunks::<4>().0;
        std::array::from_fn(|i| f32::from_le_bytes(bytes[i]))
    }

    fn load_fp16(self, from: &[u8; 32]) -> Self::V {
        let bytes = from.as_chunks::<2>().0;
        std::array::from_fn(|i| f16::from_le_bytes(bytes[i]).to_f32())
    }

    fn load_bf16(self, from: &[u8; 32]) -> Self::V {
        let bytes = from.as_chunks::<2>().0;
        std::array::from_fn(|i| bf16::from_le_bytes(bytes[i]).to_f32())
    }

    fn load_int8(self, from: &[u8; 16]) -> Self::V {
        std::array::from_fn(|i| f32::from(from[i].cast_signed()))
    }

    fn group(self, scale: f32, minimum: f32) -> Self::Group {
        [scale, minimum]
    }

    fn nibbles(self, [scale, minimum]: Self::Group, from: &[u8; 16]) -> (Self::V, Self::V) {
        let low = std::array::from_fn(|i| f32::from(from[i] & 15).mul_add(scale, minimum));
        let high = std::array::from_fn(|i| f32::from(from[i] >> 4).mul_add(scale, minimum));
        (low, high)
    }
}
