//! FlexGen's zig-zag schedule (arXiv 2303.06865).
//!
//! The effective batch is `micro * count` sequences. For each unit, every micro-batch is computed before
//! the next unit, so that all of them share one load of its weights. A step is one unit and one
//! micro-batch; it issues six calls and then waits for all of them:
//!
//! ```text
//! step (j, 0)                                    step (j, 1)
//! weights   W(j+1) -----------------------|      (still unit j: nothing to load)  |
//! cache     K(j, 1) ----------|           |      K(j, 2) ----------|              |
//! hidden    S(j-1, last) L(j, 1)          |      S(j, 0) L(j, 2)                  |
//! GPU       ............ C(j, 0) -----|   |      ....... C(j, 1) -----|           |
//! cache                               V(j-1, last)                  V(j, 0) ---|  |
//! barrier                                 B                                       B
//! ```
//!
//! `W` loads weights, `K` and `V` load and store cache, `L` and `S` load and store hidden states, `C`
//! computes. The calls of one step concern different micro-batches and overlap, but a step is as slow as
//! its slowest call. With `overlap` off, each call waits for the one before it.
//!
//! # What is documented
//!
//! The public code (FMInference/FlexLLMGen) shows: the order of the calls, the barrier after every step
//! (disk queue joined, device synchronised); attention and MLP as separate units; where each tensor
//! goes (see the submodule `weights`); the cache split by whole sequences; four copy threads with a pinned relay of
//! 2 GiB each, which read a memory map and copy on, one tensor at a time; a cache in unpinned host
//! memory; attention on the CPU in single precision; logits at every position of the prompt;
//! dequantisation before each product.
//!
//! # What is reconstructed
//!
//! - Hidden states travel on the stream that computes, so a product waits for the copies issued before
//!   it. On the copy engine those copies queue behind the weights that were issued first. This is our
//!   reading of why FlexGen's own cost model adds the weights' time to each decode step.
//! - A copy from or to unpinned memory holds up the thread that issues it, hence all later calls of the
//!   step.
//! - Jobs go to the copy threads in turn; FlexGen's threads take them from one queue as they get free.
//! - Copying the cache into the single-precision workspace counts as part of attention on the CPU,
//!   whose published rate was fitted with that copy in it.
//! - Grouped heads, experts and precisions other than FlexGen's are generalisations.

use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::units::Granularity;
use super::{LowerError, Processor};
use crate::model::Precision;
use crate::plan::Plan;
use crate::schedule::{Layout, Schedule, Tier};
use crate::units::Bytes;

mod calls;
mod split;
mod weights;
mod zigzag;

pub use calls::REQUEST;
use split::Split;
pub use weights::{Stored, place};
use zigzag::Zigzag;

/// The knobs, with the names of FlexGen's policy spelled out. What the percentages leave is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "they are FlexGen's own switches")]
pub struct FlexGen {
    /// What is loaded and computed as one: `part` is FlexGen's `--sep-layer`, `layer` is without it.
    pub granularity: Granularity,
    /// Per cent of each unit's weights that stay on the GPU.
    pub weights_gpu: u32,
    /// Per cent of each unit's weights in host memory.
    pub weights_host: u32,
    /// Per cent of the cache that stays on the GPU.
    pub cache_gpu: u32,
    /// Per cent of the cache in host memory.
    pub cache_host: u32,
    /// Where hidden states wait between units.
    pub hidden: Processor,
    /// Whether the calls of a step overlap.
    pub overlap: bool,
    /// Whether matrices in host memory are pinned.
    pub pin_weight: bool,
    /// Whether decode attention over a cache that is not on the GPU is computed by the CPU.
    pub cpu_attention: bool,
    /// Whether the cache has a row for every query head although the model groups them: FlexGen knows
    /// no grouped heads.
    pub all_heads_cache: bool,
    /// Threads that copy from and to the disk, each with a pinned relay of 2 GiB.
    pub disk_threads: u32,
}

impl Default for FlexGen {
    /// FlexGen's own defaults: everything on the GPU.
    fn default() -> Self {
        Self {
            granularity: Granularity::Part,
            weights_gpu: 100,
            weights_host: 0,
            cache_gpu: 100,
            cache_host: 0,
            hidden: Processor::Gpu,
            overlap: true,
            pin_weight: true,
            cpu_attention: false,
            all_heads_cache: false,
            disk_threads: 4,
        }
    }
}

/// Pinned bytes that each copy thread sets aside when it starts, whether or not anything is on disk:
/// 2^30 16-bit numbers.
const RELAY: Bytes = Bytes(2 << 30);

/// Lowers a plan.
pub fn lower(plan: &Plan, knobs: &FlexGen) -> Result<Schedule, LowerError> {
    check(plan, knobs)?;
    let frame = frame(plan, knobs);
    let mut layout = frame.layout();
    let weights = place(&frame, knobs, &mut layout);
    let cache = Split::new(plan.batch.micro, knobs);
    check_relays(&frame, &weights, cache)?;
    allocate(&frame, knobs, &weights, cache, &mut layout);
    let program = Zigzag::new(frame, knobs.clone(), weights, cache, &mut layout);
    Ok(Schedule { layout, program: Box::new(program) })
}

/// The plan's units, and how FlexGen computes them.
pub fn frame(plan: &Plan, knobs: &FlexGen) -> Frame {
    // Dequantisation is never fused into a product here.
    let mut frame = Frame::new(plan, knobs.granularity, false);
    frame.style.all_logits = true;
    if knobs.all_heads_cache {
        frame.style.kv_heads = u64::from(plan.model.heads);
    }
    frame
}

fn check(plan: &Plan, knobs: &FlexGen) -> Result<(), LowerError> {
    let shares = [
        ("flexgen.weights_gpu", "weights", knobs.weights_gpu, knobs.weights_host),
        ("flexgen.cache_gpu", "cache", knobs.cache_gpu, knobs.cache_host),
    ];
    for (path, what, gpu, host) in shares {
        if gpu > 100 || host > 100 || gpu + host > 100 {
            let message = format!("{gpu} % on the GPU and {host} % on the host of the {what}");
            let help = "the two may add up to 100 at most; the rest is on disk";
            return Err(LowerError::new(path, message, help));
        }
    }
    if knobs.granularity == Granularity::Tensor {
        let message = "it is \"tensor\", FlexGen's units are \"part\" or \"layer\"";
        return Err(LowerError::new("flexgen.granularity", message, "set it to \"part\""));
    }
    if knobs.disk_threads == 0 || knobs.disk_threads > 16 {
        let message = format!("it is {}, from 1 to 16 is possible", knobs.disk_threads);
        return Err(LowerError::new("flexgen.disk_threads", message, "FlexGen has 4"));
    }
    if plan.batch.prefill_chunk.is_some() {
        let message = "FlexGen works on a prompt in one piece";
        return Err(LowerError::new("batch.prefill_chunk", message, "remove it"));
    }
    let stored =
        [("precision.weights", plan.precision.weights), ("precision.kv", plan.precision.kv)];
    for (path, precision) in stored {
        if precision == Precision::Int8 {
            let message = "it is int8, FlexGen compresses to int4 or not at all";
            return Err(LowerError::new(path, message, "set it to \"int4\" or \"fp16\""));
        }
    }
    if knobs.cpu_attention && plan.precision.kv.is_quantised() {
        let message = "attention on the CPU works on a cache that is not compressed";
        return Err(LowerError::new(
            "flexgen.cpu_attention",
            message,
            "set it to false, or precision.kv to \"fp16\"",
        ));
    }
    Ok(())
}

/// A job is one tensor, and must fit into the relay it passes through.
fn check_relays(frame: &Frame, weights: &[Vec<Stored>], cache: Split) -> Result<(), LowerError> {
    let on_disk = weights.iter().flatten().filter(|t| t.tier == Tier::Disk);
    let largest = on_disk.map(|t| t.bytes).max().unwrap_or(Bytes::ZERO);
    let context = frame.plan.workload.context();
    let keys = Bytes(split::bytes(frame, cache.disk, context).0.div_ceil(2));
    let jobs = [
        ("flexgen.weights_host", "a tensor on disk", largest, "keep it in host memory"),
        ("batch.micro", "the keys of one layer on disk", keys, "make the micro-batch smaller"),
    ];
    for (path, what, bytes, help) in jobs {
        if bytes > RELAY {
            let message = format!(
                "{what} has {}, the relay of a copy thread {}",
                bytes.both(),
                RELAY.exact()
            );
            return Err(LowerError::new(path, message, help));
        }
    }
    Ok(())
}

/// Notes what is held throughout; rings are added with the lanes.
fn allocate(
    frame: &Frame,
    knobs: &FlexGen,
    weights: &[Vec<Stored>],
    cache: Split,
    layout: &mut Layout,
) {
    for tier in [Tier::Gpu, Tier::Pinned, Tier::Pageable, Tier::Disk] {
        let bytes = weights.iter().flatten().filter(|t| t.tier == tier).map(|t| t.bytes).sum();
        let name = if tier == Tier::Disk { "weights" } else { "weights, resident" };
        layout.allocate(name, tier, bytes);
    }
    let Plan { batch, workload, model, .. } = &frame.plan;
    let copies = batch.count * u64::from(model.layers);
    let tiers = [
        (Tier::Gpu, cache.gpu),
        // Unpinned by design: pinning a cache of a hundred gigabytes takes minutes.
        (Tier::Pageable, cache.host),
        (Tier::Disk, cache.disk),
    ];
    for (tier, sequences) in tiers {
        let bytes = split::bytes(frame, sequences, workload.context());
        layout.allocate("KV cache", tier, bytes * copies);
    }
    if knobs.cpu_attention && cache.outside() > 0 {
        // Keys and values of one micro-batch in single precision; one workspace serves all attention
        // units where they alternate with MLPs, two where they follow each other.
        let features = 2 * frame.style.kv_heads * model.head_dim;
        let buffers = if knobs.granularity == Granularity::Part { 1 } else { 2 };
        let bytes = Bytes(4 * features) * (batch.micro * workload.context() * buffers);
        layout.allocate("attention workspace", Tier::Pageable, bytes);
    }
    // The result of a product is a new tensor beside its input.
    let hidden = frame.hidden(0);
    match knobs.hidden {
        Processor::Gpu => layout.allocate("hidden states", Tier::Gpu, hidden * (batch.count + 1)),
        Processor::Cpu => {
            layout.allocate("hidden states", Tier::Pinned, hidden * batch.count);
            layout.allocate("hidden states, result", Tier::Gpu, hidden);
        }
    }
    // Scores are written out: one 16-bit matrix of prompt by prompt for each head, beside q, k, v and
    // the result.
    let scores =
        Bytes(2 * batch.micro * u64::from(model.heads)) * workload.prompt * workload.prompt;
    let attention = scores + frame.query(0) * 4;
    layout.allocate("workspace", Tier::Gpu, frame.workspace().max(attention));
}
