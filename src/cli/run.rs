//! Arguments of the commands that run plans.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pipo_engine::run::Device;
use pipo_engine::shape::Shape;

use super::TimelineFiles;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The plan file. It is adapted to the prompts, within its budget.
    pub plan: PathBuf,
    /// The store that `pipo import` made.
    #[arg(long, value_name = "STORE")]
    pub model: PathBuf,
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
    /// What to run it on.
    #[command(flatten)]
    pub prompts: Prompts,
    /// New tokens of each sequence [default: the plan's].
    ///
    /// Text stops at a token that ends it. The computation goes on, because the plan's shape is the
    /// same for all sequences; what comes after is not shown.
    #[arg(long, value_name = "N")]
    pub new_tokens: Option<u64>,
    /// What logits are divided by before a token is drawn; 0 takes the most likely one.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    pub temperature: f32,
    /// Draw only from so many of the most likely tokens.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draw only from the fewest most likely tokens whose probabilities reach this sum.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Seed of every draw; each prompt of one length has random numbers of its own.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// What to write of the measured timeline.
    #[command(flatten)]
    pub files: TimelineFiles,
    /// The GPU's own counters while the plan ran (NVML, and GPM where the card has it), as CSV.
    #[arg(long, value_name = "FILE")]
    pub counters: Option<PathBuf>,
}

/// What plays the GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The first NVIDIA GPU, where there is one, otherwise the CPU.
    #[default]
    Auto,
    /// The host's own cores and memory.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

/// Reads a shape; nothing is the device as it is.
pub fn shape(text: &str) -> Result<Shape, String> {
    if text.is_empty() { Ok(Shape::default()) } else { text.parse() }
}

impl Backend {
    /// What is meant on this machine.
    pub fn device(self) -> Device {
        match self {
            Self::Auto => Device::present(),
            Self::Cpu => Device::Cpu,
            Self::Cuda => Device::Cuda,
        }
    }
}

/// Where prompts come from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Prompts {
    /// A prompt; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// A file with a prompt in each line.
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
    /// A prompt as token ids, such as 1,15043,3186; may be given several times.
    #[arg(long, value_name = "IDS")]
    pub tokens: Vec<String>,
    /// A file with the token ids of a prompt in each line.
    #[arg(long, value_name = "FILE")]
    pub tokens_file: Option<PathBuf>,
    /// Random token ids in the plan's own batch and length: for measuring.
    #[arg(long)]
    pub random_prompt: bool,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// The store that `pipo import` made; may be given several times.
    #[arg(long, required = true, value_name = "STORE")]
    pub model: Vec<PathBuf>,
    /// A plan to measure, adapted to each test; may be given several times [default: everything on the
    /// device].
    #[arg(long, value_name = "FILE")]
    pub plan: Vec<PathBuf>,
    /// What plays the GPU.
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: Backend,
    /// Prompt tokens of the tests `ppN`; 0 for none.
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512", value_name = "N")]
    pub n_prompt: Vec<u64>,
    /// New tokens of the tests `tgN`; 0 for none.
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "128", value_name = "N")]
    pub n_gen: Vec<u64>,
    /// A test `ppP+tgN` of both together; may be given several times.
    #[arg(long = "pg", value_name = "P,N")]
    pub both: Vec<String>,
    /// Measurements of each test, after one that is thrown away.
    #[arg(short, long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: u32,
    /// The form of the table.
    #[arg(short, long, value_enum, default_value_t = BenchFormat::Md, value_name = "FORM")]
    pub output: BenchFormat,
}

/// The form of a table of measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchFormat {
    /// Markdown.
    Md,
    /// Comma-separated values with every field.
    Csv,
    /// JSON with every field and every measurement.
    Json,
}
