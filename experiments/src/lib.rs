//! Reproductions: a paper's figure, what the simulator says, and how far apart they are.
//!
//! Each experiment has a folder beside `src/` with its definition (`experiment.toml`: the paper, every
//! value with its source, what was fitted to which cells, which cells are held out) and a module here
//! that turns the definition into plans, runs them, and compares.

pub mod endor;
mod fit;
pub mod flexgen_t4;
pub mod headinfer;
pub mod pipo_throughput;
mod printed;
mod registry;

use pipo_plan::timeline::Timeline;

pub use registry::{Experiment, Failure, Refit, RefitFn, all, find};

/// One value of a paper beside the simulated one.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Group it belongs to, such as a model.
    pub group: String,
    /// The cell, such as `FlexGen, batch 4, weights in host memory`.
    pub label: String,
    /// What is compared, with its unit.
    pub unit: &'static str,
    /// The published value; absent where the paper reports a failure.
    pub paper: Option<f64>,
    /// The interval that the printed digits allow.
    pub rounding: Option<(f64, f64)>,
    /// The simulated value; absent where the plan does not fit.
    pub simulated: Option<f64>,
    /// Whether no constant was fitted to it.
    pub held_out: bool,
    /// Anything a reader must know about this cell.
    pub note: String,
}

impl Comparison {
    /// Simulated over published, less one; zero inside the rounding interval is not assumed.
    pub fn error(&self) -> Option<f64> {
        Some(self.simulated? / self.paper? - 1.0)
    }
}

/// A constant that was fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// Path in the machine profile or plan.
    pub name: String,
    /// Value with unit.
    pub value: String,
    /// What it stands for, and what is physically plausible.
    pub meaning: String,
    /// Cells it was fitted to.
    pub cells: String,
}

/// A statement that must hold for the reproduction to count.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The statement.
    pub name: String,
    /// Whether it holds.
    pub holds: bool,
    /// The figures behind it.
    pub detail: String,
}

/// Simulated utilisation of one cell.
#[derive(Debug, Clone, PartialEq)]
pub struct UtilisationRow {
    /// Group it belongs to.
    pub group: String,
    /// The cell.
    pub label: String,
    /// Share of the time in which kernels or copies run.
    pub nvml: f64,
    /// Share of the time in which kernels run.
    pub kernel: f64,
}

/// What running an experiment gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// As typed.
    pub id: &'static str,
    /// One line.
    pub title: String,
    /// Paper and figure.
    pub source: String,
    /// Machine profile used.
    pub machine: String,
    /// Every fitted constant.
    pub fitted: Vec<Fitted>,
    /// Every cell.
    pub comparisons: Vec<Comparison>,
    /// Statements that must hold.
    pub checks: Vec<Check>,
    /// What cannot be reproduced and why; readings of claims; anything else a reader must know.
    pub notes: Vec<String>,
    /// Utilisation of the cells, where it is part of the claim.
    pub utilisation: Vec<UtilisationRow>,
    /// A few timelines worth drawing, by name.
    pub timelines: Vec<(String, Timeline)>,
}

/// Median of the absolute errors of some cells; `None` for none.
pub fn median_error<'a>(cells: impl IntoIterator<Item = &'a Comparison>) -> Option<f64> {
    let mut errors: Vec<f64> = cells.into_iter().filter_map(|c| c.error().map(f64::abs)).collect();
    errors.sort_by(f64::total_cmp);
    let n = errors.len();
    let middle = errors.get(n / 2).copied()?;
    Some(if n % 2 == 1 { middle } else { f64::midpoint(errors[n / 2 - 1], middle) })
}
