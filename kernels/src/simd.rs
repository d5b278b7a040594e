//! Vectors of sixteen floats, chosen once at run time, and the loops written on them.
//!
//! [`Simd`] is implemented three times: portable, AVX2 with FMA and F16C, and AVX-512. Every operation
//! here is exact or rounded once, so the three agree in every bit. Loops are written once, generic over
//! it, and entered through [`Simd::enter`], where the compiler is told what the machine can do; they
//! must be `#[inline(always)]` and free of closures to be compiled for it.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod portable;

pub(crate) mod aligned;
pub(crate) mod expand;
pub(crate) mod tile;
pub(crate) mod vector;

/// Floats in a vector, and partial sums in a dot product.
pub(crate) const LANES: usize = 16;

/// A piece of work, generic over the vectors it uses.
pub(crate) trait Job {
    /// What it returns.
    type Out;
    /// Does it. Must be `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

/// What a machine can do with sixteen floats. A value exists only where the machine can.
pub(crate) trait Simd: Copy {
    /// Sixteen floats.
    type V: Copy;
    /// What turns sixteen nibbles into weights of one group.
    type Group: Copy;
    /// Rows whose sums with four outputs stay in registers.
    const ROWS: usize;

    /// Runs a job compiled for this machine.
    fn enter<J: Job>(self, job: J) -> J::Out;

    fn splat(self, value: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, value: Self::V, to: &mut [f32; LANES]);
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// [`sum`] of each of four.
    #[inline(always)]
    fn sums(self, partial: [Self::V; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum = self::sum(self, partial);
        }
        sums
    }

    fn load_fp32(self, from: &[u8; 64]) -> Self::V;
    fn load_fp16(self, from: &[u8; 32]) -> Self::V;
    fn load_bf16(self, from: &[u8; 32]) -> Self::V;
    /// Sixteen signed bytes as floats, unscaled.
    fn load_int8(self, from: &[u8; 16]) -> Self::V;

    /// Asks memory for the line of bytes that are wanted soon.
    fn prefetch(self, _: &[u8]) {}

    fn group(self, scale: f32, minimum: f32) -> Self::Group;
    /// `minimum + q * scale` of the low nibbles and of the high nibbles.
    fn nibbles(self, group: Self::Group, from: &[u8; 16]) -> (Self::V, Self::V);
}

/// The sixteen partial sums of a dot product, added in the one order.
#[inline(always)]
pub(crate) fn sum<S: Simd>(simd: S, partial: S::V) -> f32 {
    let mut s = [0.0; LANES];
    simd.store(partial, &mut s);
    sum_of(s)
}

/// Sixteen numbers, added in that order.
#[inline(always)]
pub(crate) fn sum_of(mut s: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        let mut lane = 0;
        while lane < half {
            s[lane] += s[lane + half];
            lane += 1;
        }
        half /= 2;
    }
    s[0]
}
