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

// Eight numbers of a vector at any address from `column` on; zeros without a vector, and beyond its end.
__device__ __forceinline__ void constants(float (&to)[8], const u8* vector, int bf16, int column, int width) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const u16 bits = vector && column + i < width ? load2(vector + 2 * (column + i)) : 0;
        to[i] = bf16 ? from_bf16(bits) : from_half(bits);
    }
}

// Rows x width in eights: block y takes every so many rows, so that what belongs to a column is read once for some
// of them. Numbers go 16 bytes at a time where memory allows, one by one elsewhere.
template <typename Eight, typename One>
__device__ __forceinline__ void columns(bool whole, int column, int rows, int width, Eight eight, One one) {
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        const long long place = row * width + column;
        if (whole) {
            eight(place);
        } else {
            for (int i = 0; i < 8 && column + i < width; i++) one(place + i, i);
        }
    }
}

// out = bias + residual, rows x outputs, before a product is added to it.
extern "C" __global__ void __launch_bounds__(256) prefill(
    const u8* bias, int bias_bf16, const u16* residual, u8* out, int wide, int rows, int outputs
) {
    follow();
    const int column = 8 * (blockIdx.x * 256 + threadIdx.x);
    if (column >= outputs) return;
    float bases[8];
    constants(bases, bias, bias_bf16, column, outputs);
    const bool whole = !wide && outputs % 8 == 0 && ((u64)residual | (u64)out) % 16 == 0;
    columns(
        whole, column, rows, outputs,
        [&](long long place) {
            const uint4 none = make_uint4(0, 0, 0, 0);
            const uint4 loaded = residual ? *(const uint4*)(residual + place) : none;
            const u32 from[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
            u32 to[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                to[i] = to_halves(bases[2 * i] + low_half(from[i]), bases[2 * i + 1] + high_half(from[i]));
            }
            *(uint4*)((u16*)out + place) = make_uint4(to[0], to[1], to[2], to[3]);
        },
        [&](long long place, int i) {
            const float sum = residual ? bases[i] + from_half(residual[place]) : bases[i];
            if (wide) {
                ((float*)out)[place] = sum;
            } else {
                ((u16*)out)[place] = to_half(sum);
            }
        }
    );
}

// x += bias for every row, rows x width, in place, and then an activation, if any.
extern "C" __global__ void __launch_bounds__(256) add_bias(
    u16* x, const u8* bias, int bias_bf16, int rows, int width, int then
) {
    follow();
    const int column = 8 * (blockIdx.x * 256 + threadIdx.x);
    if (column >= width) return;
    float bases[8];
    constants(bases, bias, bias_bf16, column, width);
    const auto finished = [&](float x, float base) {
        const float sum = from_half(to_half(x + base));
        return then == 0 ? sum : activated(then, sum);
    };
    columns(
        width % 8 == 0 && (u64)x % 16 == 0, column, rows, width,
        [&](long long place) {
            const uint4 loaded = *(const uint4*)(x + place);
            const u32 from[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
            u32 to[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                to[i] = to_halves(
                    finished(low_half(from[i]), bases[2 * i]), finished(high_half(from[i]), bases[2 * i + 1])
                );
            }
            *(uint4*)(x + place) = make_uint4(to[0], to[1], to[2], to[3]);
        },
        [&](long long place, int i) { x[place] = to_half(finished(from_half(x[place]), bases[i])); }
    );
}
