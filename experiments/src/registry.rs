//! The list of experiments, and the one way to run them.

use std::error::Error;

use crate::{Fitted, Outcome, endor, flexgen_t4, headinfer, pipo_throughput};

/// Anything that stops an experiment; its text says what and where.
pub type Failure = Box<dyn Error + Send + Sync>;

/// How constants are fitted anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refit {
    /// Decides every random start.
    pub seed: u64,
    /// Models left out of the fit, beside those that the definition holds out.
    pub hold_out: Vec<String>,
}

/// Returns freshly fitted constants, in the form in which they are published.
pub type RefitFn = fn(&Refit) -> Result<Vec<Fitted>, Failure>;

/// A figure that can be reproduced.
#[derive(Debug, Clone, Copy)]
pub struct Experiment {
    /// As typed; also the name of its folder.
    pub id: &'static str,
    /// One line for a list.
    pub title: &'static str,
    /// Runs it with the published constants.
    pub run: fn() -> Result<Outcome, Failure>,
    /// Fits its constants anew, where it has fitted ones and a procedure.
    pub refit: Option<RefitFn>,
}

/// Every experiment, in the order in which they are listed.
pub fn all() -> Vec<Experiment> {
    vec![
        Experiment {
            id: pipo_throughput::ID,
            title: "PIPO against FlexGen: the throughput figure, on a laptop with a 6 GB GPU",
            run: pipo_throughput::run,
            refit: Some(pipo_throughput::refit),
        },
        Experiment {
            id: "headinfer",
            title: "HeadInfer: memory and times from 10K to 4M tokens on an RTX 4090",
            run: headinfer::run,
            refit: Some(headinfer::refit_published),
        },
        Experiment {
            id: "endor",
            title: "Endor: OPT-66B with compressed weights from an SSD",
            run: endor::run,
            refit: Some(endor::refit_published),
        },
        Experiment {
            id: "flexgen-t4",
            title: "FlexGen: OPT-30B on a T4, and its ablations",
            run: flexgen_t4::run,
            refit: None,
        },
    ]
}

/// The experiment of an id.
pub fn find(id: &str) -> Option<Experiment> {
    all().into_iter().find(|e| e.id == id)
}
