//! What can be typed. The help, the completions and the man page all come from here.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::builder::{RangedU64ValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use pipo_engine::shape::Shape;
use pipo_plan::model::Precision;
use pipo_plan::units::{Bytes, Nanos};
use pipo_plan::workload::Objective;

mod run;

use run::shape;
pub use run::{Backend, Bench, BenchFormat, Prompts, Run};

/// Runs a language model on a GPU it does not fit in: finds the pipeline, simulates it, explains it.
///
/// Sizes take an exact unit: GB is 10^9 bytes, GiB is 2^30.
///
/// Exit codes: 0 done; 1 failed, the message says why; 2 wrong usage; 3 no plan fits the budget or
/// reaches the goal, the message says what would; 130 ended by Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "pipo", version, max_term_width = 100)]
pub struct Cli {
    /// Print one JSON document on standard output instead of text for people.
    #[arg(long, global = true)]
    pub json: bool,
    /// Worker threads; all cores where absent. What runs for real leaves one to its lanes, beside a GPU a
    /// quarter. Results do not depend on it
    #[arg(long, global = true, value_name = "N", value_parser = threads())]
    pub threads: Option<usize>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// More than any machine has would only be threads that wait for one another.
fn threads() -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::<usize>::new().range(1..=1024)
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Search for the best plan that fits a budget.
    Tune(Tune),
    /// Say where a plan's time goes and what would make it faster.
    Explain(OnPlan),
    /// Predict a plan's timeline on a machine.
    Simulate(Simulate),
    /// Run a plan: text from a model that need not fit in memory, and what it took.
    ///
    /// Prompts are taken as they are: no chat template is put around them. One alone is answered on
    /// standard output while the text is made; several are printed when all is done. What it took goes
    /// to standard error.
    ///
    /// All sequences of a plan are equally long, so that prompts of different lengths run one length
    /// after another, each with the plan adapted to it.
    ///
    /// Ctrl-C ends the run after the operation under way, a second one at once.
    Run(Run),
    /// Measure prefill and decode, in llama-bench's columns.
    ///
    /// `ppN` is the rate at which a prompt of N tokens is read, `tgN` that at which N tokens are made
    /// after one. Without a plan the whole model is on the device and one sequence runs; a plan keeps its
    /// own number of sequences, and the rate is that of all of them. Reading what stays in memory is not
    /// counted, as in llama-bench.
    Bench(Bench),
    /// Draw a timeline.
    Plot(Plot),
    /// Reproduce a paper's figure and compare, value by value.
    Reproduce(Reproduce),
    /// Write a plan's equivalent settings for another engine.
    Emit(Emit),
    /// Import a model's weights into a store, or fill one with random weights.
    Import(Import),
    /// Measure this machine, for --machine: link, kernels, host, disk. Without a GPU its cores play one.
    Profile(Profile),
    /// Run a plan and a baseline for real, beside what is predicted of them.
    Verify(Verify),
    /// List the models of the catalogue, or show one.
    Models(Models),
    /// List the machines of the catalogue, show one, or import measurements into one.
    Machines(Machines),
    /// Say what this machine offers.
    Doctor,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

/// Arguments of `tune`.
#[derive(Debug, Args)]
pub struct Tune {
    /// GPU memory to use, driver overhead included [default: the machine's].
    #[arg(long, value_name = "SIZE")]
    pub gpu_mem: Option<Bytes>,
    /// Host memory to use, the operating system's share included [default: the machine's].
    #[arg(long, value_name = "SIZE")]
    pub host_mem: Option<Bytes>,
    /// Catalogue name, config.json, or a directory with one.
    #[arg(long, default_value = "opt-13b", value_name = "NAME|PATH")]
    pub model: String,
    /// Catalogue name, profile file, or `auto`: this machine's GPU, or rtx3060-laptop without one.
    #[arg(long, default_value = "auto", value_name = "NAME|FILE|auto")]
    pub machine: String,
    /// Prompt tokens of each sequence.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub prompt: u64,
    /// New tokens of each sequence.
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub new_tokens: u64,
    /// Sequences worked on together [default: the tuner chooses].
    #[arg(long, value_name = "N")]
    pub batch: Option<u64>,
    /// What a plan is judged by.
    #[arg(long, value_enum, default_value_t = ObjectiveArg::Throughput)]
    pub objective: ObjectiveArg,
    /// A goal: the longest acceptable decode step, such as 200ms.
    #[arg(long, value_name = "TIME")]
    pub token_within: Option<Nanos>,
    /// How weights are stored.
    #[arg(long, value_enum, default_value_t = PrecisionArg::Int4)]
    pub weights: PrecisionArg,
    /// How the KV cache is stored.
    #[arg(long, value_enum, default_value_t = PrecisionArg::Fp16)]
    pub kv: PrecisionArg,
    /// Strategies that compete [default: all].
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub strategy: Vec<String>,
    /// Simulate every candidate instead of excluding by bounds: proves that nothing was lost.
    #[arg(long)]
    pub exhaustive: bool,
    /// Millions of operations to simulate before the search stops and says what it has proved; 0 for no
    /// limit.
    #[arg(long, default_value_t = 8, value_name = "N", conflicts_with = "exhaustive")]
    pub effort: u64,
    /// Runners-up to report.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub top: usize,
    /// Also write the plan and its runners-up to a folder, best first: 01.toml, 02.toml, ...
    #[arg(long, value_name = "FOLDER")]
    pub plans: Option<PathBuf>,
    /// Choose among plans that `pipo run` executes, not all that can be simulated.
    #[arg(long)]
    pub runnable: bool,
    /// Seed of every draw.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Where the plan goes; the picture and the trace go beside it.
    #[arg(short, long, default_value = "plan.toml", value_name = "FILE")]
    pub output: PathBuf,
    /// Also print the equivalent settings for an engine.
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub emit: Option<Engine>,
}

/// Arguments of commands that work on a plan.
#[derive(Debug, Args)]
pub struct OnPlan {
    /// The plan file.
    pub plan: PathBuf,
    /// Another machine than the plan names: catalogue name or profile file.
    #[arg(long, value_name = "NAME|FILE")]
    pub machine: Option<String>,
}

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub struct Simulate {
    /// The plan and machine.
    #[command(flatten)]
    pub on: OnPlan,
    /// What to write.
    #[command(flatten)]
    pub files: TimelineFiles,
}

/// Files that a timeline goes to.
#[derive(Debug, Args)]
pub struct TimelineFiles {
    /// Write the timeline as JSON, for `pipo plot`.
    #[arg(long, value_name = "FILE")]
    pub timeline: Option<PathBuf>,
    /// Write a picture.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write a trace in Chrome's format, for ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write every operation as CSV.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

impl TimelineFiles {
    /// Those that were asked for.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.timeline, &self.svg, &self.trace, &self.csv]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }
}

/// Arguments of `plot`.
#[derive(Debug, Args)]
pub struct Plot {
    /// Timelines written with `--timeline`; several are drawn under one another.
    #[arg(required = true)]
    pub timelines: Vec<PathBuf>,
    /// Where the picture goes.
    #[arg(short, long, default_value = "timeline.svg", value_name = "FILE")]
    pub output: PathBuf,
}

/// Arguments of `reproduce`.
#[derive(Debug, Args)]
pub struct Reproduce {
    /// The experiment; where absent, the list.
    pub id: Option<String>,
    /// Run every experiment.
    #[arg(long, conflicts_with = "id")]
    pub all: bool,
    /// Fit the machine constants anew instead of using the published ones.
    #[arg(long)]
    pub refit: bool,
    /// Models whose cells are left out of a refit, beside those that always are.
    #[arg(long, value_delimiter = ',', requires = "refit", value_name = "MODEL")]
    pub hold_out: Vec<String>,
    /// Seed of a refit.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Folder for CSV, pictures and manifest.
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// Arguments of `emit`.
#[derive(Debug, Args)]
pub struct Emit {
    /// The plan file.
    pub plan: PathBuf,
    /// The engine.
    #[arg(value_enum)]
    pub engine: Engine,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct Import {
    /// The folder of a Hugging Face model: config.json and safetensors.
    #[arg(value_name = "DIR", required_unless_present = "random")]
    pub folder: Option<PathBuf>,
    /// Random weights in the shapes of a model instead: catalogue name, config.json, or a directory
    /// with one.
    #[arg(long, value_name = "MODEL", conflicts_with = "folder")]
    pub random: Option<String>,
    /// How matrices are stored; norms, biases, positions and routers stay in 16 bits.
    #[arg(long, value_enum, default_value_t = PrecisionArg::Int4)]
    pub weights: PrecisionArg,
    /// The store to make, a folder that does not exist yet.
    #[arg(short, long, value_name = "STORE")]
    pub output: PathBuf,
    /// Seed of random weights.
    #[arg(long, default_value_t = 1, value_name = "N", conflicts_with = "folder")]
    pub seed: u64,
}

/// Arguments of `profile`.
#[derive(Debug, Args)]
pub struct Profile {
    /// What plays the GPU.
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: Backend,
    /// Make the GPU smaller, to stand in for another: sms=8,link=12GB/s,disk=3GB/s,gpu-mem=6GB, or
    /// some of them.
    ///
    /// Kernels run on so many multiprocessors; copies and reads are held back by the host; no plan's budget
    /// may exceed the memory. Every output says so.
    #[arg(long, default_value = "", hide_default_value = true, value_parser = shape, value_name = "SHAPE")]
    pub shape: Shape,
    /// Where the profile goes; every sample goes beside it.
    #[arg(short, long, default_value = "machine.toml", value_name = "FILE")]
    pub output: PathBuf,
    /// A folder on the disk that weights are read from; a scratch file is written there and removed.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub folder: PathBuf,
    /// Size of the scratch file.
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub disk_size: Bytes,
    /// A first look in ten to thirty seconds: fewer samples, all in one pass, small matrices, few rows.
    #[arg(long)]
    pub quick: bool,
    /// Measure only this, and take everything else from --base.
    ///
    /// For what others use too: measure it again right before what matters.
    #[arg(long, value_enum, value_name = "WHAT", requires = "base")]
    pub only: Option<Only>,
    /// With --only disk: read this file and write nothing, such as the weights.bin of the store that a plan
    /// will read.
    #[arg(long, value_name = "FILE", requires = "only", conflicts_with_all = ["folder", "disk_size"])]
    pub file: Option<PathBuf>,
    /// What --only does not measure: catalogue name or profile file.
    #[arg(long, value_name = "MACHINE", requires = "only")]
    pub base: Option<String>,
}

/// A part of a machine that can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// The disk.
    Disk,
    /// The host's cores and memory, and what passes between it and the GPU. --base is a profile of this machine.
    Host,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The plan, and the machine that it is predicted for: one that `pipo profile` measured here.
    #[command(flatten)]
    pub on: OnPlan,
    /// The store with the weights.
    #[arg(long, value_name = "STORE")]
    pub model: PathBuf,
    /// Make the GPU smaller, to stand in for another: sms=8,link=12GB/s,disk=3GB/s,gpu-mem=6GB, or
    /// some of them.
    ///
    /// Kernels run on so many multiprocessors; copies and reads are held back by the host; no plan's budget
    /// may exceed the memory. Every output says so.
    #[arg(long, default_value = "", hide_default_value = true, value_parser = shape, value_name = "SHAPE")]
    pub shape: Shape,
    /// The systems that the plan is compared with, in the same budget; `none` for no comparison.
    #[arg(long, default_value = "accelerate", value_delimiter = ',', value_name = "NAME,...|none")]
    pub baseline: Vec<String>,
    /// Runs of each, in turn; the one in the middle is reported.
    #[arg(long, default_value = "3", value_name = "N")]
    pub runs: NonZeroUsize,
    /// Where the picture, the trace and the table go: FILE.svg, FILE.trace.json, FILE.csv.
    #[arg(short, long, default_value = "verify", value_name = "FILE")]
    pub output: PathBuf,
}

/// Arguments of `models`.
#[derive(Debug, Args)]
pub struct Models {
    /// A model to show in full: catalogue name, config.json, or a directory with one.
    pub model: Option<String>,
}

/// Arguments of `machines`.
#[derive(Debug, Args)]
pub struct Machines {
    /// A machine to show in full: catalogue name or profile file.
    pub machine: Option<String>,
    /// Overwrite link figures with those of `nvbandwidth -j`.
    #[arg(long, value_name = "FILE", requires = "machine")]
    pub nvbandwidth: Option<PathBuf>,
    /// Overwrite disk figures with those of `fio --output-format=json`.
    #[arg(long, value_name = "FILE", requires = "machine")]
    pub fio: Vec<PathBuf>,
    /// Write the profile to a file instead of showing it.
    #[arg(short, long, value_name = "FILE", requires = "machine")]
    pub output: Option<PathBuf>,
}

/// [`Objective`] as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ObjectiveArg {
    /// New tokens a second over the whole request.
    Throughput,
    /// The time of the whole request.
    Latency,
    /// The time to the first token.
    FirstToken,
}

impl From<ObjectiveArg> for Objective {
    fn from(arg: ObjectiveArg) -> Self {
        match arg {
            ObjectiveArg::Throughput => Self::Throughput,
            ObjectiveArg::Latency => Self::Latency,
            ObjectiveArg::FirstToken => Self::FirstToken,
        }
    }
}

/// [`Precision`] as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// IEEE half precision.
    Fp16,
    /// Brain floating point.
    Bf16,
    /// 8 bits and a scale for each row.
    Int8,
    /// 4 bits, scale and minimum for each group of 64: 4.5 bits a weight.
    Int4,
}

impl From<PrecisionArg> for Precision {
    fn from(arg: PrecisionArg) -> Self {
        match arg {
            PrecisionArg::Fp16 => Self::Fp16,
            PrecisionArg::Bf16 => Self::Bf16,
            PrecisionArg::Int8 => Self::Int8,
            PrecisionArg::Int4 => Self::Int4,
        }
    }
}

/// An engine that people already use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// llama.cpp's command line.
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// Hugging Face Accelerate.
    Accelerate,
    /// vLLM's command line.
    Vllm,
    /// FlexGen's command line.
    #[value(name = "flexgen")]
    FlexGen,
    /// A DeepSpeed configuration.
    #[value(name = "deepspeed")]
    DeepSpeed,
}
