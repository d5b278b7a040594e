
// x += bias for every row, rows x width, in place.
extern "C" __global__ void __launch_bounds__(256) add_bias(
    u16* x, const u8* bias, int bias_bf16, int rows, int width
) {
    const int column = blockIdx.x * 256 + threadIdx.x;
    if (column >= width) return;
    const u16 bits = load2(bias + 2 * column);
    const float constant = bias_bf16 ? from_bf16(bits) : from_half(bits);
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        const long long place = row * width + column;
        x[place] = to_half(from_half(x[place]) + constant);
    }
}
