// Turns the heads of fp16 rows of q and k in place, each after its norm, where it has one. A row of the operands is
// a position's: `x` is sequences x positions x heads x dim.
//
// A warp has up to HEADS heads of a position. Lane i has the pairs i, i + 32, ...; of a pair, both halves of a
// head have one number.

#define HEADS 4
// Of a lane; a head has 256 dimensions at most.
#define PAIRS 4

// As the host passes it: every field has eight bytes.
struct Side {
    u16* x;
    // Null: no norm.
    const u16* weight;
    u64 weight_bf16;
    long long heads;
};

struct Sides {
    Side q, k;
};

extern "C" __global__ void __launch_bounds__(128) turn(
    // Null: no rotation.
    const float* frequencies, int rows, int positions, int dim, int first, float epsilon, const Sides sides
) {
    follow();
    const Side side = blockIdx.z == 0 ? sides.q : sides.k;
    const int heads = side.heads, half = dim / 2, lane = threadIdx.x % 32;
    const int first_head = HEADS * (blockIdx.y * 4 + threadIdx.x / 32);
    const int row = blockIdx.x;
    if (first_head >= heads) return;
    float sines[PAIRS] = {}, cosines[PAIRS] = {1, 1, 1, 1};
    if (frequencies) {
        const int position = first + row % positions;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int pair = lane + 32 * i;
            if (pair >= half) break;
            // The angle is rounded to a float, as everywhere else; its turns are then taken off in double
            // precision, so that sines of large angles are right.
            const double angle = __fmul_rn((float)position, frequencies[pair]);
            const float rest = (float)(angle - 6.283185307179586476925 * rint(angle * 0.15915494309189533577));
            sines[i] = __sinf(rest);
            cosines[i] = __cosf(rest);
        }
    }
#pragma unroll
    for (int head = first_head; head < first_head + HEADS; head++) {
        if (head >= heads) break;
        u16* place = side.x + ((long long)row * heads + head) * dim;
        float a[PAIRS], b[PAIRS], squares = 0;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int pair = lane + 32 * i;
            a[i] = pair < half ? from_half(place[pair]) : 0;
            b[i] = pair < half ? from_half(place[pair + half]) : 0;
            squares = fmaf(b[i], b[i], fmaf(a[i], a[i], squares));
        }
        const float factor = side.weight ? 1 / sqrtf(warp_sum(squares) / dim + epsilon) : 1;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int pair = lane + 32 * i;
            if (pair >= half) break;
            if (side.weight) {
                a[i] *= factor * from_vector(side.weight, side.weight_bf16, pair);
                b[i] *= factor * from_vector(side.weight, side.weight_bf16, pair + half);
            }
            place[pair] = to_half(a[i] * cosines[i] - b[i] * sines[i]);
            place[pair + half] = to_half(b[i] * cosines[i] + a[i] * sines[i]);
        }
    }
}
