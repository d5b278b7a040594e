// Sums of fp16 rows.

extern "C" __global__ void __launch_bounds__(256) add(u16* a, const u16* b, long long count) {
    follow();
    const long long first = 8 * ((long long)blockIdx.x * 256 + threadIdx.x);
    if (first + 8 <= count && ((u64)a | (u64)b) % 16 == 0) {
        const uint4 x = *(const uint4*)(a + first), y = *(const uint4*)(b + first);
        const u32 from[4] = {x.x, x.y, x.z, x.w}, with[4] = {y.x, y.y, y.z, y.w};
        u32 to[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[i] = to_halves(
                low_half(from[i]) + low_half(with[i]), high_half(from[i]) + high_half(with[i])
            );
        }
        *(uint4*)(a + first) = make_uint4(to[0], to[1], to[2], to[3]);
        return;
    }
    for (long long i = first; i < count && i < first + 8; i++) a[i] = to_half(from_half(a[i]) + from_half(b[i]));
}

// out = bias + residual, rows x outputs, before a product is added to it.
extern "C" __global__ void __launch_bounds__(256) prefill(
    const u8* bias, int bias_bf16, const u16* residual, u8* out, int wide, int rows, int outputs
) {
    follow();
    const int output = blockIdx.x * 256 + threadIdx.x;
    if (output >= outputs) return;
    const u16 bits = bias ? load2(bias + 2 * output) : 0;
    const float constant = bias_bf16 ? from_bf16(bits) : from_half(bits);
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        const long long place = row * outputs + output;
        const float sum = residual ? constant + from_half(residual[place]) : constant;
        if (wide) {
            ((float*)out)[place] = sum;
        } else {
            ((u16*)out)[place] = to_half(sum);
        }
    }
}

// x += bias for every row, rows x width, in place, and then an activation, if any.
extern "C" __global__ void __launch_bounds__(256) add_bias(
    u16* x, const u8* bias, int bias_bf16, int rows, int width, int then
) {
    follow();
    const int column = blockIdx.x * 256 + threadIdx.x;
    if (column >= width) return;
    const u16 bits = load2(bias + 2 * column);
    const float constant = bias_bf16 ? from_bf16(bits) : from_half(bits);
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        const long long place = row * width + column;
        const u16 sum = to_half(from_half(x[place]) + constant);
        x[place] = then == 0 ? sum : to_half(activated(then, from_half(sum)));
    }
}
