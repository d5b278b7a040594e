// As `shared`, but a block has half of the inputs, so that two blocks fit a multiprocessor and one can begin while the
// other ends: warps 0 to 3 of the first block of a cluster of two have chunks 0 to 3 of each eight, those of the second
// 4 to 7, and warps 4 to 7 of each the same for the other outputs. Each block adds up the sums of half of the outputs,
// which come to it through distributed shared memory.
#define GROUPS 2
#define OWN (WARPS / 2)
#define MANY (32 * OWN * GROUPS)

extern __shared__ uint4 memory[];

template <int TILES, int COLUMNS, bool SCALES>
__device__ __forceinline__ void group_of(
    const u8* x, int rows, int inputs, int then, const Part& part, int first_output, int last_output
) {
    // The other block has begun before anything is written into its memory.
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    const int rank = blockIdx.y % 2;
    constexpr int MINE = 4 * COLUMNS / GROUPS, X_BLOCK = 512 * COLUMNS + 32, X_BUFFER = 4 * X_BLOCK;
    const int outputs = part.outputs;
    const int first_row = blockIdx.x * 8 * COLUMNS;
    const int own = threadIdx.x / 32 % OWN, group = threadIdx.x / 32 / OWN, lane = threadIdx.x % 32;
    const int warp = OWN * rank + own;
    const int g = lane / 4, t = lane % 4;
    const int groups = (inputs + 63) / 64;
    const int row_bytes = 32 * groups;
    const int whole = inputs / CHUNK;
    const int mine = group * 16 * TILES;
    const Base base = {
        part.weights + (long long)first_output * row_bytes + 16 * t,
        part.scales + 4 * ((long long)first_output * groups + t / 2), row_bytes, groups
    };
    u32 at[TILES][2];
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        at[i / 2][i % 2] = (u32)min(mine + 8 * i + g, last_output - 1 - first_output) * row_bytes;
    }
    // Scales of all rows of the block.
    const int stride = 4 * groups + 16;
    const int buffer = OWN * 2 * X_BUFFER + WARPS * 8 * COLUMNS * (16 * TILES + 4) * 4;
    const u32 scales_at = (u32)__cvta_generic_to_shared(memory) + buffer;
    auto fetch_scales = [&](int first) {
        const int pieces = groups / 4;
        for (int row = own + OWN * group; row < 16 * TILES * GROUPS; row += OWN * GROUPS) {
            const u8* from = part.scales + 4 * ((long long)min(first + row, outputs - 1) * groups);
            for (int piece = lane; piece < pieces; piece += 32) {
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(scales_at + row * stride + 16 * piece), "l"(from + 16 * piece) : "memory");
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    if (SCALES) fetch_scales(first_output);

    float sums[TILES][COLUMNS][4] = {};
    Stored stored[TILES][2] = {};
    u32 words[MINE][4] = {};
    // Of a request, sixteen lanes have 256 bytes of a row.
    const int p = lane % 16;
    x += 2 * (long long)first_row * inputs + 16 * p;
    const int limit = rows - 1 - first_row;
    auto load_x = [&](int chunk) {
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            const int row = 2 * (MINE * group + i) + lane / 16;
            const u8* from = x + (u32)min(row, limit) * (u32)(2 * inputs) + chunk * 2 * CHUNK;
            load_aligned_if(words[i], from, chunk < whole);
        }
    };
    const u32 shared = (u32)__cvta_generic_to_shared(memory);
    const u32 ring = shared + own * 2 * X_BUFFER;
    const u32 x_to = ring + ((p >> 2 & 1) * 2 + (p & 1)) * X_BLOCK + (lane / 16 * 4 + ((p >> 1 & 1) | (p >> 3 & 1) << 1)) * 16;
    auto store_x = [&](int turn) {
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            const int pair = MINE * group + i;
            const u32 a = __byte_perm(words[i][0], words[i][1], 0x5410), b = __byte_perm(words[i][0], words[i][1], 0x7632);
            const u32 c = __byte_perm(words[i][2], words[i][3], 0x5410), d = __byte_perm(words[i][2], words[i][3], 0x7632);
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(x_to + turn % 2 * X_BUFFER + pair / 4 * 512 + pair % 4 * 128), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
        }
    };
    auto load_w = [&](int tile, int chunk, bool wanted) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (!SCALES) {
                load(stored[tile][i], base, at[tile][i], chunk, wanted);
            } else {
                load_constant_if(stored[tile][i].words[0], base.weights + at[tile][i] + chunk * CHUNK_BYTES, wanted);
            }
        }
    };
    int chunk = warp;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) load_w(tile, chunk, chunk < whole);
    wait_for_earlier();
    load_x(chunk);
    store_x(0);
    load_x(chunk + WARPS);
    if (SCALES) {
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
    }
    int turn = 0;
#pragma unroll 1
    for (; chunk < whole; chunk += WARPS, turn++) {
        asm volatile("bar.sync %0, %1;" ::"r"(1 + own), "r"(32 * GROUPS) : "memory");
        store_x(turn + 1);
        load_x(chunk + 2 * WARPS);
        const u32 here = ring + turn % 2 * X_BUFFER + lane * 16;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 right[COLUMNS][8];
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                        : "=r"(right[c][4 * j]), "=r"(right[c][4 * j + 1]), "=r"(right[c][4 * j + 2]), "=r"(right[c][4 * j + 3])
                        : "r"(here + (half * 2 + j) * X_BLOCK + c * 512));
                }
            }
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                u32 low[8], high[8];
                if (SCALES && half == 0) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const u32 where = scales_at + (mine + 16 * tile + 8 * i + g) * stride + 4 * (chunk * 2 + t / 2);
                        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(stored[tile][i].scale) : "r"(where));
                    }
                }
                if (half == 0) {
                    decode<0>(low, stored[tile][0]);
                    decode<0>(high, stored[tile][1]);
                } else {
                    decode<1>(low, stored[tile][0]);
                    decode<1>(high, stored[tile][1]);
                    load_w(tile, chunk + WARPS, chunk + WARPS < whole);
                }
                add_tile<COLUMNS>(sums[tile], low, high, right);
            }
        }
    }
    let_next_start();
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    // Sums of a group's outputs go to the block of that rank.
    constexpr int WIDTH = 16 * TILES;
    typedef float Partial[8 * COLUMNS][WIDTH + 4];
    const Partial* partial = (const Partial*)((const u8*)memory + OWN * 2 * X_BUFFER);
    u32 to;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared + OWN * 2 * X_BUFFER), "r"(group));
    to += warp * (u32)sizeof(Partial);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 place = (8 * c + 2 * t + i % 2) * (WIDTH + 4) + 16 * tile + g + i / 2 * 8;
                asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to + 4 * place), "f"(sums[tile][c][i]) : "memory");
            }
        }
    }
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
    for (int i = threadIdx.x; i < WIDTH * 8 * COLUMNS; i += MANY) {
        const int row = first_row + i / WIDTH, output = first_output + rank * WIDTH + i % WIDTH;
        if (row >= rows || output >= last_output) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += partial[w][i / WIDTH][i % WIDTH];
        finish(sum, part, then, (long long)row * outputs + output, output);
    }
}

template <int COLUMNS, bool SCALES>
__device__ __forceinline__ void plain(const u8* x, int rows, int inputs, int then, const Parts& parts) {
    const Part part = blockIdx.z == 0 ? parts.a : blockIdx.z == 1 ? parts.b : parts.c;
    const int outputs = part.outputs, first = blockIdx.y / 2 * 32 * GROUPS;
    // Both blocks of a cluster.
    if (first >= outputs) return;
    group_of<2, COLUMNS, SCALES>(x, rows, inputs, then, part, first, min(outputs, first + 32 * GROUPS));
}

#define K(NAME, CALL) extern "C" __global__ void __launch_bounds__(MANY, 2) NAME(const u8* x, int rows, int inputs, int then, const Parts parts) { CALL(x, rows, inputs, then, parts); }
K(h16, (plain<2, false>))
K(h8, (plain<1, false>))
K(hs16, (plain<2, true>))
K(hs8, (plain<1, true>))
