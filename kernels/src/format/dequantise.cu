// Stored numbers to fp16, sixteen stored bytes a thread. `aligned`: rows of both start at multiples of 16.

extern "C" __global__ void __launch_bounds__(256) dequantise(
    int format, const u8* weights, const u8* scales, int rows, int inputs, u16* out, int aligned
) {
    const int groups = (inputs + 63) / 64;
    const int bytes = format == INT4 ? 32 * groups : format == INT8 ? inputs : 2 * inputs;
    const int vectors = (bytes + 15) / 16;
    const long long index = (long long)blockIdx.x * 256 + threadIdx.x;
    const long long row = index / vectors;
    const int vector = index % vectors;
    if (row >= rows) return;
    if (!aligned) {
        const int first = format == INT4 ? vector / 2 * 64 + vector % 2 * 16 : format == INT8 ? 16 * vector
                                                                                             : 8 * vector;
        const int count = format == INT4 ? 32 : format == INT8 ? 16 : 8;
        for (int i = 0; i < count; i++) {
            const int column = first + i % 16 + i / 16 * 32;
            if (column < inputs) {
                out[row * inputs + column] = to_half(stored(format, weights, scales, row, inputs, column));
            }
        }
        return;
    }
    u32 words[4];
    load_words<4, true>(words, weights + row * bytes, 16 * vector, bytes);
    u16* to = out + row * inputs;
    if (format == INT4) {
        const u32 scale = *(const u32*)(scales + 4 * (row * groups + vector / 2));
        u32 low[8], high[8];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 halves[4];
            halves_of_int4(words[i], low_twice(scale), high_twice(scale), halves);
            low[2 * i] = __byte_perm(halves[0], halves[1], 0x5410);
            low[2 * i + 1] = __byte_perm(halves[0], halves[1], 0x7632);
            high[2 * i] = __byte_perm(halves[2], halves[3], 0x5410);
            high[2 * i + 1] = __byte_perm(halves[2], halves[3], 0x7632);
        }
        const int first = vector / 2 * 64 + vector % 2 * 16;
        // The last group of a row may be padded.
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (first + 8 * i < inputs) {
                *(uint4*)(to + first + 8 * i) =
                    make_uint4(low[4 * i], low[4 * i + 1], low[4 * i + 2], low[4 * i + 3]);
            }
            if (first + 32 + 8 * i < inputs) {
                *(uint4*)(to + first + 32 + 8 * i) =
                    make_uint4(high[4 * i], high[4 * i + 1], high[4 * i + 2], high[4 * i + 3]);
            }
        }
    } else if (format == INT8) {
        const u32 scale = low_twice(load2(scales + 2 * row));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 a, b, c, d;
            halves_of_int8(words[2 * i], a, b);
            halves_of_int8(words[2 * i + 1], c, d);
            *(uint4*)(to + 16 * vector + 8 * i) = make_uint4(
                mul_halves(a, scale), mul_halves(b, scale), mul_halves(c, scale), mul_halves(d, scale)
            );
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            words[i] = format == FP16 ? words[i] : halves_of_16_bits<BF16>(words[i]);
        }
        *(uint4*)(to + 8 * vector) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}
