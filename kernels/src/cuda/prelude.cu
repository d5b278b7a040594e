// What every kernel may use. No headers: NVRTC and the driver are all that a user needs.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Formats, as `cuda/unit.rs` numbers them.
#define FP16 0
#define BF16 1
#define INT8 2
#define INT4 3

#define INFINITE __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

__device__ __forceinline__ float from_half(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// Packed into a word by hand: from a 16-bit result that is then cut to a byte, ptxas 13.0 makes a conversion of
// the number to an integer.
__device__ __forceinline__ u16 to_half(float value) {
    u32 bits;
    asm("{ .reg .b16 half, zero; cvt.rn.f16.f32 half, %1; mov.b16 zero, 0; mov.b32 %0, {half, zero}; }"
        : "=r"(bits)
        : "f"(value));
    return (u16)bits;
}

__device__ __forceinline__ float from_bf16(u16 bits) { return __uint_as_float((u32)bits << 16); }

// Two halves in a word, the first in the low bits.
__device__ __forceinline__ u32 to_halves(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return to_half(low) | (u32)to_half(high) << 16;
#endif
}

__device__ __forceinline__ float low_half(u32 word) { return from_half((u16)word); }
__device__ __forceinline__ float high_half(u32 word) { return from_half((u16)(word >> 16)); }

__device__ __forceinline__ u32 sub_halves(u32 a, u32 b) {
    u32 c;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}

__device__ __forceinline__ u32 mul_halves(u32 a, u32 b) {
    u32 c;
    asm("mul.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}

__device__ __forceinline__ u32 fma_halves(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// A 16-bit number of a vector: `bf16` says which kind.
__device__ __forceinline__ float from_vector(const u16* vector, int bf16, int index) {
    return bf16 ? from_bf16(vector[index]) : from_half(vector[index]);
}

// --- one kernel after another

// A kernel of ours starts while the one before it in the stream still runs. Here it waits until that one has
// ended, and with it all before it. What an earlier kernel may have written is read after this, and not as
// constant (`ld.global.nc`): a line of it may have been cached too early.
__device__ __forceinline__ void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next one may start as soon as every block has said this or ended. Where multiprocessors have room left for its
// blocks, they crowd there: said at the start, it is for kernels that leave none. A kernel that says it before it
// waits lets the next one start before those before it have ended: what that reads before waiting must not be made by
// a kernel at all.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// How a kernel begins that is short, or one of many rows.
__device__ __forceinline__ void follow() {
    wait_for_earlier();
    let_next_start();
}

// --- stored numbers, one at a time

// Two bytes at any address.
__device__ __forceinline__ u16 load2(const u8* from) { return from[0] | (u16)from[1] << 8; }

// One number of a stored matrix; `scales` is its second plane.
__device__ inline float stored(
    int format, const u8* weights, const u8* scales, long long row, int inputs, int column
) {
    if (format == FP16) return from_half(load2(weights + 2 * (row * inputs + column)));
    if (format == BF16) return from_bf16(load2(weights + 2 * (row * inputs + column)));
    if (format == INT8) {
        return (float)(signed char)weights[row * inputs + column] * from_half(load2(scales + 2 * row));
    }
    const long long group = row * ((inputs + 63) / 64) + column / 64;
    const u8 byte = weights[32 * group + column % 32];
    const int q = column % 64 < 32 ? byte & 15 : byte >> 4;
    const float scale = from_half(load2(scales + 4 * group));
    return fmaf((float)q, scale, from_half(load2(scales + 4 * group + 2)));
}

// --- stored numbers, a few words at a time

// N words at a multiple of their size.
template <int N>
__device__ __forceinline__ void load_aligned(u32 (&words)[N], const u8* from) {
    if (N == 4) {
        asm volatile(
            "ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
            : "=r"(words[0]), "=r"(words[1 % N]), "=r"(words[2 % N]), "=r"(words[3 % N])
            : "l"(from)
        );
    } else if (N == 2) {
        asm volatile(
            "ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1 % N]) : "l"(from)
        );
    } else {
        asm volatile("ld.global.u32 %0, [%1];" : "=r"(words[0]) : "l"(from));
    }
}

// The same, or nothing at all: a branch would keep the compiler from moving what stands around it.
template <int N>
__device__ __forceinline__ void load_aligned_if(u32 (&words)[N], const u8* from, bool wanted) {
    asm volatile(
        "{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
        : "+r"(words[0]), "+r"(words[1 % N]), "+r"(words[2 % N]), "+r"(words[3 % N])
        : "l"(from), "r"((u32)wanted)
    );
}

// The same of what no kernel writes. The rest of the cache line, which other warps are about to read, comes to
// the second level with it.
template <int N>
__device__ __forceinline__ void load_constant_if(u32 (&words)[N], const u8* from, bool wanted) {
    if (N == 4) {
        asm volatile(
            "{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.nc.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4]; }"
            : "+r"(words[0]), "+r"(words[1 % N]), "+r"(words[2 % N]), "+r"(words[3 % N])
            : "l"(from), "r"((u32)wanted)
        );
    } else {
        asm volatile(
            "{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.nc.L2::128B.u32 %0, [%1]; }"
            : "+r"(words[0])
            : "l"(from), "r"((u32)wanted)
        );
    }
}

// --- shared memory

__device__ __forceinline__ u32 address_of_shared(const void* memory) { return (u32)__cvta_generic_to_shared(memory); }

// Sixteen bytes of what other kernels write: they are on their way until they are waited for, where there is such a
// way. Through the first level: past it, every multiprocessor's request for the same line goes to the second level.
__device__ __forceinline__ void copy_to_shared(u32 to, const u8* from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#else
    u32 words[4];
    load_aligned(words, from);
    asm volatile(
        "st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
        : "memory"
    );
#endif
}

// Until all that this thread has sent for is there.
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

#if __CUDA_ARCH__ >= 800

// Sixteen bytes, or eight, that only this multiprocessor reads, or zeros in their place.
template <int BYTES>
__device__ __forceinline__ void copy_or_zero(u32 to, const u8* from, bool there) {
    const int bytes = there ? BYTES : 0;
    if (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
    }
}

// What this thread has sent for since the last group is one.
__device__ __forceinline__ void end_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the last few groups are there.
template <int GROUPS>
__device__ __forceinline__ void wait_for_copies_but() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

#endif

__device__ __forceinline__ void load_shared(u32 (&words)[4], u32 from) {
    asm volatile(
        "ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
        : "r"(from)
        : "memory"
    );
}

__device__ __forceinline__ void load_shared(u32 (&words)[2], u32 from) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(from) : "memory");
}

__device__ __forceinline__ void load_shared(u32 (&words)[1], u32 from) {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(words[0]) : "r"(from) : "memory");
}

// N words of a row, zeros beyond its `end`; both in bytes. FAST rows start and end at multiples of N words.
template <int N, bool FAST>
__device__ __forceinline__ void load_words(u32 (&words)[N], const u8* row, int offset, int end) {
#pragma unroll
    for (int i = 0; i < N; i++) words[i] = 0;
    if (FAST) {
        if (offset < end) load_aligned(words, row + offset);
    } else {
#pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            if (offset + i < end) words[i / 4] |= (u32)row[offset + i] << (i % 4 * 8);
        }
    }
}

// Bytes of what no kernel writes come to the second level, where it can be asked for them at once; both are multiples
// of 16.
__device__ __forceinline__ void prefetch(const u8* from, u32 bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

// Pairs of halves from words of fp16 or bf16, in their order.
template <int KIND>
__device__ __forceinline__ u32 halves_of_16_bits(u32 word) {
    if (KIND == FP16) return word;
    return to_halves(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000));
}

// Four signed bytes as halves, unscaled. A byte above 1024, the half whose last place is 1, is that byte
// plus 1024.
__device__ __forceinline__ void halves_of_int8(u32 word, u32& low, u32& high) {
    const u32 biased = word ^ 0x80808080;
    low = sub_halves(__byte_perm(biased, 0x64646464, 0x4140), 0x64806480);
    high = sub_halves(__byte_perm(biased, 0x64646464, 0x4342), 0x64806480);
}

// (word & mask) | other in one instruction: the compiler makes two of it where both are constants.
__device__ __forceinline__ u32 masked_or(u32 word, u32 mask, u32 other) {
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(word), "r"(mask), "r"(other));
    return out;
}

// Eight nibbles as halves, `minimum + q * scale` rounded once: inputs (0, 2), (1, 3), and the same of the
// high nibbles, which are 32 further on.
__device__ __forceinline__ void halves_of_int4(u32 word, u32 scale, u32 minimum, u32 (&out)[4]) {
    const u32 next = word >> 8, high = 0x64006400;
    const u32 a = sub_halves(masked_or(word, 0x000f000f, high), high);
    const u32 b = sub_halves(masked_or(next, 0x000f000f, high), high);
    // 1024 + 16 q, divided by 16, less 64.
    const u32 c = fma_halves(masked_or(word, 0x00f000f0, high), 0x2c002c00, 0xd400d400);
    const u32 d = fma_halves(masked_or(next, 0x00f000f0, high), 0x2c002c00, 0xd400d400);
    out[0] = fma_halves(a, scale, minimum);
    out[1] = fma_halves(b, scale, minimum);
    out[2] = fma_halves(c, scale, minimum);
    out[3] = fma_halves(d, scale, minimum);
}

// The low and the high half of a word, each twice.
__device__ __forceinline__ u32 low_twice(u32 word) { return __byte_perm(word, word, 0x1010); }
__device__ __forceinline__ u32 high_twice(u32 word) { return __byte_perm(word, word, 0x3232); }

// --- products of small matrices

// sum += a * b for a warp: a is 16 x 16, b is 16 x 8, sum is 16 x 8. Lane 4 g + t holds of a the rows g (a0,
// a2) and g + 8 (a1, a3), of b the column g, of sum the rows g and g + 8 at columns 2 t and 2 t + 1. Which of
// the 16 inner indices a word holds does not matter, as long as a and b agree.
__device__ __forceinline__ void multiply(
    float (&sum)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1
) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// --- sums, in an order that is always the same

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffff, value, lane);
    return value;
}

// e^x and 2^x by the unit for it: off by some units in the last place of a float.
__device__ __forceinline__ float power_of_two(float x) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

__device__ __forceinline__ float exponential(float x) { return power_of_two(x * 1.4426950408889634f); }

// --- functions of one number

// 1 - 2 / (e^2x + 1), which has no infinity over another.
__device__ __forceinline__ float hyperbolic_tangent(float x) { return 1 - 2 / (exponential(2 * x) + 1); }

// By number, as `cuda/activation.rs` has them.
#define RELU 1
#define GELU_TANH 2

__device__ __forceinline__ float activated(int kind, float x) {
    // Not `max`, which would hide what is not a number.
    if (kind == RELU) return x < 0 ? 0 : x;
    const float inner = 0.7978845608028654f * fmaf(0.044715f * x * x, x, x);
    return 0.5f * x * (1 + hyperbolic_tangent(inner));
}
