//! PIPO (arXiv 2504.03664), generalised.
//!
//! Four kinds of task on their own lanes: load weights, load cache, compute, save cache. Attention and
//! MLP are separate stages; weights run ahead as far as the slots allow; the cache of a layer is loaded
//! while the stage before it computes, and saved behind its stage; nothing waits for everything.
//!
//! ```text
//! disk   r3 r4 r5 r6 ...
//! H2D       W3 W4 W5 ...      W = weights of a unit, back to back
//! H2D       K2    K4          K = cache of the next attention
//! GPU       C2 C3 C4 ...
//! D2H          S2    S4       S = new cache rows
//! ```
//!
//! What the paper's pictures and abstract say is followed; its equations and code are not public, so
//! this is a reconstruction, and the knobs generalise it: granularity, buffers at each tier, block
//! sizes, resident weights, the cache's tier, micro-batches, attention on the CPU, routed experts.

use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::residency::Order;
use super::stream;
use super::units::Granularity;
use super::{KvTier, LowerError, Processor};
use crate::plan::Plan;
use crate::schedule::{DiskIo, Schedule, Tier};
use crate::units::Bytes;

mod pipeline;
mod place;

use pipeline::Pipeline;
pub use place::{kv_layers_on_gpu, place, placed_units};

/// Where host-resident weights are kept.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum HostWeights {
    /// In pinned memory: copied to the GPU directly.
    #[default]
    Pinned,
    /// In pageable memory: copied through pinned slots by a staging thread.
    Pageable,
}

/// How the weight file is read.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum FileReads {
    /// Past the page cache.
    #[default]
    Direct,
    /// Through the page cache, which keeps what host memory is left over.
    Buffered,
}

impl FileReads {
    /// How so many threads read the file, blocks in turn. Past the page cache each is on its own; what the system
    /// reads ahead through it follows one thread, and two nearly as well, but not more: on one disk, one had 2.1 GB/s,
    /// two together 1.8 to 2.0 and four 1.0 to 1.4.
    pub fn io(self, threads: u32) -> DiskIo {
        match (self, threads) {
            (Self::Direct, _) => DiskIo::Direct,
            (Self::Buffered, 0 | 1) => DiskIo::Buffered,
            (Self::Buffered, 2) => DiskIo::BufferedPair,
            (Self::Buffered, _) => DiskIo::BufferedInTurn,
        }
    }
}

/// Where the embedding table is looked up.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Embedding {
    /// By the CPU in host memory; only the rows that are needed travel.
    #[default]
    Host,
    /// By the GPU in pinned host memory, across the link: only the rows that are needed travel, and the
    /// host has no part in it.
    Mapped,
    /// On the GPU, as a unit like any other.
    Unit,
}

impl Embedding {
    /// The host memory that holds the table by itself, where it is not among the weights.
    pub fn apart(self) -> Option<Tier> {
        match self {
            Self::Host => Some(Tier::Pageable),
            Self::Mapped => Some(Tier::Pinned),
            Self::Unit => None,
        }
    }
}

/// Which experts are loaded.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ExpertLoads {
    /// All of a layer, ahead of time.
    #[default]
    All,
    /// Those the router picked, once it has.
    Routed,
}

/// The knobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipo {
    /// What is loaded and computed as one.
    pub granularity: Granularity,
    /// GPU buffers for streamed units.
    pub gpu_slots: u32,
    /// Pinned host buffers of one block each.
    pub host_slots: u32,
    /// Bytes moved by one transfer.
    pub block: Bytes,
    /// Bytes of one disk request.
    pub read_block: Bytes,
    /// Threads that read.
    pub disk_threads: u32,
    /// How the weight file is read.
    pub reads: FileReads,
    /// Weights kept on the GPU, at most.
    pub gpu_weights: Bytes,
    /// Weights kept in host memory, at most.
    pub host_weights: Bytes,
    /// Kind of that host memory.
    pub host_memory: HostWeights,
    /// Which units stay first.
    pub order: Order,
    /// Where the embedding is looked up.
    pub embedding: Embedding,
    /// Where the cache lives that is not kept on the GPU.
    pub kv: KvTier,
    /// Layers whose cache stays on the GPU although the others' does not.
    pub kv_gpu_layers: u32,
    /// GPU buffers for the cache of one layer and micro-batch.
    pub kv_slots: u32,
    /// Where decode attention over a cache in host memory is computed.
    pub attention: Processor,
    /// Where hidden states wait between units.
    pub hidden: Processor,
    /// Which experts are loaded.
    pub experts: ExpertLoads,
    /// Whether dequantisation is fused into the products.
    pub fused: bool,
}

impl Default for Pipo {
    /// The paper's pipeline as drawn: attention and MLP apart, two buffers, 32 MB blocks read in 8 MB
    /// requests, nothing resident.
    fn default() -> Self {
        Self {
            granularity: Granularity::Part,
            gpu_slots: 2,
            host_slots: 4,
            block: Bytes(32_000_000),
            read_block: Bytes(8_000_000),
            disk_threads: 1,
            reads: FileReads::Direct,
            gpu_weights: Bytes::ZERO,
            host_weights: Bytes::ZERO,
            host_memory: HostWeights::Pinned,
            order: Order::Spread,
            embedding: Embedding::Host,
            kv: KvTier::Gpu,
            kv_gpu_layers: 0,
            kv_slots: 2,
            attention: Processor::Gpu,
            hidden: Processor::Gpu,
            experts: ExpertLoads::All,
            fused: true,
        }
    }
}

/// Whether the micro-batches of a decode step take turns across units, so that the CPU attends for one while the
/// GPU computes for another. Not where a part of a layer is cut, because what is between the pieces has one place,
/// nor where weights wait for a router.
pub fn takes_turns(plan: &Plan, knobs: &Pipo) -> bool {
    knobs.attention == Processor::Cpu
        && plan.batch.count > 1
        && knobs.granularity != Granularity::Tensor
        && plan.model.experts.is_none()
}

/// Lowers a plan.
pub fn lower(plan: &Plan, knobs: &Pipo) -> Result<Schedule, LowerError> {
    check(plan, knobs)?;
    let frame = Frame::new(plan, knobs.granularity, knobs.fused);
    let mut layout = frame.layout();
    let program = Pipeline::new(frame, knobs, &mut layout);
    Ok(Schedule { layout, program: Box::new(program) })
}

fn check(plan: &Plan, knobs: &Pipo) -> Result<(), LowerError> {
    let at_least_one = [
        ("pipo.gpu_slots", knobs.gpu_slots),
        ("pipo.host_slots", knobs.host_slots),
        ("pipo.kv_slots", knobs.kv_slots),
        ("pipo.disk_threads", knobs.disk_threads),
    ];
    for (path, value) in at_least_one {
        if value == 0 || value > 1024 {
            let message = format!("it is {value}, from 1 to 1024 is possible");
            return Err(LowerError::new(path, message, "2 slots overlap, more only absorb jitter"));
        }
    }
    if knobs.disk_threads > 16 {
        let message = format!("it is {}, at most 16 threads are supported", knobs.disk_threads);
        return Err(LowerError::new("pipo.disk_threads", message, "1 to 4 saturate a disk"));
    }
    let units = super::units::cut(&plan.model, plan.precision.weights, knobs.granularity);
    let largest = units.iter().map(|u| u.bytes).max().unwrap_or(Bytes::ZERO);
    let smallest_block = Bytes(largest.0.div_ceil(stream::MOST_BLOCKS)).max(Bytes(4096));
    if knobs.block < smallest_block {
        let message = format!(
            "it is {}, but a unit of {largest} may have at most {} blocks, so at least {} is needed",
            knobs.block,
            stream::MOST_BLOCKS,
            smallest_block.exact()
        );
        return Err(LowerError::new(
            "pipo.block",
            message,
            "blocks of 4 MiB or more use a link well",
        ));
    }
    if knobs.read_block == Bytes::ZERO {
        return Err(LowerError::new("pipo.read_block", "it is 0B", "set it to 1MiB or more"));
    }
    if knobs.experts == ExpertLoads::Routed
        && (plan.model.experts.is_none() || knobs.granularity != Granularity::Part)
    {
        // In a whole layer the router stands behind loads that would have to wait for it.
        let message = "routed loads need a model with experts and granularity `part`";
        return Err(LowerError::new("pipo.experts", message, "set it to \"all\""));
    }
    if knobs.attention == Processor::Cpu && knobs.hidden == Processor::Cpu {
        let message = "attention on the CPU keeps hidden states on the GPU between its two halves";
        return Err(LowerError::new("pipo.hidden", message, "set it to \"gpu\""));
    }
    if knobs.attention == Processor::Cpu && knobs.kv != KvTier::Host {
        let message = "attention on the CPU needs the cache in host memory";
        return Err(LowerError::new("pipo.attention", message, "set pipo.kv to \"host\""));
    }
    Ok(())
}
