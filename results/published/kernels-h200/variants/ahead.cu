// out = x * matrix^T and what follows, for few rows of x: weights are decoded in registers and multiplied by
// tensor cores, so that the time is that of reading them. One launch has up to three matrices that share x.
//
// A block computes 16 * TILES outputs for 8 * COLUMNS rows of x; weights are the left matrix of the product.
// The inputs go to its 8 warps in chunks of 128, in turn; their sums are added warp by warp. That order
// depends on the number of inputs alone, so neither the tiling nor the company in a launch changes a bit.
//
// Of a chunk, lane 4 g + t holds 32 inputs of the weights' rows g and g + 8 and of row g of x, as 16 words:
//
// | format | bytes of a row that it loads | inputs |
// |---|---|---|
// | fp16, bf16 | 16 at 64 j + 16 t, j < 4 | 32 j + 8 t ... + 7 |
// | int8 | 16 at 64 j + 16 t, j < 2 | 64 j + 16 t ... + 15 |
// | int4 | 16 at 16 t | of group t / 2: 16 (t % 2) ... + 15, and the same 32 further on |
//
// A tile's registers are loaded again as soon as they are decoded, so DEPTH chunks are always on their way, and
// X_DEPTH halves of chunks of x: its first or last two of four loads. The first weights are on their way before
// the kernel that makes x has ended: they must be there before it, from a copy or a kernel that is waited for.

#define WARPS 8
#define CHUNK 128
#define LOADS (FORMAT == INT4 ? 1 : FORMAT == INT8 ? 2 : 4)

// In place of an activation: the result is fp32.
#define WIDE -1

// A matrix and what becomes of its sums. As the host passes it: every field has eight bytes.
struct Part {
    const u8* weights;
    const u8* scales;
    const u8* bias;
    const u16* residual;
    u8* out;
    u64 bias_bf16;
    long long outputs;
};

struct Parts {
    Part a, b, c;
};

// What a lane holds of one row and chunk, as stored.
struct Stored {
    u32 words[LOADS][4];
    // int4: the group's scale and minimum.
    u32 scale;
};

// The matrix from a block's first row on, at what a lane has of it; its rows are offsets from there.
struct Base {
    const u8* weights;
    const u8* scales;
    int bytes;
    int groups;
};

#define CHUNK_BYTES (64 * LOADS)
#define CHUNK_SCALES 8

// A whole chunk of an aligned row, if there is one.
__device__ __forceinline__ void load(Stored& stored, const Base& base, u32 row, int chunk, bool wanted) {
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        load_constant_if(stored.words[j], base.weights + row + chunk * CHUNK_BYTES + 64 * j, wanted);
    }
    if (FORMAT == INT4) {
        u32 word[1] = {stored.scale};
        // A group has 32 bytes of weights and 4 of scales.
        load_constant_if(word, base.scales + row / 8 + chunk * CHUNK_SCALES, wanted);
        stored.scale = word[0];
    }
}

// Half of a lane's inputs as words of halves, unscaled for int8: those of its first or last two loads of x.
template <int HALF>
__device__ __forceinline__ void decode(u32 (&halves)[8], const Stored& stored) {
    if (FORMAT == INT4) {
        const u32 scale = low_twice(stored.scale), minimum = high_twice(stored.scale);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 out[4];
            halves_of_int4(stored.words[0][i], scale, minimum, out);
            halves[2 * i] = out[2 * HALF];
            halves[2 * i + 1] = out[2 * HALF + 1];
        }
    } else if (FORMAT == INT8) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            halves_of_int8(stored.words[HALF % LOADS][i], halves[2 * i], halves[2 * i + 1]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            halves[i] = halves_of_16_bits<FORMAT>(stored.words[(2 * HALF + i / 4) % LOADS][i % 4]);
        }
    }
}

// The same inputs of a row of x: where those of the j-th load start.
__device__ __forceinline__ int input_of(int chunk, int j) {
    const int t = threadIdx.x % 4;
    const int input = FORMAT == INT4 ? t / 2 * 64 + t % 2 * 16 + j / 2 * 32 + j % 2 * 8
                      : FORMAT == INT8 ? j / 2 * 64 + t * 16 + j % 2 * 8
                                       : j * 32 + t * 8;
    return chunk * CHUNK + input;
}

// Into the order of the weights.
__device__ __forceinline__ void arrange(u32 (&halves)[8], const u32 (&words)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        const u32 a = words[i / 4][i % 4], b = words[i / 4][i % 4 + 1];
        halves[i] = FORMAT == INT4 ? __byte_perm(a, b, 0x5410) : a;
        halves[i + 1] = FORMAT == INT4 ? __byte_perm(a, b, 0x7632) : b;
    }
}

// sums += weights * x for a tile and half a chunk.
template <int COLUMNS>
__device__ __forceinline__ void add_tile(
    float (&sums)[COLUMNS][4], const u32 (&low)[8], const u32 (&high)[8], const u32 (&right)[COLUMNS][8]
) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            multiply(sums[c], low[i], high[i], low[i + 1], high[i + 1], right[c][i], right[c][i + 1]);
        }
    }
}

// What follows a sum. Bias and residual are added to fp16 numbers, as if they came in launches of their own.
__device__ __forceinline__ void finish(float sum, const Part& part, int then, long long place, int output) {
    float constant = 0;
    if (part.bias) {
        const u16 bits = load2(part.bias + 2 * output);
        constant = part.bias_bf16 ? from_bf16(bits) : from_half(bits);
    }
    if (part.residual) constant += from_half(part.residual[place]);
    if (then == WIDE) {
        ((float*)part.out)[place] = sum + constant;
        return;
    }
    u16 result;
    if (part.residual) {
        result = to_half(sum + from_half(to_half(constant)));
    } else {
        result = to_half(sum);
        if (part.bias) result = to_half(from_half(result) + constant);
        if (then != 0) result = to_half(activated(then, from_half(result)));
    }
    ((u16*)part.out)[place] = result;
}

// As `few`, for one block of each multiprocessor, which takes an equal share of the tiles, TILES at a time: the first
// weights of the next ones are on their way while the sums of these are added up.
#define TILES 4

template <int COLUMNS>
__device__ __forceinline__ void ahead(const u8* x, int rows, int inputs, int then, const Parts& parts) {
    __shared__ float partial[WARPS][8 * COLUMNS][16 * TILES + 4];
    const Part part = parts.a;
    const int outputs = part.outputs, tiles = (outputs + 15) / 16;
    const int lo = (long long)blockIdx.y * tiles / gridDim.y, hi = (long long)(blockIdx.y + 1) * tiles / gridDim.y;
    if (lo >= hi) return;
    const int last = min(16 * hi, outputs), first_row = blockIdx.x * 8 * COLUMNS;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int groups = inputs / 64, row_bytes = 32 * groups, chunks = inputs / CHUNK;
    x += 2 * (long long)first_row * inputs;
    u32 x_at[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) x_at[c] = 2 * (u32)min(8 * c + g, rows - 1 - first_row) * inputs;

    Stored stored[TILES][2] = {};
    u32 words[COLUMNS][2][4] = {};
    Base base;
    u32 at[TILES][2];
    // Half a chunk of x.
    auto load_x = [&](int chunk, int half) {
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; i++) {
            const u8* from = x + x_at[i / 2] + 2 * input_of(chunk, 2 * half + i % 2);
            load_aligned_if(words[i / 2][i % 2], from, chunk < chunks);
        }
    };
    // Sends for a warp's first chunk of some tiles.
    auto begin = [&](int tile) {
        const int first = 16 * tile;
        base = {
            part.weights + (long long)first * row_bytes + 16 * t,
            part.scales + 4 * ((long long)first * groups + t / 2), row_bytes, groups
        };
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            at[i / 2][i % 2] = (u32)min(8 * i + g, last - 1 - first) * row_bytes;
            load(stored[i / 2][i % 2], base, at[i / 2][i % 2], warp, warp < chunks && i / 2 < hi - tile);
        }
    };
    begin(lo);
    // Weights are nobody's result: they are on their way before the kernel that makes x has ended.
    wait_for_earlier();
    load_x(warp, 0);
#pragma unroll 1
    for (int tile = lo; tile < hi; tile += TILES) {
        const int count = min(TILES, hi - tile);
        float sums[TILES][COLUMNS][4] = {};
        auto add_chunk = [&](int chunk, int count) {
            const int next = chunk + WARPS;
            u32 right[COLUMNS][8];
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) arrange(right[c], words[c]);
            load_x(chunk, 1);
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                if (i >= count) break;
                u32 low[8], high[8];
                decode<0>(low, stored[i][0]);
                decode<0>(high, stored[i][1]);
                add_tile<COLUMNS>(sums[i], low, high, right);
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) arrange(right[c], words[c]);
            load_x(next, 0);
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                if (i >= count) break;
                u32 low[8], high[8];
                decode<1>(low, stored[i][0]);
                decode<1>(high, stored[i][1]);
#pragma unroll
                for (int k = 0; k < 2; k++) load(stored[i][k], base, at[i][k], next, next < chunks);
                add_tile<COLUMNS>(sums[i], low, high, right);
            }
        };
        if (count == TILES) {
#pragma unroll 1
            for (int chunk = warp; chunk < chunks; chunk += WARPS) add_chunk(chunk, TILES);
        } else {
#pragma unroll 1
            for (int chunk = warp; chunk < chunks; chunk += WARPS) add_chunk(chunk, count);
        }
        if (tile + TILES < hi) {
            begin(tile + TILES);
            load_x(warp, 0);
        } else {
            let_next_start();
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < TILES; i++) {
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    partial[warp][8 * c + 2 * t + k % 2][16 * i + g + k / 2 * 8] = sums[i][c][k];
                }
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < 16 * TILES * 8 * COLUMNS; i += 32 * WARPS) {
            const int row = first_row + i / (16 * TILES), output = 16 * tile + i % (16 * TILES);
            if (row >= rows || output >= last) continue;
            float sum = 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += partial[w][i / (16 * TILES)][i % (16 * TILES)];
            finish(sum, part, then, (long long)row * outputs + output, output);
        }
    }
}

#define AHEAD(NAME, COLUMNS) \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) NAME( \
        const u8* x, int rows, int inputs, int then, const Parts parts \
    ) { \
        ahead<COLUMNS>(x, rows, inputs, then, parts); \
    }
AHEAD(ahead16, 2)
AHEAD(ahead8, 1)
