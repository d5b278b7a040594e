//! Runs a plan on a backend: from prompts to tokens.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use pipo_kernels::Cpu;
use pipo_kernels::cuda::MOST_ACROSS;
use pipo_kernels::sample::{SampleError, Sampler, Settings};
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::plan::Plan;
use pipo_plan::schedule::Tier;
use pipo_plan::strategy::{LowerError, lower};
use pipo_plan::timeline::Timeline;
use pipo_plan::units::Bytes;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

use crate::backend::knobs::Knobs;
use crate::counters::{Counters, memory_at_first, watch};
use crate::cpu::CpuBackend;
use crate::cuda::CudaBackend;
use crate::disk::{BlockReader, ReadError};
use crate::executor::{ExecutionError, Fault, execute};
use crate::memory::MemoryError;
use crate::shape::Shape;
use crate::store::{Store, StoreError};

/// The most likely token each time.
pub const GREEDY: Settings = Settings { temperature: 0.0, top_k: None, top_p: None, seed: 0 };

/// A token that a sequence has just got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewToken {
    /// The sequence, counted like the prompts.
    pub sequence: usize,
    /// The token.
    pub token: u32,
}

/// What plays the GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Device {
    /// The host's own cores and memory.
    #[default]
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

impl Device {
    /// A GPU, where the driver has one; otherwise the CPU.
    pub fn present() -> Self {
        if crate::cuda::is_present() { Self::Cuda } else { Self::Cpu }
    }

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// What to run.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// How.
    pub plan: &'a Plan,
    /// The weights.
    pub store: &'a Store,
    /// Where.
    pub device: Device,
    /// What a GPU is made of, to stand in for a smaller one.
    pub shape: Shape,
    /// Host memory of the plan's budget that others had before the run, as the machine's profile says: what the
    /// budget has left beside it and the plan is all that the page cache may keep of the weights.
    pub host_reserved: Bytes,
    /// One prompt for each sequence of the plan's batch, each as long as the plan says.
    pub prompts: &'a [Vec<u32>],
    /// Threads of one computation. Results do not depend on it.
    pub threads: usize,
    /// What reads the store's data file instead of the reader that the plan names: for tests.
    pub reader: Option<&'a dyn BlockReader>,
    /// How tokens are chosen. Each sequence draws random numbers of its own, which follow from the seed
    /// and from its place among the prompts alone.
    pub sampling: Settings,
    /// Is told of every new token, in order within a sequence, by the lane that computed it: the run
    /// waits until it returns. It learns, and cannot change anything.
    pub observer: &'a (dyn Fn(NewToken) + Sync),
}

impl<'a> Request<'a> {
    /// On the CPU, greedily, unobserved, on as many threads as [`default_threads`] says, with all of
    /// the plan's host memory for the run.
    pub fn new(plan: &'a Plan, store: &'a Store, prompts: &'a [Vec<u32>]) -> Self {
        let threads = default_threads(Device::Cpu);
        Self {
            plan,
            store,
            device: Device::Cpu,
            shape: Shape::default(),
            host_reserved: Bytes::ZERO,
            prompts,
            threads,
            reader: None,
            sampling: GREEDY,
            observer: &|_| {},
        }
    }
}

/// Threads of one computation where nobody says otherwise: the lanes get the cores that are left.
///
/// On the CPU one core is left to the lanes that read and copy. Beside a GPU a quarter is: the threads that
/// give it work and follow what it does must not wait for a core. Of 16, with 15 threads in attention, copies
/// began milliseconds late, and whole requests took 6 to 9 % longer than with 12
/// (`results/published/h200-verify/fourth/threads.csv`).
pub fn default_threads(device: Device) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let lanes = match device {
        Device::Cpu => 1,
        Device::Cuda => cores.div_ceil(4),
    };
    cores.saturating_sub(lanes).max(1)
}

/// Prompts of random tokens: for measuring, and for stores without a tokenizer.
pub fn random_prompts(vocabulary: u64, sequences: u64, length: u64, seed: u64) -> Vec<Vec<u32>> {
    let mut random = Pcg64::seed_from_u64(seed);
    let mut token = || u32::try_from(random.next_u64() % vocabulary.max(1)).unwrap_or(0);
    (0..sequences).map(|_| (0..length).map(|_| token()).collect()).collect()
}

/// What draws the tokens of one sequence.
///
/// Seeds lie apart by an odd constant without pattern, so that the second sequence of one seed is not
/// the first of the next.
pub(crate) fn sampler(settings: Settings, sequence: usize) -> Result<Sampler, SampleError> {
    let apart = (sequence as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Sampler::new(Settings { seed: settings.seed.wrapping_add(apart), ..settings })
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// New tokens of each sequence.
    pub tokens: Vec<Vec<u32>>,
    /// The logits that chose each sequence's last token.
    pub logits: Vec<Vec<f32>>,
    /// What ran when.
    pub timeline: Timeline,
    /// What was allocated at each tier of memory.
    pub allocated: Vec<(Tier, Bytes)>,
    /// What of the plan could not be followed to the letter, for people.
    pub notes: Vec<String>,
    /// What played the GPU, by name.
    pub device: String,
    /// What a GPU's own counters said meanwhile.
    pub counters: Option<Counters>,
}

/// Why a plan did not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The backend cannot do it yet, or not at all.
    #[error("{what}; {next_step}")]
    Unavailable {
        /// What.
        what: String,
        /// What to do instead.
        next_step: &'static str,
    },
    /// Plan, store and prompts do not belong together.
    #[error("{0}")]
    Mismatch(String),
    /// Tokens cannot be chosen in the way that was asked for.
    #[error("{0}; choose another value")]
    Sampling(#[from] SampleError),
    /// The plan cannot be lowered, or does not fit its budget.
    #[error("{path}: {0}", path = .0.path)]
    Plan(#[from] LowerError),
    /// Memory could not be set up.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The store could not be read, or is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its data file could not be opened.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// There is no place for a cache on disk.
    #[error(
        "{}: cannot make a scratch file for the cache: {source}; \
         move the store to where files can be made, or set pipo.kv to \"host\"",
        .folder.display()
    )]
    Scratch {
        /// The store's folder.
        folder: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The model's sizes contradict each other.
    #[error(transparent)]
    Model(#[from] Fault),
    /// The run ended early.
    #[error(transparent)]
    Execution(#[from] ExecutionError),
}

/// Why the engine does not run a plan, whatever the device and the store; none where it does.
pub fn refusal(plan: &Plan) -> Option<RunError> {
    Knobs::of(plan).err()
}

/// Runs a plan to its last token.
///
/// # Errors
///
/// See [`RunError`]; there are no partial results.
pub fn run(request: &Request, cancelled: &AtomicBool) -> Result<Outcome, RunError> {
    check(request)?;
    let schedule = lower(request.plan)?;
    // What is in memory before is known to who makes the plan; here nothing else is counted.
    let none = Overheads::default();
    MemoryTable::new(&schedule.layout, none).check(request.plan)?;
    let cpu = Cpu::new(request.threads);
    match request.device {
        Device::Cpu => {
            let backend = CpuBackend::new(request, &schedule.layout, cpu, cancelled)?;
            let timeline = execute(&schedule, &backend, cancelled)?;
            backend.finish()?;
            let (allocated, notes) = (backend.allocated().to_vec(), backend.notes().to_vec());
            let (tokens, logits) = backend.into_results();
            let (device, counters) = ("the CPU".into(), None);
            Ok(Outcome { tokens, logits, timeline, allocated, notes, device, counters })
        }
        Device::Cuda => {
            let before = memory_at_first();
            let backend = CudaBackend::new(request, &schedule.layout, cpu, cancelled)?;
            let (timeline, counters) = watch(before, || execute(&schedule, &backend, cancelled));
            let mut timeline = timeline?;
            timeline.readings = counters.iter().flat_map(|c| c.readings.iter().copied()).collect();
            backend.finish()?;
            let (allocated, notes) = (backend.allocated().to_vec(), backend.notes().to_vec());
            let (tokens, logits) = backend.results();
            let device = backend.device().into();
            Ok(Outcome { tokens, logits, timeline, allocated, notes, device, counters })
        }
    }
}

fn check(request: &Request) -> Result<(), RunError> {
    let Request { plan, store, prompts, .. } = request;
    sampler(request.sampling, 0)?;
    if request.device == Device::Cpu && request.shape != Shape::default() {
        let what = format!("the CPU cannot be shaped to {}", request.shape);
        return Err(RunError::Unavailable {
            what,
            next_step: "leave --shape out, or run on a GPU",
        });
    }
    if let Some(size) = request.shape.gpu_mem.filter(|&size| size < plan.budget.gpu) {
        return Err(RunError::Mismatch(format!(
            "budget.gpu is {}, the GPU is shaped to {}; tune with --gpu-mem {}",
            plan.budget.gpu.both(),
            size.both(),
            size.exact()
        )));
    }
    let attended = plan.batch.micro.saturating_mul(plan.model.kv_heads.into());
    if request.device == Device::Cuda && attended > u64::from(MOST_ACROSS) {
        let (micro, heads) = (plan.batch.micro, plan.model.kv_heads);
        return Err(RunError::Unavailable {
            what: format!(
                "batch.micro: a GPU attends for at most {MOST_ACROSS} sequences times kv heads at once, the plan \
                 has {micro} times {heads}"
            ),
            next_step: "use more micro-batches of fewer sequences, or tune with a smaller --batch",
        });
    }
    let mismatch = |text| Err(RunError::Mismatch(text));
    let shape = |model: &pipo_plan::model::Model| {
        let mut shape = model.clone();
        (shape.name, shape.source) = (String::new(), String::new());
        shape
    };
    if shape(&plan.model) != shape(store.model()) {
        let (wanted, found) = (&plan.model.name, &store.model().name);
        return mismatch(format!(
            "the plan is for `{wanted}`, the store holds `{found}`; tune for the store's model, or import the plan's"
        ));
    }
    if plan.precision.weights != store.precision() {
        return mismatch(format!(
            "the plan has weights in {}, the store in {}; import with --weights {}",
            plan.precision.weights,
            store.precision(),
            plan.precision.weights
        ));
    }
    let sequences = plan.batch.micro * plan.batch.count;
    if prompts.len() as u64 != sequences {
        return mismatch(format!(
            "the plan is for {sequences} sequences, {} prompts were given; tune with --batch {}",
            prompts.len(),
            prompts.len()
        ));
    }
    let length = plan.workload.prompt;
    if let Some(other) = prompts.iter().find(|prompt| prompt.len() as u64 != length) {
        return mismatch(format!(
            "the plan is for prompts of {length} tokens, one has {}; tune with --prompt {}",
            other.len(),
            other.len()
        ));
    }
    let vocabulary = plan.model.vocab;
    match prompts.iter().flatten().find(|&&token| u64::from(token) >= vocabulary) {
        Some(token) => mismatch(format!(
            "a prompt has token {token}, the model's vocabulary {vocabulary}; use the model's own tokenizer"
        )),
        None => Ok(()),
    }
}
