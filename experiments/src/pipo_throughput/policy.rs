//! What each system does with a cell: one rule for all cells alike.

use pipo_plan::machine::Machine;
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::model::{Model, Precision, catalog};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::schedule::Schedule;
use pipo_plan::strategy::pipo::{FileReads, HostWeights, Pipo};
use pipo_plan::strategy::{KvTier, LowerError, Strategy, lower};
use pipo_plan::units::Bytes;
use pipo_plan::workload::{Budget, Objective, Workload};

use super::cells::{Cell, Definition, Storage, System};

/// A cell, ready to be simulated.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) schedule: Schedule,
    pub(super) memory: MemoryTable,
}

/// Exploration knobs.
pub(super) fn env(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

pub(super) fn prepare(
    definition: &Definition,
    cell: &Cell,
    machine: &Machine,
) -> Result<Prepared, LowerError> {
    let model = catalog::find(&cell.bar.model).unwrap();
    match cell.system {
        System::Pipo => pipo(definition, cell, machine, &model),
        System::FlexGen => Err(LowerError::new("x", "y", "z")),
    }
}

fn plan(
    definition: &Definition,
    cell: &Cell,
    machine: &Machine,
    model: &Model,
    strategy: Strategy,
) -> Plan {
    Plan {
        machine: machine.name.clone(),
        profile: String::new(),
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
            disk: machine.disk.as_ref().unwrap().capacity.value,
        },
        precision: Precisions {
            weights: Precision::Int4,
            kv: if env("KVFP16", 0.0) > 0.0 { Precision::Fp16 } else { Precision::Int4 },
        },
        batch: Batching::single(cell.bar.batch),
        strategy,
        model: model.clone(),
        prediction: None,
        runners_up: Vec::new(),
    }
}

fn pipo(
    definition: &Definition,
    cell: &Cell,
    machine: &Machine,
    model: &Model,
) -> Result<Prepared, LowerError> {
    let host = cell.bar.weights == Storage::Host;
    let kvhost = match env("KV", 0.0) as u32 {
        0 => false,
        1 => true,
        _ => host,
    };
    let mut error = None;
    let precisions = match env("PREC", 0.0) as u32 {
        0 => vec![Precision::Int4],
        _ => vec![Precision::Fp16, Precision::Int4],
    };
    for precision in precisions {
        let top = if kvhost { 0 } else { model.layers };
        for layers in (0..=top).rev() {
            let knobs = Pipo {
                disk_threads: env("THREADS", 4.0) as u32,
                host_slots: env("HSLOTS", 8.0) as u32,
                block: Bytes(env("BLOCK", 32e6) as u64),
                reads: if env("DIRECT", 0.0) > 0.0 {
                    FileReads::Direct
                } else {
                    FileReads::Buffered
                },
                host_weights: if host { Bytes(1 << 50) } else { Bytes::ZERO },
                host_memory: if env("PAGEABLE", 0.0) > 0.0 {
                    HostWeights::Pageable
                } else {
                    HostWeights::Pinned
                },
                kv: if layers == model.layers { KvTier::Gpu } else { KvTier::Host },
                kv_gpu_layers: layers,
                ..Pipo::default()
            };
            let mut plan = plan(definition, cell, machine, model, Strategy::Pipo(knobs));
            plan.precision.kv = precision;
            match check(plan, machine) {
                Ok(p) => return Ok(p),
                Err(e) => error = Some(e),
            }
        }
    }
    Err(error.unwrap())
}

fn check(plan: Plan, machine: &Machine) -> Result<Prepared, LowerError> {
    let schedule = lower(&plan)?;
    let overheads = Overheads {
        gpu_context: machine.gpu.context.value,
        host_reserved: machine.host.reserved.value,
    };
    let memory = MemoryTable::new(&schedule.layout, overheads);
    memory.check(&plan)?;
    Ok(Prepared { plan, schedule, memory })
}
