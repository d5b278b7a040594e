//! `pipo run`: a plan on its store, from prompts to text, with what it took.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use anyhow::{Context, bail};
use pipo_engine::run::{
    Device, NewToken, Outcome, Request, RunError, default_threads, run as execute,
};
use pipo_engine::shape::Shape;
use pipo_engine::store::Store;
use pipo_kernels::sample::Settings;
use pipo_plan::plan::Plan;
use pipo_results::accuracy::Figures;
use serde_json::json;

use crate::cli::Run;
use crate::commands::timeline::{self, Named};
use crate::output::{self, Printer};
use crate::{input, interrupt};

use job::Job;
use text::Reader;

mod job;
pub mod prompts;
pub mod summary;
mod text;

/// What the jobs of a command have in common.
struct Session<'a> {
    store: &'a Store,
    reader: Reader<'a>,
    settings: Settings,
    threads: usize,
    device: Device,
    shape: Shape,
    cancelled: &'a AtomicBool,
    printer: &'a Printer,
}

/// What was asked for is to be written: whether it can be is said before a run, not after it.
fn check_files(args: &Run, jobs: &[Job], device: Device) -> anyhow::Result<()> {
    let files: Vec<&Path> = args.files.paths().chain(args.counters.as_deref()).collect();
    if jobs.len() > 1 && !files.is_empty() {
        bail!(
            "the prompts have {} different lengths and run one length after another, so there is no one \
             timeline to write; leave --timeline, --svg, --trace, --csv and --counters out, or give prompts of \
             one length",
            jobs.len()
        );
    }
    if args.counters.is_some() && device == Device::Cpu {
        bail!(
            "there are no counters to write: the CPU has none that NVML reads; leave --counters out"
        );
    }
    files.into_iter().try_for_each(output::expect)
}

/// Runs the command.
pub fn run(args: &Run, threads: Option<usize>, printer: &Printer) -> anyhow::Result<()> {
    let document = input::document(&args.plan)?;
    let plan = Plan::from_toml(&document)?;
    let store = Store::open(&args.model)?;
    let read = prompts::read(&args.prompts, &plan, &store, args.seed)?;
    let jobs = job::jobs(&plan, &document, &read.prompts, args.new_tokens)?;
    let device = args.backend.device();
    check_files(args, &jobs, device)?;
    let settings = Settings {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
    };
    let session = Session {
        store: &store,
        reader: Reader { tokenizer: read.tokenizer.as_ref(), ends: &store.arithmetic().end_tokens },
        settings,
        threads: threads.unwrap_or_else(|| default_threads(device)),
        device,
        shape: args.shape,
        cancelled: interrupt::flag()?,
        printer,
    };
    for note in jobs.iter().filter_map(|job| job.note.as_ref()) {
        printer.note(format!("note     {note}"));
    }
    let streamed = read.prompts.len() == 1 && !printer.is_json();
    let mut outcomes = Vec::new();
    for job in &jobs {
        outcomes.push(session.run(job, streamed)?);
    }

    let mut wrote = Vec::new();
    if let ([job], [outcome]) = (jobs.as_slice(), outcomes.as_slice()) {
        let title = format!("{} on {}, measured", job.plan.model.name, outcome.device);
        let subtitle = summary::subtitle(job, &figures(job, outcome));
        let timeline = &outcome.timeline;
        let named = Named { process: "measured", title: &title, subtitle: &subtitle, timeline };
        wrote = timeline::write(&args.files, &named)?;
        if let Some(path) = &args.counters {
            let Some(counters) = &outcome.counters else {
                bail!(
                    "there are no counters to write: {} has none that NVML reads",
                    outcome.device
                );
            };
            output::write(path, &counters.csv())?;
            wrote.push(path.clone());
        }
    }
    let tokens = in_order(&jobs, &outcomes);
    if !streamed {
        for (number, tokens) in (1..).zip(&tokens) {
            printer.line(format!("[{number}] {}", session.reader.text(tokens)?));
        }
    }
    for note in outcomes.iter().flat_map(|outcome| &outcome.notes) {
        printer.note(format!("note     {note}"));
    }
    summary::print(printer, &session, &jobs, &outcomes);
    for path in &wrote {
        printer.note(format!("wrote    {}", path.display()));
    }
    let mut sequences = Vec::new();
    for (prompt, tokens) in read.prompts.iter().zip(tokens) {
        let text = read.tokenizer.is_some().then(|| session.reader.text(tokens)).transpose()?;
        let ended = session.reader.until_end(tokens).1;
        sequences.push(json!({ "prompt": prompt, "tokens": tokens, "text": text, "ended": ended }));
    }
    printer.document(&json!({
        "model": plan.model.name,
        "store": args.model,
        "plan": args.plan,
        "strategy": plan.strategy.name(),
        "backend": session.device.name(),
        "threads": session.threads,
        "sequences": sequences,
        "runs": jobs.iter().zip(&outcomes).map(|(j, o)| summary::entry(j, o)).collect::<Vec<_>>(),
        "wrote": wrote,
    }))
}

impl Session<'_> {
    /// Runs a job; one sequence alone is printed as it comes, of several the progress is shown.
    fn run(&self, job: &Job, streamed: bool) -> anyhow::Result<Outcome> {
        if streamed {
            return self.run_aloud(job);
        }
        let bar = self.printer.progress("tokens");
        bar.set_length(job.plan.batch.sequences() * job.plan.workload.new_tokens);
        let outcome = self.execute(job, &|_| bar.inc(1));
        bar.finish_and_clear();
        outcome.map_err(interrupt::or)
    }

    /// Text is made and printed by a thread of its own: the run does not wait for a terminal.
    fn run_aloud(&self, job: &Job) -> anyhow::Result<Outcome> {
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            let speak = || self.reader.speak(&{ receiver }, self.printer);
            let speaker = std::thread::Builder::new().spawn_scoped(scope, speak);
            let speaker = speaker.context("the system has no thread that could print tokens")?;
            let outcome = self.execute(job, &move |new: NewToken| {
                // Who has heard the end of the text does not listen any more.
                let _ = sender.send(new);
            });
            let spoken = speaker.join();
            let outcome = outcome.map_err(interrupt::or)?;
            match spoken {
                Ok(spoken) => spoken?,
                Err(_) => bail!("the text could not be printed; please report it"),
            }
            Ok(outcome)
        })
    }

    fn execute(
        &self,
        job: &Job,
        observer: &(dyn Fn(NewToken) + Sync),
    ) -> Result<Outcome, RunError> {
        let request = Request {
            threads: self.threads,
            device: self.device,
            shape: self.shape,
            sampling: self.settings,
            observer,
            ..Request::new(&job.plan, self.store, &job.prompts)
        };
        execute(&request, self.cancelled)
    }
}

/// What a person asks of a run; what fills up a micro-batch is work, but nobody's tokens.
fn figures(job: &Job, outcome: &Outcome) -> Figures {
    let mut figures = Figures::of(&outcome.timeline, &job.plan);
    let wanted = job.places.len() as f64 / job.plan.batch.sequences().max(1) as f64;
    figures.tokens_per_second *= wanted;
    figures.decode_tokens_per_second *= wanted;
    figures.prefill_tokens_per_second *= wanted;
    figures
}

/// The new tokens of every prompt, in the order in which they were given.
fn in_order<'a>(jobs: &[Job], outcomes: &'a [Outcome]) -> Vec<&'a [u32]> {
    let places = jobs.iter().zip(outcomes).flat_map(|(job, outcome)| {
        job.places.iter().copied().zip(outcome.tokens.iter().map(Vec::as_slice))
    });
    let mut places: Vec<(usize, &[u32])> = places.collect();
    places.sort_by_key(|(place, _)| *place);
    places.into_iter().map(|(_, tokens)| tokens).collect()
}
