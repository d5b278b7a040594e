//! What can be believed about a model that came from a file.
//!
//! Every number has a bound far above any model that exists and low enough that no product of them,
//! by tokens, layers or bytes a weight, leaves 64 bits.

use std::fmt;

use super::{Family, Model, Part};
use crate::diagnostic::{Diagnostic, Document};

pub(super) const MAX_LAYERS: u64 = 10_000;
pub(super) const MAX_HIDDEN: u64 = 1 << 20;
pub(super) const MAX_HEADS: u64 = 1 << 14;
pub(super) const MAX_HEAD_DIM: u64 = 1 << 14;
pub(super) const MAX_FFN: u64 = 1 << 22;
pub(super) const MAX_VOCAB: u64 = 1 << 24;
pub(super) const MAX_CONTEXT: u64 = 1 << 24;
pub(super) const MAX_EXPERTS: u64 = 1 << 12;
/// Hundreds of times the largest model that is public.
const MAX_PARAMETERS: u128 = 1 << 50;

/// One thing wrong with a model, by the field to blame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The field, as it is called in the file: `kv_heads`, `experts.active`.
    pub field: &'static str,
    /// What is wrong, with both values.
    pub message: String,
    /// What to do next.
    pub help: String,
}

impl Flaw {
    /// The flaw as an error in a document whose table `table` holds the model; `""` is the root.
    pub fn in_document(&self, document: &Document, table: &str) -> Box<Diagnostic> {
        let path = if table.is_empty() {
            self.field.to_owned()
        } else {
            format!("{table}.{}", self.field)
        };
        document.at_path(&path, self.message.as_str(), &self.help)
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}

impl std::error::Error for Flaw {}

/// Refuses a number outside `1..=limit`.
pub(super) fn within(field: &'static str, value: u64, limit: u64) -> Result<(), Flaw> {
    let message = match value {
        0 => format!("`{field}` is 0, at least 1 is needed"),
        _ if value > limit => format!("`{field}` is {value}, more than the {limit} believed here"),
        _ => return Ok(()),
    };
    Err(Flaw { field, message, help: "compare it with the model's published config.json".into() })
}

impl Model {
    /// Whether the sizes fit together and are small enough that no total can overflow.
    pub fn check(&self) -> Result<(), Flaw> {
        self.check_named(|field| field)
    }

    /// The same check, with the fields called as the file at hand calls them.
    pub(super) fn check_named(
        &self,
        called: impl Fn(&'static str) -> &'static str,
    ) -> Result<(), Flaw> {
        let flaw = |field: &'static str, message: String, help: &str| {
            Err(Flaw { field: called(field), message, help: help.to_owned() })
        };
        if self.name.is_empty() || self.name.len() > 200 || self.name.contains(char::is_control) {
            let length = self.name.len();
            let message = format!("`name` has {length} bytes or holds control characters");
            return flaw("name", message, "give 1 to 200 bytes of plain text");
        }
        let experts = self.experts.map_or([1, 1], |e| [e.count, e.active].map(u64::from));
        for (field, value, limit) in [
            ("layers", u64::from(self.layers), MAX_LAYERS),
            ("hidden", self.hidden, MAX_HIDDEN),
            ("heads", u64::from(self.heads), MAX_HEADS),
            ("kv_heads", u64::from(self.kv_heads), MAX_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("ffn", self.ffn, MAX_FFN),
            ("vocab", self.vocab, MAX_VOCAB),
            ("max_context", self.max_context, MAX_CONTEXT),
            ("embedding_width", self.embedding_width.unwrap_or(1), MAX_HIDDEN),
            ("sliding_window", self.sliding_window.unwrap_or(1), MAX_CONTEXT),
            ("experts.count", experts[0], MAX_EXPERTS),
            ("experts.active", experts[1], MAX_EXPERTS),
        ] {
            within(called(field), value, limit)?;
        }

        let (heads, kv_heads) = (called("heads"), called("kv_heads"));
        if !self.heads.is_multiple_of(self.kv_heads) {
            let message = format!(
                "`{heads}` is {}, not a multiple of `{kv_heads}` = {}",
                self.heads, self.kv_heads
            );
            return flaw(
                "kv_heads",
                message,
                "each key-value head serves equally many query heads",
            );
        }
        let width = u64::from(self.heads) * self.head_dim;
        if width > MAX_HIDDEN {
            let message = format!(
                "`{heads}` * `{}` is {} * {} = {width}, more than the {MAX_HIDDEN} believed here",
                called("head_dim"),
                self.heads,
                self.head_dim
            );
            return flaw(
                "head_dim",
                message,
                "compare both with the model's published config.json",
            );
        }
        if experts[1] > experts[0] {
            let message = format!(
                "`{}` is {}, more than `{}` = {}",
                called("experts.active"),
                experts[1],
                called("experts.count"),
                experts[0]
            );
            return flaw(
                "experts.active",
                message,
                "a token runs through some of the experts or all",
            );
        }
        self.check_family(&called, width)?;

        let of = |part| u128::from(self.parameters(part));
        let layer = of(Part::Attention) + of(Part::Mlp);
        let total = of(Part::Embedding) + of(Part::Head) + layer * u128::from(self.layers);
        if total > MAX_PARAMETERS {
            let message = format!(
                "these sizes make {total} parameters, more than the {MAX_PARAMETERS} believed here"
            );
            return flaw("layers", message, "compare every size with the published config.json");
        }
        Ok(())
    }

    /// What one family has and the others lack.
    fn check_family(
        &self,
        called: &impl Fn(&'static str) -> &'static str,
        width: u64,
    ) -> Result<(), Flaw> {
        let family = self.family;
        let flaw = |field: &'static str, message: String, help: &str| {
            Err(Flaw { field: called(field), message, help: help.to_owned() })
        };
        if (family == Family::Mixtral) != self.experts.is_some() {
            let (message, help) = if self.experts.is_some() {
                (format!("the family {family} has no experts"), "remove them, or use `mixtral`")
            } else {
                (format!("the family {family} needs experts"), "give their `count` and `active`")
            };
            return flaw("experts", message, help);
        }
        if self.experts.is_some() && self.mlp_bias {
            let message = format!("the experts of the family {family} have no biases");
            return flaw("mlp_bias", message, "remove `mlp_bias`");
        }
        let rows = if family.learned_positions() { self.max_context + 2 } else { 0 };
        if self.positions != rows {
            let message = format!(
                "`{}` is {}, the family {family} with `{}` = {} has {rows}",
                called("positions"),
                self.positions,
                called("max_context"),
                self.max_context
            );
            return flaw(
                "positions",
                message,
                "OPT has two rows more than tokens; others have none",
            );
        }
        if family == Family::Opt {
            if width != self.hidden || self.kv_heads != self.heads {
                let message = format!(
                    "`{}` is {}, the {} heads of {} make {width} and share no keys in the family opt",
                    called("hidden"),
                    self.hidden,
                    self.heads,
                    self.head_dim
                );
                return flaw(
                    "hidden",
                    message,
                    "use as many key-value heads as heads, of hidden / heads",
                );
            }
            if self.embedding_width == Some(self.hidden) {
                let message = format!(
                    "`{}` equals `{}` = {}",
                    called("embedding_width"),
                    called("hidden"),
                    self.hidden
                );
                return flaw("embedding_width", message, "leave it out: no projection is needed");
            }
        } else if self.embedding_width.is_some() {
            let message = format!("the family {family} has no embedding projection");
            return flaw("embedding_width", message, "remove it, or use the family `opt`");
        } else if self.post_norm {
            let message = format!("the family {family} has its norms first");
            return flaw("post_norm", message, "remove it, or use the family `opt`");
        }
        Ok(())
    }
}
