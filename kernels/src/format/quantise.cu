// New rows of a cache, stored as `format/quantise.rs` does it, bit by bit: every rounding of a float is written
// out, so that the compiler joins no multiplication with an addition. A warp has one row of the keys or values, which
// are sequences x rows x dim in fp16; block y is the sequence, block z says which of the two.

// The smallest half near `value`, or the next one up where that is not enough: the caller says which.
__device__ __forceinline__ u16 at_most_largest(u16 bits) { return bits >= 0x7c00 ? 0x7bff : bits; }

__device__ __forceinline__ float warp_max(float value) {
    for (int lane = 16; lane > 0; lane /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, lane));
    return value;
}

__device__ __forceinline__ bool finite(float value) { return fabsf(value) < INFINITE; }

__device__ __forceinline__ float limited(float value, float limit) {
    return value != value ? 0 : fminf(fmaxf(value, -limit), limit);
}

__device__ __forceinline__ void store2(u8* to, u16 bits) {
    to[0] = (u8)bits;
    to[1] = (u8)(bits >> 8);
}

__device__ __forceinline__ u16 to_bf16(float value) {
    const u32 bits = __float_as_uint(value);
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__device__ void int8_row(const u16* x, u8* weights, u8* scales, int dim, int lane) {
    float largest = 0;
    for (int i = lane; i < dim; i += 32) {
        const float value = from_half(x[i]);
        if (finite(value)) largest = fmaxf(largest, fabsf(value));
    }
    largest = warp_max(largest);
    u16 bits = to_half(fminf(__fdiv_rn(largest, 127), 65504));
    if (!(__fmul_rn(from_half(bits), 127) >= largest)) bits++;
    bits = at_most_largest(bits);
    const float scale = from_half(bits);
    if (lane == 0) store2(scales, bits);
    for (int i = lane; i < dim; i += 32) {
        const float value = limited(from_half(x[i]), __fmul_rn(127, scale));
        const float q = scale > 0 ? rintf(__fdiv_rn(value, scale)) : 0;
        weights[i] = (u8)(signed char)fminf(fmaxf(q, -127), 127);
    }
}

// Lane i has the inputs i and i + 32, which share a byte.
__device__ void int4_group(const u16* x, u8* weights, u8* scales, int count, int lane) {
    float values[2];
    bool there[2], nan = false;
    float low = INFINITE, high = -INFINITE;
    for (int i = 0; i < 2; i++) {
        there[i] = lane + 32 * i < count;
        values[i] = there[i] ? from_half(x[lane + 32 * i]) : 0;
        nan |= values[i] != values[i];
        if (there[i] && finite(values[i])) {
            low = fminf(low, values[i]);
            high = fmaxf(high, values[i]);
        }
    }
    low = -warp_max(-low);
    high = warp_max(high);
    // What is not a number is stored as zero, so zero must then be in the range; it is, too, where no number
    // is finite.
    if (__any_sync(0xffffffff, nan) || low > high) {
        low = fminf(low, 0);
        high = fmaxf(high, 0);
    }
    u16 minimum = to_half(low);
    if (from_half(minimum) > low) {
        minimum = (minimum & 0x7fff) == 0 ? 0x8001 : minimum < 0x8000 ? minimum - 1 : minimum + 1;
    }
    if ((minimum & 0x7c00) == 0x7c00) minimum = 0xfbff;
    const float base = from_half(minimum);
    // Halves, because the difference of two floats can overflow.
    const float step_wanted = __fdiv_rn(__fsub_rn(__fmul_rn(high, 0.5f), __fmul_rn(base, 0.5f)), 7.5f);
    u16 bits = to_half(fminf(step_wanted, 65504));
    if (!(__fadd_rn(base, __fmul_rn(15, from_half(bits))) >= high)) bits++;
    bits = at_most_largest(bits);
    const float scale = from_half(bits);
    const float top = __fadd_rn(base, __fmul_rn(15, scale));
    u32 byte = 0;
    for (int i = 0; i < 2; i++) {
        if (!there[i]) continue;
        const float value = values[i] != values[i] ? 0 : fminf(fmaxf(values[i], base), top);
        const float q = scale > 0 ? rintf(__fdiv_rn(__fsub_rn(value, base), scale)) : 0;
        byte |= (u32)fminf(fmaxf(q, 0), 15) << (4 * i);
    }
    weights[lane] = (u8)byte;
    if (lane == 0) {
        store2(scales, bits);
        store2(scales + 2, minimum);
    }
}

__device__ __forceinline__ u16 in_16_bits(int format, float value) {
    if (format == FP16) return to_half(limited(value, 65504));
    return to_bf16(limited(value, __uint_as_float(0x7f7f0000)));
}

// Eight numbers a lane where memory allows.
__device__ void row_of_16_bits(const u16* x, int format, u8* to, int dim, int lane) {
    if (dim % 8 == 0 && ((u64)x | (u64)to) % 16 == 0) {
        for (int i = 8 * lane; i < dim; i += 256) {
            const uint4 loaded = *(const uint4*)(x + i);
            const u32 from[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
            u32 words[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                words[j] = in_16_bits(format, low_half(from[j])) |
                           (u32)in_16_bits(format, high_half(from[j])) << 16;
            }
            *(uint4*)(to + 2 * i) = make_uint4(words[0], words[1], words[2], words[3]);
        }
        return;
    }
    for (int i = lane; i < dim; i += 32) store2(to + 2 * i, in_16_bits(format, from_half(x[i])));
}

extern "C" __global__ void __launch_bounds__(256) append(
    const u16* keys, const u16* values, int format, u8* weights, u8* scales, long long plane, int rows, int dim
) {
    follow();
    const int lane = threadIdx.x % 32, row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    const u16* x = (blockIdx.z == 0 ? keys : values) + ((long long)blockIdx.y * rows + row) * dim;
    // Of a sequence, all keys lie before all values.
    weights += (2 * blockIdx.y + blockIdx.z) * plane;
    scales += (2 * blockIdx.y + blockIdx.z) * plane;
    if (format == INT8) {
        int8_row(x, weights + (long long)row * dim, scales + 2 * (long long)row, dim, lane);
    } else if (format == INT4) {
        const long long groups = (dim + 63) / 64;
        for (int group = 0; group < groups; group++) {
            const long long place = row * groups + group;
            int4_group(x + 64 * group, weights + 32 * place, scales + 4 * place, min(64, dim - 64 * group), lane);
        }
    } else {
        row_of_16_bits(x, format, weights + 2 * (long long)row * dim, dim, lane);
    }
}
