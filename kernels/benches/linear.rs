//! Multiplication by a 4096 x 11008 matrix: bytes of weights a second where one row is multiplied, beside
//! reading as many bytes and copying them, all from memory and none from a cache, and operations a second where 64 rows are.

#![allow(clippy::expect_used, reason = "a benchmark without its matrix has nothing to measure")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pipo_kernels::format::{Layout, quantise_rows};
use pipo_kernels::linear::linear;
use pipo_kernels::{Cpu, Format, Matrix};

const OUTPUTS: usize = 4096;
const INPUTS: usize = 11008;
const FORMATS: [Format; 4] = [Format::Fp16, Format::Bf16, Format::Int8, Format::Int4];

/// Numbers between -1 and 1 that are cheap to make.
fn values(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / f32::from(u16::MAX) / 128.0 - 1.0
    };
    (0..count).map(next).collect()
}

fn stored(format: Format, outputs: usize) -> Vec<u8> {
    let layout = Layout::new(format, outputs, INPUTS).expect("a matrix that fits in memory");
    let mut bytes = vec![0; layout.bytes()];
    let (weights, scales) = bytes.split_at_mut(layout.weights(0..outputs).end);
    let rows = values(64 * INPUTS);
    for (weights, scales) in weights.chunks_mut(64 * layout.weights_row).zip(
        scales
            .chunks_mut((64 * layout.scales_row).max(1))
            .chain(std::iter::repeat_with(<&mut [u8]>::default)),
    ) {
        quantise_rows(&layout, &rows, weights, scales).expect("whole rows");
    }
    bytes
}

/// Reads every byte, in as many pieces as there are threads, and each in four places at once, as a product
/// of four outputs does: one stream of reads is slower.
fn read(cpu: &Cpu, bytes: &[u8]) {
    let pieces = bytes.chunks(bytes.len().div_ceil(4 * cpu.pool().threads())).collect();
    cpu.pool().for_each(pieces, |piece: &[u8]| {
        let mut streams = piece.as_chunks::<64>().0.chunks(piece.len().div_ceil(4 * 64));
        let [a, b, c, d] = std::array::from_fn(|_| streams.next().unwrap_or_default());
        let mut sums = [0_u64; 8];
        for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
            for line in [a, b, c, d] {
                for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
            }
        }
        black_box(sums);
    });
}

fn copy(cpu: &Cpu, bytes: &[u8], to: &mut [u8]) {
    let size = bytes.len().div_ceil(4 * cpu.pool().threads());
    let pieces = bytes.chunks(size).zip(to.chunks_mut(size)).collect();
    cpu.pool().for_each(pieces, |(from, to): (&[u8], &mut [u8])| to.copy_from_slice(from));
}

/// Outputs of a matrix that stays in a core's own cache: what instructions alone allow.
const CACHED: usize = 64;

/// More than caches hold: matrices of so many bytes take turns.
const ARENA: usize = 512 << 20;

fn decode(c: &mut Criterion) {
    let (x, mut out) = (values(INPUTS), vec![0.0; OUTPUTS]);
    for format in FORMATS {
        let one = stored(format, OUTPUTS);
        let arena = one.repeat(ARENA.div_ceil(one.len()));
        let mut matrices = arena.chunks_exact(one.len()).cycle();
        let mut next = || matrices.next().expect("at least one matrix");
        let mut group = c.benchmark_group(format!("decode/{format}"));
        group.sample_size(20).throughput(Throughput::Bytes(one.len() as u64));
        let mut to = vec![0; one.len()];
        for threads in [1, 2] {
            let cpu = Cpu::new(threads);
            group.bench_function(BenchmarkId::new("linear", threads), |b| {
                b.iter(|| {
                    let matrix = Matrix::new(format, OUTPUTS, INPUTS, next()).expect("its bytes");
                    linear(&cpu, &x, 1, &matrix, None, &mut out).expect("matching shapes");
                });
            });
            group.bench_function(BenchmarkId::new("read", threads), |b| {
                b.iter(|| read(&cpu, next()));
            });
            group.bench_function(BenchmarkId::new("memcpy", threads), |b| {
                b.iter(|| copy(&cpu, next(), &mut to));
            });
        }
        let few = stored(format, CACHED);
        let matrix = Matrix::new(format, CACHED, INPUTS, &few).expect("its bytes");
        let cpu = Cpu::new(1);
        group.throughput(Throughput::Bytes(few.len() as u64));
        group.bench_function(BenchmarkId::new("linear, cached", 1), |b| {
            b.iter(|| {
                linear(&cpu, &x, 1, &matrix, None, &mut out[..CACHED]).expect("matching shapes");
            });
        });
        group.finish();
    }
}

fn prefill(c: &mut Criterion) {
    const ROWS: usize = 64;
    let (x, mut out) = (values(ROWS * INPUTS), vec![0.0; ROWS * OUTPUTS]);
    for format in FORMATS {
        let bytes = stored(format, OUTPUTS);
        let matrix = Matrix::new(format, OUTPUTS, INPUTS, &bytes).expect("its own bytes");
        let mut group = c.benchmark_group(format!("prefill/{format}"));
        // Elements are floating-point operations: Gelem/s is GFLOP/s.
        let operations = 2 * ROWS * OUTPUTS * INPUTS;
        group.sample_size(10).throughput(Throughput::Elements(operations as u64));
        for threads in [1, 2] {
            let cpu = Cpu::new(threads);
            group.bench_function(BenchmarkId::new("linear", threads), |b| {
                b.iter(|| {
                    linear(&cpu, &x, ROWS, &matrix, None, &mut out).expect("matching shapes");
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decode, prefill);
criterion_main!(benches);
