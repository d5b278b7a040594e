//! The definition file: bars as printed, split, targets, constants.

use std::fmt;

use pipo_plan::diagnostic::{Diagnostic, Document};
use serde::Deserialize;

use crate::printed::Printed;

/// The definition that ships with the program.
pub(super) fn definition() -> Result<Definition, Box<Diagnostic>> {
    let text = include_str!("../../pipo-throughput/experiment.toml");
    Definition::from_toml(&Document::new("experiments/pipo-throughput/experiment.toml", text))
}

/// What the paper says and what is made of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    /// As typed.
    pub(super) id: String,
    /// One line.
    pub(super) title: String,
    /// Paper and figure.
    pub(super) source: String,
    /// Catalogue machine.
    pub(super) machine: String,
    /// What a bar's height is.
    pub(super) metric: String,
    /// Prompt tokens of each sequence.
    pub(super) prompt: u64,
    /// New tokens of each sequence.
    pub(super) new_tokens: u64,
    /// What the source leaves open, and how it is filled.
    pub(super) assumptions: Vec<String>,
    /// What was tried, and what cannot be reproduced.
    pub(super) findings: Vec<String>,
    /// Which models constants may be fitted to.
    pub(super) split: Split,
    /// What must hold.
    pub(super) targets: Targets,
    /// Pairs of bars, from left to right.
    #[serde(rename = "bar")]
    pub(super) bars: Vec<Bar>,
    /// Constants that are fitted.
    #[serde(rename = "constant", default)]
    pub(super) constants: Vec<Constant>,
}

/// Which models constants may be fitted to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Split {
    /// These.
    pub(super) fitted: Vec<String>,
    /// Never these.
    pub(super) held_out: Vec<String>,
}

/// What must hold for the reproduction to count.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Targets {
    /// Median absolute error of the fitted cells, at most.
    pub(super) fitted_median_error: f64,
    /// Median absolute error of the cells held out, at most.
    pub(super) held_out_median_error: f64,
    /// How far the ratio of the two systems may be from the published ratio, as a share of it.
    pub(super) speedup_within: f64,
    /// How many pairs must be that close.
    pub(super) speedups: usize,
}

/// A pair of bars.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bar {
    /// Catalogue model.
    pub(super) model: String,
    /// Sequences.
    pub(super) batch: u64,
    /// Where all weights are.
    pub(super) weights: Storage,
    /// FlexGen's bar.
    pub(super) flexgen: Written,
    /// PIPO's bar.
    pub(super) pipo: Written,
}

/// Where a cell's weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Storage {
    /// All in host memory; the figure says "CPU".
    Host,
    /// All in files.
    Disk,
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Host => "weights in host memory",
            Self::Disk => "weights on disk",
        })
    }
}

/// The two systems of the figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum System {
    /// The baseline.
    FlexGen,
    /// The paper's own.
    Pipo,
}

impl System {
    /// Both, as the bars stand.
    pub(super) const ALL: [Self; 2] = [Self::FlexGen, Self::Pipo];
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::FlexGen => "FlexGen",
            Self::Pipo => "PIPO",
        })
    }
}

/// What is written on a bar.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Written {
    /// A number.
    Value(Printed),
    /// Out of memory.
    OutOfMemory,
}

impl TryFrom<String> for Written {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text == "OOM" { Ok(Self::OutOfMemory) } else { text.try_into().map(Self::Value) }
    }
}

impl Written {
    /// The number, if there is one.
    pub(super) fn printed(&self) -> Option<&Printed> {
        match self {
            Self::Value(printed) => Some(printed),
            Self::OutOfMemory => None,
        }
    }
}

/// A constant that is fitted: one number, for one figure of the machine profile or for several.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Constant {
    /// The figures that it sets, such as `host.copy`.
    pub(super) figures: Vec<String>,
    /// What it stands for.
    pub(super) meaning: String,
    /// What is plausible, and why.
    pub(super) plausible: String,
    /// The least value of that range: bytes or operations a second, or a share.
    pub(super) low: f64,
    /// The greatest.
    pub(super) high: f64,
}

/// One bar: a system on one workload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell<'a> {
    /// Whose bar it is.
    pub(super) system: System,
    /// The pair it belongs to.
    pub(super) bar: &'a Bar,
    /// What is printed on it.
    pub(super) written: &'a Written,
    /// Whether no constant may be fitted to it.
    pub(super) held_out: bool,
}

impl Cell<'_> {
    /// Whether its weights are read from files.
    pub(super) fn on_disk(&self) -> bool {
        self.bar.weights == Storage::Disk
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}, batch {}, {}", self.model, self.batch, self.weights)
    }
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}, batch {}, {}", self.system, self.bar.batch, self.bar.weights)
    }
}

impl Definition {
    /// Reads a definition and checks what its types cannot.
    pub(super) fn from_toml(document: &Document) -> Result<Self, Box<Diagnostic>> {
        let definition: Self = document.parse_toml()?;
        let Split { fitted, held_out } = &definition.split;
        for bar in &definition.bars {
            if fitted.contains(&bar.model) == held_out.contains(&bar.model) {
                let message = format!("`{}` must be either fitted or held out", bar.model);
                return Err(document.at_path("split", message, "name it in exactly one list"));
            }
        }
        for constant in &definition.constants {
            if !(constant.low > 0.0 && constant.low < constant.high && constant.high.is_finite()) {
                let message = format!("the range of {} is empty", constant.figures.join(", "));
                return Err(document.at_path("constant", message, "give 0 < low < high"));
            }
        }
        Ok(definition)
    }

    /// Every bar, pair by pair; `hold_out` names further models that are not to be fitted.
    pub(super) fn cells<'a>(&'a self, hold_out: &[String]) -> Vec<Cell<'a>> {
        let cell = |bar: &'a Bar, system| Cell {
            system,
            bar,
            written: match system {
                System::FlexGen => &bar.flexgen,
                System::Pipo => &bar.pipo,
            },
            held_out: !self.split.fitted.contains(&bar.model) || hold_out.contains(&bar.model),
        };
        self.bars.iter().flat_map(|bar| System::ALL.map(|system| cell(bar, system))).collect()
    }
}
