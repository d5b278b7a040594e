// Two blocks a multiprocessor; x by cp.async; EARLY: the next launch begins as soon as this one's blocks have, and not
// when they end. The first step to `now`.
#define EARLY
extern __shared__ __align__(128) u8 memory[];
__device__ __forceinline__ void fetch16(u32 to, const u8* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
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

// TILES * 16 outputs for 8 * COLUMNS rows by 8 warps.
template <int TILES, int COLUMNS>
__device__ __forceinline__ void group_of(
    const u8* x, int rows, int inputs, int then, const Part& part, int first_output, int last_output, bool first_group,
    bool last_group
) {
    const int first_row = blockIdx.x * 8 * COLUMNS, limit = rows - 1 - first_row;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int groups = inputs / 64, row_bytes = 32 * groups, whole = inputs / CHUNK;
    // A block that would reach beyond the last output begins earlier.
    first_output = min(first_output, last_output - 16 * TILES);
    const u8* weights = part.weights + (long long)(first_output + g) * row_bytes + 16 * t + warp * CHUNK_BYTES;
    const u8* scales = part.scales + 4 * ((long long)(first_output + g) * groups + t / 2) + warp * CHUNK_SCALES;
    u32 stride = row_bytes;
    float sums[TILES][COLUMNS][4] = {};
    Stored stored[TILES][2] = {};
    auto load_w = [&](int tile, bool wanted) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            load_constant_if(stored[tile][i].words[0], weights + (unsigned long long)stride * (8 * (2 * tile + i)), wanted);
            u32 word[1] = {stored[tile][i].scale};
            load_constant_if(word, scales + (unsigned long long)stride * (2 * tile + i), wanted);
            stored[tile][i].scale = word[0];
        }
    };
    const u32 buffer = (u32)__cvta_generic_to_shared(memory) + warp * (8 * COLUMNS * 2 * CHUNK);
    // Rows as they lie in memory; pieces of 16 bytes are swizzled.
    const int p = lane % 16, hi = lane / 16;
    const u8* x_from = x + 2 * (long long)first_row * inputs + 16 * p + warp * 2 * CHUNK;
    auto fetch_x = [&](bool wanted) {
        if (wanted) {
#pragma unroll
            for (int i = 0; i < 4 * COLUMNS; i++) {
                const int row = 2 * i + hi;
                const u32 to = buffer + row * 256 + 16 * (p ^ (p >> 3) ^ (hi * 4));
                fetch16(to, x_from + (u32)min(row, limit) * (u32)(2 * inputs));
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    int chunk = warp;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) load_w(tile, chunk < whole);
#ifdef EARLY
    if (first_group) let_next_start();
#endif
    if (first_group) wait_for_earlier();
    fetch_x(chunk < whole);
#pragma unroll 1
    for (; chunk < whole; chunk += WARPS) {
        const bool more = chunk + WARPS < whole;
        weights += WARPS * CHUNK_BYTES;
        scales += WARPS * CHUNK_SCALES;
        x_from += WARPS * 2 * CHUNK;
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 right[COLUMNS][2][4];
#pragma unroll
            for (int i = 0; i < 2 * COLUMNS; i++) {
                const int piece = t / 2 * 8 + t % 2 * 2 + half * 4 + i % 2;
                const u32 from = buffer + (8 * (i / 2) + g) * 256 + 16 * (piece ^ (t / 2) ^ (g % 2 * 4));
                u32 w[4];
                asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                    : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "r"(from) : "memory");
#pragma unroll
                for (int k = 0; k < 4; k += 2) {
                    right[i / 2][i % 2][k] = __byte_perm(w[k], w[k + 1], 0x5410);
                    right[i / 2][i % 2][k + 1] = __byte_perm(w[k], w[k + 1], 0x7632);
                }
            }
            if (half == 1) {
                __syncwarp();
                fetch_x(more);
            }
            asm volatile("" : "+r"(stride));
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                u32 low[8], high[8];
                if (half == 1) {
                    asm volatile("" : "+r"(stored[tile][0].scale), "+r"(stored[tile][1].scale));
                }
                const u32 s0 = low_twice(stored[tile][0].scale), s1 = low_twice(stored[tile][1].scale);
                const u32 m0 = high_twice(stored[tile][0].scale), m1 = high_twice(stored[tile][1].scale);
                if (half == 0) {
                    decode_half<0>(low, stored[tile][0].words[0], s0, m0);
                    decode_half<0>(high, stored[tile][1].words[0], s1, m1);
                } else {
                    decode_half<1>(low, stored[tile][0].words[0], s0, m0);
                    decode_half<1>(high, stored[tile][1].words[0], s1, m1);
                    load_w(tile, more);
                }
#pragma unroll
                for (int i = 0; i < 8; i += 2) {
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) {
                        multiply(sums[tile][c], low[i], high[i], low[i + 1], high[i + 1], right[c][i / 4][i % 4], right[c][i / 4][i % 4 + 1]);
                    }
                }
            }
        }
    }
#ifndef EARLY
    if (last_group) let_next_start();
#endif
    float (*partial)[8 * COLUMNS][16 * TILES + 4] = (float (*)[8 * COLUMNS][16 * TILES + 4])memory;
    __syncthreads();
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
        if (row >= rows || output >= last_output) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += partial[w][i / (16 * TILES)][i % (16 * TILES)];
        finish(sum, part, then, (long long)row * (int)part.outputs + output, output);
    }
    if (!last_group) __syncthreads();
}

template <int TILES, int COLUMNS>
__device__ __forceinline__ void plain(const u8* x, int rows, int inputs, int then, const Parts& parts) {
    const Part part = blockIdx.z == 0 ? parts.a : blockIdx.z == 1 ? parts.b : parts.c;
    const int outputs = part.outputs, first = blockIdx.y * 16 * TILES;
    if (first >= outputs) return;
    group_of<TILES, COLUMNS>(x, rows, inputs, then, part, first, min(outputs, first + 16 * TILES), true, true);
}
#define K(NAME, CALL, N) extern "C" __global__ void __launch_bounds__(32 * WARPS, N) NAME(const u8* x, int rows, int inputs, int then, const Parts parts) { CALL(x, rows, inputs, then, parts); }
K(p1, (plain<1, 2>), 2)
K(p2, (plain<2, 2>), 2)
K(q1, (plain<1, 1>), 2)
K(q2, (plain<2, 1>), 2)
