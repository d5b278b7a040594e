//! What launching and waiting take beside the kernels themselves.

use std::time::Instant;

use pipo_kernels::Format;
use pipo_kernels::cuda::DeviceVector;
use pipo_plan::units::Nanos;

use super::super::sampling::{Middle, Sampler};
use super::super::{ProfileError, Settings};
use super::Bench;
use crate::cuda::driver::Event;
use crate::executor::Fault;

/// Kernels that take next to nothing, one after another.
pub(super) fn launch(sampler: &mut Sampler, bench: &mut Bench) -> Result<Middle, ProfileError> {
    let once = |bench: &mut Bench| {
        Ok(bench.kernels.add(bench.stream.raw(), bench.copied, bench.out, 8)?)
    };
    Ok(sampler.measure("gpu.launch", "8 numbers", || bench.time(200, once))?)
}

/// What the device itself takes between kernels that the host has launched well ahead.
pub(super) struct Between {
    /// From one kernel that has next to nothing to do to the next: norms of a single row.
    pub(super) gap: Middle,
    /// The same with an event behind each.
    marked: Middle,
    /// A small product behind others of its kind.
    product: Middle,
    /// Such a norm and such a product in turn.
    both: Middle,
}

/// Measures behind products that take longer than the host needs to launch the rest.
pub(super) fn between(
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
    pub(super) fn mark(&self) -> Middle {
        let median = self.marked.median - self.gap.median;
        Middle { median, ..self.marked }
    }

    /// What a kernel takes longer behind one of another kind than behind one of its own, whose code is at
    /// hand.
    pub(super) fn change(&self) -> Middle {
        let alone = self.gap.median + self.product.median;
        Middle { median: Nanos((self.both.median - alone).0 / 2), ..self.both }
    }
}

/// Waiting for such a kernel, on the host's clock.
pub(super) fn sync(sampler: &mut Sampler, bench: &mut Bench) -> Result<Middle, ProfileError> {
    let time = sampler.measure("gpu.sync", "8 numbers", || {
        let start = Instant::now();
        bench.kernels.add(bench.stream.raw(), bench.copied, bench.out, 8)?;
        bench.stream.synchronise()?;
        Ok::<_, Fault>(start.elapsed())
    })?;
    Ok(time)
}
