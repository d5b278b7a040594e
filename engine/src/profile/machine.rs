//! A machine out of what was measured.

use std::collections::BTreeMap;

use pipo_plan::diagnostic::Document;
use pipo_plan::machine::{Curve, Disk, Figure, Gpu, Host, KernelTime, Link, Machine, Software};
use pipo_plan::model::Precision;
use pipo_plan::units::{Bandwidth, Bytes, FlopRate, Nanos};

use super::ProfileError;
use super::disk::DiskTimes;
use super::gpu::{Across, Compute, Crossings, Gpu as GpuTimes};
use super::kernels::{Attended, Kernels, Product};
use super::memory::Copies;
use super::sampling::Middle;
use super::system;

/// What the host's cores and memory take.
pub(super) struct OnHost {
    pub(super) memory: Copies,
    pub(super) handover: Middle,
    pub(super) kernels: Kernels,
}

const MEASURED: &str = "measured";
const DISK: &str = "disk-measured";
const SYSTEM: &str = "system";
const CHOSEN: &str = "chosen";
const ESTIMATE: &str = "estimate";
const TABLES: &str = "page-tables";

/// Puts the figures together, and checks them as a file would be.
pub(super) fn assemble(
    host: OnHost,
    gpu: Option<GpuTimes>,
    disk: &DiskTimes,
    threads: usize,
) -> Result<Machine, ProfileError> {
    let written = curve(&disk.written, Some(DiskTimes::STRETCH))?;
    let request = by(disk.request.median, disk.request);
    let mut machine = on_host(host, Some(disk_figures(disk, written)?), request, threads)?;
    if let Some(gpu) = gpu {
        put(gpu, &mut machine)?;
    }
    checked(machine)
}

/// Whether the figures of a machine were measured on this one, with a GPU of that name.
pub(super) fn check_measured_here(base: &Machine, gpu: Option<&str>) -> Result<(), ProfileError> {
    let (here, there) = (measured_on(gpu), base.sources.get(MEASURED));
    if there == Some(&here) {
        return Ok(());
    }
    let there = there.map_or_else(|| "from elsewhere".to_owned(), |there| format!("`{there}`"));
    Err(ProfileError::Elsewhere { machine: base.name.clone(), there, here })
}

/// The machine `base`, which was measured here, with what the host takes now, and what passes between it and a GPU.
pub(super) fn with_host(
    base: Machine,
    host: OnHost,
    gpu: Option<&Across>,
    threads: usize,
) -> Result<Machine, ProfileError> {
    let mut machine = on_host(host, base.disk, base.software.disk_request, threads)?;
    if let Some(across) = gpu {
        machine.software.host_op = base.gpu.launch.clone();
        machine.gpu = base.gpu;
        put_across(across, &mut machine)?;
    }
    machine.host.page_cache_kept = base.host.page_cache_kept;
    (machine.name, machine.description) = (base.name, base.description);
    machine.sources = base.sources;
    checked(machine)
}

/// A machine whose host plays the GPU.
fn on_host(
    host: OnHost,
    disk: Option<Disk>,
    disk_request: Figure<Nanos>,
    threads: usize,
) -> Result<Machine, ProfileError> {
    let system = system::describe();
    let threads = u32::try_from(threads).unwrap_or(u32::MAX);
    let OnHost { memory, handover, kernels } = host;
    let copies = curve(&memory.one, None)?;
    let copy = by(rate(memory.one[memory.one.len() - 1]), memory.one[memory.one.len() - 1].1);
    let (size, both) = memory.beside;
    let duplex = rate((Bytes(2 * size.0), both)).max(copies.value.best());
    let weights = single_row(&kernels);
    let (bandwidth, all) = (rate(memory.all), memory.all.1);
    // A copy reads and writes; what one operation alone reaches is there for all of them together.
    let bandwidth = bandwidth.max(twice(copy.value)).max(weights.0);
    Ok(Machine {
        name: "host-cpu".into(),
        description: format!(
            "{}, {} cores, of which {threads} compute and play the GPU",
            system.processor, system.cores
        ),
        sources: sources(),
        gpu: Gpu {
            name: format!("CPU: {}", system.processor),
            architecture: Gpu::ON_HOST.into(),
            memory: Figure::new(system.memory, SYSTEM),
            context: Figure::new(Bytes::ZERO, SYSTEM),
            sms: Figure::new(threads, CHOSEN),
            memory_bandwidth: by(bandwidth, all),
            matmul: fastest(&kernels.products),
            attention: attention(kernels.attentions.first()),
            elementwise: Some(by(rate(kernels.elementwise), kernels.elementwise.1)),
            dequantise: by(rate(kernels.dequantise), kernels.dequantise.1),
            decompress: None,
            launch: by(kernels.launch.median, kernels.launch),
            gap: None,
            mark: None,
            change: None,
            page_tables: None,
            sync: by(handover.median, handover),
            kernels: kernels.products.iter().map(kernel).collect(),
            attentions: kernels.attentions.iter().map(|a| a.attention.clone()).collect(),
        },
        link: Link {
            h2d: copies.clone(),
            d2h: copies.clone(),
            duplex: by(duplex, both),
            pageable_h2d: copies.clone(),
            pageable_d2h: copies,
        },
        disk,
        host: Host {
            memory: Figure::new(system.memory, SYSTEM),
            reserved: Figure::new(system.memory - system.available, SYSTEM),
            memory_bandwidth: by(bandwidth, all),
            copy,
            cores: Figure::new(system.cores, SYSTEM),
            compute: fastest(&kernels.products),
            weights: by(weights.0, weights.1),
            attention: attention(single_token(&kernels.attentions)),
            gather: Some(by(rate(kernels.gather), kernels.gather.1)),
            page_cache_kept: Figure::new(1.0, ESTIMATE),
            attentions: kernels.attentions.iter().map(|a| a.attention.clone()).collect(),
        },
        software: Software {
            barrier: by(handover.median, handover),
            disk_request,
            host_op: by(handover.median, handover),
            handover: Some(by(handover.median, handover)),
            notice: None,
            submit: None,
            follow: None,
            issue: None,
            lookup: None,
            checksum: Some(by(rate(memory.checksum), memory.checksum.1)),
        },
    })
}

fn checked(machine: Machine) -> Result<Machine, ProfileError> {
    let document = Document::new("the profile", machine.to_toml());
    machine.check(&document).map_err(|error| ProfileError::Implausible(error.to_string()))?;
    Ok(machine)
}

/// The machine `base` with the figures of a disk that was measured later. They have a source of their own,
/// because the base's figures may come from anywhere.
pub(super) fn with_disk(base: Machine, disk: &DiskTimes) -> Result<Machine, ProfileError> {
    let mut machine = base;
    let before = machine.disk.take();
    let direct_to_gpu = before.as_ref().and_then(|disk| disk.direct_to_gpu.clone());
    let write = match before {
        _ if !disk.written.is_empty() => again(curve(&disk.written, Some(DiskTimes::STRETCH))?),
        Some(before) => before.write,
        None => return Err(ProfileError::NotWritten { machine: machine.name }),
    };
    let measured = disk_figures(disk, write.clone())?;
    let Disk { read, read_total, buffered_read, buffered_pair, buffered_total, .. } = measured;
    machine.disk = Some(Disk {
        read: again(read),
        read_total: read_total.map(again),
        write,
        buffered_read: again(buffered_read),
        buffered_pair: buffered_pair.map(again),
        buffered_total: buffered_total.map(again),
        buffered_jump: measured.buffered_jump.map(again),
        page_fault_read: again(measured.page_fault_read),
        page_fault_total: measured.page_fault_total.map(again),
        page_fault_hit: measured.page_fault_hit.map(again),
        direct_to_gpu,
        capacity: Figure::new(disk.capacity, DISK),
    });
    machine.software.disk_request = again(by(disk.request.median, disk.request));
    let text = format!(
        "measured by pipo profile --only disk on {}: medians after a warm-up",
        system::describe().processor
    );
    machine.sources.insert(DISK.into(), text);
    checked(machine)
}

/// Reads that are held back are so wherever they come from: the page cache keeps nothing that is faster.
pub(super) fn without_page_cache(machine: &mut Machine) {
    machine.host.page_cache_kept = Figure::new(0.0, CHOSEN);
}

fn again<T>(figure: Figure<T>) -> Figure<T> {
    Figure { source: DISK.into(), ..figure }
}

fn disk_figures(disk: &DiskTimes, write: Figure<Curve>) -> Result<Disk, ProfileError> {
    let rate = |bytes, middle| by(rate((bytes, middle)), middle);
    let stretch = DiskTimes::STRETCH;
    Ok(Disk {
        read: curve(&disk.direct, Some(stretch))?,
        read_total: Some(rate(DiskTimes::TOGETHER, disk.together)),
        write,
        buffered_read: curve(&disk.buffered, Some(stretch))?,
        buffered_pair: Some(rate(DiskTimes::IN_TURN, disk.buffered_pair)),
        buffered_total: Some(rate(DiskTimes::IN_TURN, disk.buffered_together)),
        buffered_jump: Some(by(disk.buffered_jump().median, disk.buffered_jump())),
        page_fault_read: curve(&disk.mapped, None)?,
        page_fault_total: Some(rate(DiskTimes::MAPPED_TOGETHER, disk.mapped_together)),
        page_fault_hit: Some(rate(stretch, disk.mapped_again)),
        direct_to_gpu: None,
        capacity: Figure::new(disk.capacity, SYSTEM),
    })
}

/// Puts what a GPU takes where the host's cores stood for it.
fn put(gpu: GpuTimes, machine: &mut Machine) -> Result<(), ProfileError> {
    machine.name = "this-gpu".into();
    let what = beside(&gpu.name);
    machine.description = format!("{what}, {} cores", machine.host.cores.value);
    machine.sources.insert(MEASURED.into(), measured_on(Some(&gpu.name)));
    let tables = "assumed: 8 bytes for each page of 4 KiB; on an H200 37 to 60 GB of pinned memory took as much";
    machine.sources.insert(TABLES.into(), tables.into());
    let Compute {
        bandwidth,
        products,
        attentions,
        elementwise,
        dequantise,
        launch,
        gap,
        mark,
        change,
        sync,
    } = gpu.compute;
    machine.gpu = Gpu {
        name: gpu.name,
        architecture: gpu.architecture,
        memory: Figure::new(gpu.memory, SYSTEM),
        context: Figure::new(gpu.context, MEASURED),
        sms: Figure::new(gpu.sms, SYSTEM),
        memory_bandwidth: by(rate(bandwidth), bandwidth.1),
        matmul: fastest(&products),
        attention: attention(attentions.first()),
        elementwise: Some(by(rate(elementwise), elementwise.1)),
        dequantise: by(rate(dequantise), dequantise.1),
        decompress: None,
        launch: by(launch.median, launch),
        gap: Some(by(gap.median, gap)),
        mark: Some(by(mark.median, mark)),
        change: Some(by(change.median, change)),
        sync: by(sync.median, sync),
        page_tables: Some(Figure::new(8.0 / 4096.0, TABLES)),
        kernels: products.iter().map(kernel).collect(),
        attentions: attentions.iter().map(|a| a.attention.clone()).collect(),
    };
    machine.software.host_op = machine.gpu.launch.clone();
    put_across(&gpu.across, machine)
}

/// Puts what passes between a GPU and the host.
fn put_across(across: &Across, machine: &mut Machine) -> Result<(), ProfileError> {
    let h2d = curve(&across.h2d, None)?;
    machine.link = Link {
        duplex: by(rate(across.duplex).max(h2d.value.best()), across.duplex.1),
        h2d,
        d2h: curve(&across.d2h, None)?,
        pageable_h2d: curve(&across.pageable_h2d, None)?,
        pageable_d2h: curve(&across.pageable_d2h, None)?,
    };
    machine.host.gather = Some(by(rate(across.gather), across.gather.1));
    let software = &mut machine.software;
    let Crossings { notice, submit, followed, issue, nothing } = across.crossings;
    // A barrier is a thread's operation; what it takes to get there and back is between the lanes.
    software.barrier = by(nothing.median, nothing);
    software.notice = Some(by(notice.median, notice));
    software.submit = Some(by(submit.median, submit));
    // With the copy that followed, which is timed by itself.
    let copy = across.h2d.first().map_or(Nanos::ZERO, |(_, time)| time.median);
    software.follow = Some(by(followed.median.saturating_sub(copy), followed));
    software.issue = Some(by(issue.median, issue));
    software.lookup = Some(by(across.lookup.median, across.lookup));
    Ok(())
}

/// A GPU and what it is beside.
fn beside(gpu: &str) -> String {
    format!("{gpu} beside {}", system::describe().processor)
}

/// How what is measured was, on this machine and with that GPU.
fn measured_on(gpu: Option<&str>) -> String {
    let Some(gpu) = gpu else {
        let processor = system::describe().processor;
        return format!(
            "measured by pipo profile on {processor}: medians after a warm-up; host cores and memory play the GPU's"
        );
    };
    format!("measured by pipo profile on {}: medians after a warm-up", beside(gpu))
}

fn sources() -> BTreeMap<String, String> {
    let entries = [
        (MEASURED, measured_on(None)),
        (SYSTEM, "what the operating system reports".to_owned()),
        (CHOSEN, "chosen when the profile was measured".to_owned()),
        (
            ESTIMATE,
            "assumed: the page cache keeps what is left of memory for the weight file".to_owned(),
        ),
    ];
    entries.into_iter().map(|(key, text)| (key.to_owned(), text)).collect()
}

/// A measured figure.
pub(super) fn by<T>(value: T, middle: Middle) -> Figure<T> {
    // Four digits say all that a spread can.
    let spread = (middle.spread * 1e4).round() / 1e4;
    Figure { spread: Some(spread), ..Figure::new(value, MEASURED) }
}

fn rate((bytes, middle): (Bytes, Middle)) -> Bandwidth {
    Bandwidth::of(bytes, middle.median)
}

fn twice(rate: Bandwidth) -> Bandwidth {
    Bandwidth(rate.0.saturating_mul(2))
}

fn flop_rate((flops, middle): (u64, Middle)) -> FlopRate {
    FlopRate(rate((Bytes(flops), middle)).0)
}

/// A curve through measured points. `stretch` is what each time is of, where that is not the size itself.
/// A larger transfer that came out quicker than a smaller one (they were measured one after the other)
/// takes the smaller one's time.
fn curve(
    points: &[(Bytes, Middle)],
    stretch: Option<Bytes>,
) -> Result<Figure<Curve>, ProfileError> {
    let mut least = Nanos::ZERO;
    let mut rates = Vec::new();
    let mut spread: f64 = 0.0;
    for &(size, middle) in points {
        let reached = rate((stretch.unwrap_or(size), middle));
        let time = reached.time(size).max(least);
        least = time + Nanos(1);
        rates.push((size, rate((size, Middle { median: time, ..middle }))));
        spread = spread.max(middle.spread);
    }
    let curve = Curve::new(rates).map_err(|error| ProfileError::Implausible(error.to_string()))?;
    Ok(by(curve, Middle { median: Nanos::ZERO, spread }))
}

fn kernel(product: &Product) -> KernelTime {
    KernelTime {
        precision: product.precision.name().into(),
        rows: product.rows as u64,
        outputs: product.outputs as u64,
        inputs: product.inputs as u64,
        time: by(product.time.median, product.time),
    }
}

/// The best rate of any product.
fn fastest(products: &[Product]) -> Figure<FlopRate> {
    let rate = |p: &Product| {
        let flops = 2 * (p.rows * p.outputs * p.inputs) as u64;
        (flop_rate((flops, p.time)), p.time)
    };
    let best = products.iter().map(rate).max_by_key(|(rate, _)| *rate);
    let (best, time) = best.unwrap_or((FlopRate(1), Middle { median: Nanos::ZERO, spread: 0.0 }));
    by(best, time)
}

/// The attention whose rate stands for all that were not measured: a single token over as many positions as
/// there are measurements of, by heads of 128 features that share no key, in 16 bits. That is what a decode step over a
/// long cache asks of the host; over a few positions there is little but the beginning and the end.
fn single_token(measured: &[Attended]) -> Option<&Attended> {
    let of_kind = measured.iter().filter(|a| {
        let of = &a.attention;
        let plain = of.precision == Precision::Fp16.name() && of.kv_heads == of.heads;
        plain && of.rows == 1 && of.head_dim == 128
    });
    of_kind.max_by_key(|a| a.attention.context)
}

/// The rate of an attention.
fn attention(measured: Option<&Attended>) -> Figure<FlopRate> {
    let nothing = (FlopRate(1), Middle { median: Nanos::ZERO, spread: 0.0 });
    let (rate, time) = measured.map_or(nothing, |a| (flop_rate((a.operations, a.time)), a.time));
    by(rate, time)
}

/// What a decode step gets through of 4-bit weights: the largest matrix, one row.
fn single_row(kernels: &Kernels) -> (Bandwidth, Middle) {
    let single = kernels.products.iter().filter(|p| p.rows == 1);
    let int4 = single.filter(|p| p.precision == Precision::Int4);
    let largest = int4.max_by_key(|p| p.outputs * p.inputs);
    largest.map_or((Bandwidth(1), Middle { median: Nanos::ZERO, spread: 0.0 }), |p| {
        (rate((p.precision.matrix_bytes(p.outputs as u64, p.inputs as u64), p.time)), p.time)
    })
}

#[cfg(test)]
mod tests {
    use pipo_plan::machine::AttentionTime;

    use super::*;

    #[test]
    fn one_token_over_the_longest_cache_stands_for_attention_on_the_host() {
        let stored = |precision: &str, rows, context, kv_heads, head_dim| {
            let (time, heads) = (Middle { median: Nanos(1000), spread: 0.0 }, 32);
            let (precision, sequences) = (precision.into(), None);
            let of = by(time.median, time);
            let attention = AttentionTime {
                precision,
                rows,
                context,
                heads,
                kv_heads,
                head_dim,
                sequences,
                time: of,
            };
            Attended { attention, operations: 4 * heads * head_dim * context, time }
        };
        let attended = |rows, context, kv, dim| stored("fp16", rows, context, kv, dim);
        let measured = [
            attended(1024, 1024, 32, 128),
            attended(1, 512, 32, 64),
            attended(1, 512, 32, 128),
            attended(1, 512, 8, 128),
            attended(1, 24, 32, 128),
            stored("int4", 1, 1024, 32, 128),
        ];
        let rate = attention(single_token(&measured)).value;
        assert_eq!(rate, FlopRate(4 * 32 * 128 * 512 * 1_000_000));
        assert_eq!(attention(single_token(&measured[..2])).value, FlopRate(1), "nothing measured");
    }
}
