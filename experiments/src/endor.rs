//! Endor: a serial chain, four fitted rates, and what follows from them.

use pipo_plan::machine::{self, Curve, Figure, Machine};
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::model::{self, Precision};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::schedule::OpKind;
use pipo_plan::strategy::endor::Endor;
use pipo_plan::strategy::{Strategy, lower};
use pipo_plan::timeline::Timeline;
use pipo_plan::units::{Bandwidth, Bytes};
use pipo_plan::workload::{Budget, Objective, Workload};
use pipo_simulator::{Options, PageCache, simulate};
use serde::Deserialize;

use crate::fit::{Result, deviation, minimise};
use crate::printed::Printed;
use crate::{Check, Comparison, Fitted, Outcome, Refit};

const ID: &str = "endor";

/// What every time of the case study must be within.
const TOLERANCE: f64 = 0.08;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers; a test compares it"))]
    id: String,
    title: String,
    source: String,
    machine: String,
    prompt: u64,
    sparsity: u32,
    notes: Vec<String>,
    #[serde(rename = "pass")]
    passes: Vec<Pass>,
    layer: Layer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Use {
    Fitted,
    HeldOut,
}

/// One pass through a model; the first of each model is the dense one that speed-ups refer to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pass {
    label: String,
    model: String,
    gpu_layers: u32,
    host_layers: u32,
    packed: bool,
    direct: bool,
    /// Seconds.
    paper: Option<Printed>,
    speed_up: Option<Printed>,
    #[serde(rename = "use")]
    usage: Use,
    #[serde(default)]
    note: String,
}

/// Speed-ups of single layers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    disk: Printed,
    host: Printed,
}

/// The fitted rates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constants {
    /// Memory-mapped file to memory, `disk.page_fault_read`.
    pub disk: Bandwidth,
    /// Memory to GPU, `link.pageable_h2d`.
    pub link: Bandwidth,
    /// Dense bytes that are expanded, `gpu.decompress`.
    pub decompress: Bandwidth,
    /// SSD to GPU, `disk.direct_to_gpu`.
    pub direct: Bandwidth,
}

/// What a simulated pass takes: all of it, and its first layer on disk and in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Times {
    pass: f64,
    disk_layer: f64,
    host_layer: f64,
}

fn definition() -> Result<Definition> {
    Ok(toml::from_str(include_str!("../endor/experiment.toml"))?)
}

fn machine(definition: &Definition) -> Result<Machine> {
    let name = &definition.machine;
    machine::catalog::find(name).ok_or_else(|| format!("no machine `{name}`").into())
}

fn plan(definition: &Definition, machine: &Machine, pass: &Pass) -> Result<Plan> {
    let model = model::catalog::find(&pass.model);
    let knobs = Endor {
        sparsity: if pass.packed { definition.sparsity } else { 0 },
        gpu_layers: pass.gpu_layers,
        host_layers: pass.host_layers,
        direct: pass.direct,
    };
    Ok(Plan {
        machine: machine.name.clone(),
        profile: String::new(),
        seed: 0,
        workload: Workload {
            prompt: definition.prompt,
            new_tokens: 2,
            batch: None,
            objective: Objective::Latency,
            token_within: None,
        },
        budget: Budget {
            gpu: machine.gpu.memory.value,
            host: machine.host.memory.value,
            disk: machine.disk.as_ref().map_or(Bytes::ZERO, |d| d.capacity.value),
        },
        precision: Precisions { weights: Precision::Fp16, kv: Precision::Fp16 },
        batch: Batching::single(1),
        strategy: Strategy::Endor(knobs),
        model: model.ok_or_else(|| format!("no model `{}`", pass.model))?,
        prediction: None,
        runners_up: Vec::new(),
    })
}

/// Simulates a prefill and one decode step, and times the latter. Refused where it would not fit.
fn times(definition: &Definition, machine: &Machine, pass: &Pass) -> Result<Times> {
    let plan = plan(definition, machine, pass)?;
    let schedule = lower(&plan)?;
    let overheads = Overheads::of(machine);
    MemoryTable::new(&schedule.layout, overheads).check(&plan)?;
    let page_cache = PageCache::beside(&schedule.layout, machine, false);
    let outcome = simulate(&schedule, machine, &Options { record: true, page_cache })?;
    let timeline = outcome.timeline.ok_or("nothing was recorded")?;
    // Unit 0 is the embedding.
    let layer = |number: u32| layer_time(&timeline, number + 1);
    let first_on_disk = pass.gpu_layers + pass.host_layers;
    Ok(Times {
        pass: outcome.summary.decode().seconds(),
        disk_layer: layer(first_on_disk),
        host_layer: layer(pass.gpu_layers),
    })
}

/// From the end of the unit before to the end of this one, in the decode step.
fn layer_time(timeline: &Timeline, unit: u32) -> f64 {
    let computed = |wanted: u32| {
        let of_unit = timeline
            .spans
            .iter()
            .filter(|s| s.pass == 1 && s.kind == OpKind::Compute && u32::from(s.unit) == wanted);
        of_unit.map(|s| s.end).max().unwrap_or_default().seconds()
    };
    computed(unit) - computed(unit.saturating_sub(1))
}

/// Finds the fitted rates again, from the fitted cells and everything else in the machine profile.
///
/// Each rate has cells of its own, so they follow one after another: the two of the dense baseline,
/// bound together by the paper's four to one; the expansion; the direct path.
pub fn refit() -> Result<Constants> {
    let definition = definition()?;
    let mut machine = machine(&definition)?;
    let [dense, packed, _, direct, ..] = &definition.passes[..] else {
        return Err("the definition needs its first four passes".into());
    };
    let seconds = |pass: &Pass| pass.paper.as_ref().map_or(f64::NAN, |p| p.value);

    let disk = minimise(1e9, 7e9, |rate| {
        set_baseline(&mut machine, rate);
        Ok(deviation(times(&definition, &machine, dense)?.pass, seconds(dense)))
    })?;
    set_baseline(&mut machine, disk);
    let baseline = times(&definition, &machine, dense)?;
    let decompress = minimise(5e9, 500e9, |rate| {
        set_decompress(&mut machine, rate);
        let times = times(&definition, &machine, packed)?;
        // The three contradict each other, so the worst of them is made least.
        let errors = [
            deviation(times.pass, seconds(packed)),
            deviation(baseline.disk_layer / times.disk_layer, definition.layer.disk.value),
            deviation(baseline.host_layer / times.host_layer, definition.layer.host.value),
        ];
        Ok(errors.into_iter().fold(0.0, f64::max))
    })?;
    set_decompress(&mut machine, decompress);
    let direct_rate = minimise(1e9, 7e9, |rate| {
        set_direct(&mut machine, rate);
        Ok(deviation(times(&definition, &machine, direct)?.pass, seconds(direct)))
    })?;
    Ok(Constants {
        disk: bandwidth(disk),
        link: bandwidth(4.0 * disk),
        decompress: bandwidth(decompress),
        direct: bandwidth(direct_rate),
    })
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates of a search between positive limits"
)]
fn bandwidth(rate: f64) -> Bandwidth {
    Bandwidth(rate as u64)
}

fn set_baseline(machine: &mut Machine, rate: f64) {
    if let Some(disk) = &mut machine.disk {
        disk.page_fault_read.value = Curve::flat(bandwidth(rate));
    }
    machine.link.pageable_h2d.value = Curve::flat(bandwidth(4.0 * rate));
}

fn set_decompress(machine: &mut Machine, rate: f64) {
    if let Some(figure) = &mut machine.gpu.decompress {
        figure.value = bandwidth(rate);
    }
}

fn set_direct(machine: &mut Machine, rate: f64) {
    if let Some(figure) = machine.disk.as_mut().and_then(|d| d.direct_to_gpu.as_mut()) {
        figure.value = bandwidth(rate);
    }
}

/// The constants fitted anew, in the form in which they are published. The fit is deterministic and its
/// cells are fixed by the definition, so no option changes it.
pub fn refit_published(_: &Refit) -> Result<Vec<Fitted>> {
    let mut machine = machine(&definition()?)?;
    let constants = refit()?;
    set_baseline(&mut machine, constants.disk.as_f64());
    set_decompress(&mut machine, constants.decompress.as_f64());
    set_direct(&mut machine, constants.direct.as_f64());
    Ok(fitted(&machine))
}

/// Runs the experiment.
pub fn run() -> Result<Outcome> {
    let definition = definition()?;
    let machine = machine(&definition)?;
    let mut comparisons = Vec::new();
    let mut dense: Option<(&str, Times)> = None;
    for pass in &definition.passes {
        let times = times(&definition, &machine, pass)?;
        let (model, baseline) = *match &mut dense {
            Some(known) if known.0 == pass.model => known,
            other => other.insert((&pass.model, times)),
        };
        let compare = |label: &str, unit, paper: &Printed, simulated, held_out| Comparison {
            group: model.to_owned(),
            label: label.to_owned(),
            unit,
            paper: Some(paper.value),
            rounding: Some(paper.rounding),
            simulated: Some(simulated),
            held_out,
            note: pass.note.clone(),
        };
        let held_out = pass.usage == Use::HeldOut;
        if let Some(paper) = &pass.paper {
            comparisons.push(compare(&pass.label, "s", paper, times.pass, held_out));
        }
        if let Some(paper) = &pass.speed_up {
            let speed_up = baseline.pass / times.pass;
            comparisons.push(compare(&pass.label, "x", paper, speed_up, held_out));
        }
        if pass.label == "Endor" {
            let Layer { disk, host } = &definition.layer;
            let speed_up = baseline.disk_layer / times.disk_layer;
            comparisons.push(compare("Endor, a layer on the SSD", "x", disk, speed_up, false));
            let speed_up = baseline.host_layer / times.host_layer;
            comparisons.push(compare("Endor, a layer in memory", "x", host, speed_up, false));
        }
    }
    Ok(Outcome {
        id: ID,
        title: definition.title,
        source: definition.source,
        machine: definition.machine,
        fitted: fitted(&machine),
        checks: vec![check(&comparisons)],
        comparisons,
        notes: definition.notes,
        utilisation: Vec::new(),
        timelines: Vec::new(),
    })
}

fn check(comparisons: &[Comparison]) -> Check {
    let of_model = comparisons.iter().filter(|c| c.group == "opt-66b");
    let errors: Vec<f64> = of_model.filter_map(Comparison::error).map(f64::abs).collect();
    let worst = errors.iter().copied().fold(0.0, f64::max);
    Check {
        name: "OPT-66B: every time and speed-up within 8 %".into(),
        holds: worst <= TOLERANCE,
        detail: format!("{} cells, worst {:.1} %", errors.len(), 100.0 * worst),
    }
}

fn fitted(machine: &Machine) -> Vec<Fitted> {
    fn constant<T>(name: &str, figure: &Figure<T>, rate: Bandwidth, meaning: &str) -> Fitted {
        Fitted {
            name: name.into(),
            value: rate.to_string(),
            meaning: meaning.into(),
            cells: figure.fitted_to.clone().unwrap_or_default(),
        }
    }
    let mut all = Vec::new();
    if let Some(disk) = &machine.disk {
        let (read, meaning) = (
            &disk.page_fault_read,
            "memory-mapped file to memory, page by page; the SSD's datasheet has 3.5 GB/s",
        );
        all.push(constant("disk.page_fault_read", read, read.best(), meaning));
    }
    let (link, meaning) = (
        &machine.link.pageable_h2d,
        "pageable memory to GPU; the link does about 25 GB/s from pinned memory, and the driver's \
         staging copy usually brings 8 to 12",
    );
    all.push(constant("link.pageable_h2d", link, link.best(), meaning));
    if let Some(rate) = &machine.gpu.decompress {
        let meaning = "dense bytes expanded from values and bitmap, what it takes to begin included; \
                       GPU memory would allow about ten times as much";
        all.push(constant("gpu.decompress", rate, rate.value, meaning));
    }
    if let Some(rate) = machine.disk.as_ref().and_then(|d| d.direct_to_gpu.as_ref()) {
        let meaning = "SSD to GPU with GPUDirect Storage; the SSD's datasheet has 3.5 GB/s";
        all.push(constant("disk.direct_to_gpu", rate, rate.value, meaning));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_about_this_experiment() {
        assert_eq!(definition().unwrap().id, ID);
    }
}
