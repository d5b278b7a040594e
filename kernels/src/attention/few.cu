// Attention of a block's part of the context for 8 rows at most, as `split` does it for 16, with both products turned
// round, so that no half of them is empty:
//
//   scores (16 positions x 8 rows) = keys * q^T (dim x 8),   sums (dim x 8) += values^T * weights (16 x 8)
//
// Here lane 4 g + t holds of q the row g.
//
// Keys and values come through registers (`Loaded`), or through shared memory (`Ring`); both are in few_sources.cu.
// The kernel is in split_few.cu, and how four-bit numbers are multiplied in few_int4.cu.

#define FEW 8

// An 8 x 8 matrix of halves turned round: lane 4 g + t gives row g, columns 2 t and 2 t + 1, and gets column g.
__device__ __forceinline__ u32 transposed(u32 word) {
    u32 out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(word));
    return out;
}

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

#if FORMAT != INT4

// Keys and values are decoded before they are multiplied.

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

