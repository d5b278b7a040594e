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

struct Matrix {
    const u8* weights;
    const u8* scales;
    int outputs;
    int inputs;
    // Bytes of a row's weights.
    int row;
};

// What a lane holds of one row and chunk, as stored.
struct Stored {
    u32 words[LOADS][4];
    // int4: the group's scale and minimum.
    u32 scale;
};

template <bool ALIGNED>
__device__ __forceinline__ void load(Stored& stored, const Matrix& matrix, int output, int chunk, int t) {
    const int end = output < matrix.outputs ? matrix.row : 0;
    const u8* row = matrix.weights + (long long)output * matrix.row;
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        load_words<4, ALIGNED>(stored.words[j], row, (chunk * LOADS + j) * 64 + 16 * t, end);
    }
    if (FORMAT == INT4) {
        const int groups = matrix.row / 32;
        const int group = 2 * chunk + t / 2;
        const u8* scales = matrix.scales + 4 * (long long)output * groups;
        u32 word[1];
        load_words<1, ALIGNED>(word, scales, 4 * group, end ? 4 * groups : 0);
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

// The same inputs of a row of x, in the same order.
template <bool ALIGNED>
__device__ __forceinline__ void load_x(u32 (&halves)[16], const u8* row, int end, int chunk, int t) {
    u32 words[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int input = FORMAT == INT4 ? t / 2 * 64 + t % 2 * 16 + j / 2 * 32 + j % 2 * 8
                          : FORMAT == INT8 ? j / 2 * 64 + t * 16 + j % 2 * 8
                                           : j * 32 + t * 8;
        load_words<4, ALIGNED>(words[j], row, 2 * (chunk * CHUNK + input), end);
    }
#pragma unroll
    for (int i = 0; i < 16; i += 2) {
        const u32 a = words[i / 4][i % 4], b = words[i / 4][i % 4 + 1];
        halves[i] = FORMAT == INT4 ? __byte_perm(a, b, 0x5410) : a;
        halves[i + 1] = FORMAT == INT4 ? __byte_perm(a, b, 0x7632) : b;
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
    const Matrix matrix = {weights, scales, outputs, inputs, row_bytes};
    const int first_row = blockIdx.x * 8 * COLUMNS;
    const int first_output = blockIdx.y * 16 * TILES;
    const int chunks = (inputs + CHUNK - 1) / CHUNK;

    float sums[TILES][COLUMNS][4] = {};
    Stored next[TILES][2];
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        load<ALIGNED>(next[i / 2][i % 2], matrix, first_output + 8 * i + g, warp, t);
    }
#pragma unroll 1
    for (int chunk = warp; chunk < chunks; chunk += WARPS) {
        Stored now[TILES][2];
        u32 right[COLUMNS][16];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const int row = first_row + 8 * c + g;
            const int end = row < rows ? 2 * inputs : 0;
            load_x<ALIGNED>(right[c], x + 2 * (long long)row * inputs, end, chunk, t);
        }
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) now[i / 2][i % 2] = next[i / 2][i % 2];
        // Weights of the next chunk are on their way while this one is multiplied.
        if (chunk + WARPS < chunks) {
#pragma unroll
            for (int i = 0; i < 2 * TILES; i++) {
                load<ALIGNED>(next[i / 2][i % 2], matrix, first_output + 8 * i + g, chunk + WARPS, t);
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            u32 low[16], high[16];
            decode(low, now[tile][0]);
            decode(high, now[tile][1]);
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

#define FEW(NAME, TILES, COLUMNS, ALIGNED)                                                                  \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) NAME(                                          \
        const u8* x, const u8* weights, const u8* scales, const u8* bias, int bias_bf16,                    \
        const u8* residual, u8* out, int wide, int rows, int outputs, int inputs                            \
    ) {                                                                                                     \
        few<TILES, COLUMNS, ALIGNED>(                                                                       \
            x, weights, scales, bias, bias_bf16, residual, out, wide, rows, outputs, inputs                 \
        );                                                                                                  \
    }

FEW(few_narrow_8, 1, 1, true)
FEW(few_narrow_16, 1, 2, true)
FEW(few_wide_8, 2, 1, true)
FEW(few_wide_16, 2, 2, true)
FEW(few_unaligned, 1, 2, false)
