// The choice of experts, and the sum of what they say.

// A warp has one row of logits. The most likely expert is taken `top` times.
extern "C" __global__ void __launch_bounds__(256) route(
    const float* logits, int rows, int experts, int top, int renormalise, float* weights
) {
    follow();
    const int lane = threadIdx.x % 32, row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    logits += (long long)row * experts;
    weights += (long long)row * experts;
    // Bit i: whether expert lane + 32 i is taken. There are at most 256.
    u32 taken = 0;
    float largest = 0, sum = 0;
    for (int turn = 0; turn < top; turn++) {
        float best = -INFINITE;
        int index = 0x7fffffff;
        for (int i = 0; lane + 32 * i < experts; i++) {
            const float logit = logits[lane + 32 * i];
            // What is not a number counts as less than all others but minus infinity.
            const float value = logit == logit ? logit : -3.402823466e38f;
            if (!(taken >> i & 1) && (value > best || index == 0x7fffffff)) {
                best = value;
                index = lane + 32 * i;
            }
        }
        for (int step = 16; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(0xffffffff, best, step);
            const int at = __shfl_xor_sync(0xffffffff, index, step);
            if (at != 0x7fffffff && (index == 0x7fffffff || other > best || (other == best && at < index))) {
                best = other;
                index = at;
            }
        }
        if (turn == 0) largest = best;
        if (index % 32 == lane) taken |= 1u << index / 32;
        if (renormalise) sum += best >= largest ? 1 : expf(best - largest);
    }
    if (!renormalise) {
        for (int i = 0; i < experts; i++) {
            const float value = logits[i] == logits[i] ? logits[i] : -3.402823466e38f;
            sum += value >= largest ? 1 : expf(value - largest);
        }
    }
    for (int i = 0; lane + 32 * i < experts; i++) {
        const float logit = logits[lane + 32 * i];
        const float value = logit == logit ? logit : -3.402823466e38f;
        const float likely = value >= largest ? 1 : expf(value - largest);
        weights[lane + 32 * i] = taken >> i & 1 ? likely / sum : 0;
    }
}

extern "C" __global__ void __launch_bounds__(256) add_expert(
    const float* weights, int experts, int expert, const u16* x, int width, int first, u16* out
) {
    follow();
    const long long row = blockIdx.x;
    const int column = blockIdx.y * 256 + threadIdx.x;
    if (column >= width) return;
    const float weight = weights[row * experts + expert];
    u16* place = out + row * width + column;
    if (weight == 0) {
        if (first) *place = 0;
        return;
    }
    const float before = first ? 0 : from_half(*place);
    *place = to_half(fmaf(weight, from_half(x[row * width + column]), before));
}
