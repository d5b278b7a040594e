//! What several subcommands print about a plan: memory, utilisation, speeds, reasons.

use pipo_plan::memory::MemoryTable;
use pipo_plan::plan::Plan;
use pipo_plan::units::Bytes;
use pipo_plan::workload::Budget;
use pipo_tuner::{Ceiling, Evaluation, Explanation, Tuning};

use crate::output::Printer;

/// Three significant figures, as a person compares rates.
pub fn rate(value: f64) -> String {
    let decimals = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.0995 => 2,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

/// A printed value's limits, finer than the value itself so that the rounding can be seen.
pub fn interval((low, high): (f64, f64)) -> String {
    let decimals = if high >= 999.5 { 1 } else { 3 };
    format!("{low:.decimals$} to {high:.decimals$}")
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The line under a picture's title.
pub fn subtitle(plan: &Plan, evaluation: &Evaluation) -> String {
    format!(
        "{}, batch {} x {}, prompt {}, {} new tokens: {} tokens/s, nvml {}, kernel {}",
        plan.strategy.name(),
        plan.batch.micro,
        plan.batch.count,
        plan.workload.prompt,
        plan.workload.new_tokens,
        rate(evaluation.tokens_per_second),
        percent(evaluation.nvml),
        percent(evaluation.kernel),
    )
}

/// A number of things.
fn counted(number: u64, thing: &str, plural: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { plural })
}

/// The plan's own text without its prediction and model: the knobs.
pub fn plan(printer: &Printer, plan: &Plan) {
    printer.section(&format!("Plan: {}", plan.strategy.name()));
    printer.line(format!(
        "  batch: {} of {}{}",
        counted(plan.batch.count, "micro-batch", "es"),
        counted(plan.batch.micro, "sequence", "s"),
        plan.batch.prefill_chunk.map_or(String::new(), |c| format!(", prefill in chunks of {c}"))
    ));
    let text = plan.to_toml();
    let table = format!("[{}]", plan.strategy.name());
    let knobs = text.lines().skip_while(|l| *l != table).skip(1).take_while(|l| !l.is_empty());
    let knobs: Vec<String> = knobs.filter_map(|l| l.split_once(" = ")).map(knob).collect();
    for row in knobs.chunks(5) {
        printer.line(format!("  {}", row.join(", ")));
    }
}

/// A knob as a person reads it: sizes rounded, the plan file has them exactly.
fn knob((name, value): (&str, &str)) -> String {
    let value = value.trim_matches('"');
    match value.parse::<Bytes>() {
        Ok(bytes) => format!("{name} {bytes}"),
        Err(_) => format!("{name} {value}"),
    }
}

/// Memory at every tier.
pub fn memory(printer: &Printer, table: &MemoryTable, budget: &Budget) {
    printer.section("Memory");
    let rows: Vec<Vec<String>> =
        table
            .rows
            .iter()
            .map(|row| {
                let slots = row.slots.map_or(String::new(), |(n, each)| format!("{n} x {each}"));
                vec![format!("{}: {}", row.tier.name(), row.name), row.bytes.both(), slots]
            })
            .chain([("GPU", table.gpu(), budget.gpu), ("host", table.host(), budget.host)].map(
                |(name, used, of)| vec![format!("{name}, all"), used.both(), format!("of {of}")],
            ))
            .collect();
    printer.table(&["where and what", "bytes", "buffers"], &rows);
}

/// Utilisation and speeds.
pub fn figures(printer: &Printer, e: &Evaluation) {
    printer.section("Predicted");
    printer.line(format!(
        "  tokens/s     request {}, decode {}, prefill {} (prompt tokens)",
        rate(e.tokens_per_second),
        rate(e.decode_tokens_per_second),
        rate(e.prefill_tokens_per_second)
    ));
    printer.line(format!(
        "  time         request {}, prefill {}, decode step {}",
        e.request, e.prefill, e.step
    ));
    printer.line(format!(
        "  utilisation  nvml {} (kernels or copies), kernel {}, sm not simulated",
        percent(e.nvml),
        percent(e.kernel)
    ));
    printer.line(format!("  busy         link {}, disk {}", percent(e.link), percent(e.disk)));
    printer.line(format!(
        "  each step    {} over the link, {} from disk",
        Bytes::both(e.link_bytes_per_step),
        Bytes::both(e.disk_bytes_per_step)
    ));
}

/// What the binding resource alone would allow, or one in the prefill and another in decode.
pub fn ceiling(printer: &Printer, e: &Evaluation, ceiling: &Ceiling) {
    printer.line(format!(
        "  ceiling      {} tokens/s, set by {}; the plan reaches {}",
        rate(ceiling.tokens_per_second),
        ceiling.resource,
        percent(e.tokens_per_second / ceiling.tokens_per_second.max(f64::MIN_POSITIVE))
    ));
}

/// Where the time goes, and what would buy more.
pub fn explanation(printer: &Printer, explanation: &Explanation) {
    printer.section("Time by resource (critical path, sums to the whole)");
    let rows: Vec<Vec<String>> = explanation
        .by_lane
        .iter()
        .map(|share| {
            vec![format!("  {}", share.name), share.time.to_string(), percent(share.share)]
        })
        .collect();
    printer.table(&["  waiting for", "time", "share"], &rows);
    printer.section("What if (simulated again)");
    let rows: Vec<Vec<String>> = explanation
        .what_ifs
        .iter()
        .map(|w| {
            let gain = format!("{:+.1} %", 100.0 * w.gain);
            vec![format!("  {}", w.change), rate(w.tokens_per_second), gain]
        })
        .collect();
    printer.table(&["  change", "tokens/s", "gain"], &rows);
}

/// Runners-up and baselines.
pub fn rivals(printer: &Printer, tuning: &Tuning) {
    printer.section("Beside it");
    let best = tuning.best.evaluation.tokens_per_second;
    let row = |name: String, e: &Evaluation| {
        let times = format!("{:.2}x", best / e.tokens_per_second.max(f64::MIN_POSITIVE));
        vec![name, rate(e.tokens_per_second), percent(e.nvml), percent(e.kernel), times]
    };
    let mut rows = vec![row("  this plan".into(), &tuning.best.evaluation)];
    let mut remarks = Vec::new();
    for (number, runner) in (1..).zip(&tuning.runners_up) {
        let name = format!("  runner-up {number}");
        remarks.push(format!("{name}: {}", runner.difference));
        rows.push(row(name, &runner.evaluation));
    }
    for baseline in &tuning.baselines {
        let name = format!("  baseline {}", baseline.name);
        match &baseline.outcome {
            Ok(evaluation) => rows.push(row(name, evaluation)),
            Err(why) => remarks.push(format!("{name}: {}", why.split(';').next().unwrap_or(why))),
        }
    }
    printer.table(&["  plan", "tokens/s", "nvml", "kernel", "this plan is"], &rows);
    for remark in remarks {
        printer.line(remark);
    }
}
