//! What a tuner writes into a plan for its reader.

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Nanos};

/// Predicted figures of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// The whole request.
    pub request: Nanos,
    /// Until the first new token of every sequence.
    pub prefill: Nanos,
    /// One decode step at the median.
    pub step: Nanos,
    /// New tokens a second over the whole request.
    pub tokens_per_second: f64,
    /// New tokens a second in decode alone.
    pub decode_tokens_per_second: f64,
    /// Prompt tokens a second in prefill.
    pub prefill_tokens_per_second: f64,
    /// What the binding resource alone would allow, or one in the prefill and another in decode, in new
    /// tokens a second over the request.
    pub ceiling_tokens_per_second: f64,
    /// What binds, for a person.
    pub ceiling_resource: String,
    /// Share of the time in which kernels or copies run.
    pub nvml: f64,
    /// Share of the time in which kernels run.
    pub kernel: f64,
    /// Bytes that cross the link to the GPU in one decode step.
    pub link_bytes_per_step: Bytes,
    /// Bytes really read from disk in one decode step.
    pub disk_bytes_per_step: Bytes,
    /// GPU memory, context overhead included.
    pub gpu_bytes: Bytes,
    /// Host memory, the operating system's share included.
    pub host_bytes: Bytes,
    /// Candidates considered.
    pub candidates: u64,
    /// Candidates simulated; the others were excluded by a bound.
    pub simulated: u64,
}

/// A plan that came close.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunnerUp {
    /// Its strategy.
    pub strategy: String,
    /// How its knobs differ from the chosen plan's.
    pub difference: String,
    /// New tokens a second over the whole request.
    pub tokens_per_second: f64,
}
