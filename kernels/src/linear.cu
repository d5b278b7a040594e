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
// A tile's registers are loaded again as soon as they are decoded, so DEPTH chunks are always on their way. x is on
// its way, too: to the lanes that multiply it (`Direct`), or to shared memory (`Copied`).
//
// The first weights are on their way before the kernel that makes x has ended, and the next product's before this one
// waits for x: where each multiprocessor has room for two blocks, those of the next launch begin as those of this one
// end. So weights must come from a copy that the stream waits for. Where a kernel makes them, the product is launched
// without starting early (`DeviceMatrix::made_by_kernel`).

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

#define CHUNK_BYTES (64 * LOADS)
#define CHUNK_SCALES 8

// What a lane loads next: where its part of a chunk starts in the first of its rows, and the bytes of a row. Its other
// rows are eight further on each. Their addresses are products, made anew for every chunk: kept, they would take the
// registers of weights.
struct Next {
    const u8* weights;
    const u8* scales;
    u32 row_bytes;

    __device__ __forceinline__ void advance() {
        weights += WARPS * CHUNK_BYTES;
        scales += WARPS * CHUNK_SCALES;
    }
};

// A whole chunk of an aligned row, if there is one.
__device__ __forceinline__ void load(Stored& stored, const Next& next, int eights, bool wanted) {
    if (FORMAT == INT4) {
        u32 word[1] = {stored.scale};
        // A group has 32 bytes of weights and 4 of scales.
        load_constant_if(word, next.scales + (u64)next.row_bytes * eights, wanted);
        stored.scale = word[0];
    }
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        load_constant_if(stored.words[j], next.weights + (u64)next.row_bytes * (8 * eights) + 64 * j, wanted);
    }
}

// Any chunk of any row. `weights` and `scales` are where the lane's part of it starts, and `bytes` and `groups` what
// is left of the row from there.
template <bool ALIGNED>
__device__ __forceinline__ void load_part(
    Stored& stored, const u8* weights, const u8* scales, int bytes, int groups
) {
#pragma unroll
    for (int j = 0; j < LOADS; j++) load_words<4, ALIGNED>(stored.words[j], weights, 64 * j, bytes);
    if (FORMAT == INT4) {
        u32 word[1];
        load_words<1, ALIGNED>(word, scales, 0, 4 * groups);
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

// Rows of x that go to shared memory as they lie in memory, a chunk ahead, without passing through registers. What
// lanes load for themselves takes a line or two for each row in each of four loads, and lines are what a load costs
// the first-level cache: with 4-bit weights, more than the weights. One row costs little. With one buffer the next
// chunk is sent for when half of this one is multiplied, with two before that. For 4-bit weights alone, the order of
// whose inputs it knows: at 16 rows fp16 lost up to 13 % by a like way (on an H200).
template <int COLUMNS, int BUFFERS>
struct Copied {
    // In 16 bytes.
    static constexpr int ROW = CHUNK / 8, BUFFER = 8 * COLUMNS * ROW;
    static constexpr int SHARED = BUFFERS * BUFFER;

    // Where the lane's part of the next chunk starts, the buffers that are written and read, and how far off the other
    // one is.
    const u8* x;
    u32 to, from, other = 16 * BUFFER;
    int whole, last, row_bytes;

    // Eight inputs of a row. Lanes that write, or read, at once find their sixteen bytes in different banks.
    static __device__ __forceinline__ u32 place(int row, int eight) {
        return 16 * (row * ROW + (eight ^ eight / 8 ^ row % 2 * 4));
    }

    __device__ __forceinline__ Copied(const u8* x, int rows, int inputs, int whole, uint4* memory)
        : x(x + threadIdx.x / 32 * 2 * CHUNK + threadIdx.x % 16 * 16), to(address_of_shared(memory)), from(to),
          whole(whole), last(rows - 1), row_bytes(2 * inputs) {}

    // Sixteen lanes have the 256 bytes of a row: two rows a copy. Rows beyond the last are the last.
    __device__ __forceinline__ void start(int chunk) {
        if (chunk < whole) {
            const int second = (int)threadIdx.x % 32 / 16;
#pragma unroll
            for (int i = 0; i < 4 * COLUMNS; i++) {
                const u32 row = min(2 * i + second, last);
                copy_to_shared(to + place(second, threadIdx.x % 16) + 32 * i * ROW, x + row * (u32)row_bytes);
            }
        }
        x += 2 * WARPS * CHUNK;
    }

    // Half of what a lane multiplies of a chunk, and more is sent for.
    __device__ __forceinline__ void take(u32 (&right)[COLUMNS][2][4], int chunk, int half) {
        if (half == 0) {
            wait_for_copies();
            __syncwarp();
            if (BUFFERS == 2) {
                to += other;
                start(chunk + WARPS);
            }
        }
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; i++) {
            const int eight = (input_of_lane() + input_of_load(2 * half + i % 2)) / 8;
            load_shared(right[i / 2][i % 2], from + place(threadIdx.x % 32 / 4, eight) + i / 2 * 128 * ROW);
            arrange(right[i / 2][i % 2]);
        }
        if (half == 0) return;
        if (BUFFERS == 2) {
            from += other;
            other = -other;
        } else {
            __syncwarp();
            start(chunk + WARPS);
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

// What the warps of a block have summed. Four more numbers in a row keep the lanes of a warp from each other's banks.
template <int TILES, int COLUMNS>
struct Sums {
    typedef float Partial[8 * COLUMNS][16 * TILES + 4];
    static constexpr int SHARED = WARPS * (int)sizeof(Partial) / 16;

    // Those of outputs from `first` on, of which the block writes those from `own` on.
    static __device__ __forceinline__ void write(
        uint4* shared, const float (&sums)[TILES][COLUMNS][4], const Part& part, int rows, int then, int first, int own
    ) {
        const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const int outputs = part.outputs;
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
            const int row = blockIdx.x * 8 * COLUMNS + i / (16 * TILES), output = first + i % (16 * TILES);
            if (row >= rows || output < own || output >= outputs) continue;
            float sum = 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += partial[w][i / (16 * TILES)][i % (16 * TILES)];
            if (FORMAT == INT8) sum *= from_half(load2(part.scales + 2 * (long long)output));
            finish(sum, part, then, (long long)row * outputs + output, output);
        }
    }
};

__device__ __forceinline__ constexpr int larger(int a, int b) { return a > b ? a : b; }

// Aligned rows of whole chunks, and at least as many outputs as a block has.
template <int TILES, int COLUMNS, int DEPTH, class X>
__device__ __forceinline__ void few(const u8* x, int rows, int inputs, int then, const Parts& parts) {
    // x on its way to the lanes, and then sums.
    __shared__ __align__(128) uint4 shared[larger(WARPS * X::SHARED, Sums<TILES, COLUMNS>::SHARED)];
    const Part part = blockIdx.z == 0 ? parts.a : blockIdx.z == 1 ? parts.b : parts.c;
    const int outputs = part.outputs;
    const int first_row = blockIdx.x * 8 * COLUMNS, own = blockIdx.y * 16 * TILES;
    if (own >= outputs) return;
    // A block that would reach beyond the last output begins earlier, and leaves what is another's alone.
    const int first = min(own, outputs - 16 * TILES);
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int row_bytes = FORMAT == INT4 ? inputs / 2 : FORMAT == INT8 ? inputs : 2 * inputs;
    const int chunks = inputs / CHUNK;
    const long long row = first + g;
    Next next = {
        part.weights + row * row_bytes + warp * CHUNK_BYTES + 16 * t,
        part.scales + row * (row_bytes / 8) + warp * CHUNK_SCALES + t / 2 * 4, (u32)row_bytes
    };

    float sums[TILES][COLUMNS][4] = {};
    Stored stored[DEPTH][TILES][2] = {};
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            load(stored[d][i / 2][i % 2], next, i, warp + d * WARPS < chunks);
        }
        if (d < DEPTH - 1) next.advance();
    }
    X ahead(x + 2 * (long long)first_row * inputs, rows - first_row, inputs, chunks, shared + warp * X::SHARED);
    let_next_start();
    // Half of what follows them comes to the second level meanwhile: more delays what is on its way.
    constexpr int BEGUN = DEPTH * WARPS * CHUNK_BYTES, FOLLOWING = WARPS / 2 * CHUNK_BYTES;
    if (FORMAT == INT4 && threadIdx.x < 16 * TILES && BEGUN + FOLLOWING <= row_bytes) {
        prefetch(part.weights + (long long)(first + (int)threadIdx.x) * row_bytes + BEGUN, FOLLOWING);
    }
    wait_for_earlier();
    ahead.start(warp);

    auto add_chunk = [&](Stored (&stored)[TILES][2], int chunk) {
        const bool more = chunk + DEPTH * WARPS < chunks;
        next.advance();
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
                    for (int i = 0; i < 2; i++) load(stored[tile][i], next, 2 * tile + i, more);
                }
                add_tile<COLUMNS>(sums[tile], low, high, right);
            }
        }
    };
    int chunk = warp;
#pragma unroll 1
    for (; chunk + (DEPTH - 1) * WARPS < chunks; chunk += DEPTH * WARPS) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) add_chunk(stored[d], chunk + d * WARPS);
    }
#pragma unroll
    for (int d = 0; d < DEPTH - 1; d++) {
        if (chunk >= chunks) break;
        add_chunk(stored[d], chunk);
        chunk += WARPS;
    }

    // No warp is still reading x where another is about to put its sums.
    if (X::SHARED) __syncthreads();
    Sums<TILES, COLUMNS>::write(shared, sums, part, rows, then, first, own);
}

// Any rows, one chunk of them after another: 16 outputs for 16 rows of x.
template <bool ALIGNED>
__device__ __forceinline__ void any(const u8* x, int rows, int inputs, int then, const Parts& parts) {
    constexpr int COLUMNS = 2;
    __shared__ uint4 shared[Sums<1, COLUMNS>::SHARED];
    const Part part = blockIdx.z == 0 ? parts.a : blockIdx.z == 1 ? parts.b : parts.c;
    const int outputs = part.outputs;
    const int first_row = blockIdx.x * 8 * COLUMNS, first = blockIdx.y * 16;
    if (first >= outputs) return;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int groups = (inputs + 63) / 64;
    const int row_bytes = FORMAT == INT4 ? 32 * groups : FORMAT == INT8 ? inputs : 2 * inputs;

    wait_for_earlier();
    float sums[1][COLUMNS][4] = {};
    for (int chunk = warp; chunk * CHUNK < inputs; chunk += WARPS) {
        Stored stored[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            // Rows beyond the last are computed as the last is, and not written.
            const long long row = min(first + 8 * i + g, outputs - 1);
            const int start = chunk * CHUNK_BYTES + 16 * t, group = 2 * chunk + t / 2;
            const u8* weights = part.weights + row * row_bytes + start;
            const u8* scales = part.scales + 4 * (row * groups + group);
            load_part<ALIGNED>(stored[i], weights, scales, row_bytes - start, groups - group);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 low[8], high[8], right[COLUMNS][2][4];
#pragma unroll
            for (int i = 0; i < 2 * COLUMNS; i++) {
                const int offset = 2 * (chunk * CHUNK + input_of_lane() + input_of_load(2 * half + i % 2));
                const u8* row = x + 2 * (long long)min(first_row + 8 * (i / 2) + g, rows - 1) * inputs;
                load_words<4, ALIGNED>(right[i / 2][i % 2], row, offset, 2 * inputs);
                arrange(right[i / 2][i % 2]);
            }
            decode(low, stored[0], half);
            decode(high, stored[1], half);
            add_tile<COLUMNS>(sums[0], low, high, right);
        }
    }
    let_next_start();
    Sums<1, COLUMNS>::write(shared, sums, part, rows, then, first, first);
}

#define KERNEL(NAME, BLOCKS, CALL)                                                                           \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) NAME(                                   \
        const u8* x, int rows, int inputs, int then, const Parts parts                                       \
    ) {                                                                                                      \
        CALL(x, rows, inputs, then, parts);                                                                  \
    }

// What a block of each has is chosen by measurement, on an H200: where each multiprocessor has room for two, they
// hide each other's latency.
#define TWO (__CUDA_ARCH__ >= 1000 && LOADS > 2 ? 1 : 2)

#if FORMAT == INT4
KERNEL(few_16_1, 2, (few<1, 1, 2, Direct<1, 1>>))
KERNEL(few_32_1, 2, (few<2, 1, 1, Direct<1, 1>>))
KERNEL(few_16_8, 2, (few<1, 1, 2, Copied<1, 2>>))
KERNEL(few_32_8, 2, (few<2, 1, 1, Copied<1, 2>>))
KERNEL(few_16_16, 2, (few<1, 2, 1, Copied<2, 1>>))
KERNEL(few_32_16, 2, (few<2, 2, 1, Copied<2, 1>>))
#else
KERNEL(few_16_8, TWO, (few<1, 1, (LOADS > 2 ? 1 : 2), Direct<1, 2>>))
KERNEL(few_32_8, (LOADS > 2 ? 1 : 2), (few<2, 1, 1, Direct<1, 2>>))
KERNEL(few_32_16, 1, (few<2, 2, 1, Direct<2, 2>>))
#if LOADS == 2
KERNEL(few_64_16, 1, (few<4, 2, 1, Direct<2, 2>>))
#endif
#endif
KERNEL(any_aligned, 1, any<true>)
KERNEL(any_unaligned, 1, any<false>)
