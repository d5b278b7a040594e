//! The plan: what a person reads, edits, compares and ships. Pure data; TOML on disk.
//!
//! A plan names everything a lowering needs and nothing it does not: the model's sizes, the workload,
//! the budget, one strategy with its knobs. Predictions ride along for the reader and are never read
//! back by an executor.

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Diagnostic, Document};
use crate::model::{Model, Precision};
use crate::strategy::{
    LowerError, Strategy, accelerate::Accelerate, cpu_split::CpuSplit, endor::Endor,
    flexgen::FlexGen, headinfer::HeadInfer, pipo::Pipo, resident::Resident,
};
use crate::workload::{Budget, Workload};

mod prediction;

pub use prediction::{Prediction, RunnerUp};

/// The version of the plan format that this program reads and writes.
pub const VERSION: u32 = 1;

/// How weights and cache are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Precisions {
    /// Matrices of the model.
    pub weights: Precision,
    /// Keys and values.
    pub kv: Precision,
}

/// How the sequences are grouped: `micro * count` of them are worked on together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// Sequences in one micro-batch.
    pub micro: u64,
    /// Micro-batches that share each load of the weights.
    pub count: u64,
    /// Prompt positions worked on at once; the whole prompt where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_chunk: Option<u64>,
}

impl Batching {
    /// One micro-batch of everything.
    pub fn single(sequences: u64) -> Self {
        Self { micro: sequences, count: 1, prefill_chunk: None }
    }

    /// All sequences.
    pub fn sequences(&self) -> u64 {
        self.micro.saturating_mul(self.count)
    }
}

/// A plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Name of the machine it was made for.
    pub machine: String,
    /// Hash of that machine's profile.
    pub profile: String,
    /// Decides every draw: expert routing for now.
    pub seed: u64,
    /// What is asked for.
    pub workload: Workload,
    /// What may be spent.
    pub budget: Budget,
    /// How weights and cache are stored.
    pub precision: Precisions,
    /// How sequences are grouped.
    pub batch: Batching,
    /// What is done, with its knobs.
    pub strategy: Strategy,
    /// The model.
    pub model: Model,
    /// What the tuner predicts.
    pub prediction: Option<Prediction>,
    /// The next best plans it saw.
    pub runners_up: Vec<RunnerUp>,
}

/// The file: one optional table for each strategy, of which exactly the named one must be there.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    strategy: String,
    machine: String,
    #[serde(default)]
    profile: String,
    #[serde(default)]
    seed: u64,
    workload: Workload,
    budget: Budget,
    precision: Precisions,
    batch: Batching,
    #[serde(skip_serializing_if = "Option::is_none")]
    pipo: Option<Pipo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flexgen: Option<FlexGen>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accelerate: Option<Accelerate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resident: Option<Resident>,
    #[serde(rename = "cpu-split", skip_serializing_if = "Option::is_none")]
    cpu_split: Option<CpuSplit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headinfer: Option<HeadInfer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endor: Option<Endor>,
    model: Model,
    #[serde(skip_serializing_if = "Option::is_none")]
    prediction: Option<Prediction>,
    #[serde(default, rename = "runner-up", skip_serializing_if = "Vec::is_empty")]
    runners_up: Vec<RunnerUp>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Plan {
    /// Reads a plan file and checks everything that can be checked without a machine.
    pub fn from_toml(document: &Document) -> Result<Self, Box<Diagnostic>> {
        // The version comes first: an unknown key of another version would only confuse.
        let Version { version } = document.parse_toml()?;
        if version != VERSION {
            let message = format!(
                "this is a plan of version {version}, this program reads version {VERSION}"
            );
            let help = if version > VERSION {
                "use the newer program that wrote it"
            } else {
                "tune again"
            };
            return Err(document.at_path("version", message, help));
        }
        let file: File = document.parse_toml()?;
        let plan = file.into_plan(document)?;
        plan.model.check().map_err(|flaw| flaw.in_document(document, "model"))?;
        crate::strategy::lower(&plan).map_err(|error| error.in_document(document))?;
        Ok(plan)
    }

    /// The canonical text; reading it back gives the same plan.
    pub fn to_toml(&self) -> String {
        let mut file = File {
            version: VERSION,
            strategy: self.strategy.name().into(),
            machine: self.machine.clone(),
            profile: self.profile.clone(),
            seed: self.seed,
            workload: self.workload.clone(),
            budget: self.budget.clone(),
            precision: self.precision,
            batch: self.batch,
            pipo: None,
            flexgen: None,
            accelerate: None,
            resident: None,
            cpu_split: None,
            headinfer: None,
            endor: None,
            model: self.model.clone(),
            prediction: self.prediction.clone(),
            runners_up: self.runners_up.clone(),
        };
        match self.strategy.clone() {
            Strategy::Pipo(knobs) => file.pipo = Some(knobs),
            Strategy::FlexGen(knobs) => file.flexgen = Some(knobs),
            Strategy::Accelerate(knobs) => file.accelerate = Some(knobs),
            Strategy::Resident(knobs) => file.resident = Some(knobs),
            Strategy::CpuSplit(knobs) => file.cpu_split = Some(knobs),
            Strategy::HeadInfer(knobs) => file.headinfer = Some(knobs),
            Strategy::Endor(knobs) => file.endor = Some(knobs),
        }
        toml::to_string(&file)
            .unwrap_or_else(|error| format!("# a plan that cannot be written: {error}\n"))
    }

    /// Refuses counts that no executor could hold; part of every lowering.
    pub fn check_counts(&self) -> Result<(), LowerError> {
        let limits = [
            ("workload.prompt", self.workload.prompt, 1, 1 << 24),
            ("workload.new_tokens", self.workload.new_tokens, 1, 1 << 20),
            ("batch.micro", self.batch.micro, 1, 1 << 16),
            ("batch.count", self.batch.count, 1, 1 << 12),
            ("batch.prefill_chunk", self.batch.prefill_chunk.unwrap_or(1), 1, 1 << 24),
            ("seed", self.seed, 0, i64::MAX as u64),
        ];
        for (path, value, low, high) in limits {
            if value < low || value > high {
                let message = format!("it is {value}, from {low} to {high} is possible");
                return Err(LowerError::new(path, message, "choose a value in that range"));
            }
        }
        // A prompt is worked off in chunks, which an operation numbers by 16 bits; each later pass is one.
        let prompt = self.workload.prompt;
        let chunks = prompt.div_ceil(self.batch.prefill_chunk.unwrap_or(prompt));
        if chunks > u64::from(u16::MAX) {
            let message =
                format!("a prompt of {prompt} tokens would be {chunks} chunks, 65535 are possible");
            return Err(LowerError::new("batch.prefill_chunk", message, "choose larger chunks"));
        }
        let steps = u64::from(self.model.layers)
            * self.batch.count
            * (self.workload.new_tokens - 1 + chunks);
        if steps > 100_000_000 {
            let message = format!("{steps} layer steps are more than a run can number (100000000)");
            return Err(LowerError::new(
                "workload.new_tokens",
                message,
                "ask for fewer new tokens, or larger chunks of the prompt",
            ));
        }
        if self.workload.context() > self.model.max_context {
            let message = format!(
                "prompt {} and {} new tokens are {} positions, the model was made for {}",
                self.workload.prompt,
                self.workload.new_tokens,
                self.workload.context(),
                self.model.max_context
            );
            return Err(LowerError::new("workload.prompt", message, "shorten the prompt"));
        }
        if self.workload.batch.is_some_and(|b| b != self.batch.sequences()) {
            let message = format!(
                "the workload has {} sequences, micro * count is {}",
                self.workload.batch.unwrap_or(0),
                self.batch.sequences()
            );
            return Err(LowerError::new("batch.count", message, "make the two equal"));
        }
        Ok(())
    }
}

impl LowerError {
    /// The error at its place in the plan file.
    pub fn in_document(&self, document: &Document) -> Box<Diagnostic> {
        document.at_path(self.path, format!("{}: {}", self.path, self.message), self.help)
    }
}

impl File {
    fn into_plan(self, document: &Document) -> Result<Plan, Box<Diagnostic>> {
        let tables = [
            self.pipo.map(Strategy::Pipo),
            self.flexgen.map(Strategy::FlexGen),
            self.accelerate.map(Strategy::Accelerate),
            self.resident.map(Strategy::Resident),
            self.cpu_split.map(Strategy::CpuSplit),
            self.headinfer.map(Strategy::HeadInfer),
            self.endor.map(Strategy::Endor),
        ];
        if !Strategy::NAMES.contains(&self.strategy.as_str()) {
            let message = format!("`{}` is not a strategy", self.strategy);
            let help = format!("use one of {}", Strategy::NAMES.join(", "));
            return Err(document.at_path("strategy", message, &help));
        }
        let mut named = None;
        for strategy in tables.into_iter().flatten() {
            if strategy.name() != self.strategy {
                let message = format!(
                    "the strategy is `{}`, but there is a table [{}]",
                    self.strategy,
                    strategy.name()
                );
                return Err(document.at_path(
                    strategy.name(),
                    message,
                    "remove the table or change the strategy",
                ));
            }
            named = Some(strategy);
        }
        let Some(strategy) = named else {
            let message = format!(
                "the strategy is `{}`, but there is no table [{}]",
                self.strategy, self.strategy
            );
            return Err(document.at_path(
                "strategy",
                message,
                "add the table with the strategy's knobs",
            ));
        };
        Ok(Plan {
            machine: self.machine,
            profile: self.profile,
            seed: self.seed,
            workload: self.workload,
            budget: self.budget,
            precision: self.precision,
            batch: self.batch,
            strategy,
            model: self.model,
            prediction: self.prediction,
            runners_up: self.runners_up,
        })
    }
}
