// Turns the heads of fp16 rows in place: a thread turns one pair, of which both halves of a head have one
// number. `x` is sequences x positions x heads x dim.

extern "C" __global__ void __launch_bounds__(256) rotate(
    u16* x, const float* frequencies, int positions, int heads, int dim, int first
) {
    const long long row = blockIdx.x;
    const int index = blockIdx.y * 256 + threadIdx.x, half = dim / 2;
    if (index >= heads * half) return;
    const int head = index / half, pair = index % half;
    const int position = first + (int)(row % positions);
    // The angle is rounded to a float, as everywhere else; its turns are then taken off in double
    // precision, so that sines of large angles are right.
    const double angle = __fmul_rn((float)position, frequencies[pair]);
    const float rest = (float)(angle - 6.283185307179586476925 * rint(angle * 0.15915494309189533577));
    const float sine = __sinf(rest), cosine = __cosf(rest);
    u16* place = x + (row * heads + head) * dim + pair;
    const float a = from_half(place[0]), b = from_half(place[half]);
    place[0] = to_half(a * cosine - b * sine);
    place[half] = to_half(b * cosine + a * sine);
}
