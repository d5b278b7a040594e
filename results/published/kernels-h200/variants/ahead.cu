// In place of `few` and what follows: as it, for one block of each multiprocessor, which takes an equal share of the
// tiles, TILES at a time. The first weights of the next ones are on their way while the sums of these are added up.
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
