// out = x * matrix^T + bias + residual, for few rows of x: weights are decoded in registers and multiplied by
// tensor cores, so that the time is that of reading them.
//
// A block computes 16 * TILES outputs for 8 * COLUMNS rows of x; weights are the left matrix of the product.
// The inputs go to its 8 warps in chunks of 128, in turn; their sums are added warp by warp. That order
// depends on the number of inputs alone, so the tiling changes no bit.
//
// Of a chunk, lane 4 g + t holds 32 inputs of the weights' rows g and g + 8 and of row g of x, as 16 words:
//
// | format | bytes of a row that it loads | inputs |
// |---|---|---|
// | fp16, bf16 | 16 at 64 j + 16 t, j < 4 | 32 j + 8 t ... + 7 |
// | int8 | 16 at 64 j + 16 t, j < 2 | 64 j + 16 t ... + 15 |
// | int4 | 16 at 16 t | of group t / 2: 16 (t % 2) ... + 15, and the same 32 further on |

#define WARPS 8
#define CHUNK 128
#define LOADS (FORMAT == INT4 ? 1 : FORMAT == INT8 ? 2 : 4)

// What a lane holds of one row and chunk, as stored.
struct Stored {
    u32 words[LOADS][4];
    // int4: the group's scale and minimum.
    u32 scale;
};

// A row of the matrix, at what a lane has of it.
struct Row {
    const u8* weights;
    const u8* scales;
};

#define CHUNK_BYTES (64 * LOADS)
#define CHUNK_SCALES 8

// A whole chunk of an aligned row.
__device__ __forceinline__ void load(Stored& stored, const Row& row, int chunk) {
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        load_aligned(stored.words[j], row.weights + chunk * CHUNK_BYTES + 64 * j);
    }
    if (FORMAT == INT4) {
        u32 word[1];
        load_aligned(word, row.scales + chunk * CHUNK_SCALES);
        stored.scale = word[0];
    }
}

// Any chunk of any row of so many bytes and groups.
template <bool ALIGNED>
__device__ __forceinline__ void load_part(
    Stored& stored, const Row& row, int chunk, int bytes, int groups, int t
) {
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        const int offset = chunk * CHUNK_BYTES + 64 * j;
        load_words<4, ALIGNED>(stored.words[j], row.weights, offset, bytes - 16 * t);
    }
    if (FORMAT == INT4) {
        u32 word[1];
        load_words<1, ALIGNED>(word, row.scales, chunk * CHUNK_SCALES, 4 * (groups - t / 2));
        stored.scale = word[0];
    }
}

// Words of halves, unscaled for int8.
__device__ __forceinline__ void decode(u32 (&halves)[16], const Stored& stored) {
    if (FORMAT == INT4) {
        const u32 scale = low_twice(stored.scale), minimum = high_twice(stored.scale);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 out[4];
            halves_of_int4(stored.words[0][i], scale, minimum, out);
            halves[2 * i] = out[0];
            halves[2 * i + 1] = out[1];
            halves[8 + 2 * i] = out[2];
            halves[8 + 2 * i + 1] = out[3];
        }
    } else if (FORMAT == INT8) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            halves_of_int8(stored.words[i / 4 % LOADS][i % 4], halves[2 * i], halves[2 * i + 1]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            halves[i] = halves_of_16_bits<FORMAT>(stored.words[i / 4 % LOADS][i % 4]);
        }
    }
}

// The same inputs of a row of x, in the same order. WHOLE: the chunk is.
template <bool ALIGNED, bool WHOLE>
__device__ __forceinline__ void load_x(u32 (&halves)[16], const u8* row, int end, int chunk, int t) {
    u32 words[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int input = FORMAT == INT4 ? t / 2 * 64 + t % 2 * 16 + j / 2 * 32 + j % 2 * 8
                          : FORMAT == INT8 ? j / 2 * 64 + t * 16 + j % 2 * 8
                                           : j * 32 + t * 8;
        const int offset = 2 * (chunk * CHUNK + input);
        if (WHOLE) {
            load_aligned(words[j], row + offset);
        } else {
            load_words<4, ALIGNED>(words[j], row, offset, end);
        }
    }
#pragma unroll
    for (int i = 0; i < 16; i += 2) {
        const u32 a = words[i / 4][i % 4], b = words[i / 4][i % 4 + 1];
        halves[i] = FORMAT == INT4 ? __byte_perm(a, b, 0x5410) : a;
        halves[i + 1] = FORMAT == INT4 ? __byte_perm(a, b, 0x7632) : b;
    }
}

template <int TILES, int COLUMNS>
__device__ __forceinline__ void add_chunk(
    float (&sums)[TILES][COLUMNS][4], const Stored (&left)[TILES][2], const u32 (&right)[COLUMNS][16]
) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        u32 low[16], high[16];
        decode(low, left[tile][0]);
        decode(high, left[tile][1]);
#pragma unroll
        for (int i = 0; i < 16; i += 2) {
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                multiply(
                    sums[tile][c], low[i], high[i], low[i + 1], high[i + 1], right[c][i], right[c][i + 1]
                );
            }
        }
    }
}

template <int TILES, int COLUMNS, bool ALIGNED>
__device__ __forceinline__ void few(
    const u8* x, const u8* weights, const u8* scales, const u8* bias, int bias_bf16, const u8* residual,
    u8* out, int wide, int rows, int outputs, int inputs
) {
    __shared__ float partial[WARPS][8 * COLUMNS][16 * TILES + 1];
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int groups = (inputs + 63) / 64;
    const int row_bytes = FORMAT == INT4 ? 32 * groups : FORMAT == INT8 ? inputs : 2 * inputs;
    const int first_row = blockIdx.x * 8 * COLUMNS;
    const int first_output = blockIdx.y * 16 * TILES;
    const int chunks = (inputs + CHUNK - 1) / CHUNK, whole = ALIGNED ? inputs / CHUNK : 0;

    // Rows beyond the last are computed as the last is, and not written.
    Row at[TILES][2];
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        const long long output = min(first_output + 8 * i + g, outputs - 1);
        at[i / 2][i % 2].weights = weights + output * row_bytes + 16 * t;
        at[i / 2][i % 2].scales = scales + 4 * (output * groups + t / 2);
    }
    const u8* x_rows[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        x_rows[c] = x + 2 * (long long)min(first_row + 8 * c + g, rows - 1) * inputs;
    }

    float sums[TILES][COLUMNS][4] = {};
    Stored next[TILES][2];
    u32 right[COLUMNS][16];
    int chunk = warp;
    if (ALIGNED && chunk < whole) {
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) load(next[i / 2][i % 2], at[i / 2][i % 2], chunk);
    }
#pragma unroll COLUMNS == 1 ? 2 : 1
    for (; ALIGNED && chunk < whole; chunk += WARPS) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) load_x<ALIGNED, true>(right[c], x_rows[c], 0, chunk, t);
        Stored now[TILES][2];
        // Weights of the next chunk are on their way while this one is multiplied; at the end, the same again.
        const int ahead = chunk + WARPS < whole ? chunk + WARPS : chunk;
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            now[i / 2][i % 2] = next[i / 2][i % 2];
            load(next[i / 2][i % 2], at[i / 2][i % 2], ahead);
        }
        add_chunk<TILES, COLUMNS>(sums, now, right);
    }
    for (; chunk < chunks; chunk += WARPS) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            load_x<ALIGNED, false>(right[c], x_rows[c], 2 * inputs, chunk, t);
        }
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            load_part<ALIGNED>(next[i / 2][i % 2], at[i / 2][i % 2], chunk, row_bytes, groups, t);
        }
        add_chunk<TILES, COLUMNS>(sums, next, right);
    }

#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                partial[warp][8 * c + 2 * t + i % 2][16 * tile + g + i / 2 * 8] = sums[tile][c][i];
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * TILES * 8 * COLUMNS; i += 32 * WARPS) {
        const int row = first_row + i / (16 * TILES), output = first_output + i % (16 * TILES);
        if (row >= rows || output >= outputs) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += partial[w][i / (16 * TILES)][i % (16 * TILES)];
        if (FORMAT == INT8) sum *= from_half(load2(scales + 2 * (long long)output));
        if (bias) sum += bias_bf16 ? from_bf16(load2(bias + 2 * output)) : from_half(load2(bias + 2 * output));
        const long long place = (long long)row * outputs + output;
        if (residual) sum += from_half(((const u16*)residual)[place]);
        if (wide) {
            ((float*)out)[place] = sum;
        } else {
            ((u16*)out)[place] = to_half(sum);
        }
    }
}

#define FEW(NAME, TILES, COLUMNS, ALIGNED, BOUNDS)                                                          \
    extern "C" __global__ void BOUNDS NAME(                                                                 \
        const u8* x, const u8* weights, const u8* scales, const u8* bias, int bias_bf16,                    \
        const u8* residual, u8* out, int wide, int rows, int outputs, int inputs                            \
    ) {                                                                                                     \
        few<TILES, COLUMNS, ALIGNED>(                                                                       \
            x, weights, scales, bias, bias_bf16, residual, out, wide, rows, outputs, inputs                 \
        );                                                                                                  \
    }

#define ANY __launch_bounds__(32 * WARPS)
// A multiprocessor must have room for two blocks where a chunk is small: more of them hide its latency.
#if FORMAT == INT4 || FORMAT == INT8
#define TWO __launch_bounds__(32 * WARPS, 2)
#else
#define TWO ANY
#endif

FEW(few_narrow_8, 1, 1, true, TWO)
FEW(few_narrow_16, 1, 2, true, TWO)
FEW(few_wide_8, 2, 1, true, TWO)
FEW(few_wide_16, 2, 2, true, ANY)
FEW(few_unaligned, 1, 2, false, ANY)
