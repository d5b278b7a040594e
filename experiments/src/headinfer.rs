//! HeadInfer: memory that must agree exactly, and times with two fitted constants.

use pipo_plan::machine::{self, Curve, Machine};
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::model::{self, Model, Precision};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::strategy::headinfer::{CHUNK, HeadInfer, adaptive_groups};
use pipo_plan::strategy::{KvTier, Strategy, lower};
use pipo_plan::units::{Bandwidth, Bytes, FlopRate};
use pipo_plan::workload::{Budget, Objective, Workload};
use pipo_simulator::{Options, PageCache, simulate};
use rayon::prelude::*;
use serde::Deserialize;

use crate::fit::{Result, deviation, minimise};
use crate::printed::Printed;
use crate::{Check, Comparison, Fitted, Outcome, Refit, median_error};

const ID: &str = "headinfer";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers; a test compares it"))]
    id: String,
    title: String,
    source: String,
    machine: String,
    model: String,
    notes: Vec<String>,
    memory: Vec<MemoryCell>,
    time: Vec<TimeCell>,
}

/// A context as the paper writes it, such as `25K` or `1M`.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct Tokens {
    text: String,
    count: u64,
}

impl TryFrom<String> for Tokens {
    type Error = String;
    fn try_from(text: String) -> std::result::Result<Self, String> {
        let scaled = |digits: &str, scale: u64| digits.parse().ok().map(|n: u64| n * scale);
        let count = match text.split_at_checked(text.len().saturating_sub(1)) {
            Some((digits, "K")) => scaled(digits, 1 << 10),
            Some((digits, "M")) => scaled(digits, 1 << 20),
            _ => None,
        };
        count.map(|count| Self { count, text: text.clone() }).ok_or(format!("`{text}` tokens"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryCell {
    table: String,
    label: String,
    tokens: Tokens,
    /// Head groups of an offloaded cache; 0 for a cache on the GPU.
    groups: u32,
    chunked: bool,
    kv: Precision,
    paper: Printed,
    #[serde(default)]
    note: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Use {
    Fitted,
    HeldOut,
    /// Shown, but no tolerance is claimed.
    Listed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TimeCell {
    tokens: Tokens,
    prefill: Printed,
    decode: Printed,
    #[serde(rename = "use")]
    usage: Use,
}

/// The two fitted constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constants {
    /// Sustained rate of matrix products and attention, `gpu.matmul` and `gpu.attention`.
    pub arithmetic: FlopRate,
    /// Bandwidth of the cache on its way to the GPU, `link.h2d`.
    pub link: Bandwidth,
}

/// Seconds of a prefill and of one decode step.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Times {
    prefill: f64,
    decode: f64,
}

fn definition() -> Result<Definition> {
    Ok(toml::from_str(include_str!("../headinfer/experiment.toml"))?)
}

fn machine(definition: &Definition) -> Result<Machine> {
    let name = &definition.machine;
    machine::catalog::find(name).ok_or_else(|| format!("no machine `{name}`").into())
}

/// The model, made for the longest context of the paper.
fn model(definition: &Definition) -> Result<Model> {
    let name = &definition.model;
    let model = model::catalog::find(name).ok_or_else(|| format!("no model `{name}`"))?;
    Ok(Model { name: "llama-3-8b-4m".into(), max_context: (4 << 20) + 1024, ..model })
}

fn plan(
    model: &Model,
    machine: &Machine,
    knobs: HeadInfer,
    (tokens, new_tokens): (u64, u64),
    kv: Precision,
) -> Plan {
    Plan {
        machine: machine.name.clone(),
        profile: String::new(),
        seed: 0,
        workload: Workload {
            prompt: tokens,
            new_tokens,
            batch: None,
            objective: Objective::FirstToken,
            token_within: None,
        },
        budget: Budget {
            gpu: machine.gpu.memory.value,
            host: machine.host.memory.value,
            disk: Bytes::ZERO,
        },
        precision: Precisions { weights: Precision::Bf16, kv },
        batch: Batching { prefill_chunk: Some(CHUNK), ..Batching::single(1) },
        strategy: Strategy::HeadInfer(knobs),
        model: model.clone(),
        prediction: None,
        runners_up: Vec::new(),
    }
}

/// What a plan holds on the GPU beside driver and context, which the paper does not count.
fn gpu_memory(model: &Model, machine: &Machine, cell: &MemoryCell) -> Result<Bytes> {
    let knobs = match cell.groups {
        0 => HeadInfer { kv: KvTier::Gpu, ..HeadInfer::default() },
        head_groups => HeadInfer { head_groups, ..HeadInfer::default() },
    };
    // The last of the tokens is the new one, so that the context is what the paper says.
    let mut plan = plan(model, machine, knobs, (cell.tokens.count - 1, 1), cell.kv);
    if !cell.chunked {
        plan.batch.prefill_chunk = None;
    }
    let none = Overheads::default();
    Ok(MemoryTable::new(&lower(&plan)?.layout, none).gpu())
}

/// Simulates a prefill and two decode steps, of which the second is in the steady state. Refused where
/// it would not fit.
fn times(model: &Model, machine: &Machine, tokens: u64) -> Result<Times> {
    let head_groups = adaptive_groups(tokens, model.kv_heads);
    let knobs = HeadInfer { head_groups, ..HeadInfer::default() };
    let plan = plan(model, machine, knobs, (tokens, 3), Precision::Bf16);
    let schedule = lower(&plan)?;
    let overheads = Overheads::of(machine);
    MemoryTable::new(&schedule.layout, overheads).check(&plan)?;
    let options = Options { record: false, page_cache: PageCache::NONE };
    let summary = simulate(&schedule, machine, &options)?.summary;
    let [.., before, last] = &summary.passes[..] else { return Err("too few passes".into()) };
    let decode = last.end.seconds() - before.end.seconds();
    Ok(Times { prefill: summary.prefill().seconds(), decode })
}

/// Finds the two constants again, from the fitted cells and everything else in the machine profile.
///
/// Decoding waits for the link and hardly depends on arithmetic, so the link comes first; the prefill
/// then has one constant left. Of each the sum of absolute deviations is least: a tolerance on the
/// median is what they must meet, and single cells of the paper lie far from their neighbours.
pub fn refit() -> Result<Constants> {
    let definition = definition()?;
    let model = model(&definition)?;
    let mut machine = machine(&definition)?;
    let fitted = || definition.time.par_iter().filter(|cell| cell.usage == Use::Fitted);
    let link = minimise(5e9, 25e9, |rate| {
        set_link(&mut machine, bandwidth(rate));
        let error = |cell: &TimeCell| {
            let times = times(&model, &machine, cell.tokens.count)?;
            Ok(deviation(times.decode, cell.decode.value))
        };
        total(fitted().map(error).collect())
    })?;
    set_link(&mut machine, bandwidth(link));
    let arithmetic = minimise(50e12, 200e12, |rate| {
        set_arithmetic(&mut machine, FlopRate(bandwidth(rate).0));
        let error = |cell: &TimeCell| {
            let times = times(&model, &machine, cell.tokens.count)?;
            Ok(deviation(times.prefill, cell.prefill.value))
        };
        total(fitted().map(error).collect())
    })?;
    Ok(Constants { arithmetic: FlopRate(bandwidth(arithmetic).0), link: bandwidth(link) })
}

/// Sums in the order of the cells, so that the result does not depend on threads.
fn total(errors: Vec<Result<f64>>) -> Result<f64> {
    errors.into_iter().sum()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates of a search between positive limits"
)]
fn bandwidth(rate: f64) -> Bandwidth {
    Bandwidth(rate as u64)
}

fn set_link(machine: &mut Machine, rate: Bandwidth) {
    machine.link.h2d.value = Curve::flat(rate);
}

fn set_arithmetic(machine: &mut Machine, rate: FlopRate) {
    machine.gpu.matmul.value = rate;
    machine.gpu.attention.value = rate;
}

/// The constants fitted anew, in the form in which they are published. The fit is deterministic and its
/// cells are fixed by the definition, so no option changes it.
pub fn refit_published(_: &Refit) -> Result<Vec<Fitted>> {
    let mut machine = machine(&definition()?)?;
    let constants = refit()?;
    set_link(&mut machine, constants.link);
    set_arithmetic(&mut machine, constants.arithmetic);
    Ok(fitted(&machine))
}

/// Runs the experiment.
pub fn run() -> Result<Outcome> {
    let definition = definition()?;
    let model = model(&definition)?;
    let machine = machine(&definition)?;
    let mut comparisons = Vec::new();
    for cell in &definition.memory {
        comparisons.push(compare_memory(&model, &machine, cell)?);
    }
    let simulated: Vec<Result<Times>> = (definition.time.par_iter())
        .map(|cell| times(&model, &machine, cell.tokens.count))
        .collect();
    for (cell, times) in definition.time.iter().zip(simulated) {
        comparisons.extend(compare_times(cell, times?));
    }
    let checks = checks(&definition, &comparisons);
    Ok(Outcome {
        id: ID,
        title: definition.title.clone(),
        source: definition.source.clone(),
        machine: definition.machine.clone(),
        fitted: fitted(&machine),
        comparisons,
        checks,
        notes: definition.notes,
        utilisation: Vec::new(),
        timelines: Vec::new(),
    })
}

fn compare_memory(model: &Model, machine: &Machine, cell: &MemoryCell) -> Result<Comparison> {
    let gibibytes = gpu_memory(model, machine, cell)?.as_f64() / f64::from(1 << 30);
    Ok(Comparison {
        group: format!("GPU memory ({})", cell.table),
        label: cell.label.clone(),
        unit: "GiB",
        paper: Some(cell.paper.value),
        rounding: Some(cell.paper.rounding),
        simulated: Some(gibibytes),
        held_out: true,
        note: cell.note.clone(),
    })
}

fn compare_times(cell: &TimeCell, times: Times) -> [Comparison; 2] {
    let compare = |group: &str, paper: &Printed, simulated| Comparison {
        group: group.into(),
        label: format!("{} tokens", cell.tokens.text),
        unit: "s",
        paper: Some(paper.value),
        rounding: Some(paper.rounding),
        simulated: Some(simulated),
        held_out: cell.usage != Use::Fitted,
        note: if cell.usage == Use::Listed { "bound by overheads".into() } else { String::new() },
    };
    [compare(PREFILL, &cell.prefill, times.prefill), compare(DECODE, &cell.decode, times.decode)]
}

const PREFILL: &str = "prefill (table 6)";
const DECODE: &str = "one decode step (table 7)";

fn fitted(machine: &Machine) -> Vec<Fitted> {
    let cells = |fitted_to: &Option<String>| fitted_to.clone().unwrap_or_default();
    vec![
        Fitted {
            name: "gpu.matmul = gpu.attention".into(),
            value: machine.gpu.matmul.value.to_string(),
            meaning: "sustained rate of all arithmetic of a prefill; the datasheet has 165 TFLOP/s"
                .into(),
            cells: cells(&machine.gpu.matmul.fitted_to),
        },
        Fitted {
            name: "link.h2d".into(),
            value: machine.link.h2d.best().to_string(),
            meaning:
                "bandwidth of the cache to the GPU with HeadInfer's synchronisation in it; the \
                      paper measures 25 GB/s from pinned memory without"
                    .into(),
            cells: cells(&machine.link.h2d.fitted_to),
        },
    ]
}

fn checks(definition: &Definition, comparisons: &[Comparison]) -> Vec<Check> {
    let listed: Vec<String> = (definition.time.iter())
        .filter(|cell| cell.usage == Use::Listed)
        .map(|cell| format!("{} tokens", cell.tokens.text))
        .collect();
    let memory: Vec<&Comparison> = comparisons
        .iter()
        // A 4-bit cache is another format here; its row says so.
        .filter(|c| c.unit == "GiB" && c.note.is_empty())
        .collect();
    let timed = |group| {
        let of_group = move |c: &&Comparison| c.unit == "s" && c.group.starts_with(group);
        comparisons.iter().filter(of_group).filter(|c| !listed.contains(&c.label))
    };
    let times = |name: &str, cells: Vec<&Comparison>| {
        let name = format!("{name}, 10K to 4M tokens: median within 10 %, worst within 30 %");
        within(&name, &cells, 0.1, 0.3)
    };
    vec![
        within("GPU memory within 1 %", &memory, 0.01, 0.01),
        times(PREFILL, timed(PREFILL).collect()),
        times(DECODE, timed(DECODE).collect()),
        times("held-out times", timed("").filter(|c| c.held_out).collect()),
    ]
}

fn within(name: &str, cells: &[&Comparison], median: f64, worst: f64) -> Check {
    let middle = median_error(cells.iter().copied()).unwrap_or(f64::INFINITY);
    let errors = cells.iter().map(|c| c.error().map_or(f64::INFINITY, f64::abs));
    let largest = errors.fold(0.0, f64::max);
    Check {
        name: name.into(),
        holds: middle <= median && largest <= worst,
        detail: format!(
            "{} cells, median {:.1} %, worst {:.1} %",
            cells.len(),
            100.0 * middle,
            100.0 * largest
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_about_this_experiment() {
        let definition = definition().unwrap();
        assert_eq!(definition.id, ID);
        assert_eq!(definition.time.iter().filter(|c| c.usage == Use::Fitted).count(), 5);
    }

    #[test]
    fn a_prefill_is_its_arithmetic_and_a_decode_step_its_bytes() {
        let definition = definition().unwrap();
        let model = model(&definition).unwrap();
        let mut machine = machine(&definition).unwrap();
        let tokens = 400_u32 << 10;
        let cached = times(&model, &machine, tokens.into()).unwrap();
        let bytes = model.kv_bytes_per_token(Precision::Bf16).as_f64() * f64::from(tokens);
        let over_the_link = bytes / machine.link.h2d.best().as_f64();
        assert!((cached.decode / over_the_link - 1.0).abs() < 0.01, "{cached:?} {over_the_link}");
        set_link(&mut machine, Bandwidth(1 << 50));
        let instant = times(&model, &machine, tokens.into()).unwrap();
        assert!((cached.prefill / instant.prefill - 1.0).abs() < 0.01, "{cached:?} {instant:?}");
    }
}
