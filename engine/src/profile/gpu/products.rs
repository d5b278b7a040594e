//! Kernels over the shapes that models need.

use std::time::Duration;

use pipo_kernels::attention::Heads;
use pipo_kernels::cuda::{Attention, DeviceCache, DeviceMatrix, DeviceVector};
use pipo_kernels::{Format, format::matrix_bytes};
use pipo_plan::machine::AttentionTime;
use pipo_plan::model::Precision;
use pipo_plan::units::{Bytes, Nanos};

use super::super::kernels::{Attended, Product};
use super::super::machine::by;
use super::super::sampling::{Middle, Sampler};
use super::super::{ProfileError, Settings};
use super::Bench;
use crate::decoder::format;
use crate::executor::Fault;
use crate::store::in_memory;

/// Outputs and inputs of the matrices: those of models from 1 to 70 billion parameters.
///
/// A matrix is priced in proportion to the nearest one here, and small ones leave more of a device idle: those
/// of a small model are not a quarter of a large one's.
///
/// Sums of 2^14 numbers lie at strides that caches and memory like least, and are measured apart.
/// A few outputs of them are what a product in tiles makes at a time.
const SHAPES: [(usize, usize); 16] = [
    (512, 16384),
    (1024, 4096),
    (1024, 16384),
    (2048, 2048),
    (8192, 2048),
    (2048, 8192),
    (4096, 4096),
    (14336, 4096),
    (16384, 4096),
    (4096, 14336),
    (4096, 16384),
    (7168, 7168),
    (8192, 8192),
    (28672, 8192),
    (8192, 28672),
    (50272, 4096),
];

/// Rows that share a matrix.
const ROWS: [usize; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 8192];

/// Query heads of the attentions.
const QUERY_HEADS: usize = 32;

/// Sequences of the attentions: a table says what one of them takes among so many, and a few are between. A
/// single one may leave most of a device idle; where its prompt does not, eight take eight times as long.
const SEQUENCES: [usize; 2] = [8, 1];

/// Query heads that share a key, and features of a head.
const HEADS: [[usize; 2]; 4] = [[1, 64], [1, 128], [4, 128], [8, 128]];

/// New positions, and positions attended to.
const EXTENTS: [[usize; 2]; 6] =
    [[512, 512], [128, 512], [128, 128], [1, 8192], [1, 2048], [1, 512]];

/// Repetitions of what takes about `each`, so that a sample takes a millisecond.
fn repetitions(each: Duration) -> u32 {
    let nanos = each.as_nanos().max(1);
    u32::try_from(1_000_000 / nanos).unwrap_or(u32::MAX).clamp(1, 200)
}

/// How long the device rests after a sample: as long as that took. Products of many rows and nothing else draw
/// more power than a card may, and within some fifty milliseconds it lowers its clocks: by an eighth on an H200.
/// Between a prompt's products there is attention, and what reads and writes memory.
fn rest(sample: Duration) -> Duration {
    sample.min(Duration::from_millis(50))
}

pub(super) fn products(
    sampler: &mut Sampler,
    settings: &Settings,
    bench: &mut Bench,
) -> Result<Vec<Product>, ProfileError> {
    let mut products = Vec::new();
    // The other 16-bit format runs at the same speed.
    for precision in [Precision::Fp16, Precision::Int8, Precision::Int4] {
        for (outputs, inputs) in SHAPES.into_iter().filter(|(o, i)| o * i <= settings.largest) {
            for rows in ROWS.into_iter().filter(|&rows| rows <= settings.most_rows) {
                let (format, shape) = (format(precision), [rows, outputs, inputs]);
                bench.multiply(format, shape)?;
                let count = repetitions(bench.time(1, |bench| bench.multiply(format, shape))?);
                let size = format!("{precision} {rows} x {outputs} x {inputs}");
                let time = sampler.measure("gpu.kernels", &size, || {
                    let time = bench.time(count, |bench| bench.multiply(format, shape))?;
                    std::thread::sleep(rest(time * count));
                    Ok::<_, Fault>(time)
                })?;
                products.push(Product { precision, rows, outputs, inputs, time });
            }
        }
    }
    Ok(products)
}

pub(super) fn attentions(
    sampler: &mut Sampler,
    bench: &mut Bench,
) -> Result<Vec<Attended>, ProfileError> {
    let mut attentions = Vec::new();
    for precision in [Precision::Fp16, Precision::Int8, Precision::Int4] {
        for [rows, context] in EXTENTS {
            for [group, dim] in HEADS {
                for sequences in SEQUENCES {
                    let shape = [group, dim, rows, context, sequences];
                    attentions.push(attend(sampler, bench, precision, shape)?);
                }
            }
        }
    }
    Ok(attentions)
}

/// One of several sequences.
fn attend(
    sampler: &mut Sampler,
    bench: &mut Bench,
    precision: Precision,
    [group, dim, rows, context, sequences]: [usize; 5],
) -> Result<Attended, ProfileError> {
    let kv = QUERY_HEADS / group;
    let scale = 1.0 / (dim as f32).sqrt();
    let heads = Heads { query: QUERY_HEADS, kv, dim, window: None, scale };
    let plane = matrix_bytes(format(precision), (context * kv) as u64, dim as u64);
    let bytes = plane.unwrap_or(u64::MAX).saturating_mul(2 * sequences as u64);
    let mut once = |bench: &mut Bench| {
        let region = bench.next(bytes)?;
        let cache = DeviceCache::new(format(precision), sequences, context, kv, dim, region)?;
        let attention = Attention {
            q: bench.x,
            out: bench.out,
            cache: &cache,
            heads: &heads,
            first_position: context - rows,
            positions: rows,
            spare: bench.spare,
        };
        Ok(bench.kernels.attention(bench.stream.raw(), &attention)?)
    };
    once(bench)?;
    let count = repetitions(bench.time(1, &mut once)?);
    let size = format!(
        "{precision} {sequences} x {rows} x {context}, {QUERY_HEADS} heads of {dim} over {kv}"
    );
    let all = sampler.measure("gpu.attentions", &size, || bench.time(count, &mut once))?;
    let one = |nanos: u64| Nanos((nanos / sequences as u64).max(1));
    let time = Middle { median: one(all.median.0), ..all };
    let seen: usize = (context - rows..context).map(|position| position + 1).sum();
    let attention = AttentionTime {
        precision: precision.name().into(),
        rows: rows as u64,
        context: context as u64,
        heads: QUERY_HEADS as u64,
        kv_heads: kv as u64,
        head_dim: dim as u64,
        sequences: Some(sequences as u64),
        time: by(time.median, time),
    };
    Ok(Attended { attention, operations: 4 * (QUERY_HEADS * dim * seen) as u64, time })
}

/// Norms of many rows, as a schedule counts them: each reads and writes its rows once.
pub(super) fn elementwise(
    sampler: &mut Sampler,
    bench: &mut Bench,
) -> Result<(Bytes, Middle), ProfileError> {
    let (rows, width) = (4096, 4096);
    let mut once = |bench: &mut Bench| {
        let weight =
            DeviceVector::new(Format::Fp16, width, bench.weights.slice(0, 2 * width as u64)?)?;
        let stream = bench.stream.raw();
        Ok(bench.kernels.rms_norm(stream, bench.x, rows, &weight, 1e-5, bench.out)?)
    };
    once(bench)?;
    let size = format!("{rows} x {width}");
    let time = sampler.measure("gpu.elementwise", &size, || bench.time(20, &mut once))?;
    Ok((Bytes(4 * (rows * width) as u64), time))
}

pub(super) fn dequantise(
    sampler: &mut Sampler,
    bench: &mut Bench,
) -> Result<(Bytes, Middle), ProfileError> {
    let (outputs, inputs) = (8192, 8192);
    let bytes = matrix_bytes(Format::Int4, outputs, inputs).unwrap_or(u64::MAX);
    let mut once = |bench: &mut Bench| {
        let region = bench.next(bytes)?;
        let matrix =
            DeviceMatrix::new(Format::Int4, in_memory(outputs), in_memory(inputs), region)?;
        bench.kernels.dequantise(bench.stream.raw(), &matrix, bench.out)?;
        Ok(())
    };
    once(bench)?;
    let size = format!("{outputs} x {inputs}");
    let time = sampler.measure("gpu.dequantise", &size, || bench.time(20, &mut once))?;
    Ok((Bytes(2 * outputs * inputs), time))
}
