//! The definition file: bars as printed, split, targets, constants.

use std::fmt;
use std::ops::RangeInclusive;

use pipo_plan::diagnostic::{Diagnostic, Document};
use serde::{Deserialize, Deserializer, de};

/// The definition that ships with the program.
pub fn definition() -> Result<Definition, Box<Diagnostic>> {
    let text = include_str!("../../pipo-throughput/experiment.toml");
    Definition::from_toml(&Document::new("experiments/pipo-throughput/experiment.toml", text))
}

/// What the paper says and what is made of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// As typed.
    pub id: String,
    /// One line.
    pub title: String,
    /// Paper and figure.
    pub source: String,
    /// Catalogue machine.
    pub machine: String,
    /// What a bar's height is.
    pub metric: String,
    /// Prompt tokens of each sequence.
    pub prompt: u64,
    /// New tokens of each sequence.
    pub new_tokens: u64,
    /// What the source leaves open, and how it is filled.
    pub assumptions: Vec<String>,
    /// Which models constants may be fitted to.
    pub split: Split,
    /// What must hold.
    pub targets: Targets,
    /// Pairs of bars, from left to right.
    #[serde(rename = "bar")]
    pub bars: Vec<Bar>,
    /// Constants that are fitted.
    #[serde(rename = "constant", default)]
    pub constants: Vec<Constant>,
}

/// Which models constants may be fitted to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// These.
    pub fitted: Vec<String>,
    /// Never these.
    pub held_out: Vec<String>,
}

/// What must hold for the reproduction to count.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Targets {
    /// Median absolute error of the fitted cells, at most.
    pub fitted_median_error: f64,
    /// Median absolute error of the cells held out, at most.
    pub held_out_median_error: f64,
    /// How far the ratio of the two systems may be from the published ratio, as a share of it.
    pub speedup_within: f64,
    /// How many pairs must be that close.
    pub speedups: usize,
}

/// A pair of bars.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bar {
    /// Catalogue model.
    pub model: String,
    /// Sequences.
    pub batch: u64,
    /// Where all weights are.
    pub weights: Storage,
    /// FlexGen's bar.
    pub flexgen: Printed,
    /// PIPO's bar.
    pub pipo: Printed,
}

/// Where a cell's weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
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
pub enum System {
    /// The baseline.
    FlexGen,
    /// The paper's own.
    Pipo,
}

impl System {
    /// Both, as the bars stand.
    pub const ALL: [Self; 2] = [Self::FlexGen, Self::Pipo];
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::FlexGen => "FlexGen",
            Self::Pipo => "PIPO",
        })
    }
}

/// A value as a figure prints it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Printed {
    /// A number and half of its last decimal.
    Value {
        /// As printed.
        value: f64,
        /// What rounding may have taken or added.
        half: f64,
    },
    /// Out of memory.
    OutOfMemory,
}

impl Printed {
    /// The number, if there is one.
    pub fn value(self) -> Option<f64> {
        match self {
            Self::Value { value, .. } => Some(value),
            Self::OutOfMemory => None,
        }
    }

    /// All values that round to it.
    pub fn interval(self) -> Option<(f64, f64)> {
        match self {
            Self::Value { value, half } => Some((value - half, value + half)),
            Self::OutOfMemory => None,
        }
    }
}

impl<'de> Deserialize<'de> for Printed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "OOM" {
            return Ok(Self::OutOfMemory);
        }
        let decimals = text.split_once('.').map_or(0, |(_, digits)| digits.len());
        let decimals = i32::try_from(decimals).unwrap_or(i32::MAX);
        match text.parse() {
            Ok(value) if value > 0.0 && f64::is_finite(value) => {
                Ok(Self::Value { value, half: 0.5 * 10_f64.powi(-decimals) })
            }
            _ => {
                Err(de::Error::custom("write the number as printed, such as \"5.97\", or \"OOM\""))
            }
        }
    }
}

/// A constant of the machine profile that is fitted, and what is believable for it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// Path in the machine profile, such as `host.copy`.
    pub path: String,
    /// What it stands for.
    pub meaning: String,
    /// Least believable value, in bytes, operations or nanoseconds (a second), or a share.
    pub low: f64,
    /// Greatest believable value.
    pub high: f64,
}

impl Constant {
    /// What is believable.
    pub fn range(&self) -> RangeInclusive<f64> {
        self.low..=self.high
    }
}

/// One bar: a system on one workload.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell<'a> {
    /// Whose bar it is.
    pub system: System,
    /// The pair it belongs to.
    pub bar: &'a Bar,
    /// What is printed on it.
    pub printed: Printed,
    /// Whether no constant may be fitted to it.
    pub held_out: bool,
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}, batch {}, {}", self.system, self.bar.batch, self.bar.weights)
    }
}

impl Definition {
    /// Reads a definition and checks what its types cannot.
    pub fn from_toml(document: &Document) -> Result<Self, Box<Diagnostic>> {
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
                let message = format!("the range of `{}` is empty", constant.path);
                return Err(document.at_path("constant", message, "give 0 < low < high"));
            }
        }
        Ok(definition)
    }

    /// Every bar, pair by pair; `hold_out` names further models that are not to be fitted.
    pub fn cells<'a>(&'a self, hold_out: &[String]) -> Vec<Cell<'a>> {
        let cell = |bar: &'a Bar, system| Cell {
            system,
            bar,
            printed: match system {
                System::FlexGen => bar.flexgen,
                System::Pipo => bar.pipo,
            },
            held_out: !self.split.fitted.contains(&bar.model) || hold_out.contains(&bar.model),
        };
        self.bars.iter().flat_map(|bar| System::ALL.map(|system| cell(bar, system))).collect()
    }
}
