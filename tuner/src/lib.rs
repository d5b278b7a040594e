//! Finds the plan that runs a model fastest within a budget.
//!
//! Pure data in, plan out: no file, no clock, no log; the same request gives the same plan on any number
//! of threads. Progress is told through a callback.
//!
//! | module | what it does |
//! |---|---|
//! | [`problem`](Request) | the request |
//! | [`space`](Space) | which values each knob may take |
//! | `tree`, `shape`, `base`, `node`, `leaf` | levels of the search tree, each computing what those below it share |
//! | `fill` | resident weights fill what the other knobs leave |
//! | `demand`, `traffic`, `weights`, `bound` | a proved lower bound on the times of a candidate, from sums |
//! | `pipeline` | another, from the order of loads and computations |
//! | `search`, `frontier` | best-first search with pruning |
//! | `baselines` | the defaults that a plan must never be worse than |
//! | [`evaluate`] | one plan on one machine |
//! | [`explain`] | where its time goes, and what would buy more |
//! | [`emit`] | its settings for other engines |

mod base;
mod baselines;
mod bound;
mod demand;
mod difference;
mod emit;
mod error;
mod evaluate;
mod explain;
mod fill;
mod frontier;
mod leaf;
mod node;
mod pipeline;
mod problem;
mod progress;
mod refill;
mod score;
mod search;
mod shape;
mod space;
mod traffic;
mod tree;
mod tune;
mod verdict;
mod weights;

pub use emit::{EmitError, Target, emit};
pub use error::{Tiers, TuneError};
pub use evaluate::{EvaluateError, Evaluation, evaluate};
pub use explain::{Explanation, Share, WhatIf, explain};
pub use problem::{DEFAULT_EFFORT, Request};
pub use progress::Progress;
pub use space::{HostChoice, Space};
pub use tune::{Baseline, Candidate, Tuning, tune};
pub use verdict::{Ceiling, Verdict, ceiling_of};

#[cfg(test)]
mod exactness;
