//! `pipo tune`: the best plan for a budget, with its reasons, its picture and its trace.

use std::path::{Path, PathBuf};

use anyhow::Context;
use pipo_plan::machine::Machine;
use pipo_plan::plan::{Plan, Precisions};
use pipo_plan::strategy::pipo::ExpertLoads;
use pipo_plan::units::Bytes;
use pipo_plan::workload::{Budget, Workload};
use pipo_results::svg::{self, Excerpt, Picture};
use pipo_results::trace;
use pipo_tuner::{Candidate, Request, TuneError, Tuning, Verdict, evaluate, explain, tune};
use serde_json::json;

use crate::cli::Tune;
use crate::commands::{emit, report};
use crate::output::{self, Printer};
use crate::{OutOfReach, input};

/// Runs the command.
pub fn run(args: &Tune, printer: &Printer) -> anyhow::Result<()> {
    let (machine, why) = machine(args)?;
    let request = request(args, machine)?;
    output::expect(&args.output)?;
    let bar = printer.progress("tuning");
    let tuning = tune(&request, &|progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    });
    bar.finish_and_clear();
    let tuning = tuning.map_err(out_of_reach)?;
    let plan = &tuning.best.plan;

    let (_, timeline) = evaluate(plan, &request.machine, true)?;
    let timeline = timeline.context("the chosen plan could not be recorded; please report it")?;
    let explanation = explain(plan, &request.machine)?;

    let beside = |extension: &str| args.output.with_extension(extension);
    let (picture, perfetto) = (beside("svg"), beside("trace.json"));
    let subtitle = report::subtitle(plan, &tuning.best.evaluation);
    let title = format!("{} on {}", plan.model.name, plan.machine);
    let look = Picture { title: &title, subtitle: &subtitle, excerpt: Excerpt::Auto };
    output::write(&args.output, &plan.to_toml())?;
    output::write(&picture, &svg::timeline(&timeline, &look))?;
    let process = trace::Process { name: "predicted", timeline: &timeline };
    output::write(&perfetto, &trace::chrome(&[process]))?;
    let ranked = args.plans.as_deref().map(|folder| write_ranked(folder, &tuning)).transpose()?;

    header(printer, &request, &why);
    verdict(printer, &tuning);
    report::plan(printer, plan);
    report::memory(printer, &tuning.best.evaluation.memory, &plan.budget);
    report::figures(printer, &tuning.best.evaluation);
    report::ceiling(printer, &tuning.best.evaluation, &tuning.ceiling);
    report::explanation(printer, &explanation);
    report::rivals(printer, &tuning);
    if let Some(engine) = args.emit {
        printer.section("Equivalent settings");
        printer.line(emit::settings(plan, engine)?);
    }
    if let Some(why) = refusal(plan) {
        printer.line(format!(
            "\nnote     `pipo run` cannot execute this plan: {why}; --runnable chooses among those it can"
        ));
    }
    wrote(printer, &[&args.output, &picture, &perfetto]);
    for file in ranked.iter().flatten() {
        printer.line(format!("wrote    {}", file.display()));
    }
    printer.document(&json!({
        "model": plan.model.name,
        "machine": plan.machine,
        "machine_reason": why,
        "plan": args.output,
        "picture": picture,
        "trace": perfetto,
        "plans": ranked,
        "runnable": refusal(plan).is_none(),
        "strategy": plan.strategy.name(),
        "prediction": plan.prediction,
        "runners_up": plan.runners_up,
        "considered": tuning.considered,
        "simulated": tuning.simulated,
        "excluded_by_bound": tuning.excluded_by_bound,
        "left": tuning.left,
        "gap": tuning.gap,
        "excluded_by_memory": tuning.excluded_by_memory,
        "refused": tuning.refused,
    }))?;
    match tuning.verdict {
        Verdict::GoalOutOfReach { goal, step, reason, .. } => {
            let text = format!(
                "the goal of {goal} a step cannot be met: {reason}; the best plan takes {step}"
            );
            Err(OutOfReach(text).into())
        }
        Verdict::Offload | Verdict::OffloadIsFaster | Verdict::NoOffloadNeeded => Ok(()),
    }
}

/// Why `pipo run` does not execute a plan.
fn refusal(plan: &Plan) -> Option<String> {
    pipo_engine::run::refusal(plan).map(|why| why.to_string())
}

/// The plan and its runners-up, numbered by rank.
fn write_ranked(folder: &Path, tuning: &Tuning) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let ranked = std::iter::once(&tuning.best).chain(&tuning.runners_up);
    let write = |(rank, candidate): (usize, &Candidate)| {
        let file = folder.join(format!("{rank:02}.toml"));
        output::write(&file, &candidate.plan.to_toml())?;
        Ok(file)
    };
    (1..).zip(ranked).map(write).collect()
}

fn machine(args: &Tune) -> anyhow::Result<(Machine, String)> {
    if args.machine == "auto" {
        return input::automatic_machine();
    }
    Ok((input::machine(&args.machine)?, "named on the command line".into()))
}

fn request(args: &Tune, machine: Machine) -> anyhow::Result<Request> {
    let budget = Budget {
        gpu: args.gpu_mem.unwrap_or(machine.gpu.memory.value),
        host: args.host_mem.unwrap_or(machine.host.memory.value),
        disk: machine.disk.as_ref().map_or(Bytes::ZERO, |d| d.capacity.value),
    };
    let workload = Workload {
        prompt: args.prompt,
        new_tokens: args.new_tokens,
        batch: args.batch,
        objective: args.objective.into(),
        token_within: args.token_within,
    };
    let model = input::model(&args.model)?;
    let refuses: Option<fn(&Plan) -> Option<String>> = args.runnable.then_some(refusal as _);
    let mut request = Request {
        refuses,
        precision: Precisions { weights: args.weights.into(), kv: args.kv.into() },
        seed: args.seed,
        strategies: args.strategy.clone(),
        exhaustive: args.exhaustive,
        effort: if args.effort == 0 { u64::MAX } else { args.effort.saturating_mul(1_000_000) },
        top: args.top,
        ..Request::new(model, machine, workload, budget)
    };
    if args.runnable && request.model.experts.is_some() {
        // Half of all candidates, which would be refused one by one.
        request.space.experts.retain(|loads| *loads == ExpertLoads::All);
    }
    Ok(request)
}

/// Errors about the request are the user's to mend; that nothing fits is an answer with its own code.
fn out_of_reach(error: TuneError) -> anyhow::Error {
    match error {
        TuneError::NothingFits { .. } | TuneError::NoStrategyFits(_) => {
            OutOfReach(error.to_string()).into()
        }
        other => other.into(),
    }
}

fn header(printer: &Printer, request: &Request, why: &str) {
    let Request { model, machine, workload, budget, precision, .. } = request;
    printer.line(format!(
        "model    {}: {:.2} B parameters, {} in {}",
        model.name,
        model.total_parameters() as f64 / 1e9,
        model.total_bytes(precision.weights).both(),
        precision.weights
    ));
    printer.line(format!("machine  {}: {}", machine.name, why));
    printer.line(format!(
        "request  prompt {}, {} new tokens, batch {}, judged by {}",
        workload.prompt,
        workload.new_tokens,
        workload.batch.map_or("free".into(), |b| b.to_string()),
        workload.objective.name()
    ));
    printer.line(format!("budget   GPU {}, host {}", budget.gpu.both(), budget.host.both()));
    let tiers = [
        ("GPU", budget.gpu, machine.gpu.memory.value),
        ("host", budget.host, machine.host.memory.value),
    ];
    for (name, budget, has) in tiers {
        if budget > has {
            printer.line(format!(
                "note     the machine has {} of {name} memory, less than this budget",
                has.both()
            ));
        }
    }
}

fn verdict(printer: &Printer, tuning: &Tuning) {
    printer.line("");
    match &tuning.verdict {
        Verdict::Offload => {
            printer.line("verdict  offload: not everything fits on the GPU, this plan keeps the rest elsewhere");
        }
        Verdict::OffloadIsFaster => {
            printer.line("verdict  offload: everything would fit on the GPU, but this plan is faster");
        }
        Verdict::NoOffloadNeeded => {
            printer.line("verdict  no offload needed: everything fits on the GPU, and nothing is faster");
        }
        Verdict::GoalOutOfReach { goal, step, reason, .. } => printer.line(format!(
            "verdict  out of reach: the goal is {goal} a step, the fastest plan takes {step}; {reason}"
        )),
    }
    printer.line(format!(
        "search   {} candidates: {} simulated, {} excluded by a proved bound, {} did not fit",
        tuning.considered, tuning.simulated, tuning.excluded_by_bound, tuning.excluded_by_memory
    ));
    if tuning.refused > 0 {
        printer.line(format!("         {} that `pipo run` cannot execute", tuning.refused));
    }
    printer.line(if tuning.left == 0 {
        "proof    no plan of the space is better".into()
    } else {
        format!(
            "proof    effort spent with {} candidates left; none is better by more than {} (--effort raises it)",
            tuning.left,
            report::percent(tuning.gap)
        )
    });
}

fn wrote(printer: &Printer, files: &[&PathBuf]) {
    printer.line("");
    for file in files {
        printer.line(format!("wrote    {}", Path::new(file).display()));
    }
}
