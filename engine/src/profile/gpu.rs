//! A GPU: its link, its kernels over the shapes that models need, and what launching costs.
//!
//! Times are the device's own, read from events around several repetitions, so that neither the resolution
//! of an event nor the host counts. Weights are met in no cache: each product reads another part of an
//! arena that is larger than the second-level cache.

use std::time::Duration;

use pipo_kernels::cuda::{DeviceMatrix, Kernels, Linear, Out, Region, Then};
use pipo_kernels::{Format, format::matrix_bytes};
use pipo_plan::model::Precision;
use pipo_plan::units::{Bandwidth, Bytes, Nanos};

use super::kernels::{Attended, Product};
use super::sampling::{Middle, Sampler};
use super::{ProfileError, Settings};
use crate::counters::{memory_at_first, memory_in_use};
use crate::cuda::driver::{Arena, Context, Event, Part, Stream};
use crate::decoder::format;
use crate::executor::Fault;

mod launches;
mod link;
mod lookup;
mod products;
mod queues;
mod scatter;

use launches::{between, launch, sync};
use link::Link;
use lookup::gather;
use products::{attentions, dequantise, elementwise, products};
pub(super) use queues::Crossings;
use scatter::scatter;

/// Larger than any second-level cache, and room for the largest matrix twice.
const ARENA: u64 = 1 << 30;

/// Rows in, rows out, and what a product may overwrite: 8192 rows of 50272 numbers take 0.8 GiB. With what is copied
/// that is 4.6 GiB in all, which a card of 6 GB has.
const ROOM: u64 = 1 << 30;

/// What is copied over the link, to and from it at once.
const COPIED: u64 = link::PINNED as u64;

/// Scratch of libraries.
const BLAS: u64 = 32 << 20;

/// What a GPU takes.
pub(super) struct Gpu {
    pub(super) name: String,
    pub(super) architecture: String,
    pub(super) memory: Bytes,
    /// What is not free once everything but a plan's own memory is there.
    pub(super) context: Bytes,
    pub(super) sms: u32,
    pub(super) compute: Compute,
    pub(super) across: Across,
}

/// What it does by itself.
pub(super) struct Compute {
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
}

/// What passes between it and the host.
pub(super) struct Across {
    pub(super) h2d: Vec<(Bytes, Middle)>,
    pub(super) d2h: Vec<(Bytes, Middle)>,
    pub(super) pageable_h2d: Vec<(Bytes, Middle)>,
    pub(super) pageable_d2h: Vec<(Bytes, Middle)>,
    pub(super) duplex: (Bytes, Middle),
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
    /// Rows in, which nothing writes: they must stay normal numbers. Rows out, what may be overwritten.
    x: Region,
    out: Region,
    spare: Region,
    /// What copies of the link and sums go to and come from.
    copied: Region,
    /// What was read last.
    at: u64,
}

impl Bench {
    /// Raises the clocks, which fall while nothing is computed.
    fn wake(&mut self) -> Result<Duration, Fault> {
        self.time(20, |bench| bench.multiply(Format::Fp16, [2048, 8192, 8192]))
    }

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

/// A GPU that is ready to be measured. Fields are dropped in order: what lies on the device before the device.
pub(super) struct Card {
    link: Link,
    /// Bytes that it copies in a second, and when it will have copied what was asked for.
    speed: f64,
    idle: Event,
    bench: Bench,
    _part: Option<Part>,
    arena: Arena,
    /// All memory of the device, and what was in use before it was touched.
    memory: Bytes,
    before: Option<Bytes>,
    context: Context,
}

impl Card {
    pub(super) fn open(settings: &Settings) -> Result<Self, ProfileError> {
        let before = memory_at_first();
        let context = Context::open().map_err(|error| Fault(error.to_string()))?;
        let (_, memory) = Context::memory()?;
        let mut arena = Arena::new("measuring", ARENA + 3 * ROOM + COPIED + 2 * BLAS)
            .map_err(|error| Fault(error.to_string()))?;
        let [weights, x, out, spare, copied, blas] =
            [ARENA, ROOM, ROOM, ROOM, COPIED, BLAS].map(|bytes| arena.take(Bytes(bytes)));
        let (weights, x, copied) = (weights?, x?, copied?);
        let sms = context.multiprocessors(&settings.shape)?;
        let kernels = Kernels::load(context.architecture()?, sms, blas?).map_err(Fault::from)?;
        let formats = Precision::ALL.map(format);
        for dim in [64, 128] {
            kernels.prepare(&formats, Format::Fp16, dim).map_err(Fault::from)?;
        }
        let (start, end) = (Event::new()?, Event::new()?);
        let part = settings.shape.sms.map(|sms| Part::new(&context, sms)).transpose()?;
        let stream = part.as_ref().map_or_else(Stream::new, Part::stream)?;
        let (out, spare) = (out?, spare?);
        let mut bench =
            Bench { stream, start, end, kernels, weights, x, out, spare, copied, at: 0 };
        for region in [weights, x, copied] {
            scatter(&bench.stream, region)?;
        }
        let (link, idle) = (Link::new()?, Event::new()?);
        bench.wake()?;
        let mut copied = Bytes::ZERO;
        let time = bench.time(1, |bench| {
            copied = link.queue(bench, Bytes(COPIED), &idle)?;
            Ok(())
        })?;
        // No link copies half a gigabyte in a millisecond.
        let speed = copied.as_f64() / time.as_secs_f64().max(1e-3);
        Ok(Self { link, speed, idle, bench, _part: part, arena, memory, before, context })
    }

    /// Has the link copy to the card for so long, if nothing slows it, and returns how much that is before it has
    /// begun: in a run weights cross the link whatever the cores do.
    pub(super) fn copy_for(&mut self, time: Duration) -> Result<Bytes, Fault> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole bytes of what is not negative and far below 2^63"
        )]
        let bytes = (self.speed * time.as_secs_f64()) as u64;
        self.link.queue(&self.bench, Bytes(bytes), &self.idle)
    }

    /// Whether the link still copies.
    pub(super) fn copies(&self) -> Result<bool, Fault> {
        Ok(!self.idle.has_happened()?)
    }

    /// Waits until it does no longer.
    pub(super) fn wait(&self) -> Result<(), Fault> {
        self.idle.synchronise()
    }

    /// What the card is called, and what it is made of.
    pub(super) fn name(&self, settings: &Settings) -> Result<String, ProfileError> {
        Ok(settings.shape.name(&self.context.name()?))
    }

    pub(super) fn measure(
        &mut self,
        sampler: &mut Sampler,
        settings: &Settings,
    ) -> Result<Gpu, ProfileError> {
        let compute = self.compute(sampler, settings)?;
        let across = self.across(sampler, settings)?;
        Ok(Gpu {
            name: self.name(settings)?,
            architecture: self.context.architecture()?.to_string(),
            memory: settings.shape.gpu_mem.unwrap_or(self.memory).min(self.memory),
            context: self.in_use()?,
            sms: self.context.multiprocessors(&settings.shape)?,
            compute,
            across,
        })
    }

    fn compute(
        &mut self,
        sampler: &mut Sampler,
        settings: &Settings,
    ) -> Result<Compute, ProfileError> {
        let bench = &mut self.bench;
        bench.wake()?;
        let products = products(sampler, settings, bench)?;
        let attentions = attentions(sampler, bench)?;
        let (elementwise, dequantise) = (elementwise(sampler, bench)?, dequantise(sampler, bench)?);
        let launch = launch(sampler, bench)?;
        let between = between(sampler, settings, bench)?;
        Ok(Compute {
            sync: sync(sampler, bench)?,
            bandwidth: bandwidth(sampler, bench)?,
            products,
            attentions,
            elementwise,
            dequantise,
            launch,
            gap: between.gap,
            mark: between.mark(),
            change: between.change(),
        })
    }

    /// What passes between the card and the host, which others on the host's memory slow.
    pub(super) fn across(
        &mut self,
        sampler: &mut Sampler,
        settings: &Settings,
    ) -> Result<Across, ProfileError> {
        let Self { link, bench, context, .. } = self;
        bench.wake()?;
        let [h2d, d2h] = [true, false].map(|up| link.pinned(sampler, bench, up));
        let [pageable_h2d, pageable_d2h] =
            [true, false].map(|up| link.pageable(sampler, bench, up));
        let duplex = link.duplex(sampler, bench)?;
        let crossings = link.crossings(sampler, context, bench)?;
        let (gather, lookup) = gather(sampler)?;
        let rate = settings.shape.link;
        Ok(Across {
            h2d: at_most(rate, h2d?),
            d2h: at_most(rate, d2h?),
            pageable_h2d: at_most(rate, pageable_h2d?),
            pageable_d2h: at_most(rate, pageable_d2h?),
            duplex: slowed(rate.map(|rate| Bandwidth(2 * rate.0)), duplex),
            crossings,
            gather,
            lookup,
        })
    }

    /// Memory that is not free and no plan's to have, once all of what a run loads has been loaded: without what
    /// was measured on, but with the scratch of libraries. NVML counts what the driver keeps for itself, too.
    fn in_use(&self) -> Result<Bytes, ProfileError> {
        let (free, _) = Context::memory()?;
        let grown = self.before.zip(memory_in_use()).map(|(before, after)| after - before);
        let in_use = grown.unwrap_or(self.memory - free);
        Ok(in_use - Bytes(self.arena.all().bytes()) + Bytes(BLAS))
    }
}

impl Drop for Card {
    /// Nothing is given back that is still copied from or to.
    fn drop(&mut self) {
        let _ = self.bench.stream.synchronise();
    }
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

/// Copies within the device read and write.
fn bandwidth(sampler: &mut Sampler, bench: &mut Bench) -> Result<(Bytes, Middle), ProfileError> {
    let size = ARENA;
    let time = sampler.measure("gpu.memory_bandwidth", &Bytes(size).exact(), || {
        bench.time(4, |bench| bench.stream.copy(bench.weights, bench.out.slice(0, size)?))
    })?;
    Ok((Bytes(2 * size), time))
}
