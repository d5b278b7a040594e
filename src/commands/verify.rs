//! `pipo verify`: runs a plan and its baselines for real, beside what was predicted of them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use pipo_engine::run::{Device, Outcome, Request, default_threads, refusal, run};
use pipo_engine::shape::Shape;
use pipo_engine::store::Store;
use pipo_plan::machine::Machine;
use pipo_plan::plan::Plan;
use pipo_plan::schedule::Tier;
use pipo_plan::strategy::Strategy;
use pipo_plan::timeline::Timeline;
use pipo_plan::units::{Bytes, Nanos};
use pipo_results::accuracy::{Figures, Line, lines};
use pipo_results::svg::{self, Compared};
use pipo_results::trace;
use pipo_tuner::{Ceiling, Evaluation, Request as Tuning, ceiling_of, evaluate, tune};
use serde_json::{Value, json};

use crate::cli::Verify;
use crate::commands::run::{prompts, summary};
use crate::commands::{report, simulate};
use crate::interrupt;
use crate::output::{self, Printer};

/// A plan with what was predicted of it, and what was measured.
struct Case {
    name: String,
    plan: Plan,
    evaluation: Evaluation,
    ceiling: Ceiling,
    predicted: Timeline,
    /// By rising time of the request.
    measured: Vec<Outcome>,
}

impl Case {
    fn new(name: &str, plan: Plan, machine: &Machine) -> anyhow::Result<Self> {
        let (evaluation, timeline) = evaluate(&plan, machine, true)?;
        let predicted = timeline.context("no timeline was recorded; please report it")?;
        let ceiling = ceiling_of(&plan, machine, &evaluation)?;
        let measured = Vec::new();
        Ok(Self { name: name.into(), plan, evaluation, ceiling, predicted, measured })
    }

    /// The run in the middle.
    fn median(&self) -> anyhow::Result<&Outcome> {
        let middle = self.measured.get(self.measured.len().saturating_sub(1) / 2);
        middle.context("nothing was run; ask for at least one run")
    }

    fn predicted_figures(&self) -> Figures {
        Figures::of(&self.predicted, &self.plan)
    }

    fn measured_figures(&self) -> anyhow::Result<Figures> {
        Ok(Figures::of(&self.median()?.timeline, &self.plan))
    }

    fn request(&self, outcome: &Outcome) -> Nanos {
        Figures::of(&outcome.timeline, &self.plan).request
    }
}

/// Runs the command.
pub fn run_command(args: &Verify, threads: Option<usize>, printer: &Printer) -> anyhow::Result<()> {
    let (plan, machine) = simulate::read(&args.on)?;
    let device = if machine.gpu.is_on_host() { Device::Cpu } else { Device::Cuda };
    if device == Device::Cuda && Device::present() != device {
        bail!(
            "{} is a profile of `{}`, and there is no NVIDIA GPU here: profile this machine with `pipo profile`, and tune for it with --machine",
            machine.name,
            machine.gpu.name
        );
    }
    let baselines = baselines(&args.baseline)?;
    let store = Store::open(&args.model)?;
    let threads = threads.unwrap_or_else(|| default_threads(device));
    if device == Device::Cpu && u32::try_from(threads).ok() != Some(machine.gpu.sms.value) {
        bail!(
            "{} was measured with {} threads of one computation, this run would have {threads}; give --threads {}, or profile again",
            machine.name,
            machine.gpu.sms.value,
            machine.gpu.sms.value
        );
    }
    output::expect(&beside(&args.output, "svg"))?;
    let mut cases = vec![Case::new("plan", plan, &machine)?];
    let mut notes = Vec::new();
    for name in baselines {
        match baseline(&cases[0].plan, &machine, name) {
            Ok(plan) => cases.push(Case::new(name, plan, &machine)?),
            Err(why) => notes.push(format!("no baseline `{name}`: {why:#}")),
        }
    }
    let conditions =
        Conditions { device, threads, shape: args.shape, host_reserved: *machine.host.reserved };
    measure(&mut cases, &store, &conditions, args.runs.get(), printer)?;
    for device in cases.iter().filter_map(|case| Some(&case.median().ok()?.device)) {
        if device_differs(device, &machine) && !notes.iter().any(|note| note.contains(device)) {
            let (name, gpu) = (&machine.name, &machine.gpu.name);
            notes.push(format!("{name} is a profile of `{gpu}`, and this ran on {device}"));
        }
    }
    let written = write(&args.output, &cases)?;
    for note in &notes {
        printer.line(format!("note     {note}"));
    }
    for case in &cases {
        print(case, printer)?;
    }
    let (plan, others) = cases.split_first().context("there is no plan")?;
    if !others.is_empty() {
        printer.line("");
    }
    for baseline in others {
        let ratio = |of: fn(&Figures) -> f64| -> anyhow::Result<(f64, f64)> {
            let (predicted, measured) = (plan.predicted_figures(), plan.measured_figures()?);
            let beside = (baseline.predicted_figures(), baseline.measured_figures()?);
            Ok((of(&predicted) / of(&beside.0), of(&measured) / of(&beside.1)))
        };
        let (predicted, measured) = ratio(|f| f.tokens_per_second)?;
        printer.line(format!(
            "The plan is {measured:.2} times as fast as `{}`, {predicted:.2} times was predicted.",
            baseline.name
        ));
    }
    printer.line("");
    for path in &written {
        printer.line(format!("wrote    {path}"));
    }
    let documents = cases.iter().map(document).collect::<anyhow::Result<Vec<_>>>()?;
    printer.document(&json!({
        "machine": machine.name,
        "profile": machine.hash(),
        "cases": documents,
        "notes": notes,
        "wrote": written,
    }))
}

/// Whether a run was on another device than the one that was predicted for.
fn device_differs(device: &str, machine: &Machine) -> bool {
    !machine.gpu.is_on_host() && device != machine.gpu.name
}

/// The systems to compare with: strategies, each once, or none.
fn baselines(names: &[String]) -> anyhow::Result<&[String]> {
    if names == ["none"] {
        return Ok(&[]);
    }
    for (number, name) in names.iter().enumerate() {
        if !Strategy::NAMES.contains(&name.as_str()) {
            let known = Strategy::NAMES.join(", ");
            bail!("`{name}` is not a strategy; compare with some of {known}, or with none");
        }
        if names[..number].contains(name) {
            bail!("`{name}` is a baseline twice; name it once");
        }
    }
    Ok(names)
}

/// The best plan of another system for the same request and budget.
fn baseline(plan: &Plan, machine: &Machine, name: &str) -> anyhow::Result<Plan> {
    let mut workload = plan.workload.clone();
    workload.batch = Some(plan.batch.sequences());
    let mut request =
        Tuning::new(plan.model.clone(), machine.clone(), workload, plan.budget.clone());
    request.precision = plan.precision;
    request.strategies = vec![name.to_owned()];
    request.refuses = Some(|plan| refusal(plan).map(|why| why.to_string()));
    Ok(tune(&request, &|_| {})?.best.plan)
}

/// What all runs have in common.
struct Conditions {
    device: Device,
    threads: usize,
    shape: Shape,
    /// As in the prediction: what others have of the budget, neither plan nor page cache has.
    host_reserved: Bytes,
}

impl Conditions {
    fn of<'a>(&self, request: Request<'a>) -> Request<'a> {
        let Self { device, threads, shape, host_reserved } = *self;
        Request { device, threads, shape, host_reserved, ..request }
    }
}

/// Runs each case again and again in turn, so that what disturbs the machine disturbs all of them.
fn measure(
    cases: &mut [Case],
    store: &Store,
    conditions: &Conditions,
    runs: usize,
    printer: &Printer,
) -> anyhow::Result<()> {
    let cancelled = interrupt::flag()?;
    let bar = printer.progress("running");
    bar.set_length((runs * cases.len()) as u64);
    for _ in 0..runs {
        for case in &mut *cases {
            store.forget_cached();
            let prompts = prompts::random(&case.plan, case.plan.seed)?;
            let request = conditions.of(Request::new(&case.plan, store, &prompts));
            case.measured.push(run(&request, cancelled).map_err(interrupt::or)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    for case in cases {
        let mut measured = std::mem::take(&mut case.measured);
        measured.sort_by_key(|outcome| case.request(outcome));
        case.measured = measured;
    }
    Ok(())
}

fn write(output: &Path, cases: &[Case]) -> anyhow::Result<Vec<String>> {
    let mut named = Vec::new();
    for case in cases {
        let rate = |f: &Figures| format!("{} tokens/s", report::rate(f.tokens_per_second));
        let measured = case.measured_figures()?;
        named.push((format!("{}, predicted", case.name), rate(&case.predicted_figures())));
        named.push((format!("{}, measured", case.name), rate(&measured)));
    }
    let mut timelines = Vec::new();
    for case in cases {
        timelines.extend([&case.predicted, &case.median()?.timeline]);
    }
    let compared: Vec<Compared> = named
        .iter()
        .zip(&timelines)
        .map(|((name, note), timeline)| Compared { name, note, timeline })
        .collect();
    let title = cases.first().map_or("", |case| case.plan.model.name.as_str());
    let picture = beside(output, "svg");
    let device = match cases.first() {
        Some(case) => case.median()?.device.as_str(),
        None => "nothing",
    };
    let subtitle = format!("predicted, and measured on {device}, on one time axis");
    output::write(&picture, &svg::comparison(title, &subtitle, &compared))?;
    let perfetto = beside(output, "trace.json");
    let processes: Vec<trace::Process> = named
        .iter()
        .zip(&timelines)
        .map(|((name, _), timeline)| trace::Process { name, timeline })
        .collect();
    output::write(&perfetto, &trace::chrome(&processes))?;
    let table = beside(output, "csv");
    output::write(&table, &csv(cases)?)?;
    let mut written = vec![picture, perfetto, table];
    for case in cases {
        if let Some(counters) = &case.median()?.counters {
            let path = beside(output, &format!("{}.counters.csv", case.name));
            output::write(&path, &counters.csv())?;
            written.push(path);
        }
    }
    Ok(written.iter().map(|path| path.display().to_string()).collect())
}

/// Every figure of every case, and the request of every run.
fn csv(cases: &[Case]) -> anyhow::Result<String> {
    let mut text = String::from("case,model,strategy,figure,predicted,measured\n");
    for case in cases {
        let start = format!("{},{},{}", case.name, case.plan.model.name, case.plan.strategy.name());
        let (predicted, measured) = (case.predicted_figures(), case.measured_figures()?);
        for line in lines(&predicted, &measured) {
            let (predicted, measured) =
                (seconds(&line, line.predicted), seconds(&line, line.measured));
            // Some figures have a comma before their unit.
            let figure = line.figure.replace(',', "");
            let _ = writeln!(text, "{start},{figure},{predicted},{measured}");
        }
        let (ceiling, rate) = (case.ceiling.tokens_per_second, measured.tokens_per_second);
        let _ = writeln!(text, "{start},ceiling tokens/s,{ceiling},{rate}");
        let predicted = predicted.request.seconds();
        for (run, outcome) in (1..).zip(&case.measured) {
            let measured = case.request(outcome).seconds();
            let _ = writeln!(text, "{start},request of run {run},{predicted},{measured}");
        }
    }
    Ok(text)
}

/// Times in seconds, other figures as they are.
fn seconds(line: &Line, value: f64) -> f64 {
    if line.is_time { value / 1e9 } else { value }
}

/// The file's name with an ending added: a dot in it belongs to the name.
fn beside(output: &Path, ending: &str) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(format!(".{ending}"));
    name.into()
}

fn print(case: &Case, printer: &Printer) -> anyhow::Result<()> {
    let Case { plan, .. } = case;
    printer.section(&format!("{}: {} with `{}`", case.name, plan.model.name, plan.strategy.name()));
    let row = |line: &Line| {
        let value =
            |x: f64| if line.is_time { Nanos::ceil(x).to_string() } else { report::rate(x) };
        let error = line.error().map_or(String::new(), |e| format!("{:+.1} %", 100.0 * e));
        vec![line.figure.clone(), value(line.predicted), value(line.measured), error]
    };
    let (predicted, measured) = (case.predicted_figures(), case.measured_figures()?);
    let mut rows: Vec<_> = lines(&predicted, &measured).iter().map(row).collect();
    rows.extend(memory(case)?);
    printer.table(&["figure", "predicted", "measured", "error"], &rows);
    let Ceiling { resource, tokens_per_second, share } = &case.ceiling;
    let reached = measured.tokens_per_second / tokens_per_second.max(f64::MIN_POSITIVE);
    printer.line(format!(
        "the ceiling, set by {resource}, is {} tokens/s: {} of it predicted, {} measured",
        report::rate(*tokens_per_second),
        report::percent(*share),
        report::percent(reached)
    ));
    let requests: Vec<Nanos> = case.measured.iter().map(|outcome| case.request(outcome)).collect();
    if let (Some(first), Some(last)) = (requests.first(), requests.last()) {
        let device = &case.median()?.device;
        printer.line(format!(
            "{} runs on {device}: request from {first} to {last}; the weight file was not in the page cache when each began",
            requests.len()
        ));
    }
    if let Some(text) = case.median()?.counters.as_ref().and_then(|c| summary::counted(c, plan)) {
        printer.line(format!("counters of the GPU, on average over the run: {text}"));
    }
    Ok(())
}

/// Bytes at each tier of memory: the plan's table, and what was allocated.
fn memory(case: &Case) -> anyhow::Result<Vec<Vec<String>>> {
    let allocated = &case.median()?.allocated;
    let row = |tier: Tier| {
        let rows = case.evaluation.memory.rows.iter().filter(|row| row.tier == tier);
        // Overheads are no allocations of a plan.
        let planned = rows.filter(|row| !row.overhead).map(|row| row.bytes.0).sum::<u64>();
        let found = allocated.iter().filter(|(at, _)| *at == tier).map(|(_, b)| b.0).sum::<u64>();
        let error = if planned == found {
            "exact".to_owned()
        } else {
            format!("{:+} B", i128::from(planned) - i128::from(found))
        };
        vec![format!("memory: {}", tier.name()), planned.to_string(), found.to_string(), error]
    };
    let mut all = [Tier::Gpu, Tier::Pinned, Tier::Pageable].map(row).to_vec();
    let counters = case.median()?.counters.as_ref();
    if let Some(Bytes(found)) = counters.and_then(|counters| counters.memory) {
        let planned = case.evaluation.memory.gpu().0;
        let error = 100.0 * (planned as f64 / (found as f64).max(1.0) - 1.0);
        let name = "memory: GPU, with its context".to_owned();
        all.insert(1, vec![name, planned.to_string(), found.to_string(), format!("{error:+.1} %")]);
    }
    Ok(all)
}

fn document(case: &Case) -> anyhow::Result<Value> {
    let requests: Vec<u64> = case.measured.iter().map(|outcome| case.request(outcome).0).collect();
    Ok(json!({
        "name": case.name,
        "strategy": case.plan.strategy.name(),
        "model": case.plan.model.name,
        "predicted": case.predicted_figures(),
        "measured": case.measured_figures()?,
        "ceiling_tokens_per_second": case.ceiling.tokens_per_second,
        "ceiling_resource": case.ceiling.resource,
        "request_runs_ns": requests,
        "lines": lines(&case.predicted_figures(), &case.measured_figures()?),
    }))
}
