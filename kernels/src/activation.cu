// Functions of fp16 numbers in place, eight a thread.

template <typename Function>
__device__ __forceinline__ void each(u16* x, const u16* y, long long count, Function function) {
    const long long first = 8 * ((long long)blockIdx.x * 256 + threadIdx.x);
    if (first >= count) return;
    if (first + 8 <= count && ((u64)x | (u64)y) % 16 == 0) {
        const uint4 a = *(const uint4*)(x + first);
        const uint4 b = y ? *(const uint4*)(y + first) : a;
        const u32 from[4] = {a.x, a.y, a.z, a.w}, with[4] = {b.x, b.y, b.z, b.w};
        u32 to[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[i] = to_halves(
                function(low_half(from[i]), low_half(with[i])), function(high_half(from[i]), high_half(with[i]))
            );
        }
        *(uint4*)(x + first) = make_uint4(to[0], to[1], to[2], to[3]);
        return;
    }
    for (long long i = first; i < count && i < first + 8; i++) {
        x[i] = to_half(function(from_half(x[i]), y ? from_half(y[i]) : 0));
    }
}

extern "C" __global__ void __launch_bounds__(256) relu(u16* x, long long count) {
    follow();
    each(x, nullptr, count, [](float x, float) { return activated(RELU, x); });
}

extern "C" __global__ void __launch_bounds__(256) gelu_tanh(u16* x, long long count) {
    follow();
    each(x, nullptr, count, [](float x, float) { return activated(GELU_TANH, x); });
}

extern "C" __global__ void __launch_bounds__(256) silu_gated(u16* gate, const u16* up, long long count) {
    follow();
    each(gate, up, count, [](float gate, float up) { return gate / (1 + exponential(-gate)) * up; });
}
