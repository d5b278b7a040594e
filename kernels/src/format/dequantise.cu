// Stored numbers to fp16, as many a thread as make 16 bytes, or of int4 twice 16: a warp then writes whole
// sectors. `aligned`: rows of both start at multiples of 16.

extern "C" __global__ void __launch_bounds__(256) dequantise(
    int format, const u8* weights, const u8* scales, int rows, int inputs, u16* out, int aligned
) {
    follow();
    const int groups = (inputs + 63) / 64;
    const int bytes = format == INT4 ? 32 * groups : format == INT8 ? inputs : 2 * inputs;
    const int each = format == INT4 || format == INT8 ? 8 : 16, vectors = (bytes + each - 1) / each;
    const long long index = (long long)blockIdx.x * 256 + threadIdx.x;
    const long long row = index / vectors;
    const int vector = index % vectors;
    if (row >= rows) return;
    // Of int4, eight numbers from here, and eight that are 32 further on.
    const int first = format == INT4 ? vector / 4 * 64 + vector % 4 * 8 : 8 * vector;
    const int second = format == INT4 ? first + 32 : inputs;
    u16* to = out + row * inputs;
    if (!aligned) {
        for (int i = 0; i < 16; i++) {
            const int column = (i < 8 ? first : second) + i % 8;
            if (column < inputs) to[column] = to_half(stored(format, weights, scales, row, inputs, column));
        }
        return;
    }
    u32 words[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0};
    const u8* from = weights + row * bytes + each * vector;
    if (each == 16) {
        load_aligned(words, from);
    } else {
        u32 pair[2];
        load_aligned(pair, from);
        words[0] = pair[0];
        words[1] = pair[1];
    }
    if (format == INT4) {
        const u32 scale = *(const u32*)(scales + 4 * (row * groups + vector / 4));
        u32 low[4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 halves[4];
            halves_of_int4(words[i], low_twice(scale), high_twice(scale), halves);
            low[2 * i] = __byte_perm(halves[0], halves[1], 0x5410);
            low[2 * i + 1] = __byte_perm(halves[0], halves[1], 0x7632);
            high[2 * i] = __byte_perm(halves[2], halves[3], 0x5410);
            high[2 * i + 1] = __byte_perm(halves[2], halves[3], 0x7632);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = low[i];
    } else if (format == INT8) {
        const u32 scale = low_twice(load2(scales + 2 * row)), a = words[0], b = words[1];
        halves_of_int8(a, words[0], words[1]);
        halves_of_int8(b, words[2], words[3]);
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = mul_halves(words[i], scale);
    } else if (format == BF16) {
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = halves_of_16_bits<BF16>(words[i]);
    }
    // The last group of a row may be padded.
    if (first < inputs) *(uint4*)(to + first) = make_uint4(words[0], words[1], words[2], words[3]);
    if (second < inputs) *(uint4*)(to + second) = make_uint4(high[0], high[1], high[2], high[3]);
}
