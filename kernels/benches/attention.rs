//! Attention of single tokens of eight sequences over 544 positions, by the CPU: bytes of the cache a second,
//! from memory and none from a cache.

#![allow(clippy::expect_used, reason = "a benchmark without its cache has nothing to measure")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pipo_kernels::attention::{Heads, attentions, caches};
use pipo_kernels::format::Layout;
use pipo_kernels::{Cpu, Format};

const SEQUENCES: usize = 8;
const POSITIONS: usize = 544;
const QUERY_HEADS: usize = 32;

/// Formats, query heads of a kv head, and head dimensions.
const CASES: [(Format, usize, usize); 5] = [
    (Format::Fp16, 1, 64),
    (Format::Fp16, 1, 128),
    (Format::Fp16, 4, 128),
    (Format::Int8, 1, 128),
    (Format::Int4, 1, 128),
];

/// Far more than a processor's caches.
const ARENA: usize = 512 << 20;

fn decode(c: &mut Criterion) {
    // Every 16 bits are 0.0078.
    let arena: Vec<u8> = [0x00, 0x20].into_iter().cycle().take(ARENA).collect();
    let mut bench = c.benchmark_group("attention/decode");
    for threads in [1, std::thread::available_parallelism().map_or(1, usize::from)] {
        let cpu = Cpu::new(threads);
        for (format, group, dim) in CASES {
            let heads = Heads {
                query: QUERY_HEADS,
                kv: QUERY_HEADS / group,
                dim,
                window: None,
                scale: 0.1,
            };
            let q = vec![0.1; SEQUENCES * QUERY_HEADS * dim];
            let mut out = vec![0.0; q.len()];
            let rows = POSITIONS * heads.kv;
            let plane = Layout::new(format, rows, dim).expect("a size");
            let bytes = 2 * plane.bytes() * SEQUENCES;
            bench.throughput(Throughput::Bytes(bytes as u64));
            let mut places = arena.chunks_exact(bytes).cycle();
            let name = format!("{format:?}, group {group}, dim {dim}");
            bench.bench_function(BenchmarkId::new(name, format!("{threads} threads")), |b| {
                b.iter(|| {
                    let place = places.next().unwrap_or_default();
                    let caches = caches(&plane, place).expect("planes");
                    attentions(&cpu, &heads, &q, POSITIONS - 1, &caches, &mut out).expect("shapes");
                    black_box(&out);
                });
            });
        }
    }
    bench.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
