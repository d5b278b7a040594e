//! What is asked for, and what may be spent on it.

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Nanos};

/// What a plan is judged by.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// New tokens of all sequences over the time of the whole request, prefill included. This is
    /// FlexGen's "generation throughput".
    #[default]
    Throughput,
    /// Time of the whole request.
    Latency,
    /// Time until every sequence has its first new token.
    FirstToken,
}

impl Objective {
    /// As typed and printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Latency => "latency",
            Self::FirstToken => "first-token",
        }
    }
}

/// A request: the same for every sequence of the batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Prompt tokens of each sequence.
    pub prompt: u64,
    /// New tokens of each sequence, at least one; the first comes out of the prefill.
    pub new_tokens: u64,
    /// Sequences; where absent, the tuner chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// What a plan is judged by.
    #[serde(default)]
    pub objective: Objective,
    /// A goal that must be met: at most this long for one decode step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_within: Option<Nanos>,
}

impl Workload {
    /// Positions of each sequence when it is done.
    pub fn context(&self) -> u64 {
        self.prompt + self.new_tokens
    }
}

/// Memory that a plan may use at each tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// GPU memory, context overhead included.
    pub gpu: Bytes,
    /// Host memory, the operating system's share included.
    pub host: Bytes,
    /// Disk space.
    pub disk: Bytes,
}
