//! What arithmetic costs: rooflines, or measured kernels where the profile has them.
//!
//! Everything is summed as floating-point nanoseconds and rounded once, upwards. No size overflows:
//! products are formed in `f64`, and the result is clamped by [`Nanos::ceil`].

use pipo_plan::machine::{Figure, Gpu, Host, Machine};
use pipo_plan::model::Precision;
use pipo_plan::schedule::{Attention, Compute, Linear};
use pipo_plan::units::{Bandwidth, FlopRate, Nanos};

use super::attentions::Attentions;
use super::joined;
use super::kernels::Kernels;
use super::permille;
use crate::cost::{Cost, Resource};

/// Time in nanoseconds and bytes of the processor's own memory touched on the way.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    nanos: f64,
    bytes: f64,
}

impl Step {
    /// Whatever is slower, the arithmetic or the memory.
    fn roofline(flops: f64, rate: FlopRate, bytes: f64, bandwidth: Bandwidth) -> Self {
        let arithmetic = flops / (rate.as_f64().max(1.0) / 1e9);
        Self { nanos: arithmetic.max(streaming(bytes, bandwidth)), bytes }
    }

    fn add(&mut self, other: Self) {
        self.nanos += other.nanos;
        self.bytes += other.bytes;
    }
}

fn streaming(bytes: f64, bandwidth: Bandwidth) -> f64 {
    bytes / (bandwidth.as_f64().max(1.0) / 1e9)
}

/// What was measured of the GPU's kernels, and of the host's.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    kernels: Kernels,
    attentions: Attentions,
    on_host: Attentions,
}

impl Tables {
    pub(super) fn new(machine: &Machine) -> Self {
        let Machine { gpu, host, .. } = machine;
        Self {
            kernels: Kernels::new(&gpu.kernels),
            attentions: Attentions::new(&gpu.attentions),
            on_host: Attentions::new(&host.attentions),
        }
    }
}

/// The kernels of a unit, one after another, and what launching them adds.
///
/// Where it is known what the device takes between two kernels, the GPU is pipo's own backend with its own
/// launches, and the host enqueues ahead of it: the unit takes as long as the slower of both. Elsewhere each
/// launch is paid beside the kernels, and the GPU counts as idle meanwhile.
///
/// What kernels read across the link they wait for, at the rate of copies; where host memory plays the
/// GPU's, it is like any other memory.
pub(super) fn on_gpu(machine: &Machine, tables: &Tables, compute: &Compute) -> Cost {
    let Machine { gpu, link, .. } = machine;
    let mut sum = Step::default();
    match &gpu.gap {
        None => compute.linears.iter().for_each(|l| sum.add(product(gpu, &tables.kernels, l))),
        Some(_) => joined::launches(&compute.linears)
            .iter()
            .for_each(|linear| sum.add(product(gpu, &tables.kernels, linear))),
    }
    if let Some(attention) = &compute.attention {
        sum.add(attend(gpu, &tables.attentions, attention));
    }
    let passes = if gpu.gap.is_some() { compute.passes } else { compute.elementwise };
    let elementwise = passes.as_f64();
    let rate = gpu.elementwise.as_ref().map_or(gpu.memory_bandwidth.value, |rate| rate.value);
    sum.add(Step { nanos: streaming(elementwise, rate), bytes: elementwise });
    let mapped = compute.mapped.as_f64();
    let across = if gpu.is_on_host() { rate } else { link.h2d.best() };
    sum.add(Step { nanos: streaming(mapped, across), bytes: mapped });
    let launch = gpu.launch.as_f64();
    let (busy, whole) = match &gpu.gap {
        None => (sum.nanos, sum.nanos + launch * f64::from(compute.launches)),
        Some(gap) => {
            let all = compute.joined_launches;
            let apart = f64::from(all.saturating_sub(joined::measured(compute)));
            let or_none = |time: &Option<Figure<Nanos>>| time.as_ref().map_or(0.0, |t| t.as_f64());
            let (mark, changes) = (or_none(&gpu.mark), or_none(&gpu.change) * f64::from(all));
            let device = sum.nanos + gap.as_f64() * apart + changes + mark;
            (device, device.max(launch * f64::from(all)))
        }
    };
    let memory = if gpu.is_on_host() { Resource::Dram } else { Resource::Hbm };
    let linked = if gpu.is_on_host() { 0.0 } else { mapped / sum.bytes.max(1.0) };
    cost(sum, whole, gpu.memory_bandwidth.value, memory)
        .drawing(Resource::LinkDuplex, linked)
        .busy(permille(Nanos::ceil(busy), Nanos::ceil(whole)))
}

/// A matrix product. Where quantised weights are not fused into it, a kernel first writes them out as
/// 16 bits, which the product then reads.
fn product(gpu: &Gpu, kernels: &Kernels, linear: &Linear) -> Step {
    let unfused = is_unfused(gpu, linear.precision, linear.fused);
    let precision = if unfused { Precision::Fp16 } else { linear.precision };
    let copies = f64::from(linear.copies);
    let bytes = copies * (weight_bytes(linear, precision) + activation_bytes(linear));
    let bandwidth = gpu.memory_bandwidth.value;
    let mut step = Step::roofline(copies * flops(linear), gpu.matmul.value, bytes, bandwidth);
    let measured = match gpu.gap {
        None => kernels.time(linear, precision),
        Some(_) => joined::time(kernels, linear, precision),
    };
    if let Some(measured) = measured {
        step.nanos = copies * measured;
    }
    if precision != linear.precision {
        let stored = copies * weight_bytes(linear, linear.precision);
        step.add(dequantise(gpu, stored, copies * weight_bytes(linear, precision)));
    }
    step
}

/// Attention over a prompt is bound by arithmetic, of single tokens by reading the cache.
fn attend(gpu: &Gpu, measured: &Attentions, attention: &Attention) -> Step {
    let stored = attention.cache_bytes().as_f64();
    let dense = Attention { precision: Precision::Fp16, ..*attention }.cache_bytes().as_f64();
    let unfused = is_unfused(gpu, attention.precision, attention.fused);
    let (flops, bandwidth) = (attention.flops() as f64, gpu.memory_bandwidth.value);
    let read = if unfused { dense } else { stored };
    let mut step = Step::roofline(flops, gpu.attention.value, read, bandwidth);
    let precision = if unfused { Precision::Fp16 } else { attention.precision };
    if let Some(nanos) = measured.time(attention, precision) {
        step.nanos = nanos;
    }
    if unfused {
        step.add(dequantise(gpu, stored, dense));
    }
    step
}

fn dequantise(gpu: &Gpu, stored: f64, dense: f64) -> Step {
    Step { nanos: streaming(dense, gpu.dequantise.value), bytes: stored + dense }
}

/// Arithmetic on the CPU cores. A product reads its weights at the rate measured for decoding, which
/// includes unpacking them; launches cost nothing. Measured attentions go before the one rate, but take
/// no less than the memory does: the nearest one may have read fewer bytes for each operation.
pub(super) fn on_cpu(host: &Host, tables: &Tables, compute: &Compute) -> Cost {
    let mut sum = Step::default();
    for linear in &compute.linears {
        let copies = f64::from(linear.copies);
        let weights = copies * weight_bytes(linear, linear.precision);
        let work = copies * flops(linear);
        let mut step = Step::roofline(work, host.compute.value, weights, host.weights.value);
        step.bytes += copies * activation_bytes(linear);
        sum.add(step);
    }
    let bandwidth = host.memory_bandwidth.value;
    if let Some(attention) = &compute.attention {
        let (flops, bytes) = (attention.flops() as f64, attention.cache_bytes().as_f64());
        let mut step = Step::roofline(flops, host.attention.value, bytes, bandwidth);
        if let Some(nanos) = tables.on_host.time(attention, attention.precision) {
            step.nanos = nanos.max(streaming(bytes, bandwidth));
        }
        sum.add(step);
    }
    let bytes = compute.elementwise.as_f64();
    sum.add(Step { nanos: streaming(bytes, bandwidth), bytes });
    cost(sum, sum.nanos, bandwidth, Resource::Dram)
}

/// Rounds to nanoseconds. The bytes drawn are at most what the memory yields in that time: a kernel
/// that a cache makes faster than its memory must not be slowed by its own demand.
fn cost(sum: Step, nanos: f64, bandwidth: Bandwidth, memory: Resource) -> Cost {
    let nanos = Nanos::ceil(nanos);
    if nanos == Nanos::ZERO {
        return Cost::default();
    }
    let payload = (sum.bytes / nanos.as_f64()).min(bandwidth.per_nano());
    Cost { nanos, payload, ..Cost::default() }.drawing(memory, 1.0)
}

/// Whether a 16-bit copy is written first. The kernels for host cores have no such thing: they decode
/// weights in registers whatever a plan says, so that no result depends on it.
fn is_unfused(gpu: &Gpu, precision: Precision, fused: bool) -> bool {
    !matches!(precision, Precision::Fp16 | Precision::Bf16) && !fused && !gpu.is_on_host()
}

/// Of one copy.
fn weight_bytes(linear: &Linear, precision: Precision) -> f64 {
    precision.matrix_bytes(linear.outputs, linear.inputs).as_f64()
}

/// Of one copy: 16-bit rows in and out.
fn activation_bytes(linear: &Linear) -> f64 {
    2.0 * linear.rows as f64 * (linear.inputs as f64 + linear.outputs as f64)
}

/// Of one copy: a multiplication and an addition for each weight and row.
fn flops(linear: &Linear) -> f64 {
    2.0 * linear.rows as f64 * linear.outputs as f64 * linear.inputs as f64
}
