//! What a machine can do, each figure with its source.
//!
//! A profile is a TOML file in which every number says where it comes from: a datasheet, a paper, a
//! measurement, a fit. The keys of `[sources]` are cited by the figures; an estimate is a source too,
//! and says so. The simulator and the tuner see hardware only through a [`Machine`].

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::diagnostic::{Diagnostic, Document};
use crate::units::{Bandwidth, Bytes, FlopRate, Nanos};

pub mod catalog;
mod check;
mod curve;
mod figure;
mod fio;
pub mod import;
mod nvbandwidth;

pub use curve::{Curve, CurveError};
use figure::entry;
pub use figure::{Entry, Figure};

/// A machine on which a plan runs, real or published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Short name, as in the catalogue: lower-case letters, digits, `-`, `.` and `_`.
    pub name: String,
    /// What the machine is, in a sentence or two.
    pub description: String,
    /// Where the figures come from: a short key, and a sentence or a reference.
    pub sources: BTreeMap<String, String>,
    /// The accelerator.
    pub gpu: Gpu,
    /// Between host and accelerator.
    pub link: Link,
    /// The disk that weights are read from; none where nothing may be put on a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// Processor and memory of the host.
    pub host: Host,
    /// What it costs to make things happen at all.
    pub software: Software,
}

/// The accelerator: capacity, achievable rates and fixed costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// The vendor's name for it.
    pub name: String,
    /// Compilation target, such as `sm_86`; [`Gpu::ON_HOST`] where the host's own cores play the GPU.
    pub architecture: String,
    /// Memory that the driver reports as present.
    pub memory: Figure<Bytes>,
    /// What driver and context take of it before the first allocation; listed apart in every report.
    pub context: Figure<Bytes>,
    /// Streaming multiprocessors; threads of one computation, where host cores play the GPU.
    pub sms: Figure<u32>,
    /// Achievable, not peak, bandwidth of the GPU's own memory.
    pub memory_bandwidth: Figure<Bandwidth>,
    /// Achievable rate of a dense 16-bit matrix product with many rows.
    pub matmul: Figure<FlopRate>,
    /// Achievable rate of attention over a prompt.
    pub attention: Figure<FlopRate>,
    /// Bytes that norms, activations, residuals and rotations get through in a second; as fast as the
    /// memory where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elementwise: Option<Figure<Bandwidth>>,
    /// 16-bit bytes that an unfused dequantisation kernel produces in a second.
    pub dequantise: Figure<Bandwidth>,
    /// Dense bytes that a lossless decompressor produces in a second, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decompress: Option<Figure<Bandwidth>>,
    /// From one kernel to the next when they are launched back to back.
    pub launch: Figure<Nanos>,
    /// From one kernel that has next to nothing to do to the next, when they were launched well ahead: what
    /// the device itself takes. The host then enqueues beside the kernels, and counts only where it is
    /// slower; every launch is paid beside the kernels where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Figure<Nanos>>,
    /// What the device takes to note that an operation has ended, before it begins the next kernel; nothing
    /// where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Figure<Nanos>>,
    /// What a kernel takes longer behind one of another kind than behind one of its own, as which it was
    /// measured; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Figure<Nanos>>,
    /// Waiting on the host until a stream is empty, beyond the work itself.
    pub sync: Figure<Nanos>,
    /// Bytes that it takes of its own memory for each byte of the host's that is pinned, to find the pages;
    /// nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_tables: Option<Figure<f64>>,
    /// Measured matrix products, where there are any: they go before the roofline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<KernelTime>,
    /// Measured attentions, where there are any: likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attentions: Vec<AttentionTime>,
}

/// One measured product of `rows` by `inputs` with `inputs` by `outputs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelTime {
    /// How the weights are stored, such as `fp16` or `int4`.
    pub precision: String,
    /// Tokens that share the weights.
    pub rows: u64,
    /// Columns of the result.
    pub outputs: u64,
    /// Length of the sums.
    pub inputs: u64,
    /// Time on the device.
    pub time: Figure<Nanos>,
}

/// One measured attention of `rows` new positions of one sequence over `context` positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionTime {
    /// How the cache is stored.
    pub precision: String,
    /// New positions.
    pub rows: u64,
    /// Positions attended to by the last of them, itself included.
    pub context: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Features of one head.
    pub head_dim: u64,
    /// Sequences worked on at once, of which `time` is what one takes: as many as keep the device busy
    /// where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequences: Option<u64>,
    /// Time on the device, or on all cores of the host.
    pub time: Figure<Nanos>,
}

/// The bus between host memory and GPU memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// From pinned host memory to the GPU, by transfer size.
    pub h2d: Figure<Curve>,
    /// From the GPU to pinned host memory, by transfer size.
    pub d2h: Figure<Curve>,
    /// Both directions at once, added up.
    pub duplex: Figure<Bandwidth>,
    /// From pageable host memory, which the driver stages through its own pinned buffer.
    pub pageable_h2d: Figure<Curve>,
    /// To pageable host memory.
    pub pageable_d2h: Figure<Curve>,
}

/// The disk behind the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Reads that bypass the page cache (`O_DIRECT`), by block size, at the working queue depth.
    pub read: Figure<Curve>,
    /// Several threads at once, where that was measured: more than one thread reaches, or what it reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_total: Option<Figure<Bandwidth>>,
    /// Writes that bypass the page cache, by block size.
    pub write: Figure<Curve>,
    /// Reads through the page cache of what it does not hold, by block size.
    pub buffered_read: Figure<Curve>,
    /// Two threads at once through a page cache that does not hold it, blocks of one file in turn, where that was
    /// measured. Often less than one thread alone reaches, because the system reads ahead of one place of a file
    /// and there are several; as much as they reach apart where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffered_pair: Option<Figure<Bandwidth>>,
    /// The same for more than two: `pipo profile` has four. They reached 1.1 GB/s where two reached 1.9 and one 2.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffered_total: Option<Figure<Bandwidth>>,
    /// What a read of one thread or two through the page cache takes longer where it does not go on from the one
    /// before it, where that was measured: what the system had read ahead is not wanted, and reading ahead begins
    /// anew. Nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffered_jump: Option<Figure<Nanos>>,
    /// One thread faulting in the pages of a memory map that the page cache does not hold, by how much of it: what
    /// the system reads ahead begins anew with each such read, and does not stop where it ends.
    pub page_fault_read: Figure<Curve>,
    /// Several threads at once, each in a memory map of its own, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_fault_total: Option<Figure<Bandwidth>>,
    /// One thread copying out of a memory map that the page cache holds, minor faults included; as fast
    /// as `host.copy` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_fault_hit: Option<Figure<Bandwidth>>,
    /// Disk to GPU without the host's memory (`GPUDirect` Storage), where it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_to_gpu: Option<Figure<Bandwidth>>,
    /// Space on it.
    pub capacity: Figure<Bytes>,
}

/// Processor and memory of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Memory installed.
    pub memory: Figure<Bytes>,
    /// What operating system and runtime keep: neither weights nor page cache can have it.
    pub reserved: Figure<Bytes>,
    /// Achievable bandwidth of the memory, reads and writes added up, a link's copies among them.
    pub memory_bandwidth: Figure<Bandwidth>,
    /// Bytes that one thread's `memcpy` copies in a second; each draws twice on the memory.
    pub copy: Figure<Bandwidth>,
    /// Physical cores.
    pub cores: Figure<u32>,
    /// Achievable by all cores in a matrix product with many rows.
    pub compute: Figure<FlopRate>,
    /// Bytes of weights, in the precision they are stored in, that all cores get through when decoding.
    pub weights: Figure<Bandwidth>,
    /// Achievable by all cores in attention of single tokens over a long cache, where it was not measured
    /// for what is asked.
    pub attention: Figure<FlopRate>,
    /// Bytes of embedded rows, as 16-bit numbers, that one thread looks up in a second; as fast as `copy`
    /// where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gather: Option<Figure<Bandwidth>>,
    /// Share of the memory left over that serves as page cache for a file read round and round. The rest
    /// goes to other files, and to what the kernel evicts too early; 0 stands for no hits at all.
    pub page_cache_kept: Figure<f64>,
    /// Attentions measured on all cores, where there are any: they go before `attention`. Beside a GPU `pipo profile`
    /// measures them while the link copies, as it does in a run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attentions: Vec<AttentionTime>,
}

/// What it costs to make things happen at all, whatever the hardware.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Software {
    /// A global synchronisation, beyond waiting for the work itself.
    pub barrier: Figure<Nanos>,
    /// Issuing one request to the disk.
    pub disk_request: Figure<Nanos>,
    /// Issuing one operation from the host.
    pub host_op: Figure<Nanos>,
    /// From the end of an operation to the start of one that waited for it on an idle lane, where a thread
    /// of the host has to wake up in between; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<Figure<Nanos>>,
    /// From the end of an operation of a GPU to the start of one of a thread of the host that waited for
    /// it; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<Figure<Nanos>>,
    /// From the end of an operation of a thread of the host to the start of one of a GPU that waited for
    /// it, which could not be issued before; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submit: Option<Figure<Nanos>>,
    /// From the end of an operation of a GPU to the start of one in another of its queues that waited for it
    /// there; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<Figure<Nanos>>,
    /// What a thread of the host takes to hand one operation to a queue of a GPU, where that is behind
    /// others and the device is done sooner; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issue: Option<Figure<Nanos>>,
    /// Beyond what its rows take, for each lookup of embedded rows by the host: its cores have to wake up;
    /// nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lookup: Option<Figure<Nanos>>,
    /// Bytes that a thread checks against their checksums in a second, which it does with each piece of a
    /// read while the next one is read (`schedule::checked_at_once`); unchecked where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Figure<Bandwidth>>,
}

impl Gpu {
    /// The architecture of a machine whose host cores and memory play the GPU's.
    pub const ON_HOST: &str = "cpu";

    /// Whether the host's cores and memory play the GPU's.
    pub fn is_on_host(&self) -> bool {
        self.architecture == Self::ON_HOST
    }

    /// What is left for weights, caches and buffers once driver and context have their part.
    pub fn available(&self) -> Bytes {
        self.memory.value - self.context.value
    }
}

impl Host {
    /// What is left for weights, buffers and page cache.
    pub fn available(&self) -> Bytes {
        self.memory.value - self.reserved.value
    }
}

impl Machine {
    /// Reads and checks a profile.
    pub fn from_toml(document: &Document) -> Result<Self, Box<Diagnostic>> {
        let machine: Self = document.parse_toml()?;
        machine.check(document)?;
        Ok(machine)
    }

    /// Every number of the profile with its path and source, in the order of the file.
    pub fn figures(&self) -> Vec<Entry<'_>> {
        let Self { gpu, link, disk, host, software, .. } = self;
        let mut all = vec![
            entry("gpu.memory", &gpu.memory),
            entry("gpu.context", &gpu.context),
            entry("gpu.sms", &gpu.sms),
            entry("gpu.memory_bandwidth", &gpu.memory_bandwidth),
            entry("gpu.matmul", &gpu.matmul),
            entry("gpu.attention", &gpu.attention),
        ];
        all.extend(gpu.elementwise.as_ref().map(|f| entry("gpu.elementwise", f)));
        all.push(entry("gpu.dequantise", &gpu.dequantise));
        all.extend(gpu.decompress.as_ref().map(|f| entry("gpu.decompress", f)));
        all.push(entry("gpu.launch", &gpu.launch));
        all.extend(gpu.gap.as_ref().map(|f| entry("gpu.gap", f)));
        all.extend(gpu.mark.as_ref().map(|f| entry("gpu.mark", f)));
        all.extend(gpu.change.as_ref().map(|f| entry("gpu.change", f)));
        all.push(entry("gpu.sync", &gpu.sync));
        all.extend(gpu.page_tables.as_ref().map(|f| entry("gpu.page_tables", f)));
        all.extend(gpu.kernels.iter().map(|k| entry("gpu.kernels.time", &k.time)));
        all.extend(gpu.attentions.iter().map(|a| entry("gpu.attentions.time", &a.time)));
        all.extend([
            entry("link.h2d", &link.h2d),
            entry("link.d2h", &link.d2h),
            entry("link.duplex", &link.duplex),
            entry("link.pageable_h2d", &link.pageable_h2d),
            entry("link.pageable_d2h", &link.pageable_d2h),
        ]);
        if let Some(disk) = disk {
            all.extend([entry("disk.read", &disk.read)]);
            all.extend(disk.read_total.as_ref().map(|f| entry("disk.read_total", f)));
            all.extend([
                entry("disk.write", &disk.write),
                entry("disk.buffered_read", &disk.buffered_read),
            ]);
            all.extend(disk.buffered_pair.as_ref().map(|f| entry("disk.buffered_pair", f)));
            all.extend(disk.buffered_total.as_ref().map(|f| entry("disk.buffered_total", f)));
            all.extend(disk.buffered_jump.as_ref().map(|f| entry("disk.buffered_jump", f)));
            all.push(entry("disk.page_fault_read", &disk.page_fault_read));
            all.extend(disk.page_fault_total.as_ref().map(|f| entry("disk.page_fault_total", f)));
            all.extend(disk.page_fault_hit.as_ref().map(|f| entry("disk.page_fault_hit", f)));
            all.extend(disk.direct_to_gpu.as_ref().map(|f| entry("disk.direct_to_gpu", f)));
            all.push(entry("disk.capacity", &disk.capacity));
        }
        all.extend([
            entry("host.memory", &host.memory),
            entry("host.reserved", &host.reserved),
            entry("host.memory_bandwidth", &host.memory_bandwidth),
            entry("host.copy", &host.copy),
            entry("host.cores", &host.cores),
            entry("host.compute", &host.compute),
            entry("host.weights", &host.weights),
            entry("host.attention", &host.attention),
        ]);
        all.extend(host.gather.as_ref().map(|f| entry("host.gather", f)));
        all.push(entry("host.page_cache_kept", &host.page_cache_kept));
        all.extend(host.attentions.iter().map(|a| entry("host.attentions.time", &a.time)));
        all.extend([
            entry("software.barrier", &software.barrier),
            entry("software.disk_request", &software.disk_request),
            entry("software.host_op", &software.host_op),
        ]);
        all.extend(software.handover.as_ref().map(|f| entry("software.handover", f)));
        all.extend(software.notice.as_ref().map(|f| entry("software.notice", f)));
        all.extend(software.submit.as_ref().map(|f| entry("software.submit", f)));
        all.extend(software.follow.as_ref().map(|f| entry("software.follow", f)));
        all.extend(software.issue.as_ref().map(|f| entry("software.issue", f)));
        all.extend(software.lookup.as_ref().map(|f| entry("software.lookup", f)));
        all.extend(software.checksum.as_ref().map(|f| entry("software.checksum", f)));
        all
    }

    /// The canonical text: one line a figure, in a fixed order, so that two profiles can be compared.
    pub fn to_toml(&self) -> String {
        let mut text = format!(
            "name = {}\ndescription = {}\n\n[sources]\n",
            quoted(&self.name),
            quoted(&self.description)
        );
        for (key, source) in &self.sources {
            // A map of one entry, because a key may need quotes of its own.
            let line = toml::Table::from_iter([(key.clone(), toml::Value::from(source.as_str()))]);
            text.push_str(&line.to_string());
        }
        let mut kernels = self.gpu.kernels.iter();
        let mut attentions = self.gpu.attentions.iter();
        let mut on_host = self.host.attentions.iter();
        let mut section = "";
        for figure in self.figures() {
            let (table, key) = figure.path.split_once('.').unwrap_or(("", figure.path));
            if table != section {
                section = table;
                let _ = writeln!(text, "\n[{section}]");
                if section == "gpu" {
                    let _ = writeln!(text, "name = {}", quoted(&self.gpu.name));
                    let _ = writeln!(text, "architecture = {}", quoted(&self.gpu.architecture));
                }
            }
            if key == "kernels.time"
                && let Some(kernel) = kernels.next()
            {
                let KernelTime { precision, rows, outputs, inputs, .. } = kernel;
                let _ = writeln!(text, "\n[[gpu.kernels]]\nprecision = {}", quoted(precision));
                let _ = writeln!(text, "rows = {rows}\noutputs = {outputs}\ninputs = {inputs}");
            }
            let attention = match figure.path {
                "gpu.attentions.time" => attentions.next(),
                "host.attentions.time" => on_host.next(),
                _ => None,
            };
            if let Some(attention) = attention {
                let AttentionTime { precision, rows, context, .. } = attention;
                let AttentionTime { heads, kv_heads, head_dim, .. } = attention;
                let _ = writeln!(text, "\n[[{section}.attentions]]");
                let _ = writeln!(text, "precision = {}", quoted(precision));
                let _ = writeln!(text, "rows = {rows}\ncontext = {context}");
                let _ =
                    writeln!(text, "heads = {heads}\nkv_heads = {kv_heads}\nhead_dim = {head_dim}");
                if let Some(sequences) = attention.sequences {
                    let _ = writeln!(text, "sequences = {sequences}");
                }
            }
            let key = key.rsplit('.').next().unwrap_or(key);
            let _ = write!(text, "{key} = {{ value = {}", figure.value);
            let _ = write!(text, ", source = {}", quoted(figure.source));
            if let Some(cells) = figure.fitted_to {
                let _ = write!(text, ", fitted_to = {}", quoted(cells));
            }
            if let Some(spread) = figure.spread {
                let _ = write!(text, ", spread = {}", toml::Value::Float(spread));
            }
            text.push_str(" }\n");
        }
        text
    }

    /// Sixteen hexadecimal digits that stand for the whole profile: SHA-256 of the canonical text.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.to_toml().as_bytes());
        digest.iter().take(8).fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }
}

/// A TOML string with whatever quotes and escapes it needs.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}
