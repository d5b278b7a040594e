// Four-bit numbers are multiplied as they are, and scaled where there are fewer: scores and weights, not keys and
// values. A group's scale and minimum are those of 64 dimensions of a position, so a product has dimensions of one
// group, and what a minimum adds is that minimum times the sum of q, or of weights. A nibble in the lowest bits of a
// half is that many 2^-24, and in the next four that many 2^-20: tensor cores multiply such small numbers exactly.

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

#endif

