//! What a language model is made of, exactly.
//!
//! A [`Model`] is the part of a Hugging Face `config.json` that decides sizes: how many tensors there
//! are, of which shape, in which order they are used. Everything else in pipo that counts weights or
//! cache (placement, transfers, the engine's store) asks here, so that there is one count.
//!
//! What does not change a size (rotary base, epsilon, activation function) is left to the engine.

pub mod catalog;
mod check;
mod config;
mod precision;
mod tensors;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use check::Flaw;
pub use precision::Precision;
pub use tensors::{Part, Tensor, TensorKind};

use crate::units::Bytes;

/// An architecture: which tensors a layer has and how they are wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// OPT: layer norms, learned positions, two-matrix MLP.
    Opt,
    /// Llama 1 to 3 and what shares its layout.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: Llama with biases on q, k and v.
    Qwen2,
    /// Qwen3: Llama with norms on the heads of q and k.
    Qwen3,
    /// Mixtral: Mistral with experts in place of the MLP.
    Mixtral,
}

impl Family {
    /// Every family, in the order in which they are listed to people.
    pub const ALL: [Self; 6] =
        [Self::Opt, Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Mixtral];

    /// The name in files and in `model_type` of a `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opt => "opt",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Mixtral => "mixtral",
        }
    }

    /// Whether norms are layer norms (a weight and a bias) rather than RMS norms (a weight).
    pub fn layer_norm(self) -> bool {
        self == Self::Opt
    }

    /// Whether positions are rows of a learned table rather than rotations.
    pub fn learned_positions(self) -> bool {
        self == Self::Opt
    }

    /// Whether the MLP is `down(act(gate(x)) * up(x))` rather than `fc2(act(fc1(x)))`.
    pub fn gated_mlp(self) -> bool {
        self != Self::Opt
    }

    /// Whether each head of q and k is normed before it is rotated.
    pub fn qk_norm(self) -> bool {
        self == Self::Qwen3
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A mixture of experts: each token runs through some of the copies of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// Experts in a layer.
    pub count: u32,
    /// Experts that one token runs through.
    pub active: u32,
}

/// Which projections of the attention carry a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionBias {
    /// None of them.
    #[default]
    None,
    /// q, k and v, as in Qwen2.
    Qkv,
    /// q, k, v and o, as in OPT.
    All,
}

/// The sizes of one model: a flat table in a plan file.
///
/// A value read from a file is believed only after [`Model::check`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The name people know it by, such as `llama-3.1-8b`.
    pub name: String,
    /// Where the figures come from: an address, or the file that was read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// The architecture.
    pub family: Family,
    /// Transformer layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: u32,
    /// Width of one head; `heads * head_dim` need not equal `hidden`.
    pub head_dim: u64,
    /// Inner width of the MLP; of one expert where there are experts.
    pub ffn: u64,
    /// Rows of the token embedding, padding rows included.
    pub vocab: u64,
    /// Rows of a learned position table, OPT's two unused rows included; 0 for rotary positions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub positions: u64,
    /// The longest context that the model was made for, in tokens.
    pub max_context: u64,
    /// The head multiplies by the token embedding itself.
    pub tied_embeddings: bool,
    /// Which attention projections carry a bias.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attention_bias: AttentionBias,
    /// Every matrix of the MLP carries a bias.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mlp_bias: bool,
    /// Norms follow attention and MLP instead of preceding them, and there is no final norm; this is
    /// OPT-350m alone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub post_norm: bool,
    /// Width of the token embedding where it is not `hidden`; this, too, is OPT-350m alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_width: Option<u64>,
    /// Every layer attends to this many latest tokens only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<u64>,
    /// The mixture of experts, if the MLP is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Model {
    /// Parameters of a part; of one layer for attention and MLP.
    pub fn parameters(&self, part: Part) -> u64 {
        tensors::count(&self.tensors(part))
    }

    /// Parameters of the whole model, each counted once: a tied head adds nothing.
    pub fn total_parameters(&self) -> u64 {
        let layer = self.parameters(Part::Attention).saturating_add(self.parameters(Part::Mlp));
        let shared = self.tied_head().map_or(0, |head| head.parameters());
        layer
            .saturating_mul(u64::from(self.layers))
            .saturating_add(self.parameters(Part::Embedding))
            .saturating_add(self.parameters(Part::Head) - shared)
    }

    /// Parameters that one token can touch: the total without the experts that it does not visit.
    ///
    /// The whole embedding counts, as is the custom in published figures.
    pub fn active_parameters(&self) -> u64 {
        let idle = self.experts.map_or(0, |e| e.count.saturating_sub(e.active));
        let expert = tensors::count(&self.expert_tensors());
        let idle = expert.saturating_mul(u64::from(idle)).saturating_mul(u64::from(self.layers));
        self.total_parameters().saturating_sub(idle)
    }

    /// Stored size of a part; of one layer for attention and MLP.
    ///
    /// A tied head reports its matrix here, because computing needs it there; only
    /// [`Model::total_bytes`] knows that it is the same matrix.
    pub fn bytes(&self, part: Part, precision: Precision) -> Bytes {
        self.tensors(part).iter().map(|tensor| tensor.bytes(precision)).sum()
    }

    /// Stored size of the whole model, each tensor once.
    pub fn total_bytes(&self, precision: Precision) -> Bytes {
        let layer = self.bytes(Part::Attention, precision) + self.bytes(Part::Mlp, precision);
        let shared = self.tied_head().map_or(Bytes::ZERO, |head| head.bytes(precision));
        self.bytes(Part::Embedding, precision)
            + layer * u64::from(self.layers)
            + (self.bytes(Part::Head, precision) - shared)
    }

    /// Stored size of one expert of one layer, the unit in which experts are fetched.
    pub fn expert_bytes(&self, precision: Precision) -> Option<Bytes> {
        self.experts?;
        Some(self.expert_tensors().iter().map(|tensor| tensor.bytes(precision)).sum())
    }

    /// Cache of one token in one layer: a key and a value for each key-value head.
    ///
    /// Each head's vector is a row of its own to the quantiser, so that a head can be read without
    /// its neighbours; FlexGen groups its cache the same way.
    pub fn kv_bytes_per_token_layer(&self, precision: Precision) -> Bytes {
        precision.matrix_bytes(2 * u64::from(self.kv_heads), self.head_dim)
    }

    /// Cache of one token in all layers. A sliding window bounds the tokens, not this.
    pub fn kv_bytes_per_token(&self, precision: Precision) -> Bytes {
        self.kv_bytes_per_token_layer(precision) * u64::from(self.layers)
    }
}
