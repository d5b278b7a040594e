// Four warps multiply together (wgmma, sm_90a): weights from registers, x from shared memory. DEPTH chunks of weights
// are on their way; WGS is groups of four warps in a block.
#define PARTS_OF_K 4
#define X_BLOCK 1056
#define X_BUFFER (4 * X_BLOCK)

extern __shared__ uint4 memory[];

__device__ __forceinline__ void wide_multiply(float (&d)[8], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
    asm volatile(
        "{ .reg .pred p; setp.eq.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, "
        "{%8, %9, %10, %11}, %12, p, 1, 1, 0; }"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}
__device__ __forceinline__ void hold(float (&d)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) asm volatile("" : "+f"(d[i])::"memory");
}

template <int DEPTH, int WGS, bool SCALES>
__device__ __forceinline__ void wide(const u8* x, int rows, int inputs, int then, const Parts& parts) {
    constexpr int SUMS = PARTS_OF_K / WGS, THREADS = 128 * WGS;
    const Part part = blockIdx.z == 0 ? parts.a : blockIdx.z == 1 ? parts.b : parts.c;
    const int outputs = part.outputs, first_output = blockIdx.y * 64, first_row = blockIdx.x * 16;
    if (first_output >= outputs) return;
    const int wg = __shfl_sync(0xffffffff, threadIdx.x / 128, 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int g = lane / 4, t = lane % 4;
    const int groups = inputs / 64, row_bytes = 32 * groups;
    const int whole = inputs / CHUNK, count = (whole - wg + WGS - 1) / WGS;
    const Base base = {
        part.weights + (long long)first_output * row_bytes + 16 * t,
        part.scales + 4 * ((long long)first_output * groups + t / 2), row_bytes, groups
    };
    u32 at[2];
#pragma unroll
    for (int i = 0; i < 2; i++) at[i] = (u32)min(16 * warp + 8 * i + g, outputs - 1 - first_output) * row_bytes;

    const u32 shared = (u32)__cvta_generic_to_shared(memory);
    const int stride = 4 * groups + 16;
    const u32 scales_at = shared + WGS * 3 * X_BUFFER;
    if (SCALES) {
        const int pieces = groups / 4;
        for (int i = threadIdx.x; i < 64 * pieces; i += THREADS) {
            const int row = i / pieces, piece = i % pieces;
            const u8* from = part.scales + 4 * ((long long)min(first_output + row, outputs - 1) * groups) + 16 * piece;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(scales_at + row * stride + 16 * piece), "l"(from) : "memory");
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    const u32 my_scales = scales_at + (16 * warp + g) * stride + 4 * (t / 2);

    float sums[SUMS][8] = {};
    Stored stored[DEPTH][2] = {};
    u32 words[2][4] = {};
    // Of x, a thread fetches 16 bytes of two rows.
    const int row = 4 * warp + lane / 16, p = lane % 16;
    x += 2 * (long long)first_row * inputs + 16 * p;
    u32 x_at[2];
#pragma unroll
    for (int i = 0; i < 2; i++) x_at[i] = 2 * (u32)min(row + 2 * i, rows - 1 - first_row) * inputs;
    const u32 buffers = shared + wg * 3 * X_BUFFER;
    const u32 x_to = ((p >> 2 & 1) * 2 + (p & 1)) * X_BLOCK + row / 8 * 256 + row % 8 * 16 + ((p >> 1 & 1) | (p >> 3 & 1) << 1) * 4;
    auto load_x = [&](int n) {
        const int chunk = wg + WGS * n;
#pragma unroll
        for (int i = 0; i < 2; i++) load_aligned_if(words[i], x + x_at[i] + chunk * 2 * CHUNK, n < count);
    };
    auto store_x = [&](u32 buffer) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 to = buffer + x_to + i * 32;
            const u32 a = __byte_perm(words[i][0], words[i][1], 0x5410), b = __byte_perm(words[i][0], words[i][1], 0x7632);
            const u32 c = __byte_perm(words[i][2], words[i][3], 0x5410), d = __byte_perm(words[i][2], words[i][3], 0x7632);
            asm volatile("st.shared.u32 [%0], %1; st.shared.u32 [%0 + 128], %2; st.shared.u32 [%0 + 512], %3; st.shared.u32 [%0 + 640], %4;" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    };
    auto load_w = [&](Stored (&stored)[2], int n) {
        const int chunk = wg + WGS * n;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (!SCALES) load(stored[i], base, at[i], chunk, n < count);
            else load_constant_if(stored[i].words[0], base.weights + at[i] + chunk * CHUNK_BYTES, n < count);
        }
    };
#pragma unroll
    for (int d = 0; d < DEPTH; d++) load_w(stored[d], d);
    wait_for_earlier();
    load_x(0);
    store_x(buffers);
    load_x(1);
    if (SCALES) {
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
    }
    u32 now = 0;
    auto step = [&](Stored (&stored)[2], float (&sums)[8], int n) {
        const u32 next = now == 2 * X_BUFFER ? 0 : now + X_BUFFER;
        store_x(buffers + next);
        load_x(n + 2);
        asm volatile("bar.sync %0, 128;" ::"r"(1 + wg) : "memory");
        const u64 matrix = (u64)((buffers + now) >> 4) | (u64)8 << 16 | (u64)16 << 32;
        now = next;
        if (SCALES) {
            const u32 where = my_scales + 8 * (wg + WGS * n);
            asm volatile("ld.shared.u32 %0, [%1];" : "=r"(stored[0].scale) : "r"(where));
            asm volatile("ld.shared.u32 %0, [%1];" : "=r"(stored[1].scale) : "r"(where + 8 * stride));
        }
        u32 low[2][8], high[2][8];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (half == 0) {
                decode<0>(low[0], stored[0]);
                decode<0>(high[0], stored[1]);
            } else {
                decode<1>(low[1], stored[0]);
                decode<1>(high[1], stored[1]);
                load_w(stored, n + DEPTH);
            }
            hold(sums);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int i = 0; i < 8; i += 2) {
                wide_multiply(sums, low[half][i], high[half][i], low[half][i + 1], high[half][i + 1],
                              matrix + (((half * 2 + i / 4) * X_BLOCK + i % 4 / 2 * 512) >> 4));
            }
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        hold(sums);
    };
#pragma unroll 1
    for (int n = 0; n < count; n += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            if (n + d < count) step(stored[d], sums[d % SUMS], n + d);
        }
    }
    let_next_start();
    __syncthreads();
    float (*partial)[16][68] = (float (*)[16][68])memory;
#pragma unroll
    for (int s = 0; s < SUMS; s++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            partial[wg + WGS * s][i / 4 * 8 + 2 * t + i % 2][16 * warp + g + i % 4 / 2 * 8] = sums[s][i];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 64 * 16; i += THREADS) {
        const int row = first_row + i / 64, output = first_output + i % 64;
        if (row >= rows || output >= outputs) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < PARTS_OF_K; w++) sum += partial[w][i / 64][i % 64];
        finish(sum, part, then, (long long)row * outputs + output, output);
    }
}
#define W(NAME, DEPTH, WGS, SCALES) extern "C" __global__ void __launch_bounds__(128 * WGS, 4 / WGS) NAME(const u8* x, int rows, int inputs, int then, const Parts parts) { wide<DEPTH, WGS, SCALES>(x, rows, inputs, then, parts); }
W(w4_4, 4, 4, false)
W(w3_4, 3, 4, false)
W(w4_2, 4, 2, false)
W(w4_4s, 4, 4, true)
W(w4_2s, 4, 2, true)
W(w6_4s, 6, 4, true)
