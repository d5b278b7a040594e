//! What a model's shapes do not say about its arithmetic: epsilons, rotation, where a text ends.
//!
//! The simulator has no use for it, so it is not part of [`pipo_plan::model::Model`]. Defaults are those
//! of the family's configuration class in transformers.

use pipo_plan::diagnostic::{Diagnostic, Document};
use pipo_plan::model::Family;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

type Result<T> = std::result::Result<T, Box<Diagnostic>>;

/// Everything beside weights and shapes that decides what a model computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arithmetic {
    /// Added to the mean square, or to the variance, before the root of a norm.
    pub norm_epsilon: f32,
    /// How queries and keys are rotated; absent where positions are learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// Tokens that end a text.
    pub end_tokens: Vec<u32>,
}

/// Rotary embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// Base of the frequencies.
    pub theta: f32,
    /// How they are stretched beyond the context of the training.
    pub scaling: Scaling,
}

/// How frequencies are stretched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f32,
        /// A frequency is low if fewer turns than this fit into the original context.
        low: f32,
        /// It is high if more than this do.
        high: f32,
        /// Context of the training, in tokens.
        original: u32,
    },
}

impl Arithmetic {
    /// The defaults of a family: what a model without a configuration computes.
    pub fn default_of(family: Family) -> Self {
        let theta = if family == Family::Mixtral { 1e6 } else { 1e4 };
        let rotates = family != Family::Opt;
        Self {
            norm_epsilon: match family {
                Family::Opt | Family::Mixtral => 1e-5,
                Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => 1e-6,
            },
            rotation: rotates.then_some(Rotation { theta, scaling: Scaling::None }),
            end_tokens: Vec::new(),
        }
    }

    /// Reads it from a Hugging Face `config.json` of a family.
    pub fn from_config(document: &Document, family: Family) -> Result<Self> {
        let keys = document.parse_json::<Map<String, Value>>()?;
        let config = Config { document, keys };
        let default = Self::default_of(family);
        config.check_activation(family)?;
        let norm_epsilon = match family {
            Family::Opt => default.norm_epsilon,
            _ => config.number("rms_norm_eps", default.norm_epsilon, 0.0..1.0)?,
        };
        let rotation = default.rotation.map(|r| config.rotation(r.theta)).transpose()?;
        Ok(Self { norm_epsilon, rotation, end_tokens: config.end_tokens()? })
    }
}

struct Config<'a> {
    document: &'a Document,
    keys: Map<String, Value>,
}

impl Config<'_> {
    fn check_activation(&self, family: Family) -> Result<()> {
        let (key, known) = match family {
            Family::Opt => ("activation_function", "relu"),
            _ => ("hidden_act", "silu"),
        };
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if value.as_str() == Some(known) => Ok(()),
            Some(other) => Err(self.wrong(key, other, known)),
        }
    }

    /// The base is a key of its own, or, as transformers 5 writes it, one of `rope_parameters`; scaling
    /// is in `rope_scaling`, or in the same place.
    fn rotation(&self, default: f32) -> Result<Rotation> {
        let within = |key: &str| self.keys.get(key).and_then(Value::as_object);
        let parameters = within("rope_parameters");
        let nested = parameters.and_then(|p| p.get("rope_theta"));
        let theta = match nested {
            Some(value) => self.checked("rope_parameters.rope_theta", value, 1.0..1e12)?,
            None => self.number("rope_theta", default, 1.0..1e12)?,
        };
        let found = parameters.map(|p| ("rope_parameters", p));
        let found = found.or_else(|| within("rope_scaling").map(|s| ("rope_scaling", s)));
        let scaling = found.map_or(Ok(Scaling::None), |(at, keys)| self.scaling(at, keys))?;
        Ok(Rotation { theta, scaling })
    }

    fn scaling(&self, at: &str, keys: &Map<String, Value>) -> Result<Scaling> {
        let number = |key: &str, range: std::ops::Range<f32>| {
            let path = format!("{at}.{key}");
            match keys.get(key) {
                Some(value) => self.checked(&path, value, range),
                None => Err(self.document.at_path(at, format!("`{path}` is missing"), HELP)),
            }
        };
        let kind = keys.get("rope_type").or_else(|| keys.get("type"));
        let factor = || number("factor", 1.0..1e6);
        match kind.and_then(Value::as_str) {
            None | Some("default") => Ok(Scaling::None),
            Some("linear") => Ok(Scaling::Linear { factor: factor()? }),
            Some("llama3") => {
                let low = number("low_freq_factor", 0.0..1e6)?;
                let high = number("high_freq_factor", 0.0..1e6)?;
                if high <= low {
                    let message = format!(
                        "`{at}.high_freq_factor` is {high}, not above `low_freq_factor` = {low}"
                    );
                    return Err(self.document.at_path(at, message, HELP));
                }
                let original = self.positions(at, keys, "original_max_position_embeddings")?;
                Ok(Scaling::Llama3 { factor: factor()?, low, high, original })
            }
            Some(other) => {
                let kinds = "\"default\", \"linear\" or \"llama3\"";
                Err(self.wrong(&format!("{at}.rope_type"), &Value::from(other), kinds))
            }
        }
    }

    fn positions(&self, at: &str, keys: &Map<String, Value>, key: &str) -> Result<u32> {
        let value = keys.get(key).unwrap_or(&Value::Null);
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        number.filter(|&number| number > 0).ok_or_else(|| {
            self.wrong(&format!("{at}.{key}"), value, "a whole number of at least 1")
        })
    }

    /// One number or a list of them.
    fn end_tokens(&self) -> Result<Vec<u32>> {
        let key = "eos_token_id";
        let one = |value: &Value| {
            let token = value.as_u64().and_then(|token| u32::try_from(token).ok());
            token.ok_or_else(|| self.wrong(key, value, "a token's number or a list of them"))
        };
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(all)) => all.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }

    fn number(&self, key: &str, absent: f32, range: std::ops::Range<f32>) -> Result<f32> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(absent),
            Some(value) => self.checked(key, value, range),
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "transformers computes with it in 32 bits")]
    fn checked(&self, path: &str, value: &Value, range: std::ops::Range<f32>) -> Result<f32> {
        let number = value.as_f64().map(|number| number as f32);
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            self.wrong(path, value, &format!("a number from {} to {}", range.start, range.end))
        })
    }

    fn wrong(&self, path: &str, value: &Value, needed: &str) -> Box<Diagnostic> {
        let message = format!("`{path}` is {value}, {needed} is needed");
        self.document.at_path(path, message, HELP)
    }
}

const HELP: &str = "download config.json again from the model's Hugging Face page";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(family: Family, text: &str) -> Result<Arithmetic> {
        Arithmetic::from_config(&Document::new("config.json", text), family)
    }

    #[test]
    fn absent_keys_take_the_familys_defaults() {
        for family in Family::ALL {
            assert_eq!(read(family, "{}").unwrap(), Arithmetic::default_of(family));
        }
        assert_eq!(Arithmetic::default_of(Family::Opt).rotation, None);
    }

    #[test]
    fn rotation_is_read_where_either_transformers_writes_it() {
        let old = r#"{ "rope_theta": 500000.0, "eos_token_id": [1, 2], "rope_scaling": { "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
            "original_max_position_embeddings": 8192 } }"#;
        let new = r#"{ "eos_token_id": [1, 2], "rope_parameters": { "rope_theta": 500000.0, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
            "original_max_position_embeddings": 8192 } }"#;
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 };
        for text in [old, new] {
            let read = read(Family::Llama, text).unwrap();
            assert_eq!(read.rotation, Some(Rotation { theta: 500_000.0, scaling }));
            assert_eq!(read.end_tokens, [1, 2]);
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<Arithmetic>(&json).unwrap(), read);
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let message = |text: &str| read(Family::Llama, text).unwrap_err().message;
        insta::assert_snapshot!(message(r#"{ "hidden_act": "gelu" }"#), @r#"`hidden_act` is "gelu", silu is needed"#);
        insta::assert_snapshot!(message(r#"{ "rms_norm_eps": -1 }"#), @"`rms_norm_eps` is -1, a number from 0 to 1 is needed");
        insta::assert_snapshot!(message(r#"{ "rope_theta": 1e400 }"#), @"number out of range");
        insta::assert_snapshot!(message(r#"{ "rope_scaling": { "type": "yarn" } }"#), @r#"`rope_scaling.rope_type` is "yarn", "default", "linear" or "llama3" is needed"#);
        insta::assert_snapshot!(message(r#"{ "rope_scaling": { "type": "linear" } }"#), @"`rope_scaling.factor` is missing");
        insta::assert_snapshot!(message(r#"{ "eos_token_id": -1 }"#), @"`eos_token_id` is -1, a token's number or a list of them is needed");
    }
}
