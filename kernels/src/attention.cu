// Causal attention of grouped heads over a cache, with the softmax computed as positions pass.
//
// A kv head's rows are all pairs of a position and a query head of its group. A warp works on 16 rows and
// takes 16 positions of the context at a time:
//
//   scores (16 rows x 16 positions) = q (16 x dim) * keys^T,   sums (16 x dim) += weights (16 x 16) * values
//
// Both are products of tensor cores whose operands come straight from the cache into registers. Lane 4 g + t
// holds of q the rows g and g + 8, of keys the positions g and g + 8, and of values the positions 2 t, 2 t + 1,
// 2 t + 8 and 2 t + 9. In which order it holds dimensions is free, and chosen so that loads are wide.
//
// `whole`: a block of 4 warps has 64 rows, and every warp passes all that its rows see.
// `split`: a block has 16 rows and a part of the context, which its warps take in turn; where there are several
// such parts, `combine` adds them up.
// `split_few`, in attention/few.cu: the same for 8 rows at most.

#define WARPS 4
#define ROWS 16
#define STEP 16
// Words of keys that are loaded at once, and how often.
#define KEY_WORDS (FORMAT == INT4 ? 2 : 4)
#define KEY_LOADS (FORMAT == FP16 || FORMAT == BF16 ? WIDTH / 32 : WIDTH / 64)
// Words of halves that a lane has of a row of keys or of q.
#define INNER (WIDTH / 8)
// A warp sums at most 128 dimensions of the values: twice as many would not fit into registers. Where heads are
// wider, another block has the other half, and q is read again at every step.
#define OUT (WIDTH <= 128 ? WIDTH : 128)
// A lane has eight of each 64 dimensions, in so many loads of so many words.
#define RUNS (OUT / 64)
#define VALUE_LOADS (FORMAT == INT4 ? 1 : RUNS)
#define VALUE_WORDS (FORMAT == INT4 ? RUNS : FORMAT == INT8 ? 2 : 4)
#define ROOMY (WIDTH <= 128)
#define UNROLL (ROOMY ? KEY_LOADS : 1)

struct Cache {
    // The planes of one sequence and head.
    const u8* weights;
    const u8* scales;
    // From one position to the next, in bytes.
    long long weights_step;
    long long scales_step;
    // Bytes of a row.
    int row;
    int groups;
};

struct Shape {
    int group;
    int dim;
    int first;
    int positions;
    int window;
    int kv_heads;
    float scale;
    // Rows of all heads and sequences.
    long long lines;
};

// The number of a dimension: index `e` of the run `j` of column `n`.
__device__ __forceinline__ int value_dim(int j, int n, int e) {
    if (FORMAT != INT4) return 64 * j + 8 * n + e;
    const int word = RUNS * n + j;
    return word / 8 * 64 + word % 8 * 4 + e / 4 * 32 + e / 2 % 2 + e % 2 * 2;
}

// Where a row of q or out lies, in numbers.
__device__ __forceinline__ long long row_place(const Shape& shape, int sequence, int head, int row) {
    const long long position = (long long)sequence * shape.positions + row / shape.group;
    return ((position * shape.kv_heads + head) * shape.group + row % shape.group) * shape.dim;
}

// One load of a row of keys.
struct Key {
    u32 words[KEY_WORDS];
    u32 scale[1];
};

struct Value {
    u32 words[VALUE_LOADS][VALUE_WORDS];
    u32 scale;
};

// Words of halves of a load of keys.
__device__ __forceinline__ void decode_key(u32 (&halves)[INNER / KEY_LOADS], const Key& key) {
    const u32 scale = low_twice(key.scale[0]);
    if (FORMAT == INT4) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 out[4];
            halves_of_int4(key.words[i], scale, high_twice(key.scale[0]), out);
            halves[2 * i] = out[0];
            halves[2 * i + 1] = out[1];
            halves[(4 + 2 * i) % (INNER / KEY_LOADS)] = out[2];
            halves[(5 + 2 * i) % (INNER / KEY_LOADS)] = out[3];
        }
    } else if (FORMAT == INT8) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 low, high;
            halves_of_int8(key.words[i % KEY_WORDS], low, high);
            halves[2 * i % (INNER / KEY_LOADS)] = mul_halves(low, scale);
            halves[(2 * i + 1) % (INNER / KEY_LOADS)] = mul_halves(high, scale);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) halves[i] = halves_of_16_bits<FORMAT>(key.words[i % KEY_WORDS]);
    }
}

// The same dimensions of a row of q, in the same order.
__device__ __forceinline__ void load_q(
    u32 (&halves)[INNER / KEY_LOADS], const u8* row, int end, int j, int t
) {
    if (FORMAT == FP16 || FORMAT == BF16) {
        u32 words[4];
        load_words<4, ALIGNED>(words, row, 2 * (32 * j + 8 * t), end);
#pragma unroll
        for (int i = 0; i < 4; i++) halves[i] = words[i];
    } else {
        u32 words[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int dim = 64 * j + (FORMAT == INT4 ? 8 * t + 32 * i : 16 * t + 8 * i);
            load_words<4, ALIGNED>(words[i], row, 2 * dim, end);
        }
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            const u32 a = words[i / 4][i % 4], b = words[i / 4][i % 4 + 1];
            halves[i % (INNER / KEY_LOADS)] = FORMAT == INT4 ? __byte_perm(a, b, 0x5410) : a;
            halves[(i + 1) % (INNER / KEY_LOADS)] = FORMAT == INT4 ? __byte_perm(a, b, 0x7632) : b;
        }
    }
}

// The j-th run of a value, as `value_dim` numbers it.
__device__ __forceinline__ void decode_value(u32 (&halves)[4], const Value& value, int j) {
    if (FORMAT == INT4) {
        halves_of_int4(value.words[0][j % VALUE_WORDS], low_twice(value.scale), high_twice(value.scale), halves);
    } else if (FORMAT == INT8) {
        const u32 scale = low_twice(value.scale);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 low, high;
            halves_of_int8(value.words[j % VALUE_LOADS][i % VALUE_WORDS], low, high);
            halves[2 * i] = mul_halves(low, scale);
            halves[2 * i + 1] = mul_halves(high, scale);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            halves[i] = halves_of_16_bits<FORMAT>(value.words[j % VALUE_LOADS][i % VALUE_WORDS]);
        }
    }
}

// Words of a row that is there. What lies beyond an aligned row's end is its start: it meets zeros of q, or
// makes sums that nobody writes.
template <int N>
__device__ __forceinline__ void load_row(u32 (&words)[N], const u8* row, int offset, int end) {
    if (ALIGNED) {
        load_aligned(words, row + (offset < end ? offset : 0));
    } else {
        load_words<N, false>(words, row, offset, end);
    }
}

// Some positions of a cache that follow each other: those from `start` on, of which `last` is seen last. A
// position that nobody sees is replaced by that, and its score left out.
struct Run {
    const u8* weights;
    const u8* scales;
    int last;
};

__device__ __forceinline__ Run run_of(const Cache& cache, int start, int stop) {
    return {cache.weights + start * cache.weights_step, cache.scales + start * cache.scales_step, stop - 1 - start};
}

// Those so many positions further on.
__device__ __forceinline__ void advance(Run& run, const Cache& cache, int positions) {
    run.weights += positions * cache.weights_step;
    run.scales += positions * cache.scales_step;
    run.last -= positions;
}

// The scale of an int8 row, or the scale and minimum of an int4 group.
__device__ __forceinline__ u32 load_scale(const Cache& cache, const Run& run, u32 position, int group) {
    const u8* from = run.scales + position * (u64)(u32)cache.scales_step;
    if (FORMAT == INT8) return ALIGNED ? *(const u16*)from : load2(from);
    u32 word[1] = {0};
    if (FORMAT == INT4) load_row(word, from, 4 * group, 4 * cache.groups);
    return word[0];
}

// The j-th load of a position's keys.
__device__ __forceinline__ void load_key(Key& key, const Cache& cache, const Run& run, int position, int j, int t) {
    const u32 inside = min(position, run.last);
    const u8* row = run.weights + inside * (u64)(u32)cache.weights_step;
    const int lane = 4 * t * KEY_WORDS, offset = 16 * j * KEY_WORDS;
    if (FORMAT == INT4) {
        // A group is there or not, whichever part of it a lane has.
        load_row(key.words, row + lane, offset, cache.row);
    } else {
        load_row(key.words, row, offset + lane, cache.row);
    }
    key.scale[0] = load_scale(cache, run, inside, j);
}

__device__ __forceinline__ void load_keys(Key (&keys)[2][KEY_LOADS], const Cache& cache, const Run& run) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int j = 0; j < KEY_LOADS; j++) load_key(keys[n][j], cache, run, 8 * n + g, j, t);
    }
}

__device__ __forceinline__ void load_values(Value (&values)[4], const Cache& cache, const Run& run, int half) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 inside = min(2 * t + i % 2 + i / 2 * 8, run.last);
        const u8* row = run.weights + inside * (u64)(u32)cache.weights_step;
        // Bytes of the dimensions that other blocks sum, and of those that other lanes have.
        const int other = half * 32 * RUNS * (FORMAT == INT4 ? 1 : VALUE_WORDS);
#pragma unroll
        for (int j = 0; j < VALUE_LOADS; j++) {
            load_row(values[i].words[j], row, other + (32 * j + 4 * g) * VALUE_WORDS, cache.row);
        }
        if (FORMAT != INT4 && FORMAT != INT8) values[i].scale = 0;
        if (FORMAT == INT4) values[i].scale = load_scale(cache, run, inside, other / 32 + g * VALUE_WORDS / 8);
        if (FORMAT == INT8) values[i].scale = load_scale(cache, run, inside, 0);
    }
}

// What a warp knows of its rows g (index 0) and g + 8 (index 1): the largest score so far, the sum of
// exponentials, and their sum of values. Scores are in units of the base-2 logarithm.
struct State {
    float top[2];
    float sum[2];
    float values[OUT / 8][4];
};

// Passes the positions begin, begin + step, ..., 16 at each, up to `last`, which is the last that any row sees.
__device__ __forceinline__ void pass(
    State& state, const u8* q, const Cache& keys, const Cache& values, const Shape& shape, int sequence,
    int head, int half, int first_row, int begin, int step, int stop
) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int rows = shape.positions * shape.group;
    const float factor = shape.scale * 1.4426950408889634f;
    const u8* q_rows[2];
    int q_ends[2], seen[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = first_row + g + 8 * i;
        const int inside = row < rows ? row : 0;
        q_rows[i] = q + 2 * row_place(shape, sequence, head, inside);
        q_ends[i] = row < rows ? 2 * shape.dim : 0;
        seen[i] = shape.first + inside / shape.group;
    }
    u32 kept[ROOMY ? KEY_LOADS : 1][2][INNER / KEY_LOADS];
    if (ROOMY) {
#pragma unroll
        for (int j = 0; j < KEY_LOADS; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) load_q(kept[j % (ROOMY ? KEY_LOADS : 1)][i], q_rows[i], q_ends[i], j, t);
        }
    }
    Key ahead[2][KEY_LOADS];
    if (ROOMY && begin < stop) load_keys(ahead, keys, run_of(keys, begin, stop));
#pragma unroll 1
    for (int start = begin; start < stop; start += step) {
        Value value[4];
        if (ROOMY) load_values(value, values, run_of(values, start, stop), half);
        float scores[2][4] = {};
#pragma unroll UNROLL
        for (int j = 0; j < KEY_LOADS; j++) {
            u32 left[2][INNER / KEY_LOADS], right[INNER / KEY_LOADS];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (ROOMY) {
#pragma unroll
                    for (int w = 0; w < INNER / KEY_LOADS; w++) {
                        left[i][w] = kept[j % (ROOMY ? KEY_LOADS : 1)][i][w];
                    }
                } else {
                    load_q(left[i], q_rows[i], q_ends[i], j, t);
                }
            }
#pragma unroll
            for (int n = 0; n < 2; n++) {
                // A loop that is not unrolled cannot choose a register.
                Key& key = ahead[n][ROOMY ? j : 0];
                if (!ROOMY) load_key(key, keys, run_of(keys, start, stop), 8 * n + g, j, t);
                decode_key(right, key);
#pragma unroll
                for (int w = 0; w < INNER / KEY_LOADS; w += 2) {
                    multiply(
                        scores[n], left[0][w], left[1][w], left[0][w + 1], left[1][w + 1], right[w], right[w + 1]
                    );
                }
            }
        }
        if (ROOMY) load_keys(ahead, keys, run_of(keys, start + step < stop ? start + step : start, stop));
        float keep[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float top = state.top[i];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float& score = scores[n / 2][2 * i + n % 2];
                const int position = start + n / 2 * 8 + 2 * t + n % 2;
                const bool sees = position <= seen[i] && seen[i] - position < shape.window;
                score = sees ? score * factor : -INFINITE;
                top = fmaxf(top, score);
            }
            top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
            // A row that has seen nothing yet has nothing to keep, and no difference of infinities.
            const float base = top == -INFINITE ? 0 : top;
            keep[i] = power_of_two(state.top[i] - base);
            state.top[i] = top;
            float sum = 0;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float& score = scores[n / 2][2 * i + n % 2];
                score = power_of_two(score - base);
                sum += score;
            }
            // The four lanes' parts of the sum are added at the end.
            state.sum[i] = state.sum[i] * keep[i] + sum;
        }
        if (__any_sync(0xffffffff, keep[0] != 1 || keep[1] != 1)) {
#pragma unroll
            for (int d = 0; d < OUT / 8; d++) {
#pragma unroll
                for (int i = 0; i < 4; i++) state.values[d][i] *= keep[i / 2];
            }
        }
        u32 weights[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            weights[i] = to_halves(scores[i / 2][i % 2 * 2], scores[i / 2][i % 2 * 2 + 1]);
        }
        if (!ROOMY) load_values(value, values, run_of(values, start, stop), half);
#pragma unroll
        for (int j = 0; j < RUNS; j++) {
            u32 halves[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) decode_value(halves[i], value[i], j);
#pragma unroll
            for (int e = 0; e < 8; e++) {
                const u32 order = e % 2 ? 0x7632 : 0x5410;
                multiply(
                    state.values[8 * j + e], weights[0], weights[1], weights[2], weights[3],
                    __byte_perm(halves[0][e / 2], halves[1][e / 2], order),
                    __byte_perm(halves[2][e / 2], halves[3][e / 2], order)
                );
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        state.sum[i] += __shfl_xor_sync(0xffffffff, state.sum[i], 1);
        state.sum[i] += __shfl_xor_sync(0xffffffff, state.sum[i], 2);
    }
}

__device__ __forceinline__ void clear(State& state) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        state.top[i] = -INFINITE;
        state.sum[i] = 0;
    }
#pragma unroll
    for (int d = 0; d < OUT / 8; d++) {
#pragma unroll
        for (int i = 0; i < 4; i++) state.values[d][i] = 0;
    }
}

// The plane of a sequence that starts at `plane`, for one head.
__device__ __forceinline__ Cache cache_of(const u8* plane, long long scales, int dim, int heads, int head) {
    Cache cache;
    // Aligned rows of up to 128 dimensions have a unit of their own, by groups.
    cache.groups = ALIGNED && WIDTH <= 128 ? WIDTH / 64 : (dim + 63) / 64;
    cache.row = FORMAT == INT4 ? 32 * cache.groups : FORMAT == INT8 ? dim : 2 * dim;
    const int scales_row = FORMAT == INT4 ? 4 * cache.groups : FORMAT == INT8 ? 2 : 0;
    cache.weights = plane + (long long)head * cache.row;
    cache.scales = plane + scales + (long long)head * scales_row;
    cache.weights_step = (long long)heads * cache.row;
    cache.scales_step = (long long)heads * scales_row;
    return cache;
}

// The first position that any of some rows sees, down to a multiple of 16.
__device__ __forceinline__ int first_seen(const Shape& shape, int row) {
    const int start = shape.first + row / shape.group - shape.window + 1;
    return start > 0 ? start / STEP * STEP : 0;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) whole(
    const u8* q, u8* out, float*, const u8* cache, long long plane, long long scales, int kv_heads, int group,
    int dim, int first, int positions, int window, float scale, int, int
) {
    wait_for_earlier();
    const Shape shape = {group, dim, first, positions, window, kv_heads, scale, 0};
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int sequence = blockIdx.y / kv_heads, head = blockIdx.y % kv_heads;
    const int rows = positions * group, half = blockIdx.z;
    // The last rows see most: they start first.
    const int first_row = ((gridDim.x - 1 - blockIdx.x) * WARPS + warp) * ROWS;
    if (first_row >= rows) return;
    const u8* base = cache + sequence * 2 * plane;
    const Cache keys = cache_of(base, scales, dim, kv_heads, head);
    const Cache values = cache_of(base + plane, scales, dim, kv_heads, head);
    const int last_row = min(first_row + ROWS, rows) - 1;
    State state;
    clear(state);
    const int begin = first_seen(shape, first_row);
    pass(state, q, keys, values, shape, sequence, head, half, first_row, begin, STEP, first + last_row / group + 1);
    let_next_start();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = first_row + g + 8 * i;
        if (row >= rows) continue;
        u16* place = (u16*)out + row_place(shape, sequence, head, row);
        const float share = 1 / state.sum[i];
#pragma unroll
        for (int j = 0; j < OUT / 64; j++) {
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float numbers[8];
#pragma unroll
                for (int e = 0; e < 8; e++) numbers[e] = state.values[8 * j + e][2 * i + n] * share;
#pragma unroll
                for (int run = 0; run < 2; run++) {
                    // Four dimensions in a row, whichever order they were loaded in.
                    const int start = OUT * half + value_dim(j, 2 * t + n, 4 * run);
                    const float a = numbers[4 * run], d = numbers[4 * run + 3];
                    const float b = numbers[4 * run + (FORMAT == INT4 ? 2 : 1)];
                    const float c = numbers[4 * run + (FORMAT == INT4 ? 1 : 2)];
                    if (ALIGNED) {
                        if (start < dim) {
                            *(uint2*)(place + start) = make_uint2(to_halves(a, b), to_halves(c, d));
                        }
                    } else {
                        if (start < dim) place[start] = to_half(a);
                        if (start + 1 < dim) place[start + 1] = to_half(b);
                        if (start + 2 < dim) place[start + 2] = to_half(c);
                        if (start + 3 < dim) place[start + 3] = to_half(d);
                    }
                }
            }
        }
    }
}

// What each warp of a block has summed of N rows. One more number in a row keeps the lanes of a warp, which have
// other rows and every eighth dimension, from each other's banks.
template <int N>
using Mixed = float[WARPS][N][OUT + 1];

// Writes what a block has of some rows: the result, or a part of it.
template <int N>
__device__ __forceinline__ void write_part(
    const Shape& shape, const float (&tops)[WARPS][N], const float (&sums)[WARPS][N], const Mixed<N>& mixed,
    u8* out, float* partial, int sequence, int head, int half, int first_row, int part, int parts
) {
    const int rows = shape.positions * shape.group, present = min(N, rows - first_row);
    for (int i = threadIdx.x; i < present * OUT; i += 32 * WARPS) {
        const int row = i / OUT, column = OUT * half + i % OUT;
        if (column >= shape.dim) continue;
        float top = -INFINITE;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w][row]);
        const float from = top == -INFINITE ? 0 : top;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += sums[w][row] * power_of_two(tops[w][row] - from);
        // Warp by warp, so that the order of the sum is written.
        float value = mixed[0][row][i % OUT];
#pragma unroll
        for (int w = 1; w < WARPS; w++) value += mixed[w][row][i % OUT];
        if (parts == 1) {
            const long long place = row_place(shape, sequence, head, first_row + row) + column;
            ((u16*)out)[place] = to_half(value / sum);
            continue;
        }
        const long long line = ((long long)sequence * shape.kv_heads + head) * rows + first_row + row;
        partial[(line * parts + part) * shape.dim + column] = value;
        if (column == 0) {
            float* ends = partial + shape.lines * parts * shape.dim + (line * parts + part) * 2;
            ends[0] = top;
            ends[1] = sum;
        }
    }
}

// One block a multiprocessor is enough: given less room, the compiler spills a few registers.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) split(
    const u8* q, u8* out, float* partial, const u8* cache, long long plane, long long scales, int kv_heads,
    int group, int dim, int first, int positions, int window, float scale, int first_part, int length
) {
    wait_for_earlier();
    __shared__ float tops[WARPS][ROWS];
    __shared__ float sums[WARPS][ROWS];
    __shared__ Mixed<ROWS> mixed;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int rows = positions * group, tiles = (rows + ROWS - 1) / ROWS;
    const long long lines = (long long)gridDim.z / tiles * kv_heads * rows;
    const Shape shape = {group, dim, first, positions, window, kv_heads, scale, lines};
    const int head = blockIdx.x % kv_heads, half = blockIdx.x / kv_heads, part = blockIdx.y, parts = gridDim.y;
    const int sequence = blockIdx.z / tiles, first_row = blockIdx.z % tiles * ROWS;
    const u8* base = cache + sequence * 2 * plane;
    const Cache keys = cache_of(base, scales, dim, kv_heads, head);
    const Cache values = cache_of(base + plane, scales, dim, kv_heads, head);
    const int last_row = min(first_row + ROWS, rows) - 1;
    const int start = (first_part + part) * length;
    const int stop = min(start + length, first + last_row / group + 1);
    // Steps before what the first row sees are left out; which warp takes which step stays the same.
    int begin = start + warp * STEP;
    const int sees = first_seen(shape, first_row);
    if (begin < sees) begin += (sees - begin + WARPS * STEP - 1) / (WARPS * STEP) * (WARPS * STEP);
    State state;
    clear(state);
    pass(state, q, keys, values, shape, sequence, head, half, first_row, begin, WARPS * STEP, stop);
    let_next_start();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (t == 0) {
            tops[warp][g + 8 * i] = state.top[i];
            sums[warp][g + 8 * i] = state.sum[i];
        }
    }
    __syncthreads();
    float keep[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float top = -INFINITE;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w][g + 8 * i]);
        keep[i] = power_of_two(state.top[i] - (top == -INFINITE ? 0 : top));
    }
#pragma unroll
    for (int d = 0; d < OUT / 8; d++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int column = value_dim(d / 8, 2 * t + i % 2, d % 8);
            mixed[warp][g + i / 2 * 8][column] = state.values[d][i] * keep[i / 2];
        }
    }
    __syncthreads();
    write_part(shape, tops, sums, mixed, out, partial, sequence, head, half, first_row, part, parts);
}
