// Rows of a stored table. A block has 256 columns of one row.

extern "C" __global__ void __launch_bounds__(256) embed(
    const u32* tokens, int format, const u8* weights, const u8* scales, int vocabulary, int width, u16* out
) {
    follow();
    const long long row = blockIdx.x;
    const int column = blockIdx.y * 256 + threadIdx.x;
    if (column >= width) return;
    const u32 token = tokens[row];
    const float value =
        token < vocabulary ? stored(format, weights, scales, token, width, column) : NOT_A_NUMBER;
    out[row * width + column] = to_half(value);
}

extern "C" __global__ void __launch_bounds__(256) add_positions(
    int format, const u8* weights, const u8* scales, int width, int start, int positions, u16* x
) {
    follow();
    const long long row = blockIdx.x;
    const int column = blockIdx.y * 256 + threadIdx.x;
    if (column >= width) return;
    u16* place = x + row * width + column;
    const float value = stored(format, weights, scales, start + row % positions, width, column);
    *place = to_half(from_half(*place) + value);
}
