// In place of `few` and what follows. One block of each multiprocessor takes an equal share of the tiles, four at a
// time. Warps fetch what they multiply into rings in shared memory, PAIR chunks of weights and one of x at a time:
// copies in flight take no registers, whole lines are asked for at once, and no warp waits for all others. With
// HALVES of 2 there are two warps for each share of the inputs, each of which has half of the outputs: they fetch
// half of x each, and wait for each other twice a chunk.
#define PAIR 2
#define X_ROW (2 * CHUNK)

__device__ __forceinline__ void fetch16(u32 to, const u8* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void fetch8(u32 to, const u8* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void fetched() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LATER>
__device__ __forceinline__ void wait_but() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}
// The warps of a share.
template <int HALVES>
__device__ __forceinline__ void meet(int share) {
    if (HALVES == 1) {
        __syncwarp();
    } else {
        asm volatile("bar.sync %0, %1;" ::"r"(share + 1), "n"(32 * HALVES) : "memory");
    }
}
__device__ __forceinline__ void load16(u32 (&words)[4], u32 from) {
    asm("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
        : "r"(from)
        : "memory");
}
__device__ __forceinline__ u32 load4(u32 from) {
    u32 word;
    asm("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
    return word;
}

// The chunks of a warp: pairs in turn with the other warps, and what is left in equal parts. The order of a sum
// depends on the number of inputs alone.
struct Share {
    int warp, rounds, left, lefts, stages;
    __device__ __forceinline__ Share(int warp, int chunks) : warp(warp) {
        rounds = chunks / (PAIR * WARPS);
        const int rest = chunks % (PAIR * WARPS);
        left = rounds * PAIR * WARPS + warp * rest / WARPS;
        lefts = rounds * PAIR * WARPS + (warp + 1) * rest / WARPS - left;
        stages = rounds + (lefts > 0);
    }
    __device__ __forceinline__ int first(int stage) const {
        return stage < rounds ? PAIR * (warp + WARPS * stage) : left;
    }
    __device__ __forceinline__ int count(int stage) const { return stage < rounds ? PAIR : lefts; }
};

template <int HALF>
__device__ __forceinline__ void decode_half(u32 (&halves)[8], const u32 (&words)[4], u32 scale, u32 minimum) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 out[4];
        halves_of_int4(words[i], scale, minimum, out);
        halves[2 * i] = out[2 * HALF];
        halves[2 * i + 1] = out[2 * HALF + 1];
    }
}

// A chunk of up to TILES tiles; all are one stretch of instructions, in which the compiler can let them overlap.
template <int COLUMNS, int TILES, bool ALL>
__device__ __forceinline__ void multiply_tiles(
    float (&sums)[TILES][COLUMNS][4], const u32 (&right)[2][COLUMNS][8], u32 from, u32 scales, int count
) {
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        if (!ALL && i >= count) break;
        u32 words[2][4], scale[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            load16(words[h], from + (16 * i + 8 * h) * 128);
            scale[h] = load4(scales + (16 * i + 8 * h) * 16);
        }
        const u32 s0 = low_twice(scale[0]), m0 = high_twice(scale[0]);
        const u32 s1 = low_twice(scale[1]), m1 = high_twice(scale[1]);
        u32 low[8], high[8];
        decode_half<0>(low, words[0], s0, m0);
        decode_half<0>(high, words[1], s1, m1);
        add_tile<COLUMNS>(sums[i], low, high, right[0]);
        decode_half<1>(low, words[0], s0, m0);
        decode_half<1>(high, words[1], s1, m1);
        add_tile<COLUMNS>(sums[i], low, high, right[1]);
    }
}

template <int COLUMNS, int HALVES>
__device__ __forceinline__ void ring(const u8* x, int rows, int inputs, int then, const Parts& parts) {
    extern __shared__ __align__(128) u8 memory[];
    // Of a warp: tiles and rows of weights, and bytes of what a slot holds of them.
    constexpr int TILES = 4 / HALVES, ROWS = 16 * TILES;
    constexpr int WEIGHTS = ROWS * PAIR * CHUNK / 2, SLOT = WEIGHTS + ROWS * PAIR * 8;
    constexpr int X_SLOT = 8 * COLUMNS * X_ROW;
    constexpr int SHARE = 2 * HALVES * SLOT + 2 * X_SLOT;
    const Part part = parts.a;
    const int outputs = part.outputs;
    const int tiles = (outputs + 15) / 16;
    const int lo = (long long)blockIdx.y * tiles / gridDim.y, hi = (long long)(blockIdx.y + 1) * tiles / gridDim.y;
    if (lo >= hi) return;
    const int last = min(16 * hi, outputs);
    const int first_row = blockIdx.x * 8 * COLUMNS;
    const int warp = threadIdx.x / 32 % WARPS, half_of = threadIdx.x / 32 / WARPS;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row_bytes = inputs / 2, row_scales = inputs / 16;
    const Share share(warp, inputs / CHUNK);
    const u32 mine_x = (u32)__cvta_generic_to_shared(memory) + warp * SHARE;
    const u32 mine = mine_x + 2 * X_SLOT + half_of * 2 * SLOT;
    float* partial = (float*)(memory + WARPS * SHARE);

    // Where the next weights and the next x are fetched from: a tile, a stage of the warp, and a chunk of it.
    int tile_w = share.stages > 0 ? lo : hi, stage_w = 0, slot_w = 0;
    auto fetch_weights = [&]() {
        if (tile_w < hi) {
            const int first = share.first(stage_w), count = share.count(stage_w);
            const int first_output = 16 * tile_w + ROWS * half_of, limit = min(ROWS, last - first_output);
            const u32 to = mine + slot_w * SLOT;
            const int piece = lane % 8, row = lane / 8;
            if (piece < 4 * count) {
                const u8* from = part.weights + (long long)(first_output + row) * row_bytes;
                from += first * (CHUNK / 2) + 16 * piece;
                const u32 at = to + row * 128 + 16 * (piece ^ (row % 2 * 4));
#pragma unroll
                for (int i = 0; i < ROWS / 4; i++) {
                    if (row + 4 * i < limit) fetch16(at + 512 * i, from + (long long)(4 * i) * row_bytes);
                }
            }
#pragma unroll
            for (int i = 0; i < ROWS / 32; i++) {
                const int row = lane + 32 * i;
                const u8* from = part.scales + (long long)(first_output + row) * row_scales + first * 8;
                if (row < limit) {
                    if (count == PAIR) {
                        fetch16(to + WEIGHTS + row * 16, from);
                    } else {
                        fetch8(to + WEIGHTS + row * 16, from);
                    }
                }
            }
            slot_w ^= 1;
            if (++stage_w == share.stages) {
                stage_w = 0;
                tile_w += 4;
            }
        }
        fetched();
    };
    int tile_x = share.stages > 0 ? lo : hi, stage_x = 0, chunk_x = 0, slot_x = 0;
    const u8* x_from = x + 2 * (long long)first_row * inputs;
    auto fetch_x = [&]() {
        if (tile_x < hi) {
            const int chunk = share.first(stage_x) + chunk_x;
            const int piece = lane % 16;
            const u32 to = mine_x + slot_x * X_SLOT;
#pragma unroll
            for (int i = 0; i < 4 * COLUMNS / HALVES; i++) {
                const int row = lane / 16 + 2 * i + 8 * COLUMNS / HALVES * half_of;
                const u8* from = x_from + 2 * (long long)min(row, rows - 1 - first_row) * inputs;
                from += chunk * X_ROW + 16 * piece;
                fetch16(to + row * X_ROW + 16 * (piece ^ (piece / 8) ^ (row % 2 * 4)), from);
            }
            slot_x ^= 1;
            if (++chunk_x == share.count(stage_x)) {
                chunk_x = 0;
                if (++stage_x == share.stages) {
                    stage_x = 0;
                    tile_x += 4;
                }
            }
        }
        fetched();
    };

    fetch_weights();
    fetch_weights();
    // Weights are nobody's result: they are on their way before the kernel that makes x has ended.
    wait_for_earlier();
    fetch_x();
    fetch_x();
    // In the loop weights that are fetched come between.
    fetched();

    int slot = 0, x_slot = 0;
#pragma unroll 1
    for (int tile = lo; tile < hi; tile += 4) {
        const int count_tiles = min(TILES, hi - tile - TILES * half_of);
        float sums[TILES][COLUMNS][4] = {};
#pragma unroll 1
        for (int stage = 0; stage < share.stages; stage++) {
            const int count = share.count(stage);
#pragma unroll 1
            for (int c = 0; c < count; c++) {
                wait_but<2>();
                meet<HALVES>(warp);
                u32 right[2][COLUMNS][8];
                // The lane's inputs of a row of x.
#pragma unroll
                for (int i = 0; i < 2 * COLUMNS; i++) {
                    const int half = i % 2, column = i / 2;
                    u32 words[2][4];
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const int piece = t / 2 * 8 + t % 2 * 2 + half * 4 + j;
                        const u32 at = (8 * column + g) * X_ROW + 16 * (piece ^ (t / 2) ^ (g % 2 * 4));
                        load16(words[j], mine_x + x_slot * X_SLOT + at);
                    }
#pragma unroll
                    for (int k = 0; k < 8; k += 2) {
                        const u32 a = words[k / 4][k % 4], b = words[k / 4][k % 4 + 1];
                        right[half][column][k] = __byte_perm(a, b, 0x5410);
                        right[half][column][k + 1] = __byte_perm(a, b, 0x7632);
                    }
                }
                const u32 from = mine + slot * SLOT + g * 128 + 16 * ((4 * c + t) ^ (g % 2 * 4));
                const u32 scales = mine + slot * SLOT + WEIGHTS + g * 16 + 4 * (2 * c + t / 2);
                if (count_tiles == TILES) {
                    multiply_tiles<COLUMNS, TILES, true>(sums, right, from, scales, TILES);
                } else {
                    multiply_tiles<COLUMNS, TILES, false>(sums, right, from, scales, count_tiles);
                }
                meet<HALVES>(warp);
                x_slot ^= 1;
                fetch_x();
            }
            slot ^= 1;
            fetch_weights();
        }
        if (tile + 4 >= hi) let_next_start();
        // Half of the outputs at a time.
        constexpr int WIDTH = 36;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            __syncthreads();
            if (HALVES == 1 || half == half_of) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
                        for (int k = 0; k < 4; k++) {
                            const int row = warp * 8 * COLUMNS + 8 * c + 2 * t + k % 2;
                            partial[row * WIDTH + 16 * i + g + k / 2 * 8] = sums[HALVES == 1 ? 2 * half + i : i][c][k];
                        }
                    }
                }
            }
            __syncthreads();
            for (int i = threadIdx.x; i < 32 * 8 * COLUMNS; i += 32 * WARPS * HALVES) {
                const int row = first_row + i / 32, output = 16 * tile + 32 * half + i % 32;
                if (row >= rows || output >= last) continue;
                float sum = 0;
#pragma unroll
                for (int w = 0; w < WARPS; w++) sum += partial[(w * 8 * COLUMNS + i / 32) * WIDTH + i % 32];
                finish(sum, part, then, (long long)row * outputs + output, output);
            }
        }
    }
}

#define RING(NAME, COLUMNS, HALVES) \
    extern "C" __global__ void __launch_bounds__(32 * WARPS * HALVES, 1) NAME( \
        const u8* x, int rows, int inputs, int then, const Parts parts \
    ) { \
        ring<COLUMNS, HALVES>(x, rows, inputs, then, parts); \
    }
RING(ring8, 1, 1)
RING(ring16, 2, 1)
RING(pairs8, 1, 2)
RING(pairs16, 2, 2)
