//! Why there is no plan.

use std::fmt::Write;

use pipo_plan::strategy::LowerError;
use pipo_plan::units::Bytes;
use pipo_simulator::{SimulationError, Unsupported};

use crate::evaluate::EvaluateError;

/// Memory at the tiers that a budget bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiers {
    /// GPU memory, the context included.
    pub gpu: Bytes,
    /// Host memory, the operating system's share included.
    pub host: Bytes,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TuneError {
    /// A strategy that does not exist was asked for.
    #[error("`{name}` is not a strategy; use some of {}", .known.join(", "))]
    UnknownStrategy {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// A knob has no value to try.
    #[error("the space has no value for `{0}`; give it at least one")]
    EmptySpace(&'static str),
    /// No plan can be lowered: the request itself is at fault.
    #[error("{path}: {0}", path = .0.path)]
    Request(LowerError),
    /// The machine lacks something that every plan needs.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// No plan fits.
    #[error("{}", does_not_fit(.needs, .budget))]
    NothingFits {
        /// What the plan that comes nearest needs.
        needs: Tiers,
        /// What it may have.
        budget: Tiers,
    },
    /// No strategy that was asked for has a plan that fits.
    #[error("none of the strategies asked for fits: {0}")]
    NoStrategyFits(EvaluateError),
    /// No strategy that was asked for has a plan.
    #[error("none of the strategies asked for has a plan: {0}")]
    NoStrategy(String),
    /// A candidate could not be evaluated: a mistake of a strategy or of the tuner.
    #[error("a candidate could not be evaluated: {0}")]
    Candidate(EvaluateError),
    /// The chosen plan could not be bounded: a mistake of a strategy.
    #[error(transparent)]
    Simulation(#[from] SimulationError),
}

fn does_not_fit(needs: &Tiers, budget: &Tiers) -> String {
    let mut text = String::from("no plan fits.");
    let tiers = [
        ("GPU", "--gpu-mem", needs.gpu, budget.gpu),
        ("host", "--host-mem", needs.host, budget.host),
    ];
    for (name, flag, needed, allowed) in tiers {
        let _ = write!(
            text,
            " The smallest needs {} of {name} memory, the budget is {}{}",
            needed.both(),
            allowed.both(),
            if needed > allowed {
                format!(": raise {flag} to at least {}.", needed.exact())
            } else {
                ".".into()
            }
        );
    }
    text + " A smaller model, a shorter context, a smaller batch or fewer bits a weight need less."
}
