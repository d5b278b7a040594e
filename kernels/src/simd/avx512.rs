//! The vectors of a machine with AVX-512F.
#![allow(unsafe_code, reason = "intrinsics; an `Avx512` exists only where the machine has them")]

use std::arch::x86_64::{
    __m512, _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm_storeu_ps, _mm256_loadu_si256,
    _mm512_add_ps, _mm512_castps512_ps128, _mm512_castsi512_ps, _mm512_cvtepi8_epi32,
    _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_maskz_compress_ps, _mm512_permute_ps,
    _mm512_permutexvar_ps, _mm512_set1_ps, _mm512_shuffle_f32x4, _mm512_slli_epi32,
    _mm512_srli_epi32, _mm512_storeu_ps,
};

use super::{Job, LANES, Simd};

/// The vectors of a machine with AVX-512F. Proof that it has them: [`Avx512::detect`] makes the only ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// A value where this machine has them.
    pub(crate) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx512f").then_some(Self(()))
    }
}

const NIBBLES: [f32; LANES] =
    [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

#[target_feature(enable = "avx512f")]
fn enter<J: Job>(simd: Avx512, job: J) -> J::Out {
    job.run(simd)
}

impl Simd for Avx512 {
    type V = __m512;
    /// The sixteen weights that the sixteen nibbles stand for.
    type Group = __m512;
    const ROWS: usize = 4;

    fn enter<J: Job>(self, job: J) -> J::Out {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { enter(self, job) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: AVX-512F as above; the array is 64 readable bytes, and the load is unaligned.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32; LANES]) {
        // SAFETY: AVX-512F as above; the array is 64 writable bytes, and the store is unaligned.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` exists, so the machine has AVX-512F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    /// All four at once: each step adds the upper half of what is left of each to the lower.
    #[inline(always)]
    fn sums(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // SAFETY: AVX-512F as above; the array is 16 writable bytes, and the store is unaligned.
        unsafe {
            // Halves: of a and b, of c and d. Then quarters of all four, one after the other.
            let ab = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
            );
            let cd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
            );
            let all = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
            );
            let pairs = _mm512_add_ps(all, _mm512_permute_ps::<0b11_10_11_10>(all));
            let ones = _mm512_add_ps(pairs, _mm512_permute_ps::<0b01_01_01_01>(pairs));
            let mut sums = [0.0; 4];
            let firsts = _mm512_maskz_compress_ps(0b0001_0001_0001_0001, ones);
            _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(firsts));
            sums
        }
    }

    #[inline(always)]
    fn load_fp32(self, from: &[u8; 64]) -> __m512 {
        // SAFETY: AVX-512F as above; the array is 64 readable bytes, and the load is unaligned.
        unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_fp16(self, from: &[u8; 32]) -> __m512 {
        // SAFETY: AVX-512F as above; the array is 32 readable bytes, and the load is unaligned.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> __m512 {
        // SAFETY: AVX-512F as above; the array is 32 readable bytes, and the load is unaligned.
        unsafe {
            let upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(upper))
        }
    }

    #[inline(always)]
    fn load_int8(self, from: &[u8; 16]) -> __m512 {
        // SAFETY: AVX-512F as above; the array is 16 readable bytes, and the load is unaligned.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn prefetch(self, from: &[u8]) {
        // SAFETY: every machine with these vectors has SSE, and a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn group(self, scale: f32, minimum: f32) -> __m512 {
        self.mul_add(self.load(&NIBBLES), self.splat(scale), self.splat(minimum))
    }

    /// The permutation looks at the low four bits of each index alone, so the low nibbles need no mask.
    #[inline(always)]
    fn nibbles(self, group: __m512, from: &[u8; 16]) -> (__m512, __m512) {
        // SAFETY: AVX-512F as above; the array is 16 readable bytes, and the load is unaligned.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let low = _mm512_permutexvar_ps(bytes, group);
            (low, _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), group))
        }
    }
}
