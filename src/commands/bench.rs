//! `pipo bench`: prefill and decode of stores and plans, in llama-bench's columns.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, anyhow};
use pipo_engine::adapt::{Wanted, adapt, resident};
use pipo_engine::run::{Device, Request, default_threads, run as execute};
use pipo_engine::store::Store;
use pipo_plan::plan::Plan;
use pipo_plan::units::Nanos;
use pipo_results::accuracy::Figures;
use pipo_results::bench::{CSV_HEADER, Measured, Row, markdown_header};

use crate::cli::{Bench, BenchFormat};
use crate::commands::run::prompts;
use crate::output::Printer;
use crate::{input, interrupt};

/// Seed of the prompts: what they say does not matter, that they are the same does.
const SEED: u64 = 1;

/// One kind of measurement, named as llama-bench names it.
#[derive(Debug, Clone, Copy)]
struct Test {
    prompt: u64,
    new: u64,
}

impl Test {
    /// What a run has to do for it. A first new token comes out of every prefill: a test without prompt
    /// begins with one token, and a test of both has one new token more than it counts, so that as many
    /// single tokens are computed as llama-bench computes.
    fn wanted(self, sequences: u64) -> Wanted {
        let (prompt, new_tokens) = match (self.prompt, self.new) {
            (0, new) => (1, new),
            (prompt, new) => (prompt, new.saturating_add(1)),
        };
        Wanted { prompt, sequences, new_tokens }
    }

    fn time(self, figures: &Figures) -> Nanos {
        if self.new == 0 { figures.prefill } else { figures.request }
    }
}

/// Runs the command.
pub fn run(args: &Bench, threads: Option<usize>, printer: &Printer) -> anyhow::Result<()> {
    let tests = tests(args)?;
    let device = args.backend.device();
    let threads = threads.unwrap_or_else(|| default_threads(device));
    let plans: Vec<(String, Plan)> =
        args.plan.iter().map(|path| read(path)).collect::<anyhow::Result<_>>()?;
    let format = if printer.is_json() { BenchFormat::Json } else { args.output };
    let with_plan = !plans.is_empty();
    match format {
        BenchFormat::Md => printer.raw(&markdown_header(with_plan)),
        BenchFormat::Csv => printer.raw(CSV_HEADER),
        BenchFormat::Json => {}
    }
    let cancelled = interrupt::flag()?;
    let mut rows = Vec::new();
    for model in &args.model {
        let store = Store::open(model)?;
        let none = [None];
        let named: Vec<Option<&(String, Plan)>> = plans.iter().map(Some).collect();
        for plan in if with_plan { named.as_slice() } else { &none } {
            for &test in &tests {
                let plan = *plan;
                let bench = Measurement { args, store: &store, plan, threads, device, cancelled };
                let row = Row::new(bench.measure(model, test, printer)?);
                match format {
                    BenchFormat::Md => printer.raw(&row.markdown(with_plan)),
                    BenchFormat::Csv => printer.raw(&row.csv()),
                    BenchFormat::Json => rows.push(row),
                }
            }
        }
    }
    if format == BenchFormat::Json {
        printer.raw(&serde_json::to_string_pretty(&rows)?);
    }
    Ok(())
}

/// What the samples of a row have in common.
struct Measurement<'a> {
    args: &'a Bench,
    store: &'a Store,
    plan: Option<&'a (String, Plan)>,
    threads: usize,
    device: Device,
    cancelled: &'a AtomicBool,
}

impl Measurement<'_> {
    fn measure(&self, model: &Path, test: Test, printer: &Printer) -> anyhow::Result<Measured> {
        let plan = self.adapted(test)?;
        let sequences = plan.batch.sequences();
        let prompts = prompts::random(&plan, SEED)?;
        let (threads, device) = (self.threads, self.device);
        let request = Request { threads, device, ..Request::new(&plan, self.store, &prompts) };
        let bar = printer.progress("measuring");
        bar.set_length(1 + u64::from(self.args.repetitions));
        let mut samples = Vec::new();
        for repetition in 0..=self.args.repetitions {
            let outcome = execute(&request, self.cancelled).map_err(interrupt::or)?;
            bar.inc(1);
            // The first warms caches and clocks.
            if repetition > 0 {
                samples.push(test.time(&Figures::of(&outcome.timeline, &plan)));
            }
        }
        bar.finish_and_clear();
        Ok(Measured {
            model_filename: model.display().to_string(),
            model_type: format!("{} {}", self.store.model().name, self.store.precision()),
            model_size: self.store.model().total_bytes(self.store.precision()).0,
            model_n_params: self.store.model().total_parameters(),
            n_threads: self.threads,
            plan: self.plan.map(|(name, _)| name.clone()),
            strategy: plan.strategy.name().to_owned(),
            n_sequences: sequences,
            n_prompt: test.prompt,
            n_gen: test.new,
            samples,
        })
    }

    fn adapted(&self, test: Test) -> anyhow::Result<Plan> {
        let wanted = test.wanted(self.plan.map_or(1, |(_, plan)| plan.batch.sequences()));
        let adapted = match self.plan {
            Some((_, plan)) => adapt(plan, wanted),
            None => adapt(&resident(self.store, wanted), wanted),
        };
        adapted.map_err(|error| {
            let name = self.plan.map_or("resident", |(name, _)| name);
            let Wanted { prompt, new_tokens, .. } = wanted;
            anyhow!("{name} with {prompt} prompt tokens and {new_tokens} new ones: {error}")
        })
    }
}

fn read(path: &Path) -> anyhow::Result<(String, Plan)> {
    Ok((path.display().to_string(), Plan::from_toml(&input::document(path)?)?))
}

/// The tests in llama-bench's order: prompts, new tokens, both.
fn tests(args: &Bench) -> anyhow::Result<Vec<Test>> {
    let prompts = args.n_prompt.iter().map(|&prompt| Test { prompt, new: 0 });
    let new = args.n_gen.iter().map(|&new| Test { prompt: 0, new });
    let mut tests: Vec<Test> = prompts.chain(new).filter(|t| t.prompt > 0 || t.new > 0).collect();
    for both in &args.both {
        let numbers = both.split_once(',').and_then(|(prompt, new)| {
            Some(Test { prompt: prompt.trim().parse().ok()?, new: new.trim().parse().ok()? })
        });
        let numbers = numbers.filter(|test| test.prompt > 0 && test.new > 0);
        tests.push(numbers.with_context(|| {
            format!("--pg `{both}` is not two numbers above 0; write one such as 512,128")
        })?);
    }
    Ok(tests)
}
