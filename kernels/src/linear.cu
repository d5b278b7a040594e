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
// A tile's registers are loaded again as soon as they are decoded, so DEPTH chunks are always on their way. The
// first weights are on their way before the kernel that makes x has ended: they must be there before it, from a
// copy or a kernel that is waited for.
//
// x is on its way, too: to the lanes that multiply it (`Direct`), or as it lies in memory and to them through shared
// memory (`Staged`).

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

// Any chunk of any row.
template <bool ALIGNED>
__device__ __forceinline__ void load_part(Stored& stored, const Base& base, u32 row, int chunk) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        const int offset = chunk * CHUNK_BYTES + 64 * j;
        load_words<4, ALIGNED>(stored.words[j], base.weights + row, offset, base.bytes - 16 * t);
    }
    if (FORMAT == INT4) {
        u32 word[1];
        const u8* scales = base.scales + row / 8;
        load_words<1, ALIGNED>(word, scales, chunk * CHUNK_SCALES, 4 * (base.groups - t / 2));
        stored.scale = word[0];
    }
}

// Half of a lane's inputs as words of halves, unscaled for int8: those of its first or last two loads of x.
__device__ __forceinline__ void decode(u32 (&halves)[8], const Stored& stored, int half) {
    if (FORMAT == INT4) {
        const u32 scale = low_twice(stored.scale), minimum = high_twice(stored.scale);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 out[4];
            halves_of_int4(stored.words[0][i], scale, minimum, out);
            halves[2 * i] = out[2 * half];
            halves[2 * i + 1] = out[2 * half + 1];
        }
    } else if (FORMAT == INT8) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            halves_of_int8(stored.words[half % LOADS][i], halves[2 * i], halves[2 * i + 1]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            halves[i] = halves_of_16_bits<FORMAT>(stored.words[(2 * half + i / 4) % LOADS][i % 4]);
        }
    }
}

// The same inputs of a row of x: where those of the j-th load start, as far as it depends on j and on the lane.
__device__ __forceinline__ constexpr int input_of_load(int j) {
    return FORMAT == INT4 ? j / 2 * 32 + j % 2 * 8 : FORMAT == INT8 ? j / 2 * 64 + j % 2 * 8 : j * 32;
}
__device__ __forceinline__ int input_of_lane() {
    const int t = threadIdx.x % 4;
    return FORMAT == INT4 ? t / 2 * 64 + t % 2 * 16 : FORMAT == INT8 ? t * 16 : t * 8;
}

// Eight inputs of x in the order of the weights.
__device__ __forceinline__ void arrange(u32 (&words)[4]) {
    if (FORMAT != INT4) return;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const u32 a = words[i], b = words[i + 1];
        words[i] = __byte_perm(a, b, 0x5410);
        words[i + 1] = __byte_perm(a, b, 0x7632);
    }
}

// Rows of x that come to the lanes that multiply them, X_DEPTH halves of a chunk ahead: the first or last two of their
// four loads. Rows beyond the last are the last.
template <int COLUMNS, int X_DEPTH>
struct Direct {
    static constexpr int SHARED = 0;

    const u8* x;
    int whole;
    u32 at[COLUMNS];
    u32 words[X_DEPTH][COLUMNS][2][4] = {};

    __device__ __forceinline__ Direct(const u8* x, int rows, int inputs, int whole, uint4*)
        : x(x), whole(whole) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const u32 row = min(8 * c + (int)threadIdx.x % 32 / 4, rows - 1);
            at[c] = 2 * (row * inputs + input_of_lane());
        }
    }

    __device__ __forceinline__ void load(int chunk, int half, bool wanted) {
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; i++) {
            const u8* from = x + (at[i / 2] + 2 * chunk * CHUNK) + 2 * input_of_load(2 * half + i % 2);
            load_aligned_if(words[half % X_DEPTH][i / 2][i % 2], from, wanted);
        }
    }

    __device__ __forceinline__ void start(int chunk) {
#pragma unroll
        for (int half = 0; half < X_DEPTH; half++) load(chunk, half, chunk < whole);
    }

    // Half of what a lane multiplies of a chunk, and more is sent for.
    __device__ __forceinline__ void take(u32 (&right)[COLUMNS][2][4], int chunk, int half) {
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; i++) {
            u32 (&to)[4] = right[i / 2][i % 2];
#pragma unroll
            for (int word = 0; word < 4; word++) to[word] = words[half % X_DEPTH][i / 2][i % 2][word];
            arrange(to);
        }
        const int next = chunk + WARPS;
        if (X_DEPTH == 1 && half == 0) {
            load(chunk, 1, true);
        } else {
            load(next, X_DEPTH == 2 ? half : 0, next < whole);
        }
    }
};

// Rows of x that come a chunk ahead as they lie in memory, whole lines at a time, and go to the lanes that multiply
// them through shared memory. What those load themselves takes a line or two for each row in each of four loads, and
// lines are what a load costs the first-level cache: with 4-bit weights, more than the weights. One row costs little.
// For 4-bit weights alone, the order of whose inputs it knows: at 16 rows fp16 lost up to 13 % by it (on an H200).
template <int COLUMNS>
struct Staged {
    // In 16 bytes, of one of the four loads: one for each lane, for eight rows. The rest keeps the banks of the four
    // apart when eight lanes write what is beside each other in a row.
    static constexpr int LOAD = 32 * COLUMNS + 2;
    static constexpr int SHARED = 4 * LOAD;

    const u8* x;
    int whole;
    u32 at[4 * COLUMNS];
    uint4* memory;
    u32 words[4 * COLUMNS][4] = {};

    // The load and the t that eight inputs of a chunk are for, 0 to 15 in the order of x: the inverse of
    // `input_of_load` and `input_of_lane`.
    static __device__ __forceinline__ int load_of(int eight) { return eight / 4 % 2 * 2 + eight % 2; }
    static __device__ __forceinline__ int lane_of(int eight) { return eight / 8 * 2 + eight / 2 % 2; }

    __device__ __forceinline__ Staged(const u8* x, int rows, int inputs, int whole, uint4* memory)
        : x(x), whole(whole), memory(memory) {
        // Sixteen lanes have the 256 bytes of a row: two rows a load. Rows beyond the last are the last.
#pragma unroll
        for (int i = 0; i < 4 * COLUMNS; i++) {
            const u32 row = min(2 * i + (int)threadIdx.x % 32 / 16, rows - 1);
            at[i] = 2 * (row * inputs + threadIdx.x % 16 * 8);
        }
    }

    __device__ __forceinline__ void start(int chunk) {
#pragma unroll
        for (int i = 0; i < 4 * COLUMNS; i++) {
            load_aligned_if(words[i], x + (at[i] + 2 * chunk * CHUNK), chunk < whole);
        }
    }

    __device__ __forceinline__ void put() {
        const int lane = threadIdx.x % 32;
        uint4* to = memory + load_of(lane % 16) * LOAD + lane / 16 * 4 + lane_of(lane % 16);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4 * COLUMNS; i++) {
            arrange(words[i]);
            to[8 * i] = make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
        }
        __syncwarp();
    }

    // Half of what a lane multiplies of a chunk, and more is sent for.
    __device__ __forceinline__ void take(u32 (&right)[COLUMNS][2][4], int chunk, int half) {
        if (half == 0) {
            put();
            start(chunk + WARPS);
        }
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; i++) {
            const uint4 words = memory[(2 * half + i % 2) * LOAD + i / 2 * 32 + threadIdx.x % 32];
            u32 (&to)[4] = right[i / 2][i % 2];
            to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
        }
    }
};

// sums += weights * x for a tile and half a chunk.
template <int COLUMNS>
__device__ __forceinline__ void add_tile(
    float (&sums)[COLUMNS][4], const u32 (&low)[8], const u32 (&high)[8], const u32 (&right)[COLUMNS][2][4]
) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const u32 (&x)[4] = right[c][i / 4];
            multiply(sums[c], low[i], high[i], low[i + 1], high[i + 1], x[i % 4], x[i % 4 + 1]);
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

template <int TILES, int COLUMNS, int DEPTH, bool ALIGNED, class X>
__device__ __forceinline__ void few(const u8* x, int rows, int inputs, int then, const Parts& parts) {
    // x on its way to the lanes, and then sums; four more numbers in a row of those keep the lanes of a warp from
    // each other's banks.
    typedef float Partial[8 * COLUMNS][16 * TILES + 4];
    constexpr int SUMS = WARPS * (int)sizeof(Partial) / 16;
    __shared__ uint4 shared[WARPS * X::SHARED > SUMS ? WARPS * X::SHARED : SUMS];
    const Part part = blockIdx.z == 0 ? parts.a : blockIdx.z == 1 ? parts.b : parts.c;
    const int outputs = part.outputs;
    const int first_row = blockIdx.x * 8 * COLUMNS, first_output = blockIdx.y * 16 * TILES;
    if (first_output >= outputs) return;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int groups = (inputs + 63) / 64;
    const int row_bytes = FORMAT == INT4 ? 32 * groups : FORMAT == INT8 ? inputs : 2 * inputs;
    const int chunks = (inputs + CHUNK - 1) / CHUNK, whole = ALIGNED ? inputs / CHUNK : 0;

    // Rows beyond the last are computed as the last is, and not written.
    const Base base = {
        part.weights + (long long)first_output * row_bytes + 16 * t,
        part.scales + 4 * ((long long)first_output * groups + t / 2), row_bytes, groups
    };
    u32 at[TILES][2];
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        at[i / 2][i % 2] = (u32)min(8 * i + g, outputs - 1 - first_output) * row_bytes;
    }
    x += 2 * (long long)first_row * inputs;

    float sums[TILES][COLUMNS][4] = {};
    Stored stored[DEPTH][TILES][2] = {};
    X ahead(x, rows - first_row, inputs, whole, shared + warp * X::SHARED);
    auto add_chunk = [&](Stored (&stored)[TILES][2], int chunk) {
        const int next = chunk + DEPTH * WARPS;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 right[COLUMNS][2][4];
            ahead.take(right, chunk, half);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                u32 low[8], high[8];
                decode(low, stored[tile][0], half);
                decode(high, stored[tile][1], half);
                if (half == 1) {
#pragma unroll
                    for (int i = 0; i < 2; i++) load(stored[tile][i], base, at[tile][i], next, next < whole);
                }
                add_tile<COLUMNS>(sums[tile], low, high, right);
            }
        }
    };
    int chunk = warp;
    if (ALIGNED) {
#pragma unroll
        for (int i = 0; i < 2 * TILES * DEPTH; i++) {
            const int tile = i / 2 % TILES, d = i / 2 / TILES, first = warp + d * WARPS;
            load(stored[d][tile][i % 2], base, at[tile][i % 2], first, first < whole);
        }
        // Weights are nobody's result: they are on their way before the kernel that makes x has ended.
        wait_for_earlier();
        ahead.start(chunk);
#pragma unroll 1
        for (; chunk + (DEPTH - 1) * WARPS < whole; chunk += DEPTH * WARPS) {
#pragma unroll
            for (int d = 0; d < DEPTH; d++) add_chunk(stored[d], chunk + d * WARPS);
        }
#pragma unroll
        for (int d = 0; d < DEPTH - 1; d++) {
            if (chunk >= whole) break;
            add_chunk(stored[d], chunk);
            chunk += WARPS;
        }
    } else {
        wait_for_earlier();
    }
    // Chunks that are not whole: the last one, or all of them.
    for (; chunk < chunks; chunk += WARPS) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 right[COLUMNS][2][4];
#pragma unroll
            for (int i = 0; i < 2 * COLUMNS; i++) {
                const int offset = 2 * (chunk * CHUNK + input_of_lane() + input_of_load(2 * half + i % 2));
                const u8* row = x + 2 * (u32)min(8 * (i / 2) + g, rows - 1 - first_row) * inputs;
                load_words<4, ALIGNED>(right[i / 2][i % 2], row, offset, 2 * inputs);
                arrange(right[i / 2][i % 2]);
            }
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                u32 low[8], high[8];
                load_part<ALIGNED>(stored[0][tile][0], base, at[tile][0], chunk);
                load_part<ALIGNED>(stored[0][tile][1], base, at[tile][1], chunk);
                decode(low, stored[0][tile][0], half);
                decode(high, stored[0][tile][1], half);
                add_tile<COLUMNS>(sums[tile], low, high, right);
            }
        }
    }

    let_next_start();
    // No warp is still reading x where another is about to put its sums.
    if (X::SHARED) __syncthreads();
    Partial* partial = (Partial*)shared;
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
        if (FORMAT == INT8) sum *= from_half(load2(part.scales + 2 * (long long)output));
        finish(sum, part, then, (long long)row * outputs + output, output);
    }
}

#define FEW(NAME, TILES, COLUMNS, DEPTH, ALIGNED, X, BLOCKS)                                                 \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) NAME(                                   \
        const u8* x, int rows, int inputs, int then, const Parts parts                                       \
    ) {                                                                                                      \
        few<TILES, COLUMNS, DEPTH, ALIGNED, X>(x, rows, inputs, then, parts);                                \
    }

// A multiprocessor has room for two blocks, which hide each other's latency, where the assembler then needs no
// memory for what should be in registers. What is on its way is chosen by measurement, on an H200.
#define TWO (__CUDA_ARCH__ >= 1000 && LOADS > 2 ? 1 : 2)

#if FORMAT == INT4
typedef Direct<1, 1> One;
#if __CUDA_ARCH__ >= 1000
typedef One Eight;
#else
typedef Staged<1> Eight;
#endif
FEW(one_16, 1, 1, 2, true, One, 2)
FEW(one_32, 2, 1, 1, true, One, 2)
FEW(few_16_8, 1, 1, 1, true, Staged<1>, 2)
FEW(few_32_8, 2, 1, 1, true, Eight, 2)
FEW(few_32_16, 2, 2, 1, true, Staged<2>, 1)
FEW(few_48_16, 3, 2, 1, true, Staged<2>, 1)
FEW(few_64_16, 4, 2, 1, true, Staged<2>, 1)
#else
typedef Direct<1, 2> Eight;
typedef Direct<2, 2> Sixteen;
FEW(few_16_8, 1, 1, (LOADS > 2 ? 1 : 2), true, Eight, TWO)
FEW(few_32_8, 2, 1, 1, true, Eight, (LOADS > 2 ? 1 : 2))
FEW(few_32_16, 2, 2, 1, true, Sixteen, 1)
#if LOADS == 2
FEW(few_64_16, 4, 2, 1, true, Sixteen, 1)
#endif
#endif
typedef Direct<2, 1> Any;
FEW(few_unaligned, 1, 2, 1, false, Any, 1)
