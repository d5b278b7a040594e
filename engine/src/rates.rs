//! What a person asks of a measured timeline: how long, and how many tokens a second.

use pipo_plan::plan::Plan;
use pipo_plan::schedule::Phase;
use pipo_plan::timeline::{PassEnd, Timeline};
use pipo_plan::units::Nanos;

/// Times and rates, as the tuner defines them for a prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Until the last token of every sequence.
    pub request: Nanos,
    /// Until the first new token of every sequence.
    pub prefill: Nanos,
    /// The median decode step; zero where there is none.
    pub step: Nanos,
    /// New tokens a second over the whole request.
    pub tokens_per_second: f64,
    /// New tokens a second in decode alone; zero where there is none.
    pub decode_tokens_per_second: f64,
    /// Prompt tokens a second in prefill.
    pub prefill_tokens_per_second: f64,
}

impl Rates {
    /// The rates of `sequences` of a plan that ran; the plan may have had more, to be even.
    pub fn of(timeline: &Timeline, plan: &Plan, sequences: u64) -> Self {
        let passes = &timeline.passes;
        let last = |wanted: fn(Phase) -> bool| {
            let ends = passes.iter().filter(|pass| wanted(pass.phase)).map(|pass| pass.end);
            ends.max().unwrap_or(Nanos::ZERO)
        };
        let (request, prefill) = (last(|_| true), last(|phase| phase == Phase::Prefill));
        let decodes = passes.windows(2).filter(|pair| pair[1].phase == Phase::Decode);
        let steps: Vec<Nanos> =
            decodes.map(|pair: &[PassEnd]| pair[1].end.saturating_sub(pair[0].end)).collect();
        let per_second = |tokens: u64, time: Nanos| {
            let seconds = time.seconds();
            if seconds > 0.0 { (sequences * tokens) as f64 / seconds } else { 0.0 }
        };
        let decoding = request.saturating_sub(prefill);
        Self {
            request,
            prefill,
            tokens_per_second: per_second(plan.workload.new_tokens, request),
            decode_tokens_per_second: per_second(steps.len() as u64, decoding),
            prefill_tokens_per_second: per_second(plan.workload.prompt, prefill),
            step: median(steps),
        }
    }
}

/// The middle value, the lower of the two where there are two; zero of nothing.
fn median(mut values: Vec<Nanos>) -> Nanos {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(Nanos::ZERO)
}
