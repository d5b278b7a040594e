//! The vectors of a machine with AVX2, FMA and F16C: two halves of eight.
#![allow(unsafe_code, reason = "intrinsics; an `Avx2` exists only where the machine has them")]

use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T1, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch, _mm256_and_si256,
    _mm256_castsi256_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_storeu_ps,
};

use super::{Job, LANES, Simd};

/// The vectors of a machine with AVX2, FMA and F16C. Proof that it has them: [`Avx2::detect`] makes the
/// only ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// A value where this machine has them.
    pub(crate) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        all.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn enter<J: Job>(simd: Avx2, job: J) -> J::Out {
    job.run(simd)
}

/// The two halves of an array.
#[inline(always)]
fn halves<T, const WHOLE: usize, const HALF: usize>(from: &[T; WHOLE]) -> [*const T; 2] {
    const { assert!(WHOLE == 2 * HALF) };
    [from.as_ptr(), from[HALF..].as_ptr()]
}

impl Simd for Avx2 {
    type V = [__m256; 2];
    /// Scale and minimum.
    type Group = [__m256; 2];
    const ROWS: usize = 2;

    fn enter<J: Job>(self, job: J) -> J::Out {
        // SAFETY: `self` exists, so the machine has AVX2, FMA and F16C.
        unsafe { enter(self, job) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        let [a, b] = halves::<_, 16, 8>(from);
        // SAFETY: AVX2 as above; each half is 32 readable bytes, and the loads are unaligned.
        unsafe { [_mm256_loadu_ps(a), _mm256_loadu_ps(b)] }
    }

    #[inline(always)]
    fn store(self, [a, b]: Self::V, to: &mut [f32; LANES]) {
        let (low, high) = to.split_at_mut(LANES / 2);
        // SAFETY: AVX2 as above; each half is 32 writable bytes, and the stores are unaligned.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), a);
            _mm256_storeu_ps(high.as_mut_ptr(), b);
        }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: `self` exists, so the machine has FMA.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn load_fp32(self, from: &[u8; 64]) -> Self::V {
        let [a, b] = halves::<_, 64, 32>(from);
        // SAFETY: AVX2 as above; each half is 32 readable bytes, and the loads are unaligned.
        unsafe { [_mm256_loadu_ps(a.cast()), _mm256_loadu_ps(b.cast())] }
    }

    #[inline(always)]
    fn load_fp16(self, from: &[u8; 32]) -> Self::V {
        let [a, b] = halves::<_, 32, 16>(from);
        // SAFETY: F16C as above; each half is 16 readable bytes, and the loads are unaligned.
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(a.cast())), _mm256_cvtph_ps(_mm_loadu_si128(b.cast()))]
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> Self::V {
        let [a, b] = halves::<_, 32, 16>(from);
        // SAFETY: AVX2 as above; each half is 16 readable bytes, and the loads are unaligned.
        unsafe {
            let a = _mm256_cvtepu16_epi32(_mm_loadu_si128(a.cast()));
            let b = _mm256_cvtepu16_epi32(_mm_loadu_si128(b.cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
            ]
        }
    }

    #[inline(always)]
    fn load_int8(self, from: &[u8; 16]) -> Self::V {
        let [a, b] = halves::<_, 16, 8>(from);
        // SAFETY: AVX2 as above; each half is 8 readable bytes, and the loads are unaligned.
        unsafe {
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(a.cast()))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(b.cast()))),
            ]
        }
    }

    #[inline(always)]
    fn prefetch(self, from: &[u8]) {
        // SAFETY: every machine with these vectors has SSE, and a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn group(self, scale: f32, minimum: f32) -> Self::Group {
        // SAFETY: `self` exists, so the machine has AVX2.
        unsafe { [_mm256_set1_ps(scale), _mm256_set1_ps(minimum)] }
    }

    #[inline(always)]
    fn nibbles(self, group: Self::Group, from: &[u8; 16]) -> (Self::V, Self::V) {
        let [a, b] = halves::<_, 16, 8>(from);
        // SAFETY: AVX2 as above; each half is 8 readable bytes, and the loads are unaligned.
        unsafe {
            let a = _mm256_cvtepu8_epi32(_mm_loadl_epi64(a.cast()));
            let b = _mm256_cvtepu8_epi32(_mm_loadl_epi64(b.cast()));
            let mask = _mm256_set1_epi32(15);
            let low = [
                weight(self, group, _mm256_and_si256(a, mask)),
                weight(self, group, _mm256_and_si256(b, mask)),
            ];
            let high = [
                weight(self, group, _mm256_srli_epi32::<4>(a)),
                weight(self, group, _mm256_srli_epi32::<4>(b)),
            ];
            (low, high)
        }
    }
}

/// `minimum + q * scale`.
#[inline(always)]
fn weight(_: Avx2, [scale, minimum]: [__m256; 2], q: __m256i) -> __m256 {
    // SAFETY: an `Avx2` exists, so the machine has AVX2 and FMA.
    unsafe { _mm256_fmadd_ps(_mm256_cvtepi32_ps(q), scale, minimum) }
}
