// A copy by multiprocessors, 16 bytes a thread: for what must not stand in line for a copy engine.

extern "C" __global__ void __launch_bounds__(256) copied(u8* to, const u8* from, long long bytes) {
    follow();
    const long long first = 16 * ((long long)blockIdx.x * 256 + threadIdx.x);
    if (first + 16 <= bytes && ((u64)to | (u64)from) % 16 == 0) {
        *(uint4*)(to + first) = *(const uint4*)(from + first);
        return;
    }
    for (long long i = first; i < bytes && i < first + 16; i++) to[i] = from[i];
}
