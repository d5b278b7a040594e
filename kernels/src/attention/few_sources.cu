// Where a warp's keys and values come from.

// Keys of the next step and values of this one on their way to registers, where those have room for them.
struct Loaded {
    static constexpr int SHARED = 0;

    const Cache keys, values;
    Run key_run, value_run;
    int half;
    Key key[2][KEY_LOADS];
    Values value;

    __device__ __forceinline__ Loaded(
        uint4*, const Cache& keys, const Cache& values, int begin, int stop, int half
    )
        : keys(keys), values(values), key_run(run_of(keys, begin, stop)), value_run(run_of(values, begin, stop)),
          half(half) {
        if (ROOMY && begin < stop) load_keys(key, keys, key_run);
    }

    __device__ __forceinline__ void score(const Query& query, float (&scores)[4], bool more) {
        if (!ROOMY) load_keys(key, keys, key_run);
        if (ROOMY) value.load(values, value_run, half);
        query.score(scores, key);
        // The next keys are on their way while these are weighed; at the end, the same again.
        if (more) advance(key_run, keys, WARPS * STEP);
        if (ROOMY) load_keys(key, keys, key_run);
        if (!ROOMY) value.load(values, value_run, half);
        advance(value_run, values, WARPS * STEP);
    }

    __device__ __forceinline__ void add(Mixture& mixture, const float (&weights)[4]) { mixture.add(value, weights); }
};

// Four-bit keys and values of 128 dimensions on their way through shared memory. From there lanes read the few bytes
// of a row that each multiplies; in the other memory such loads touch as many lines as there are rows, over and over.
// Each warp has a ring of its own, and sends for the positions of later steps while it works on those of one.

#define RING (FORMAT == INT4 && WIDTH == 128 && ALIGNED && __CUDA_ARCH__ >= 800)

#if RING

// Steps whose keys and values a warp has room for.
#define STAGES 3

// Bytes of 16 rows, and of their scales.
#define PLANE 1024
#define SCALES 128

// A stage has 16 rows of keys, 16 of values, and the scales of both. Rows of 64 bytes lie in pairs, and what differs
// in the lowest and the third bit of a position changes halves, so that those lanes find different banks that read at
// once: eight bytes each of four keys that follow each other, or four bytes each of every other of eight values.
struct Ring {
    static constexpr int STAGE = 2 * PLANE + 2 * SCALES;
    // In 16 bytes.
    static constexpr int SHARED = STAGES * STAGE / 16;

    // Where the lane's part of the next step is, and how far off values are.
    const u8* rows;
    const u8* scales;
    long long values;
    // From a step of the warp to its next, in bytes.
    long long rows_step, scales_step;
    // Positions that are not yet sent for.
    int left;
    // The ring, and the stages that are written and read.
    u32 start, to, from;
    // Within a stage, what the lane writes and reads.
    u32 row_to, scale_to, key_from, value_from, scale_from;

    // Where half `side` of a position's row begins: 32 bytes, a group.
    static __device__ __forceinline__ u32 place(u32 position, u32 side) {
        const u32 first = position % 2, second = position / 2 % 2, third = position / 4 % 2;
        return 512 * (position / 8) + 256 * third + 128 * first + 64 * second + 32 * (side ^ first ^ third);
    }

    __device__ __forceinline__ Ring(
        uint4* memory, const Cache& keys, const Cache& value_rows, int begin, int stop, int
    ) {
        const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        rows = keys.weights + (begin + (long long)g) * keys.weights_step + 16 * t;
        values = value_rows.weights - keys.weights;
        scales = keys.scales + (begin + (long long)(lane % 16)) * keys.scales_step + lane / 16 * values;
        rows_step = WARPS * STEP * keys.weights_step;
        scales_step = WARPS * STEP * keys.scales_step;
        left = stop - begin;
        start = to = from = address_of_shared(memory);
        row_to = place(g, t / 2) + 16 * (t % 2);
        scale_to = 2 * PLANE + 8 * lane;
        key_from = place(g, 0) + 8 * t;
        value_from = PLANE + place(2 * t, 0) + 4 * g;
        scale_from = 2 * PLANE + 8 * g;
        // Otherwise the compiler has these found again at every step.
        asm volatile("" : "+r"(row_to), "+r"(scale_to), "+r"(key_from), "+r"(value_from), "+r"(scale_from));
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) send();
    }

    // Sends for a step, if there is one. Positions that nobody sees are zeros.
    __device__ __forceinline__ void send() {
        if (left > 0) {
            const int position = threadIdx.x % 32 / 4;
            const u8* eight = rows + rows_step / (WARPS * STEP / 8);
            const u32 at = to + row_to;
            copy_or_zero<16>(at, rows, position < left);
            copy_or_zero<16>(at + PLANE / 2, eight, position + 8 < left);
            copy_or_zero<16>(at + PLANE, rows + values, position < left);
            copy_or_zero<16>(at + PLANE + PLANE / 2, eight + values, position + 8 < left);
            copy_or_zero<8>(to + scale_to, scales, (int)threadIdx.x % 16 < left);
            left -= WARPS * STEP;
            rows += rows_step;
            scales += scales_step;
        }
        end_group_of_copies();
        to = after(to);
    }

    __device__ __forceinline__ u32 after(u32 stage) const {
        return stage + STAGE == start + STAGES * STAGE ? start : stage + STAGE;
    }

    // A step begins with this: all lanes have read the stage that is written now.
    __device__ __forceinline__ void score(const Query& query, float (&scores)[4], bool) {
        Key key[2][KEY_LOADS];
        wait_for_copies_but<STAGES - 2>();
        __syncwarp();
        send();
        const u32 at = from + key_from, other = at ^ 32;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            load_shared(key[n][0].words, at + PLANE / 2 * n);
            load_shared(key[n][1 % KEY_LOADS].words, other + PLANE / 2 * n);
            u32 both[2];
            load_shared(both, from + scale_from + SCALES / 2 * n);
            key[n][0].scale[0] = both[0];
            key[n][1 % KEY_LOADS].scale[0] = both[1];
        }
        query.score(scores, key);
    }

    // And ends with this.
    __device__ __forceinline__ void add(Mixture& mixture, const float (&weights)[4]) {
        Values value;
        const u32 at = from + value_from, other = at ^ 32;
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < RUNS; j++) {
                u32 word[1];
                load_shared(word, (i % 2 == j ? at : other) + 128 * (i % 2) + PLANE / 2 * (i / 2));
                value.words[i][j] = word[0];
            }
        }
#pragma unroll
        for (int n = 0; n < 2; n++) {
            u32 both[2];
            load_shared(both, from + scale_from + SCALES + SCALES / 2 * n);
#pragma unroll
            for (int j = 0; j < RUNS; j++) value.scales[n][j] = both[j];
        }
        from = after(from);
        mixture.add(value, weights);
    }
};

#endif

#if RING
typedef Ring Source;
#else
typedef Loaded Source;
#endif

