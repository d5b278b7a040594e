// Adds up the parts of a split attention, in the order of the context. A block has one row, of at most 256 dimensions.
//
// | | shape |
// |---|---|
// | partial | rows x parts x dim sums of values, then rows x parts pairs: largest score (base 2), sum |
// | out | sequences x positions x heads x dim, fp16 |

#define WARPS 4
#define THREADS (32 * WARPS)

extern "C" __global__ void __launch_bounds__(THREADS) combine(
    const float* partial, u16* out, int parts, int kv_heads, int group, int dim, int positions, int all
) {
    follow();
    const long long line = blockIdx.x;
    const int rows = positions * group, thread = threadIdx.x;
    const float* values = partial + line * parts * dim;
    const float* ends = partial + (long long)all * parts * dim + line * parts * 2;
    __shared__ float tops[WARPS], shares[THREADS], sums[THREADS];
    float top = -INFINITE;
    for (int part = thread; part < parts; part += THREADS) top = fmaxf(top, ends[2 * part]);
#pragma unroll
    for (int lane = 1; lane < 32; lane *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, lane));
    if (thread % 32 == 0) tops[thread / 32] = top;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) top = fmaxf(top, tops[warp]);
    const float from = top == -INFINITE ? 0 : top;
    float sum = 0, value[2] = {0, 0};
    for (int start = 0; start < parts; start += THREADS) {
        const int count = min(THREADS, parts - start);
        if (start > 0) __syncthreads();
        if (thread < count) {
            const float* end = ends + 2 * (start + thread);
            shares[thread] = power_of_two(end[0] - from);
            sums[thread] = end[1] * shares[thread];
        }
        __syncthreads();
        for (int part = 0; part < count; part++) sum += sums[part];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int column = THREADS * i + thread;
            if (column >= dim) continue;
#pragma unroll 8
            for (int part = 0; part < count; part++) {
                value[i] += values[(long long)(start + part) * dim + column] * shares[part];
            }
        }
    }
    const long long pair = line / rows;
    const int row = line % rows, head = pair % kv_heads;
    const long long position = pair / kv_heads * positions + row / group;
    u16* place = out + ((position * kv_heads + head) * group + row % group) * dim;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int column = THREADS * i + thread;
        if (column < dim) place[column] = to_half(value[i] / sum);
    }
}
