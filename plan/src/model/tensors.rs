//! The tensors of each part, in the order in which they are used.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AttentionBias, Model, Precision};
use crate::units::Bytes;

/// A stretch of the model that is moved and computed as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Token table, position table, and the projection to the residual width where there is one.
    Embedding,
    /// One layer's attention, with its norm and the norms of q and k.
    Attention,
    /// One layer's MLP or experts, with its norm and the router.
    Mlp,
    /// The final norm and the matrix that makes logits.
    Head,
}

impl Part {
    /// Every part, in the order of the computation.
    pub const ALL: [Self; 4] = [Self::Embedding, Self::Attention, Self::Mlp, Self::Head];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Head => "head",
        })
    }
}

/// How a tensor is stored; [`Precision`] gives the reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TensorKind {
    /// At the plan's precision.
    Matrix,
    /// Always in 16 bits: norms, biases, and the two tables that are not quantised (learned positions
    /// and the router), whose `inputs` are then more than 1.
    Vector,
}

/// One tensor of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tensor {
    /// Its name within the part: `q`, `gate`, `fc1_bias`, ...
    pub name: &'static str,
    /// How it is stored.
    pub kind: TensorKind,
    /// Rows: the numbers it produces.
    pub outputs: u64,
    /// Columns: the numbers it consumes; 1 for a vector.
    pub inputs: u64,
    /// How many there are of it: the experts of a layer, otherwise 1.
    pub copies: u32,
}

impl Tensor {
    /// Parameters in all copies.
    pub fn parameters(&self) -> u64 {
        self.outputs.saturating_mul(self.inputs).saturating_mul(u64::from(self.copies))
    }

    /// Stored size of all copies.
    pub fn bytes(&self, precision: Precision) -> Bytes {
        let one = match self.kind {
            TensorKind::Matrix => precision.matrix_bytes(self.outputs, self.inputs),
            TensorKind::Vector => Precision::Fp16.matrix_bytes(self.outputs, self.inputs),
        };
        one * u64::from(self.copies)
    }

    /// The same tensor once for each expert.
    fn times(self, copies: u32) -> Self {
        Self { copies, ..self }
    }
}

/// Parameters of several tensors. Saturates like every sum here, because a model can be asked for its
/// size before it was checked.
pub(super) fn count(tensors: &[Tensor]) -> u64 {
    tensors.iter().map(Tensor::parameters).fold(0, u64::saturating_add)
}

fn matrix(name: &'static str, outputs: u64, inputs: u64) -> Tensor {
    Tensor { name, kind: TensorKind::Matrix, outputs, inputs, copies: 1 }
}

fn table(name: &'static str, outputs: u64, inputs: u64) -> Tensor {
    Tensor { name, kind: TensorKind::Vector, outputs, inputs, copies: 1 }
}

fn vector(name: &'static str, length: u64) -> Tensor {
    table(name, length, 1)
}

/// A matrix and, if `biased`, the bias that follows it.
fn linear(
    [name, bias]: [&'static str; 2],
    outputs: u64,
    inputs: u64,
    biased: bool,
) -> impl Iterator<Item = Tensor> {
    [Some(matrix(name, outputs, inputs)), biased.then(|| vector(bias, outputs))]
        .into_iter()
        .flatten()
}

impl Model {
    /// The tensors of a part, of one layer for attention and MLP, in the order of use.
    ///
    /// The order is fixed: the engine's store lays tensors out in it.
    pub fn tensors(&self, part: Part) -> Vec<Tensor> {
        match part {
            Part::Embedding => self.embedding_tensors(),
            Part::Attention => self.attention_tensors(),
            Part::Mlp => self.mlp_tensors(),
            Part::Head => self.head_tensors(),
        }
    }

    fn embedding_tensors(&self) -> Vec<Tensor> {
        let mut tensors = vec![self.token_table("tokens")];
        if let Some(width) = self.embedding_width {
            tensors.push(matrix("project_in", self.hidden, width));
        }
        if self.family.learned_positions() {
            tensors.push(table("positions", self.positions, self.hidden));
        }
        tensors
    }

    fn attention_tensors(&self) -> Vec<Tensor> {
        let query = u64::from(self.heads).saturating_mul(self.head_dim);
        let cached = u64::from(self.kv_heads).saturating_mul(self.head_dim);
        let biased = self.attention_bias != AttentionBias::None;
        let mut tensors = Vec::new();
        tensors.extend(linear(["q", "q_bias"], query, self.hidden, biased));
        tensors.extend(linear(["k", "k_bias"], cached, self.hidden, biased));
        tensors.extend(linear(["v", "v_bias"], cached, self.hidden, biased));
        if self.family.qk_norm() {
            // One vector serves all heads.
            tensors.push(vector("q_norm", self.head_dim));
            tensors.push(vector("k_norm", self.head_dim));
        }
        let biased = self.attention_bias == AttentionBias::All;
        tensors.extend(linear(["o", "o_bias"], self.hidden, query, biased));
        self.with_norm(tensors)
    }

    fn mlp_tensors(&self) -> Vec<Tensor> {
        let router = self.experts.map(|e| table("router", u64::from(e.count), self.hidden));
        let copies = self.experts.map_or(1, |e| e.count);
        let experts = self.expert_tensors().into_iter().map(|tensor| tensor.times(copies));
        self.with_norm(router.into_iter().chain(experts).collect())
    }

    /// The MLP itself, once, without its norm and router.
    pub(super) fn expert_tensors(&self) -> Vec<Tensor> {
        let (wide, narrow, biased) = (self.ffn, self.hidden, self.mlp_bias);
        let mut tensors = Vec::new();
        if self.family.gated_mlp() {
            tensors.extend(linear(["gate", "gate_bias"], wide, narrow, biased));
            tensors.extend(linear(["up", "up_bias"], wide, narrow, biased));
            tensors.extend(linear(["down", "down_bias"], narrow, wide, biased));
        } else {
            tensors.extend(linear(["fc1", "fc1_bias"], wide, narrow, biased));
            tensors.extend(linear(["fc2", "fc2_bias"], narrow, wide, biased));
        }
        tensors
    }

    fn head_tensors(&self) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        if !self.post_norm {
            tensors.extend(self.norm());
        }
        if let Some(width) = self.embedding_width {
            tensors.push(matrix("project_out", width, self.hidden));
        }
        tensors.push(self.token_table("head"));
        tensors
    }

    /// The head's matrix, where it is the token embedding over again.
    pub(super) fn tied_head(&self) -> Option<Tensor> {
        self.tied_embeddings.then(|| self.token_table("head"))
    }

    /// The embedding and the head have one shape, so that they can be one matrix.
    fn token_table(&self, name: &'static str) -> Tensor {
        matrix(name, self.vocab, self.embedding_width.unwrap_or(self.hidden))
    }

    /// Puts the norm before the tensors, or after them in a model with post-norm.
    fn with_norm(&self, mut tensors: Vec<Tensor>) -> Vec<Tensor> {
        let at = if self.post_norm { tensors.len() } else { 0 };
        tensors.splice(at..at, self.norm());
        tensors
    }

    fn norm(&self) -> impl Iterator<Item = Tensor> + use<> {
        let bias = self.family.layer_norm().then(|| vector("norm_bias", self.hidden));
        std::iter::once(vector("norm", self.hidden)).chain(bias)
    }
}
