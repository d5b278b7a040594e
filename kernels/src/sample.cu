// The lowest index of the largest of each row, or a mark where a number is not finite. A block has one row.

extern "C" __global__ void __launch_bounds__(1024) argmax(const float* logits, int vocabulary, u32* out) {
    follow();
    __shared__ float values[32];
    __shared__ int indices[32];
    __shared__ int wrong[32];
    const float* row = logits + (long long)blockIdx.x * vocabulary;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float best = -INFINITE;
    int index = 0x7fffffff, bad = 0;
    for (int i = threadIdx.x; i < vocabulary; i += 1024) {
        const float value = row[i];
        // False for infinities and for what is not a number.
        if (!(fabsf(value) < INFINITE)) bad = 1;
        if (value > best) {
            best = value;
            index = i;
        }
    }
    auto join = [&](float other, int at, int other_bad) {
        bad |= other_bad;
        if (other > best || (other == best && at < index)) {
            best = other;
            index = at;
        }
    };
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffff, best, step);
        const int at = __shfl_xor_sync(0xffffffff, index, step);
        join(other, at, __shfl_xor_sync(0xffffffff, bad, step));
    }
    if (lane == 0) {
        values[warp] = best;
        indices[warp] = index;
        wrong[warp] = bad;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < 32; i++) join(values[i], indices[i], wrong[i]);
        out[blockIdx.x] = bad ? 0xffffffff : (u32)index;
    }
}
