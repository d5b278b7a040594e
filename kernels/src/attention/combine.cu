// Adds up the parts of a split attention, in the order of the context. A block has one row.
//
// | | shape |
// |---|---|
// | partial | rows x parts x dim sums of values, then rows x parts pairs: largest score (base 2), sum |
// | out | sequences x positions x heads x dim, fp16 |

extern "C" __global__ void __launch_bounds__(128) combine(
    const float* partial, u16* out, int parts, int kv_heads, int group, int dim, int positions, int all
) {
    follow();
    const long long line = blockIdx.x;
    const float* ends = partial + (long long)all * parts * dim + line * parts * 2;
    float top = -INFINITE;
    for (int part = 0; part < parts; part++) top = fmaxf(top, ends[2 * part]);
    const float from = top == -INFINITE ? 0 : top;
    float sum = 0;
    for (int part = 0; part < parts; part++) sum += ends[2 * part + 1] * power_of_two(ends[2 * part] - from);
    const int rows = positions * group;
    const long long pair = line / rows;
    const int row = line % rows, head = pair % kv_heads;
    const long long position = pair / kv_heads * positions + row / group;
    u16* place = out + ((position * kv_heads + head) * group + row % group) * dim;
    for (int column = threadIdx.x; column < dim; column += 128) {
        float value = 0;
        for (int part = 0; part < parts; part++) {
            value += partial[(line * parts + part) * dim + column] * power_of_two(ends[2 * part] - from);
        }
        place[column] = to_half(value / sum);
    }
}
