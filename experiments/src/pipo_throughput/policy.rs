//! What each system does with a cell: one rule for all cells alike, none for a single one.
//!
//! | | PIPO | FlexGen |
//! |---|---|---|
//! | weights | 4 bits, none on the GPU, embedding included; in pinned memory or in files, as the bar says | the same |
//! | reads | through the page cache, 4 threads, 32 MB blocks | 4 copy threads, memory maps |
//! | dequantisation | fused into the products | a kernel of its own |
//! | cache, weights in host memory | in host memory | on the GPU as far as it fits |
//! | cache, weights on disk | on the GPU as far as it fits | on the GPU as far as it fits |
//! | cache precision | 16 bits; with weights on disk 4 where 16 do not fit on the GPU | 4 bits |
//!
//! What does not fit on the GPU of a cache is in host memory. "Fits" is the plan's own memory table
//! against the machine's installed memory, context and operating system counted.

use pipo_plan::machine::Machine;
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::model::{Model, Precision, catalog};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::schedule::Schedule;
use pipo_plan::strategy::flexgen::FlexGen;
use pipo_plan::strategy::pipo::{Embedding, FileReads, Pipo};
use pipo_plan::strategy::{KvTier, LowerError, Strategy, lower};
use pipo_plan::units::Bytes;
use pipo_plan::workload::{Budget, Objective, Workload};

use super::cells::{Cell, Definition, Storage, System};
use crate::Failure;

/// A cell that fits, lowered.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) schedule: Schedule,
}

/// A cell, or why it is out of memory.
pub(super) type Fit = Result<Prepared, LowerError>;

/// FlexGen's shares are whole per cents; its users tune them by hand, hardly finer than this.
const SHARE_STEP: u32 = 5;

/// Room for all weights of any model.
const EVERYTHING: Bytes = Bytes(1 << 50);

/// The plan that a system has for a cell, or why it has none.
pub(super) fn prepare(
    definition: &Definition,
    cell: &Cell,
    machine: &Machine,
) -> Result<Fit, Failure> {
    let model = catalog::find(&cell.bar.model)
        .ok_or_else(|| format!("the catalogue has no model `{}`", cell.bar.model))?;
    let candidates = match cell.system {
        System::FlexGen => flexgen(cell),
        System::Pipo => pipo(cell, model.layers),
    };
    first_that_fits(definition, cell, machine, &model, candidates)
}

/// Knobs and the precision of the cache, from the one that is preferred to the one that needs least.
type Candidates = Vec<(Strategy, Precision)>;

/// The architecture figure draws a pool of four threads, and loads and saves of the cache around every
/// attention: with weights in host memory the cache is there too. With weights on disk host memory is
/// page cache, and the GPU's is not needed for anything else: the cache goes there, compressed if need be.
fn pipo(cell: &Cell, layers: u32) -> Candidates {
    let in_host = cell.bar.weights == Storage::Host;
    let most = if in_host { 0 } else { layers };
    let knobs = |kv_gpu_layers| Pipo {
        // A block being read and one being sent for each thread.
        host_slots: 8,
        disk_threads: 4,
        reads: FileReads::Buffered,
        host_weights: if in_host { EVERYTHING } else { Bytes::ZERO },
        kv: if kv_gpu_layers == layers { KvTier::Gpu } else { KvTier::Host },
        kv_gpu_layers,
        // Drawn as a stage with weights of its own.
        embedding: Embedding::Unit,
        ..Pipo::default()
    };
    let plan = |precision, kept| (Strategy::Pipo(knobs(kept)), precision);
    let whole = plan(Precision::Fp16, most);
    let compressed = (0..=most).rev().map(|kept| plan(Precision::Int4, kept));
    std::iter::once(whole).chain(compressed).collect()
}

/// Compressed weights and cache, hidden states on the GPU, everything else at FlexGen's defaults. Its
/// Llama has no grouped heads: every query head has a row in the cache.
fn flexgen(cell: &Cell) -> Candidates {
    let weights_host = if cell.bar.weights == Storage::Host { 100 } else { 0 };
    let knobs = |cache_gpu| FlexGen {
        weights_gpu: 0,
        weights_host,
        cache_gpu,
        cache_host: 100 - cache_gpu,
        all_heads_cache: true,
        ..FlexGen::default()
    };
    let shares = (0..=100 / SHARE_STEP).rev().map(|share| share * SHARE_STEP);
    shares.map(|share| (Strategy::FlexGen(knobs(share)), Precision::Int4)).collect()
}

/// The first candidate whose memory table is within what the machine has. Where none is, the last one's
/// excess is what is missing.
fn first_that_fits(
    definition: &Definition,
    cell: &Cell,
    machine: &Machine,
    model: &Model,
    candidates: Candidates,
) -> Result<Fit, Failure> {
    let overheads = Overheads::of(machine);
    let mut missing = None;
    for (strategy, kv) in candidates {
        let plan = plan(definition, cell, machine, model, strategy, kv);
        let schedule = lower(&plan)?;
        match MemoryTable::new(&schedule.layout, overheads).check(&plan) {
            Ok(()) => return Ok(Ok(Prepared { plan, schedule })),
            Err(error) => missing = Some(error),
        }
    }
    Ok(Err(missing.ok_or("a system without a plan")?))
}

fn plan(
    definition: &Definition,
    cell: &Cell,
    machine: &Machine,
    model: &Model,
    strategy: Strategy,
    kv: Precision,
) -> Plan {
    Plan {
        machine: machine.name.clone(),
        profile: machine.hash(),
        seed: 0,
        workload: Workload {
            prompt: definition.prompt,
            new_tokens: definition.new_tokens,
            batch: Some(cell.bar.batch),
            objective: Objective::Throughput,
            token_within: None,
        },
        budget: Budget {
            gpu: machine.gpu.memory.value,
            host: machine.host.memory.value,
            disk: machine.disk.as_ref().map_or(Bytes::ZERO, |disk| disk.capacity.value),
        },
        precision: Precisions { weights: Precision::Int4, kv },
        batch: Batching::single(cell.bar.batch),
        strategy,
        model: model.clone(),
        prediction: None,
        runners_up: Vec::new(),
    }
}
