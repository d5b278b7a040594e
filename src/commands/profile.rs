//! `pipo profile`: measures this machine, for `--machine`.

use std::path::Path;

use anyhow::bail;
use pipo_engine::profile::{Profile, Sample, Settings, profile, profile_disk, profile_host};
use pipo_engine::run::{Device, default_threads};
use pipo_plan::units::{Bandwidth, Bytes, FlopRate, Nanos};
use serde_json::json;

use crate::cli::{Only, Profile as Args};
use crate::input;
use crate::output::{self, Printer};

/// Runs the command.
pub fn run(args: &Args, threads: Option<usize>, printer: &Printer) -> anyhow::Result<()> {
    let device = args.backend.device();
    let threads = threads.unwrap_or_else(|| default_threads(device));
    let mut settings = Settings::new(threads, &args.folder);
    settings.file = args.disk_size.0;
    settings.device = device;
    settings.shape = args.shape;
    if args.quick {
        settings = settings.quick();
    }
    if args.file.is_some() && args.only != Some(Only::Disk) {
        bail!("--file is what --only disk reads; leave it out with --only host");
    }
    let base = args.base.as_deref().map(input::machine).transpose()?;
    output::expect(&args.output)?;
    let bar = printer.progress("measuring");
    bar.set_length(1);
    let measured = match (args.only, base) {
        (Some(Only::Disk), Some(base)) => profile_disk(&settings, base, args.file.as_deref()),
        (Some(Only::Host), Some(base)) => profile_host(&settings.brief(), base),
        _ => profile(&settings, &mut |done, parts| {
            bar.set_length(parts as u64);
            bar.set_position(done as u64);
        }),
    };
    bar.finish_and_clear();
    let Profile { machine, samples, notes } = measured?;
    let beside = args.output.with_extension("samples.csv");
    output::write(&args.output, &machine.to_toml())?;
    output::write(&beside, &csv(&samples))?;
    printer.line(format!("machine  {}: {}", machine.name, machine.description));
    for note in &notes {
        printer.line(format!("note     {note}"));
    }
    let row = |entry: &pipo_plan::machine::Entry| {
        let spread = entry.spread.map_or(String::new(), |s| format!("{:.1} %", 100.0 * s));
        vec![entry.path.to_owned(), readable(&entry.value), spread]
    };
    let figures = machine.figures();
    let tables = ["gpu.kernels.time", "gpu.attentions.time", "host.attentions.time"];
    let of_disk = |path: &str| path.starts_with("disk.") || path == "software.disk_request";
    let measured = |path: &str| match args.only {
        None => true,
        Some(Only::Disk) => samples.iter().any(|sample| sample.figure == path),
        Some(Only::Host) if path.starts_with("gpu.") => device == Device::Cpu,
        Some(Only::Host) => !of_disk(path),
    };
    let shown = figures
        .iter()
        .filter(|entry| !tables.contains(&entry.path))
        .filter(|entry| measured(entry.path));
    printer.section("Figures (spread: half the distance between the quartiles)");
    printer.table(&["figure", "value", "spread"], &shown.map(row).collect::<Vec<_>>());
    if args.only.is_none() {
        kernels(&machine, printer);
    }
    printer.line("");
    for path in [&args.output, &beside] {
        printer.line(format!("wrote    {}", Path::new(path).display()));
    }
    printer.document(&json!({
        "machine": machine,
        "hash": machine.hash(),
        "notes": notes,
        "samples": samples.len(),
        "wrote": [&args.output, &beside],
    }))
}

/// A value of a profile with its quantities rounded; the file has them exactly.
fn readable(value: &str) -> String {
    let rounded = |text: &str| {
        let bytes = text.parse::<Bytes>().map(|bytes| bytes.to_string());
        let rate = text.parse::<Bandwidth>().map(|rate| rate.to_string());
        let flops = text.parse::<FlopRate>().map(|rate| rate.to_string());
        let time = text.parse::<Nanos>().map(|time| time.to_string());
        bytes.or(rate).or(flops).or(time).unwrap_or_else(|_| text.to_owned())
    };
    let pieces = value.split('"').enumerate();
    let pieces =
        pieces.map(|(n, piece)| if n % 2 == 1 { rounded(piece) } else { piece.to_owned() });
    let text: String = pieces.collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Products by precision and rows: what each shape reaches.
fn kernels(machine: &pipo_plan::machine::Machine, printer: &Printer) {
    printer.section("Products");
    let row = |kernel: &pipo_plan::machine::KernelTime| {
        let flops = 2.0 * (kernel.rows * kernel.outputs * kernel.inputs) as f64;
        vec![
            kernel.precision.clone(),
            kernel.rows.to_string(),
            format!("{} x {}", kernel.outputs, kernel.inputs),
            kernel.time.to_string(),
            format!("{:.1}", flops / kernel.time.as_f64()),
            kernel.time.spread.map_or(String::new(), |s| format!("{:.1} %", 100.0 * s)),
        ]
    };
    let rows: Vec<_> = machine.gpu.kernels.iter().map(row).collect();
    printer.table(&["weights", "rows", "matrix", "time", "GFLOP/s", "spread"], &rows);
}

fn csv(samples: &[Sample]) -> String {
    let lines = samples.iter().map(|s| format!("{},{},{}\n", s.figure, s.size, s.time.0));
    std::iter::once("figure,size,nanoseconds\n".to_owned()).chain(lines).collect()
}
