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

/// `out += factor * x`, each element rounded once.
#[inline(always)]
pub(crate) fn add_scaled<S: Simd>(simd: S, factor: f32, x: &[f32], out: &mut [f32]) {
    let ((x, x_rest), (out, out_rest)) = (x.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
    let factors = simd.splat(factor);
    for (x, out) in x.iter().zip(out) {
        simd.store(simd.mul_add(factors, simd.load(x), simd.load(out)), out);
    }
    if !x_rest.is_empty() {
        let (mut last_x, mut last_out) = ([0.0; LANES], [0.0; LANES]);
        last_x[..x_rest.len()].copy_from_slice(x_rest);
        last_out[..out_rest.len()].copy_from_slice(out_rest);
        let sum = simd.mul_add(factors, simd.load(&last_x), simd.load(&last_out));
        simd.store(sum, &mut last_out);
        out_rest.copy_from_slice(&last_out[..out_rest.len()]);
    }
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
