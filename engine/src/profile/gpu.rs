//! A GPU: its link, its kernels over the shapes that models need, and what launching costs.
//!
//! Times are the device's own, read from events around several repetitions, so that neither the resolution
//! of an event nor the host counts. Weights are met in no cache: each product reads another part of an
//! arena that is larger than the second-level cache.

#![allow(unsafe_code, reason = "copies to and from a GPU are calls of a C interface")]

use std::time::{Duration, Instant};

use pipo_kernels::attention::Heads;
use pipo_kernels::cuda::{
    Attention, DeviceCache, DeviceMatrix, DeviceVector, Kernels, Linear, Out, Region, Then,
};
use pipo_kernels::{Format, Matrix, embedding, format::matrix_bytes};
use pipo_plan::machine::AttentionTime;
use pipo_plan::model::Precision;
use pipo_plan::units::{Bandwidth, Bytes, Nanos};

use rayon::prelude::*;

use super::machine::by;
use super::sampling::{Middle, Sampler};
use super::{ProfileError, Settings};
use crate::counters::{memory_at_first, memory_in_use};
use crate::cuda::driver::{Arena, Context, Event, Part, Pin, Stream};
use crate::decoder::format;
use crate::disk::AlignedBuf;
use crate::executor::Fault;
use crate::memory::Buffer;
use crate::store::in_memory;

use super::kernels::{Attended, Product};
use super::queues::{self, Crossings};
use super::scatter::scatter;

/// Outputs and inputs of the matrices: those of models from 7 to 70 billion parameters.
///
/// Sums of 2^14 numbers lie at strides that caches and memory like least, and are measured apart.
/// A few outputs of them are what a product in tiles makes at a time.
const SHAPES: [(usize, usize); 13] = [
    (512, 16384),
    (1024, 4096),
    (1024, 16384),
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

/// Sequences of the attentions: a table says what one of them takes among so many. A single token of a
/// single sequence leaves most of a device idle, and is measured as well.
const SEQUENCES: usize = 8;

/// Query heads that share a key, and features of a head.
const HEADS: [[usize; 2]; 4] = [[1, 64], [1, 128], [4, 128], [8, 128]];

/// New positions, and positions attended to.
const EXTENTS: [[usize; 2]; 6] =
    [[512, 512], [128, 512], [128, 128], [1, 8192], [1, 2048], [1, 512]];

/// Larger than any second-level cache, and room for the largest matrix twice.
const ARENA: u64 = 1 << 30;

/// Rows in and out, and what a product may overwrite.
const ROOM: u64 = 2 << 30;

/// Sizes of a copy.
const SIZES: [usize; 6] = [4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];

/// Bytes of host memory that copies walk through.
const HOST: usize = 512 << 20;

/// Bytes that are copied in one sample, at least.
const STRETCH: usize = 64 << 20;

/// What a GPU takes.
pub(super) struct Gpu {
    pub(super) name: String,
    pub(super) architecture: String,
    pub(super) memory: Bytes,
    /// What is not free once everything but a plan's own memory is there.
    pub(super) context: Bytes,
    pub(super) sms: u32,
    pub(super) h2d: Vec<(Bytes, Middle)>,
    pub(super) d2h: Vec<(Bytes, Middle)>,
    pub(super) pageable_h2d: Vec<(Bytes, Middle)>,
    pub(super) pageable_d2h: Vec<(Bytes, Middle)>,
    pub(super) duplex: (Bytes, Middle),
    pub(super) bandwidth: (Bytes, Middle),
    pub(super) products: Vec<Product>,
    pub(super) attentions: Vec<Attended>,
    pub(super) elementwise: (Bytes, Middle),
    pub(super) dequantise: (Bytes, Middle),
    pub(super) launch: Middle,
    /// The same, where they were launched well ahead.
    pub(super) gap: Middle,
    /// What an event behind a kernel adds.
    pub(super) mark: Middle,
    /// What a kernel takes longer behind one of another kind.
    pub(super) change: Middle,
    pub(super) sync: Middle,
    pub(super) crossings: Crossings,
    /// Rows of an embedding, looked up by all cores: the CUDA backend's way.
    pub(super) gather: (Bytes, Middle),
    /// A few of them, when the cores have nothing else to do.
    pub(super) lookup: Middle,
}

/// What is measured on.
struct Bench {
    stream: Stream,
    start: Event,
    end: Event,
    kernels: Kernels,
    /// Where weights are, and caches.
    weights: Region,
    /// Rows in, rows out, what may be overwritten.
    x: Region,
    out: Region,
    spare: Region,
    /// What was read last.
    at: u64,
}

impl Bench {
    /// What the device takes for each of `count` repetitions.
    fn time(
        &mut self,
        count: u32,
        mut work: impl FnMut(&mut Self) -> Result<(), Fault>,
    ) -> Result<Duration, Fault> {
        self.stream.record(&self.start)?;
        for _ in 0..count {
            work(self)?;
        }
        self.stream.record(&self.end)?;
        self.end.synchronise()?;
        let milliseconds = self.start.until(&self.end)?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds) / 1e3 / f64::from(count)))
    }

    /// The next part of the arena.
    fn next(&mut self, bytes: u64) -> Result<Region, Fault> {
        let start = if self.at + bytes > self.weights.bytes() { 0 } else { self.at };
        self.at = (start + bytes).next_multiple_of(256);
        Ok(self.weights.slice(start, bytes)?)
    }

    fn multiply(
        &mut self,
        format: Format,
        [rows, outputs, inputs]: [usize; 3],
    ) -> Result<(), Fault> {
        let bytes = matrix_bytes(format, outputs as u64, inputs as u64).unwrap_or(u64::MAX);
        let matrix = DeviceMatrix::new(format, outputs, inputs, self.next(bytes)?)?;
        let linear = Linear {
            x: self.x,
            rows,
            matrix: &matrix,
            bias: None,
            then: Then::Store,
            out: self.out,
            out_type: Out::Fp16,
            spare: self.spare,
        };
        Ok(self.kernels.linear(self.stream.raw(), &linear)?)
    }
}

/// Repetitions of what takes about `each`, so that a sample takes a millisecond.
fn repetitions(each: Duration) -> u32 {
    let nanos = each.as_nanos().max(1);
    u32::try_from(1_000_000 / nanos).unwrap_or(u32::MAX).clamp(1, 200)
}

pub(super) fn measure(sampler: &mut Sampler, settings: &Settings) -> Result<Gpu, ProfileError> {
    let before = memory_at_first();
    let context = Context::open().map_err(|error| Fault(error.to_string()))?;
    let (_, memory) = Context::memory()?;
    let mut arena = Arena::new("measuring", ARENA + 3 * ROOM + (64 << 20))
        .map_err(|error| Fault(error.to_string()))?;
    let [weights, x, out, spare, blas] =
        [ARENA, ROOM, ROOM, ROOM / 2, 32 << 20].map(|bytes| arena.take(Bytes(bytes)));
    let (weights, x) = (weights?, x?);
    let kernels = Kernels::load(context.architecture()?, blas?).map_err(Fault::from)?;
    let formats = Precision::ALL.map(format);
    for dim in [64, 128] {
        kernels.prepare(&formats, Format::Fp16, dim).map_err(Fault::from)?;
    }
    let (start, end) = (Event::new()?, Event::new()?);
    let part = settings.shape.sms.map(|sms| Part::new(&context, sms)).transpose()?;
    let (stream, at) = (part.as_ref().map_or_else(Stream::new, Part::stream)?, 0);
    let mut bench = Bench { stream, start, end, kernels, weights, x, out: out?, spare: spare?, at };
    for region in [weights, x] {
        scatter(&bench.stream, region)?;
    }
    // Wakes the clocks up.
    bench.time(20, |bench| bench.multiply(Format::Fp16, [2048, 8192, 8192]))?;
    let products = products(sampler, settings, &mut bench)?;
    let attentions = attentions(sampler, &mut bench)?;
    let (elementwise, dequantise) =
        (elementwise(sampler, &mut bench)?, dequantise(sampler, &mut bench)?);
    let launch = launch(sampler, &mut bench)?;
    let between = between(sampler, settings, &mut bench)?;
    let sync = sync(sampler, &mut bench)?;
    let bandwidth = bandwidth(sampler, &mut bench)?;
    let link = Link::new()?;
    let [h2d, d2h] = [true, false].map(|up| link.pinned(sampler, &mut bench, up));
    let [pageable_h2d, pageable_d2h] =
        [true, false].map(|up| link.pageable(sampler, &mut bench, up));
    let duplex = link.duplex(sampler, &mut bench)?;
    let crossings = link.crossings(sampler, &context, &bench)?;
    let gather = gather(sampler)?;
    // All of what a run loads has been loaded by now. NVML counts what the driver keeps for itself, too.
    let (free, _) = Context::memory()?;
    let grown = before.zip(memory_in_use()).map(|(before, after)| after - before);
    let in_use = grown.unwrap_or(memory - free);
    Ok(Gpu {
        name: settings.shape.name(&context.name()?),
        architecture: context.architecture()?.to_string(),
        memory,
        // What was measured on is a plan's to have, but for the scratch of libraries.
        context: in_use - Bytes(arena.all().bytes()) + Bytes(32 << 20),
        sms: settings.shape.sms.map_or_else(|| context.multiprocessors(), Ok)?,
        h2d: at_most(settings.shape.link, h2d?),
        d2h: at_most(settings.shape.link, d2h?),
        pageable_h2d: at_most(settings.shape.link, pageable_h2d?),
        pageable_d2h: at_most(settings.shape.link, pageable_d2h?),
        duplex: slowed(settings.shape.link.map(|rate| Bandwidth(2 * rate.0)), duplex),
        bandwidth,
        products,
        attentions,
        elementwise,
        dequantise,
        launch,
        gap: between.gap,
        mark: between.mark(),
        change: between.change(),
        sync,
        crossings,
        gather: gather.0,
        lookup: gather.1,
    })
}

/// How long cores are left alone before they have to look something up: longer than they stay awake for
/// more, about a step of decode.
const ASLEEP: Duration = Duration::from_millis(4);

/// Rows of a 4-bit embedding that lie far apart, by all cores in pieces: many of them, and a few.
fn gather(sampler: &mut Sampler) -> Result<((Bytes, Middle), Middle), ProfileError> {
    let (rows, outputs, inputs) = (4096_u32, 50_272_u32, 4096);
    let bytes = matrix_bytes(Format::Int4, u64::from(outputs), inputs as u64).unwrap_or(u64::MAX);
    let bytes = in_memory(bytes);
    let mut table = AlignedBuf::zeroed(bytes).ok_or(ProfileError::Memory(bytes))?;
    table.fill(0x20);
    let table = Matrix::new(Format::Int4, outputs as usize, inputs, &table)?;
    let tokens: Vec<u32> = (0..rows).map(|row| row * 1571 % outputs).collect();
    let mut stored = vec![0; 2 * inputs * tokens.len()];
    let mut look_up = |count: usize, piece: usize| {
        let pieces = tokens[..count].par_chunks(piece);
        pieces.zip(stored.par_chunks_mut(piece * 2 * inputs)).try_for_each(|(tokens, stored)| {
            let mut rows = vec![0.0; tokens.len() * inputs];
            embedding::lookup(&table, tokens, &mut rows)?;
            crate::half::round(&mut rows);
            crate::half::store(&rows, stored);
            Ok::<(), ProfileError>(())
        })
    };
    let size = format!("{rows} x {inputs} on all cores");
    let many = sampler.time("host.gather", &size, || look_up(tokens.len(), 64))?;
    let few = sampler.measure("software.lookup", &format!("8 x {inputs} on all cores"), || {
        std::thread::sleep(ASLEEP);
        let start = Instant::now();
        look_up(8, 1)?;
        Ok::<_, ProfileError>(start.elapsed())
    })?;
    Ok(((Bytes(2 * u64::from(rows) * inputs as u64), many), few))
}

/// Copies through a link that is held back.
fn at_most(rate: Option<Bandwidth>, curve: Vec<(Bytes, Middle)>) -> Vec<(Bytes, Middle)> {
    curve.into_iter().map(|point| slowed(rate, point)).collect()
}

/// What takes no less than a rate allows.
pub(super) fn slowed(rate: Option<Bandwidth>, (bytes, time): (Bytes, Middle)) -> (Bytes, Middle) {
    let least = rate.map_or(Nanos::ZERO, |rate| rate.time(bytes));
    (bytes, Middle { median: time.median.max(least), ..time })
}

fn products(
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
                    bench.time(count, |bench| bench.multiply(format, shape))
                })?;
                products.push(Product { precision, rows, outputs, inputs, time });
            }
        }
    }
    Ok(products)
}

fn attentions(sampler: &mut Sampler, bench: &mut Bench) -> Result<Vec<Attended>, ProfileError> {
    let mut attentions = Vec::new();
    for precision in [Precision::Fp16, Precision::Int8, Precision::Int4] {
        for [rows, context] in EXTENTS {
            for [group, dim] in HEADS {
                for sequences in if rows == 1 { &[SEQUENCES, 1][..] } else { &[SEQUENCES] } {
                    let shape = [group, dim, rows, context, *sequences];
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
fn elementwise(sampler: &mut Sampler, bench: &mut Bench) -> Result<(Bytes, Middle), ProfileError> {
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

fn dequantise(sampler: &mut Sampler, bench: &mut Bench) -> Result<(Bytes, Middle), ProfileError> {
    let (outputs, inputs) = (8192, 8192);
    let bytes = matrix_bytes(Format::Int4, outputs, inputs).unwrap_or(u64::MAX);
    let mut once = |bench: &mut Bench| {
        let region = bench.next(bytes)?;
        let matrix =
            DeviceMatrix::new(Format::Int4, in_memory(outputs), in_memory(inputs), region)?;
        Ok(bench.kernels.dequantise(bench.stream.raw(), &matrix, bench.out)?)
    };
    once(bench)?;
    let size = format!("{outputs} x {inputs}");
    let time = sampler.measure("gpu.dequantise", &size, || bench.time(20, &mut once))?;
    Ok((Bytes(2 * outputs * inputs), time))
}

/// Kernels that take next to nothing, one after another.
fn launch(sampler: &mut Sampler, bench: &mut Bench) -> Result<Middle, ProfileError> {
    let once =
        |bench: &mut Bench| Ok(bench.kernels.add(bench.stream.raw(), bench.x, bench.out, 8)?);
    Ok(sampler.measure("gpu.launch", "8 numbers", || bench.time(200, once))?)
}

/// What the device itself takes between kernels that the host has launched well ahead.
struct Between {
    /// From one kernel that has next to nothing to do to the next: norms of a single row.
    gap: Middle,
    /// The same with an event behind each.
    marked: Middle,
    /// A small product behind others of its kind.
    product: Middle,
    /// Such a norm and such a product in turn.
    both: Middle,
}

/// Measures behind products that take longer than the host needs to launch the rest.
fn between(
    sampler: &mut Sampler,
    settings: &Settings,
    bench: &mut Bench,
) -> Result<Between, ProfileError> {
    let (rows, width) = (settings.most_rows.min(8192), 4096);
    let (products, kernels) = if rows == 8192 { (2, 200) } else { (32, 50) };
    let weight = bench.weights.slice(0, 2 * width as u64).map_err(Fault::from)?;
    let weight = DeviceVector::new(Format::Fp16, width, weight).map_err(Fault::from)?;
    let norm = |bench: &mut Bench| {
        let stream = bench.stream.raw();
        Ok::<_, Fault>(bench.kernels.rms_norm(stream, bench.x, 1, &weight, 1e-5, bench.out)?)
    };
    let product = |bench: &mut Bench| bench.multiply(Format::Int4, [1, 1024, width]);
    let event = Event::new()?;
    let mut ahead = |figure, size: &str, work: &dyn Fn(&mut Bench) -> Result<(), Fault>| {
        work(bench)?;
        sampler.measure(figure, size, || {
            for _ in 0..products {
                bench.multiply(Format::Fp16, [rows, 8192, 8192])?;
            }
            bench.time(kernels, work)
        })
    };
    Ok(Between {
        gap: ahead("gpu.gap", "1 x 4096", &norm)?,
        marked: ahead("gpu.mark", "1 x 4096", &|bench| {
            norm(bench)?;
            bench.stream.record(&event)
        })?,
        product: ahead("gpu.change", "1 x 1024 x 4096", &product)?,
        both: ahead("gpu.change", "1 x 4096 and 1 x 1024 x 4096", &|bench| {
            norm(bench)?;
            product(bench)
        })?,
    })
}

impl Between {
    /// What an event behind a kernel adds.
    fn mark(&self) -> Middle {
        let median = self.marked.median - self.gap.median;
        Middle { median, ..self.marked }
    }

    /// What a kernel takes longer behind one of another kind than behind one of its own, whose code is at
    /// hand.
    fn change(&self) -> Middle {
        let alone = self.gap.median + self.product.median;
        Middle { median: Nanos((self.both.median - alone).0 / 2), ..self.both }
    }
}

/// Waiting for such a kernel, on the host's clock.
fn sync(sampler: &mut Sampler, bench: &mut Bench) -> Result<Middle, ProfileError> {
    let time = sampler.measure("gpu.sync", "8 numbers", || {
        let start = Instant::now();
        bench.kernels.add(bench.stream.raw(), bench.x, bench.out, 8)?;
        bench.stream.synchronise()?;
        Ok::<_, Fault>(start.elapsed())
    })?;
    Ok(time)
}

/// Copies within the device read and write.
fn bandwidth(sampler: &mut Sampler, bench: &mut Bench) -> Result<(Bytes, Middle), ProfileError> {
    let size = ARENA;
    let time = sampler.measure("gpu.memory_bandwidth", &Bytes(size).exact(), || {
        bench.time(4, |bench| bench.stream.copy(bench.weights, bench.x.slice(0, size)?))
    })?;
    Ok((Bytes(2 * size), time))
}

/// Host memory on both sides of a link.
struct Link {
    _pin: Option<Pin>,
    pinned: Buffer,
    pageable: Buffer,
    back: Stream,
}

impl Link {
    fn new() -> Result<Self, ProfileError> {
        let buffer = |name| {
            let buffer = Buffer::apart(name, Bytes(HOST as u64));
            buffer.map_err(|_| ProfileError::Memory(HOST))
        };
        let (pinned, pageable) = (buffer("pinned")?, buffer("pageable")?);
        // SAFETY: the buffer is never moved or resized, and the pin is dropped before it.
        let pin = unsafe { Pin::new(&pinned.read()?) }?;
        Ok(Self { _pin: pin, pinned, pageable, back: Stream::new()? })
    }

    /// Copies behind one another, which nobody waits for in between; the end of each is noted, as in a run.
    fn pinned(
        &self,
        sampler: &mut Sampler,
        bench: &mut Bench,
        up: bool,
    ) -> Result<Vec<(Bytes, Middle)>, ProfileError> {
        let figure = if up { "link.h2d" } else { "link.d2h" };
        let mark = Event::new()?;
        let mut curve = Vec::new();
        for size in SIZES {
            let count = (STRETCH / size).clamp(2, 256);
            let time = sampler.measure(figure, &Bytes(size as u64).exact(), || {
                let mut place = 0;
                let count = u32::try_from(count).unwrap_or(1);
                bench.time(count, |bench| {
                    place = (place + size) % (HOST - size);
                    copy(&bench.stream, bench.x, &self.pinned, place / 64 * 64, size, up)?;
                    bench.stream.record(&mark)
                })
            })?;
            curve.push((Bytes(size as u64), time));
        }
        Ok(curve)
    }

    /// Copies that the driver stages, each on the host's clock until it has ended.
    fn pageable(
        &self,
        sampler: &mut Sampler,
        bench: &mut Bench,
        up: bool,
    ) -> Result<Vec<(Bytes, Middle)>, ProfileError> {
        let figure = if up { "link.pageable_h2d" } else { "link.pageable_d2h" };
        let mut curve = Vec::new();
        for size in SIZES {
            let mut place = 0;
            let time = sampler.time(figure, &Bytes(size as u64).exact(), || {
                place = (place + size) % (HOST - size);
                copy(&bench.stream, bench.x, &self.pageable, place / 64 * 64, size, up)?;
                bench.stream.synchronise()
            })?;
            curve.push((Bytes(size as u64), time));
        }
        Ok(curve)
    }

    /// What passes between the device and threads of the host.
    fn crossings(
        &self,
        sampler: &mut Sampler,
        context: &Context,
        bench: &Bench,
    ) -> Result<Crossings, ProfileError> {
        let from = self.pinned.read()?;
        let bench = queues::Bench {
            context,
            kernels: &bench.kernels,
            to: bench.x.slice(0, queues::COPIED as u64).map_err(Fault::from)?,
            numbers: bench.out,
            from: &from[..queues::COPIED.min(from.len())],
        };
        queues::crossings(sampler, &bench)
    }

    /// Both ways at once.
    fn duplex(
        &self,
        sampler: &mut Sampler,
        bench: &mut Bench,
    ) -> Result<(Bytes, Middle), ProfileError> {
        let size = HOST / 2;
        let time = sampler.measure("link.duplex", &Bytes(HOST as u64).exact(), || {
            let start = Instant::now();
            copy(&bench.stream, bench.x, &self.pinned, 0, size, true)?;
            copy(&self.back, bench.out, &self.pinned, size, size, false)?;
            bench.stream.synchronise()?;
            self.back.synchronise()?;
            Ok::<_, Fault>(start.elapsed())
        })?;
        Ok((Bytes(HOST as u64), time))
    }
}

/// Queues a copy between a device and a place in host memory.
fn copy(
    stream: &Stream,
    device: Region,
    host: &Buffer,
    place: usize,
    size: usize,
    up: bool,
) -> Result<(), Fault> {
    let bytes = host.read()?;
    let bytes = bytes.get(place..place + size);
    let bytes = bytes.ok_or_else(|| Fault("a copy lies outside its buffer".into()))?;
    let device = device.slice(0, size as u64)?;
    // SAFETY: the buffer is given back only after the stream was waited for, and nobody looks at what is
    // in it.
    unsafe {
        if up {
            stream.upload(bytes, device)
        } else {
            stream.download(device, bytes.as_ptr().cast_mut(), size)
        }
    }
}
