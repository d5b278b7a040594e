//! Loops over slices of floats.

use super::{Job, LANES, Simd, sum};

/// The dot product of two slices of one length, in the one order.
#[inline(always)]
pub(crate) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut partial = simd.splat(0.0);
    for (a, b) in a.iter().zip(b) {
        partial = simd.mul_add(simd.load(a), simd.load(b), partial);
    }
    if !a_rest.is_empty() {
        let (mut last_a, mut last_b) = ([0.0; LANES], [0.0; LANES]);
        last_a[..a_rest.len()].copy_from_slice(a_rest);
        last_b[..b_rest.len()].copy_from_slice(b_rest);
        partial = simd.mul_add(simd.load(&last_a), simd.load(&last_b), partial);
    }
    sum(simd, partial)
}

/// [`dot`] as a job.
pub(crate) struct Dot<'a>(pub(crate) &'a [f32], pub(crate) &'a [f32]);

impl Job for Dot<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        dot(simd, self.0, self.1)
    }
}
