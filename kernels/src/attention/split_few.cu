// The kernel that few.cu speaks of.

// Blocks for which a multiprocessor must have room, found by what spills nothing: four for narrow numbers, one for
// wide heads, zero where the assembler decides.
#if __CUDA_ARCH__ >= 1200
#define FEW_BLOCKS (ROOMY ? FORMAT == INT4 && WIDTH == 128 ? 3 : 0 : ALIGNED ? 1 : 0)
#else
#define NARROW (FORMAT == INT4 || FORMAT == INT8 && (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900))
#define FEW_BLOCKS (ROOMY ? NARROW && WIDTH == 128 ? 4 : 0 : ALIGNED || __CUDA_ARCH__ == 1000 ? 1 : 0)
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS, FEW_BLOCKS) split_few(
    const u8* q, u8* out, float* partial, const u8* cache, long long plane, long long scales, int kv_heads,
    int group, int dim, int first, int positions, int window, float scale, int first_part, int length
) {
    wait_for_earlier();
    __shared__ float tops[WARPS][FEW];
    __shared__ float sums[WARPS][FEW];
    // What the warps have summed, when no keys and values come any more.
    constexpr int OF_SUMS = sizeof(Mixed<FEW>) / 16, OF_SOURCES = WARPS * Source::SHARED;
    __shared__ uint4 memory[OF_SUMS > OF_SOURCES ? OF_SUMS : OF_SOURCES];
    Mixed<FEW>& mixed = *(Mixed<FEW>*)memory;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int rows = positions * group;
    const long long lines = (long long)gridDim.z * kv_heads * rows;
    const Shape shape = {group, dim, first, positions, window, kv_heads, scale, lines};
    const int head = blockIdx.x % kv_heads, half = blockIdx.x / kv_heads, part = blockIdx.y, parts = gridDim.y;
    const int sequence = blockIdx.z;
    const u8* base = cache + sequence * 2 * plane;
    const Cache keys = cache_of(base, scales, dim, kv_heads, head);
    const Cache values = cache_of(base + plane, scales, dim, kv_heads, head);
    const int start = (first_part + part) * length;
    const int stop = min(start + length, first + positions);
    // Steps before what the first row sees are left out; which warp takes which step stays the same.
    int begin = start + warp * STEP;
    const int sees = first_seen(shape, 0);
    if (begin < sees) begin += (sees - begin + WARPS * STEP - 1) / (WARPS * STEP) * (WARPS * STEP);

    const float factor = scale * 1.4426950408889634f * Query::unit();
    Source source(memory + warp * Source::SHARED, keys, values, begin, stop, half);
    const Query query(q + 2 * row_place(shape, sequence, head, min(g, rows - 1)), dim);
    // The positions of the rows 2 t and 2 t + 1.
    const int seen[2] = {first + min(2 * t, rows - 1) / group, first + min(2 * t + 1, rows - 1) / group};
    float top[2] = {-INFINITE, -INFINITE}, sum[2] = {0, 0};
    Mixture mixture;

#pragma unroll 1
    for (int at = begin; at < stop; at += WARPS * STEP) {
        float scores[4] = {};
        source.score(query, scores, at + WARPS * STEP < stop);
        float keep[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float largest = top[i];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const int position = at + 8 * n + g;
                const bool visible = position <= seen[i] && seen[i] - position < window;
                scores[2 * n + i] = visible ? scores[2 * n + i] * factor : -INFINITE;
                largest = fmaxf(largest, scores[2 * n + i]);
            }
#pragma unroll
            for (int lane = 4; lane < 32; lane *= 2) {
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, lane));
            }
            const float from = largest == -INFINITE ? 0 : largest;
            keep[i] = power_of_two(top[i] - from);
            top[i] = largest;
#pragma unroll
            for (int n = 0; n < 2; n++) scores[2 * n + i] = power_of_two(scores[2 * n + i] - from);
            sum[i] = sum[i] * keep[i] + (scores[i] + scores[2 + i]);
        }
        if (__any_sync(0xffffffff, keep[0] != 1 || keep[1] != 1)) mixture.keep(keep);
        source.add(mixture, scores);
    }
    let_next_start();
    mixture.finish();
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int lane = 4; lane < 32; lane *= 2) sum[i] += __shfl_xor_sync(0xffffffff, sum[i], lane);
        if (g == 0) {
            tops[warp][2 * t + i] = top[i];
            sums[warp][2 * t + i] = sum[i];
        }
    }
    __syncthreads();
    float share[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float largest = -INFINITE;
#pragma unroll
        for (int w = 0; w < WARPS; w++) largest = fmaxf(largest, tops[w][2 * t + i]);
        share[i] = power_of_two(top[i] - (largest == -INFINITE ? 0 : largest));
    }
#pragma unroll
    for (int d = 0; d < OUT / 16; d++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int column = Mixture::dim(d / 4, d % 4 * 2 + i / 2);
            mixed[warp][2 * t + i % 2][column] = mixture.mix[d][i] * share[i % 2];
        }
    }
    __syncthreads();
    write_part(shape, tops, sums, mixed, out, partial, sequence, head, half, 0, part, parts);
}
