// Norms of fp16 rows. A row belongs to a block of 256 threads, or to a warp where it is short. Thread i takes
// eight neighbours at 8 i, then again a whole round further on; threads' sums are added in a fixed order.

// Eight numbers of a row, zeros beyond its end.
__device__ __forceinline__ void load8(float (&to)[8], const u16* row, int column, int width, int aligned) {
    if (aligned) {
        u32 words[4] = {0, 0, 0, 0};
        if (column < width) {
            const uint4 loaded = *(const uint4*)(row + column);
            words[0] = loaded.x;
            words[1] = loaded.y;
            words[2] = loaded.z;
            words[3] = loaded.w;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = i % 2 ? high_half(words[i / 2]) : low_half(words[i / 2]);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = column + i < width ? from_half(row[column + i]) : 0;
    }
}

__device__ __forceinline__ void store8(
    u16* row, const float (&from)[8], int column, int width, int aligned
) {
    if (aligned) {
        if (column < width) {
            *(uint4*)(row + column) = make_uint4(
                to_halves(from[0], from[1]), to_halves(from[2], from[3]), to_halves(from[4], from[5]),
                to_halves(from[6], from[7])
            );
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (column + i < width) row[column + i] = to_half(from[i]);
        }
    }
}

// The sum over all threads that share a row.
template <bool BLOCK>
__device__ __forceinline__ float row_sum(float value, float (&warps)[8]) {
    value = warp_sum(value);
    if (!BLOCK) return value;
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < 8; warp++) sum += warps[warp];
    return sum;
}

template <bool BLOCK, bool CENTRED>
__device__ __forceinline__ void norm(
    const u16* x, const u16* weight, int weight_bf16, const u16* bias, int bias_bf16, float epsilon, u16* out,
    int rows, int width, int aligned
) {
    __shared__ float warps[8];
    const int row = BLOCK ? blockIdx.x : blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    const int first = 8 * (BLOCK ? threadIdx.x : threadIdx.x % 32), step = BLOCK ? 2048 : 256;
    x += (long long)row * width;
    out += (long long)row * width;
    float mean = 0, numbers[8];
    if (CENTRED) {
        float sum = 0;
        for (int column = first; column < width; column += step) {
            load8(numbers, x, column, width, aligned);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += numbers[i];
        }
        mean = row_sum<BLOCK>(sum, warps) / width;
    }
    float squares = 0;
    for (int column = first; column < width; column += step) {
        load8(numbers, x, column, width, aligned);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float number = column + i < width ? numbers[i] - mean : 0;
            squares = fmaf(number, number, squares);
        }
    }
    const float factor = 1 / sqrtf(row_sum<BLOCK>(squares, warps) / width + epsilon);
    for (int column = first; column < width; column += step) {
        load8(numbers, x, column, width, aligned);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (column + i >= width) continue;
            numbers[i] = (numbers[i] - mean) * factor * from_vector(weight, weight_bf16, column + i);
            if (CENTRED) numbers[i] += from_vector(bias, bias_bf16, column + i);
        }
        store8(out, numbers, column, width, aligned);
    }
}

#define NORM(NAME, BLOCK, CENTRED)                                                                            \
    extern "C" __global__ void __launch_bounds__(256) NAME(                                                   \
        const u16* x, const u16* weight, int weight_bf16, const u16* bias, int bias_bf16, float epsilon,      \
        u16* out, int rows, int width, int aligned                                                            \
    ) {                                                                                                       \
        follow();                                                                                             \
        norm<BLOCK, CENTRED>(                                                                                 \
            x, weight, weight_bf16, bias, bias_bf16, epsilon, out, rows, width, aligned                       \
        );                                                                                                    \
    }

NORM(layer_norm, true, true)
NORM(layer_norm_narrow, false, true)
NORM(rms_norm, true, false)
NORM(rms_norm_narrow, false, false)
