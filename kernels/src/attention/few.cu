// Attention of a block's part of the context for 8 rows at most, as `split` does it for 16, with both products turned
// round, so that no half of them is empty:
//
//   scores (16 positions x 8 rows) = keys * q^T (dim x 8),   sums (dim x 8) += values^T * weights (16 x 8)
//
// Here lane 4 g + t holds of q the row g.
//
// Four-bit numbers are multiplied as they are, and scaled where there are fewer: scores and weights, not keys and
// values. A group's scale and minimum are those of 64 dimensions of a position, so a product has dimensions of one
// group, and what a minimum adds is that minimum times the sum of q, or of weights. A nibble in the lowest bits of a
// half is that many 2^-24, and in the next four that many 2^-20: tensor cores multiply such small numbers exactly.

#define FEW 8

// An 8 x 8 matrix of halves turned round: lane 4 g + t gives row g, columns 2 t and 2 t + 1, and gets column g.
__device__ __forceinline__ u32 transposed(u32 word) {
    u32 out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(word));
    return out;
}

// Blocks for which a multiprocessor must have room: four where they fit without spilling, zero where the assembler
// decides.
#if __CUDA_ARCH__ >= 1200
#define FOUR 0
#else
#define FOUR (WIDTH == 128 && (FORMAT == INT4 || FORMAT == INT8 && (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900)))
#endif
#define FEW_BLOCKS (!ROOMY && ALIGNED ? 1 : FOUR ? 4 : __CUDA_ARCH__ >= 1200 && FORMAT == INT4 && WIDTH == 128 ? 3 : 0)

// Sums of a lane's two rows for a block's dimensions.
typedef float Mix[OUT / 16][4];

// What is left of them where a larger score has come.
__device__ __forceinline__ void shrink(Mix& mix, const float (&share)[2]) {
#pragma unroll
    for (int d = 0; d < OUT / 16; d++) {
#pragma unroll
        for (int i = 0; i < 4; i++) mix[d][i] *= share[i % 2];
    }
}

#if FORMAT == INT4

#define NIBBLE 5.9604644775390625e-8f // 2^-24

// Nibbles as halves: the low ones of bytes 0 and 2, those of 1 and 3, and the high ones, which are 16 times as large.
__device__ __forceinline__ void nibbles(u32 word, u32 (&out)[4]) {
    const u32 next = word >> 8;
    out[0] = word & 0x000f000f;
    out[1] = next & 0x000f000f;
    out[2] = word & 0x00f000f0;
    out[3] = next & 0x00f000f0;
}

// q as the lane multiplies it, and its sums by group for the rows that the lane has scores of.
struct Query {
    u32 words[KEY_LOADS][INNER / KEY_LOADS];
    float sums[KEY_LOADS][2];

    __device__ __forceinline__ Query(const u8* row, int dim) {
        const int t = threadIdx.x % 4;
#pragma unroll
        for (int j = 0; j < KEY_LOADS; j++) {
            load_q(words[j], row, 2 * dim, j, t);
            float sum = 0;
#pragma unroll
            for (int w = 0; w < 8; w++) sum += low_half(words[j][w]) + high_half(words[j][w]);
            sum += __shfl_xor_sync(0xffffffff, sum, 1);
            sum += __shfl_xor_sync(0xffffffff, sum, 2);
#pragma unroll
            for (int i = 0; i < 2; i++) sums[j][i] = NIBBLE * __shfl_sync(0xffffffff, sum, 4 * (2 * t + i));
            // What meets the high nibbles: a 16th, 0x2c00.
#pragma unroll
            for (int w = 4; w < 8; w++) words[j][w] = mul_halves(words[j][w], 0x2c002c00);
        }
    }

    // In units of `unit()`.
    __device__ __forceinline__ void score(float (&scores)[4], const Key (&key)[2][KEY_LOADS]) const {
#pragma unroll
        for (int j = 0; j < KEY_LOADS; j++) {
            float of_group[4] = {};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                u32 low[4], high[4];
                nibbles(key[0][j].words[i], low);
                nibbles(key[1][j].words[i], high);
#pragma unroll
                for (int w = 0; w < 4; w += 2) {
                    const u32 (&right)[8] = words[j];
                    const int at = 2 * w + 2 * i;
                    multiply(of_group, low[w], high[w], low[w + 1], high[w + 1], right[at], right[at + 1]);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 scale = key[i / 2][j].scale[0];
                scores[i] = fmaf(of_group[i], low_half(scale), scores[i]);
                scores[i] = fmaf(sums[j][i % 2], high_half(scale), scores[i]);
            }
        }
    }

    static __device__ __forceinline__ float unit() { return 1 / NIBBLE; }
};

// Of each of a block's groups, four dimensions and their high nibbles of the positions 2 t, 2 t + 1, 2 t + 8 and
// 2 t + 9, and the scales of the positions g and g + 8.
struct Values {
    u32 words[4][RUNS];
    u32 scales[2][RUNS];

    __device__ __forceinline__ void load(const Cache& cache, const Run& run, int half) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 inside = min(2 * t + i % 2 + i / 2 * 8, run.last);
            const u8* row = run.weights + inside * (u64)(u32)cache.weights_step + 4 * g;
#pragma unroll
            for (int j = 0; j < RUNS; j++) {
                u32 word[1];
                load_row(word, row, 32 * (half * RUNS + j), cache.row);
                words[i][j] = word[0];
            }
        }
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const u32 inside = min(8 * n + g, run.last);
#pragma unroll
            for (int j = 0; j < RUNS; j++) scales[n][j] = load_scale(cache, run, inside, half * RUNS + j);
        }
    }
};

// What values and weights add up to.
struct Mixture {
    Mix mix = {};
    // Weights times minimums, of the lane's positions alone.
    float minimums[RUNS][2] = {};

    __device__ __forceinline__ void keep(const float (&share)[2]) {
        shrink(mix, share);
#pragma unroll
        for (int j = 0; j < RUNS; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) minimums[j][i] *= share[i];
        }
    }

    __device__ __forceinline__ void add(const Values& values, const float (&weights)[4]) {
#pragma unroll
        for (int j = 0; j < RUNS; j++) {
            u32 right[2];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const float scale = low_half(values.scales[n][j]), minimum = high_half(values.scales[n][j]);
                right[n] = transposed(to_halves(weights[2 * n] * scale, weights[2 * n + 1] * scale));
#pragma unroll
                for (int i = 0; i < 2; i++) minimums[j][i] = fmaf(weights[2 * n + i], minimum, minimums[j][i]);
            }
            // Two positions' bytes 0 and 1, and 2 and 3, side by side, so that a half of each is a position's.
            u32 halves[2][2][4];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const u32 a = values.words[2 * n][j], b = values.words[2 * n + 1][j];
                nibbles(__byte_perm(a, b, 0x5410), halves[n][0]);
                nibbles(__byte_perm(a, b, 0x7632), halves[n][1]);
            }
#pragma unroll
            for (int m = 0; m < 4; m++) {
                multiply(
                    mix[4 * j + m], halves[0][0][m], halves[0][1][m], halves[1][0][m], halves[1][1][m], right[0],
                    right[1]
                );
            }
        }
    }

    // As numbers, when all is added.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int j = 0; j < RUNS; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int lane = 4; lane < 32; lane *= 2) {
                    minimums[j][i] += __shfl_xor_sync(0xffffffff, minimums[j][i], lane);
                }
            }
#pragma unroll
            for (int m = 0; m < 4; m++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float& sum = mix[4 * j + m][i];
                    sum = fmaf(sum, m < 2 ? 1 / NIBBLE : 1 / (16 * NIBBLE), minimums[j][i % 2]);
                }
            }
        }
    }

    // The dimension of which a lane has sums: index `e` of eight of the run `j`.
    static __device__ __forceinline__ int dim(int j, int e) {
        return 64 * j + (int)threadIdx.x % 32 / 4 * 4 + e / 4 * 32 + e / 2 % 2 + e % 2 * 2;
    }
};

#else

struct Query {
    u32 words[KEY_LOADS][INNER / KEY_LOADS];

    __device__ __forceinline__ Query(const u8* row, int dim) {
#pragma unroll
        for (int j = 0; j < KEY_LOADS; j++) load_q(words[j], row, 2 * dim, j, threadIdx.x % 4);
    }

    __device__ __forceinline__ void score(float (&scores)[4], const Key (&key)[2][KEY_LOADS]) const {
#pragma unroll
        for (int j = 0; j < KEY_LOADS; j++) {
            u32 low[INNER / KEY_LOADS], high[INNER / KEY_LOADS];
            decode_key(low, key[0][j]);
            decode_key(high, key[1][j]);
#pragma unroll
            for (int w = 0; w < INNER / KEY_LOADS; w += 2) {
                multiply(scores, low[w], high[w], low[w + 1], high[w + 1], words[j][w], words[j][w + 1]);
            }
        }
    }

    static __device__ __forceinline__ float unit() { return 1; }
};

struct Values {
    Value value[4];

    __device__ __forceinline__ void load(const Cache& cache, const Run& run, int half) {
        load_values(value, cache, run, half);
    }
};

struct Mixture {
    Mix mix = {};

    __device__ __forceinline__ void keep(const float (&share)[2]) { shrink(mix, share); }

    __device__ __forceinline__ void add(const Values& values, const float (&weights)[4]) {
        const u32 right[2] = {
            transposed(to_halves(weights[0], weights[1])), transposed(to_halves(weights[2], weights[3]))
        };
#pragma unroll
        for (int j = 0; j < RUNS; j++) {
            u32 halves[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) decode_value(halves[i], values.value[i], j);
#pragma unroll
            for (int m = 0; m < 4; m++) {
                multiply(
                    mix[4 * j + m], __byte_perm(halves[0][m], halves[1][m], 0x5410),
                    __byte_perm(halves[0][m], halves[1][m], 0x7632),
                    __byte_perm(halves[2][m], halves[3][m], 0x5410),
                    __byte_perm(halves[2][m], halves[3][m], 0x7632), right[0], right[1]
                );
            }
        }
    }

    __device__ __forceinline__ void finish() {}

    static __device__ __forceinline__ int dim(int j, int e) { return value_dim(j, threadIdx.x % 32 / 4, e); }
};

#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS, FEW_BLOCKS) split_few(
    const u8* q, u8* out, float* partial, const u8* cache, long long plane, long long scales, int kv_heads,
    int group, int dim, int first, int positions, int window, float scale, int first_part, int length
) {
    wait_for_earlier();
    __shared__ float tops[WARPS][FEW];
    __shared__ float sums[WARPS][FEW];
    __shared__ Mixed<FEW> mixed;
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
    Key key[2][KEY_LOADS];
    Run key_run = run_of(keys, begin, stop), value_run = run_of(values, begin, stop);
    if (ROOMY && begin < stop) load_keys(key, keys, key_run);
    const Query query(q + 2 * row_place(shape, sequence, head, min(g, rows - 1)), dim);
    // The positions of the rows 2 t and 2 t + 1.
    const int seen[2] = {first + min(2 * t, rows - 1) / group, first + min(2 * t + 1, rows - 1) / group};
    float top[2] = {-INFINITE, -INFINITE}, sum[2] = {0, 0};
    Mixture mixture;

#pragma unroll 1
    for (int at = begin; at < stop; at += WARPS * STEP) {
        Values value;
        if (!ROOMY) load_keys(key, keys, key_run);
        if (ROOMY) value.load(values, value_run, half);
        float scores[4] = {};
        query.score(scores, key);
        // The next keys are on their way while these are weighed; at the end, the same again.
        if (at + WARPS * STEP < stop) advance(key_run, keys, WARPS * STEP);
        if (ROOMY) load_keys(key, keys, key_run);
        if (!ROOMY) value.load(values, value_run, half);
        advance(value_run, values, WARPS * STEP);
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
        mixture.add(value, scores);
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
