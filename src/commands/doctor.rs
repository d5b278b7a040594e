//! `pipo doctor`: what this machine offers, and how to get what it does not. Absence is an answer.

use std::path::Path;

use nvml_wrapper::Nvml;
use pipo_plan::units::Bytes;
use serde::Serialize;

use crate::output::Printer;

/// One thing that pipo can use.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    present: bool,
    detail: String,
}

impl Finding {
    fn new(what: &'static str, found: Result<String, String>) -> Self {
        let present = found.is_ok();
        Self { what, present, detail: found.unwrap_or_else(|missing| missing) }
    }
}

/// Runs the command. Everything absent is still a success: the simulator and tuner need none of it.
pub fn run(printer: &Printer) -> anyhow::Result<()> {
    let findings = [
        Finding::new("GPU and NVML", gpus()),
        Finding::new("CUDA driver library", library("libcuda.so", "install the NVIDIA driver")),
        Finding::new(
            "NVRTC",
            library("libnvrtc.so", "install the CUDA toolkit's NVRTC, version 13"),
        ),
        Finding::new("cuBLAS", library("libcublas.so", "install the CUDA toolkit's cuBLAS")),
        Finding::new("disks", disks()),
        Finding::new("host memory", host_memory()),
        Finding::new("CPU", cores()),
    ];
    for finding in &findings {
        let mark = if finding.present { "found  " } else { "absent " };
        printer.line(format!("{mark} {:<20} {}", finding.what, finding.detail));
    }
    printer.line("");
    printer.line(
        "Tuning, simulating and reproducing figures need none of these: they work from machine profiles.",
    );
    printer.document(&findings)
}

/// GPUs as NVML lists them.
fn gpus() -> Result<String, String> {
    let missing = |error: nvml_wrapper::error::NvmlError| {
        format!("no GPU can be seen ({error}); with a card in place, install the NVIDIA driver")
    };
    let nvml = Nvml::init().map_err(missing)?;
    let driver = nvml.sys_driver_version().map_err(missing)?;
    let count = nvml.device_count().map_err(missing)?;
    let name = |i| -> Result<String, nvml_wrapper::error::NvmlError> {
        let device = nvml.device_by_index(i)?;
        let memory = Bytes(device.memory_info()?.total);
        Ok(format!("{} with {}", device.name()?, memory.both()))
    };
    let names: Vec<String> = (0..count).filter_map(|i| name(i).ok()).collect();
    if names.is_empty() {
        return Err(format!("driver {driver} answers but lists no GPU"));
    }
    Ok(format!("driver {driver}: {}", names.join(", ")))
}

/// Whether the loader would find a library: its cache and `LD_LIBRARY_PATH` are looked at, nothing is
/// loaded.
fn library(name: &str, next: &str) -> Result<String, String> {
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    for folder in path.split(':').filter(|f| !f.is_empty()) {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries {
            if entry.file_name().to_string_lossy().starts_with(name) {
                return Ok(entry.path().display().to_string());
            }
        }
    }
    let cache = std::fs::read("/etc/ld.so.cache").unwrap_or_default();
    let mut strings = cache.split(|&b| b == 0);
    let found = strings.find_map(|s| {
        let text = std::str::from_utf8(s).ok()?;
        (text.starts_with('/') && Path::new(text).file_name()?.to_str()?.starts_with(name))
            .then(|| text.to_owned())
    });
    found.ok_or_else(|| {
        format!("{name} is not in the loader's cache nor in LD_LIBRARY_PATH; {next}")
    })
}

/// Block devices with their sizes.
fn disks() -> Result<String, String> {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("loop") || name.starts_with("ram") || name.starts_with("zram") {
            continue;
        }
        // The kernel counts in sectors of 512 bytes whatever the device's own.
        let sectors: u64 = read(&entry.path().join("size")).parse().unwrap_or(0);
        let spins = read(&entry.path().join("queue/rotational")) == "1";
        let kind = if name.starts_with("nvme") {
            "NVMe"
        } else if spins {
            "reported as rotating"
        } else {
            "solid state"
        };
        if sectors > 0 {
            found.push(format!("{name} {} ({kind})", Bytes(sectors.saturating_mul(512))));
        }
    }
    found.sort();
    if found.is_empty() {
        return Err("no block device is listed under /sys/block".into());
    }
    Ok(found.join(", "))
}

fn host_memory() -> Result<String, String> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> Option<Bytes> {
        let line = text.lines().find(|l| l.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(Bytes(kib.saturating_mul(1024)))
    };
    match (field("MemTotal:"), field("MemAvailable:")) {
        (Some(total), Some(available)) => {
            Ok(format!("{}, {} available", total.both(), available.both()))
        }
        _ => Err("/proc/meminfo does not say".into()),
    }
}

fn cores() -> Result<String, String> {
    let cores = std::thread::available_parallelism().map_err(|e| e.to_string())?;
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(": "));
    let model = model.map_or(String::new(), |(_, name)| format!(" of {name}"));
    Ok(format!("{cores} cores{model}"))
}
