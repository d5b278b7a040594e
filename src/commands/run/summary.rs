//! What a run took.

use pipo_engine::counters::Counters;
use pipo_engine::run::{Device, Outcome};
use pipo_plan::plan::Plan;
use pipo_plan::timeline::Reading;
use pipo_plan::units::Bandwidth;
use pipo_results::accuracy::Figures;
use serde_json::{Map, json};

use super::job::Job;
use super::{Session, figures};
use crate::commands::report::rate;
use crate::output::Printer;

/// The line under a picture's title.
pub(super) fn subtitle(job: &Job, figures: &Figures) -> String {
    format!("{}: {} tokens/s", shape(job), rate(figures.tokens_per_second))
}

fn shape(job: &Job) -> String {
    let plan = &job.plan;
    format!(
        "{}, batch {} x {}, prompt {}, {} new tokens",
        plan.strategy.name(),
        plan.batch.micro,
        plan.batch.count,
        plan.workload.prompt,
        plan.workload.new_tokens
    )
}

/// On standard error, because standard output is the text's.
pub(super) fn print(printer: &Printer, session: &Session, jobs: &[Job], outcomes: &[Outcome]) {
    for (job, outcome) in jobs.iter().zip(outcomes) {
        let figures = figures(job, outcome);
        printer.note(format!("\nrun      {}, {}", job.plan.model.name, shape(job)));
        printer.note(format!(
            "tokens/s request {}, decode {}, prefill {} (prompt tokens)",
            rate(figures.tokens_per_second),
            rate(figures.decode_tokens_per_second),
            rate(figures.prefill_tokens_per_second)
        ));
        printer.note(format!(
            "time     request {}, prefill {}, decode step {}",
            figures.request, figures.prefill, figures.step
        ));
        let tiers = outcome.allocated.iter();
        let tiers: Vec<String> =
            tiers.map(|(tier, bytes)| format!("{} {}", tier.name(), bytes.both())).collect();
        printer.note(format!("memory   {}", tiers.join("; ")));
        if let Some(text) = outcome.counters.as_ref().and_then(|c| counted(c, &job.plan)) {
            printer.note(format!("counters {text}"));
        }
    }
    let device = outcomes.first().map_or("nothing", |outcome| outcome.device.as_str());
    match session.device {
        Device::Cuda => printer.note(format!("backend  CUDA, {device}")),
        Device::Cpu => printer.note(format!(
            "backend  CPU, threads of one computation: {}; what the plan has on the GPU is in host memory here",
            session.threads
        )),
    }
}

/// What a GPU's own counters said, on average; nothing of a run that is shorter than a reading.
pub fn counted(counters: &Counters, plan: &Plan) -> Option<String> {
    let percent = |name: &str, of: fn(&Reading) -> Option<u16>| {
        let mean = counters.mean(|r| of(r).map(f64::from))? / 10.0;
        Some(format!("{name} {mean:.0} %"))
    };
    let tokens = (plan.batch.sequences() * plan.workload.new_tokens) as f64;
    let all = [
        percent("nvml", |r| r.nvml_permille),
        percent("kernel", |r| r.kernel_permille),
        percent("sm", |r| r.sm_permille),
        counters
            .mean(|r| r.to_device.map(Bandwidth::as_f64))
            .map(|mean| format!("to the device {:.1} GB/s", mean / 1e9)),
        counters
            .mean(|r| r.power_mw.map(f64::from))
            .map(|milliwatts| format!("{:.0} W", milliwatts / 1e3)),
        counters.energy.map(|joules| format!("{joules:.0} J, {} J a token", rate(joules / tokens))),
    ];
    let all: Vec<String> = all.into_iter().flatten().collect();
    (!counters.readings.is_empty()).then(|| all.join(", "))
}

/// For programs.
pub(super) fn entry(job: &Job, outcome: &Outcome) -> serde_json::Value {
    let figures = figures(job, outcome);
    let memory: Map<String, serde_json::Value> =
        outcome.allocated.iter().map(|(tier, b)| (tier.name().into(), json!(b.0))).collect();
    let notes: Vec<&String> = job.note.iter().chain(&outcome.notes).collect();
    json!({
        "prompt": job.plan.workload.prompt,
        "new_tokens": job.plan.workload.new_tokens,
        "sequences": job.places.len(),
        "micro": job.plan.batch.micro,
        "count": job.plan.batch.count,
        "notes": notes,
        "figures": figures,
        "memory": memory,
    })
}
