//! FlexGen on the machine of its paper: published policies, ablations, and Accelerate beside it.

use pipo_plan::machine::{self, Machine};
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::model::{self, Precision};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::strategy::accelerate::Accelerate;
use pipo_plan::strategy::flexgen::FlexGen;
use pipo_plan::strategy::{Processor, Strategy, lower};
use pipo_plan::units::Bytes;
use pipo_plan::workload::{Budget, Objective, Workload};
use pipo_simulator::{Options, PageCache, Summary, simulate};
use rayon::prelude::*;
use serde::Deserialize;

use crate::fit::Result;
use crate::printed::Printed;
use crate::{Check, Comparison, Fitted, Outcome, median_error};

const ID: &str = "flexgen-t4";
const DEFINITION: &str = include_str!("../flexgen-t4/experiment.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers; a test compares it"))]
    id: String,
    title: String,
    source: String,
    machine: String,
    new_tokens: u64,
    notes: Vec<String>,
    targets: Targets,
    cell: Vec<Cell>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Targets {
    published_within: f64,
    held_out_median_error: f64,
}

/// What a cell measures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Quantity {
    /// New tokens a second over the whole request.
    #[default]
    Throughput,
    /// Seconds until the prompt has been worked on.
    Prefill,
    /// Seconds from there to the last token.
    Decode,
}

/// Where Accelerate's `device_map` puts all weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum DeviceMap {
    Gpu,
    Host,
    Disk,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "they are FlexGen's own switches")]
struct Cell {
    group: String,
    label: String,
    model: String,
    #[serde(default = "usual_prompt")]
    prompt: u64,
    /// Sequences in a micro-batch, and micro-batches.
    batch: [u64; 2],
    /// FlexGen's `--percent`: weights on GPU and host, cache on GPU and host, hidden states likewise.
    #[serde(default)]
    percent: [u32; 6],
    #[serde(default = "yes")]
    overlap: bool,
    #[serde(default = "yes")]
    pin_weight: bool,
    #[serde(default)]
    cpu_attention: bool,
    #[serde(default)]
    compress_weights: bool,
    #[serde(default)]
    compress_cache: bool,
    /// Given where the system is Accelerate and not FlexGen.
    accelerate: Option<DeviceMap>,
    #[serde(default)]
    quantity: Quantity,
    paper: Printed,
    /// Whether a constant of the profile was fitted to it.
    #[serde(default)]
    fitted: bool,
    #[serde(default)]
    note: String,
}

fn usual_prompt() -> u64 {
    512
}

fn yes() -> bool {
    true
}

impl Cell {
    fn strategy(&self) -> Strategy {
        let [weights_gpu, weights_host, cache_gpu, cache_host, hidden_gpu, _] = self.percent;
        let all = Bytes(1 << 50);
        match self.accelerate {
            None => Strategy::FlexGen(FlexGen {
                weights_gpu,
                weights_host,
                cache_gpu,
                cache_host,
                hidden: if hidden_gpu == 100 { Processor::Gpu } else { Processor::Cpu },
                overlap: self.overlap,
                pin_weight: self.pin_weight,
                cpu_attention: self.cpu_attention,
                ..FlexGen::default()
            }),
            Some(map) => Strategy::Accelerate(Accelerate {
                gpu_weights: if map == DeviceMap::Gpu { all } else { Bytes::ZERO },
                host_weights: if map == DeviceMap::Host { all } else { Bytes::ZERO },
            }),
        }
    }

    fn plan(&self, machine: &Machine, new_tokens: u64) -> Result<Plan> {
        let model = model::catalog::find(&self.model).ok_or(format!("no model {}", self.model))?;
        let stored = |compressed| if compressed { Precision::Int4 } else { Precision::Fp16 };
        let [micro, count] = self.batch;
        let capacity = machine.disk.as_ref().map_or(Bytes::ZERO, |disk| disk.capacity.value);
        Ok(Plan {
            machine: machine.name.clone(),
            profile: machine.hash(),
            seed: 0,
            workload: Workload {
                prompt: self.prompt,
                new_tokens,
                batch: None,
                objective: Objective::Throughput,
                token_within: None,
            },
            budget: Budget {
                gpu: machine.gpu.memory.value,
                host: machine.host.memory.value,
                disk: capacity,
            },
            precision: Precisions {
                weights: stored(self.compress_weights),
                kv: stored(self.compress_cache),
            },
            batch: Batching { micro, count, prefill_chunk: None },
            strategy: self.strategy(),
            model,
            prediction: None,
            runners_up: Vec::new(),
        })
    }

    fn value(&self, summary: &Summary, new_tokens: u64) -> f64 {
        let tokens = self.batch[0] * self.batch[1] * new_tokens;
        match self.quantity {
            Quantity::Throughput => tokens as f64 / summary.end.seconds(),
            Quantity::Prefill => summary.prefill().seconds(),
            Quantity::Decode => summary.decode().seconds(),
        }
    }

    fn unit(&self) -> &'static str {
        match self.quantity {
            Quantity::Throughput => "tokens/s",
            Quantity::Prefill | Quantity::Decode => "s",
        }
    }
}

/// A cell as it was simulated.
struct Run {
    value: f64,
    /// What does not fit, if something does not.
    misfit: Option<String>,
}

fn simulated(cell: &Cell, machine: &Machine, new_tokens: u64) -> Result<Run> {
    let plan = cell.plan(machine, new_tokens)?;
    let schedule = lower(&plan)?;
    let overheads = Overheads::of(machine);
    let fit = MemoryTable::new(&schedule.layout, overheads).check(&plan);
    let page_cache = PageCache::beside(&schedule.layout, machine, false);
    let outcome = simulate(&schedule, machine, &Options { record: false, page_cache })?;
    let value = cell.value(&outcome.summary, new_tokens);
    Ok(Run { value, misfit: fit.err().map(|error| error.message) })
}

/// Runs the experiment.
pub fn run() -> Result<Outcome> {
    let definition: Definition = toml::from_str(DEFINITION)?;
    let machine = machine::catalog::find(&definition.machine)
        .ok_or(format!("no machine {}", definition.machine))?;
    let run = |cell: &Cell| simulated(cell, &machine, definition.new_tokens);
    let runs: Result<Vec<Run>> = definition.cell.par_iter().map(run).collect();
    let runs = runs?;
    let comparisons: Vec<Comparison> =
        definition.cell.iter().zip(&runs).map(|(cell, run)| compare(cell, run)).collect();
    let mut checks = throughput_checks(&definition.targets, &comparisons);
    checks.push(memory_check(&definition.cell, &runs));
    Ok(Outcome {
        id: ID,
        title: definition.title,
        source: definition.source,
        machine: definition.machine,
        fitted: fitted(&machine),
        comparisons,
        checks,
        notes: definition.notes,
        utilisation: Vec::new(),
        timelines: Vec::new(),
    })
}

fn compare(cell: &Cell, run: &Run) -> Comparison {
    Comparison {
        group: cell.group.clone(),
        label: cell.label.clone(),
        unit: cell.unit(),
        paper: Some(cell.paper.value),
        rounding: Some(cell.paper.rounding),
        simulated: Some(run.value),
        held_out: !cell.fitted,
        note: cell.note.clone(),
    }
}

fn throughput_checks(targets: &Targets, comparisons: &[Comparison]) -> Vec<Check> {
    let published = comparisons.first().and_then(Comparison::error).unwrap_or(f64::INFINITY);
    let held_out = comparisons.iter().filter(|c| c.held_out);
    let median = median_error(held_out).unwrap_or(f64::INFINITY);
    vec![
        Check {
            name: format!(
                "OPT-30B with its published policy is within {:.0} % of the paper",
                100.0 * targets.published_within
            ),
            holds: published.abs() <= targets.published_within,
            detail: format!("{:+.1} %", 100.0 * published),
        },
        ordered("OPT-30B", comparisons),
        ordered("OPT-175B", comparisons),
        Check {
            name: format!(
                "the median error of the held-out cells is at most {:.0} %",
                100.0 * targets.held_out_median_error
            ),
            holds: median <= targets.held_out_median_error,
            detail: format!("{:.1} %", 100.0 * median),
        },
    ]
}

/// Whether the ablations of a model rank as published.
fn ordered(model: &str, comparisons: &[Comparison]) -> Check {
    let mut cells: Vec<&Comparison> = comparisons.iter().filter(|c| c.group == model).collect();
    cells.sort_by(|a, b| b.paper.unwrap_or(0.0).total_cmp(&a.paper.unwrap_or(0.0)));
    let values: Vec<f64> = cells.iter().filter_map(|c| c.simulated).collect();
    let shown = |c: &&Comparison| format!("{} {:.2}", c.label, c.simulated.unwrap_or(0.0));
    Check {
        name: format!("the ablations of {model} rank as published"),
        holds: values.len() == cells.len() && values.is_sorted_by(|a, b| a > b),
        detail: cells.iter().map(shown).collect::<Vec<_>>().join(" > "),
    }
}

/// The published runs did not run out of memory, so their plans must fit here.
fn memory_check(cells: &[Cell], runs: &[Run]) -> Check {
    let misfits: Vec<String> = (cells.iter().zip(runs))
        .filter_map(|(c, r)| Some(format!("{}, {}: {}", c.group, c.label, r.misfit.as_ref()?)))
        .collect();
    Check {
        name: "every published run fits into the machine's memory".into(),
        holds: misfits.is_empty(),
        detail: if misfits.is_empty() {
            format!("{} plans fit", cells.len())
        } else {
            misfits.join("; ")
        },
    }
}

/// What the profile says was fitted, by us or by those it cites.
fn fitted(machine: &Machine) -> Vec<Fitted> {
    let of = |entry: machine::Entry| {
        let cells = entry.fitted_to?.to_owned();
        let meaning = machine.sources.get(entry.source).cloned().unwrap_or_default();
        let value = entry.value.trim_matches('"').to_owned();
        Some(Fitted { name: entry.path.into(), value, meaning, cells })
    };
    machine.figures().into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reproduction_holds() {
        let outcome = run().unwrap();
        for check in &outcome.checks {
            assert!(check.holds, "{}: {}", check.name, check.detail);
        }
        for cell in &outcome.comparisons {
            let (low, high) = cell.rounding.unwrap();
            let printed = (low..=high).contains(&cell.simulated.unwrap());
            let error = cell.error().unwrap();
            assert!(printed || error.abs() < 0.2, "{}, {}: {error}", cell.group, cell.label);
        }
        let fitted: Vec<_> = outcome.fitted.iter().map(|f| f.name.as_str()).collect();
        assert!(fitted.contains(&"gpu.dequantise") && fitted.contains(&"disk.page_fault_read"));
    }

    #[test]
    fn the_definition_names_itself() {
        let definition: Definition = toml::from_str(DEFINITION).unwrap();
        assert_eq!(definition.id, ID);
    }
}
