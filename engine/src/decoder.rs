//! What a decoder computes, part by part, from weights that lie anywhere.
//!
//! Each function takes a [`Run`] of the store, wherever its bytes were put, and rows: of one sequence, or
//! of several that all stand at the same positions, one sequence after the other. Weights are read once
//! for all of them. Between operations numbers are `f32`. Nothing here knows slots, lanes or passes.
//!
//! A part may be computed in steps, each with some of its tensors and what the steps before have left
//! ([`Projected`], [`Inner`]): in whatever steps, the bits are the same.
//!
//! ```text
//! tokens -> embed -> [attention -> MLP] for each layer -> logits
//!                        |  ^
//!                   rows of k and v
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use pipo_kernels::rotary::{self, Rotary};
use pipo_kernels::{Cpu, Format, Matrix, ShapeError, embedding, linear, norm};
use pipo_plan::model::{Model, Part, Precision};

use crate::arithmetic::{Arithmetic, Scaling};
use crate::executor::Fault;
use crate::store::{Layout, Placed, in_memory};

mod attention;
mod cache;
mod mlp;

pub use attention::Projected;
pub use cache::Cache;
pub use mlp::Inner;

/// The bytes of a part's run, or of those of its tensors that are there.
#[derive(Debug, Clone, Default)]
pub struct Run<'a> {
    /// Where each stretch begins in the run, and its bytes.
    stretches: Vec<(u64, &'a [u8])>,
}

impl<'a> From<&'a [u8]> for Run<'a> {
    /// All of it.
    fn from(bytes: &'a [u8]) -> Self {
        Self { stretches: vec![(0, bytes)] }
    }
}

impl<'a> FromIterator<(u64, &'a [u8])> for Run<'a> {
    fn from_iter<I: IntoIterator<Item = (u64, &'a [u8])>>(stretches: I) -> Self {
        Self { stretches: stretches.into_iter().collect() }
    }
}

impl<'a> Run<'a> {
    fn get(&self, placed: &Placed) -> Option<&'a [u8]> {
        self.stretches.iter().find_map(|&(start, bytes)| {
            let from = in_memory(placed.offset.checked_sub(start)?);
            bytes.get(from..from.checked_add(in_memory(placed.length))?)
        })
    }
}

/// A model's arithmetic on this machine's CPU.
#[derive(Debug)]
pub struct Decoder {
    layout: Layout,
    tensors: BTreeMap<Part, Vec<Placed>>,
    epsilon: f32,
    rotary: Option<Rotary>,
    cpu: Cpu,
}

impl From<ShapeError> for Fault {
    fn from(error: ShapeError) -> Self {
        Self(format!("{error}; this is an error in pipo, please report it"))
    }
}

impl Decoder {
    /// The decoder of a store's model.
    pub fn new(layout: &Layout, arithmetic: &Arithmetic, cpu: Cpu) -> Result<Self, Fault> {
        let rotation = arithmetic.rotation.as_ref();
        let rotary = rotation.map(|rotation| {
            let scaling = match rotation.scaling {
                Scaling::None => rotary::Scaling::None,
                Scaling::Linear { factor } => rotary::Scaling::Linear { factor },
                Scaling::Llama3 { factor, low, high, original } => rotary::Scaling::Llama3 {
                    factor,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_positions: original,
                },
            };
            Rotary::new(in_memory(layout.model().head_dim), f64::from(rotation.theta), scaling)
        });
        let of_part = |part| (part, layout.tensors(part).collect());
        Ok(Self {
            layout: layout.clone(),
            tensors: Part::ALL.into_iter().map(of_part).collect(),
            epsilon: arithmetic.norm_epsilon,
            rotary: rotary.transpose()?,
            cpu,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.layout.model()
    }

    /// Hidden states of some tokens of one sequence, of which the first is at position `first`.
    pub fn embed<'a>(
        &self,
        run: impl Into<Run<'a>>,
        tokens: &[u32],
        first: usize,
    ) -> Result<Vec<f32>, Fault> {
        self.embed_all(&run.into(), tokens, first..first + tokens.len())
    }

    /// Hidden states of the tokens of several sequences, each at the same positions.
    pub fn embed_all(
        &self,
        run: &Run,
        tokens: &[u32],
        positions: Range<usize>,
    ) -> Result<Vec<f32>, Fault> {
        let weights = self.weights(Part::Embedding, run);
        let table = weights.matrix("tokens")?;
        let mut hidden = vec![0.0; tokens.len() * table.inputs()];
        embedding::lookup(&table, tokens, &mut hidden)?;
        if weights.has("project_in") {
            hidden = weights.linear("project_in", &hidden, tokens.len())?;
        }
        if weights.has("positions") {
            let table = weights.matrix("positions")?;
            let offset = embedding::OPT_POSITION_OFFSET;
            for sequence in hidden.chunks_mut((positions.len() * table.inputs()).max(1)) {
                embedding::add_positions(&table, positions.start, offset, sequence)?;
            }
        }
        Ok(hidden)
    }

    /// Logits of some rows of hidden states. A head that is tied to the embedding needs its run.
    pub fn logits<'a>(
        &self,
        run: impl Into<Run<'a>>,
        embedding: impl Into<Run<'a>>,
        hidden: &[f32],
    ) -> Result<Vec<f32>, Fault> {
        let (run, embedding) = (run.into(), embedding.into());
        let weights = self.weights(Part::Head, &run);
        let rows = hidden.len() / in_memory(self.model().hidden).max(1);
        let mut hidden = weights.normed(hidden, !self.model().post_norm)?;
        if weights.has("project_out") {
            hidden = weights.linear("project_out", &hidden, rows)?;
        }
        if self.model().tied_embeddings {
            let weights = self.weights(Part::Embedding, &embedding);
            return weights.linear("tokens", &hidden, rows);
        }
        weights.linear("head", &hidden, rows)
    }

    fn weights<'a>(&'a self, part: Part, run: &'a Run<'a>) -> Weights<'a> {
        Weights { decoder: self, part, run, expert: None }
    }
}

/// One run of the store, by the names of its tensors.
#[derive(Clone, Copy)]
struct Weights<'a> {
    decoder: &'a Decoder,
    part: Part,
    run: &'a Run<'a>,
    /// Whose matrices are meant, in a mixture of experts.
    expert: Option<u32>,
}

impl<'a> Weights<'a> {
    fn find(&self, name: &str) -> Option<&'a Placed> {
        let tensors = self.decoder.tensors.get(&self.part)?;
        tensors.iter().find(|t| t.tensor.name == name && t.expert == self.expert)
    }

    /// Whether the model has such a tensor, and its bytes are there.
    fn has(&self, name: &str) -> bool {
        self.find(name).is_some_and(|placed| self.run.get(placed).is_some())
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'a>, Fault> {
        let (format, placed, bytes) = self.stored(name)?;
        let (outputs, inputs) = (placed.tensor.outputs, placed.tensor.inputs);
        Ok(Matrix::new(format, in_memory(outputs), in_memory(inputs), bytes)?)
    }

    /// A bias or the weights of a norm, if they are there.
    fn optional(&self, name: &str) -> Result<Option<Vec<f32>>, Fault> {
        self.has(name).then(|| self.vector(name)).transpose()
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, Fault> {
        // A vector has one column in 16 bits, and so the same bytes as a matrix of one row.
        let (format, placed, bytes) = self.stored(name)?;
        let mut values = vec![0.0; in_memory(placed.tensor.outputs)];
        let row = Matrix::new(format, 1, values.len(), bytes)?;
        pipo_kernels::format::dequantise_row(&row, 0, &mut values)?;
        Ok(values)
    }

    fn stored(&self, name: &str) -> Result<(Format, &'a Placed, &'a [u8]), Fault> {
        let missing = |what: &str| Fault(format!("the {} has no {what} `{name}`", self.part));
        let placed = self.find(name).ok_or_else(|| missing("tensor"))?;
        let bytes = self.run.get(placed).ok_or_else(|| missing("bytes for"))?;
        Ok((format(self.decoder.layout.precision_of(&placed.tensor)), placed, bytes))
    }

    /// A product as far as it can be made here: all of it, or, where the matrix was in the step before,
    /// its bias. A float is rounded after each operation, so it makes no difference when it is added.
    fn advance(&self, name: &str, x: &[f32], rows: usize, out: &mut Vec<f32>) -> Result<(), Fault> {
        if self.has(name) {
            *out = self.linear(name, x, rows)?;
        } else if let Some(bias) = self.optional(&format!("{name}_bias"))? {
            for row in out.chunks_mut(bias.len().max(1)) {
                row.iter_mut().zip(&bias).for_each(|(out, bias)| *out += bias);
            }
        }
        Ok(())
    }

    /// A product with a matrix and, where it is there, its bias.
    fn linear(&self, name: &str, x: &[f32], rows: usize) -> Result<Vec<f32>, Fault> {
        let matrix = self.matrix(name)?;
        let bias = self.optional(&format!("{name}_bias"))?;
        let mut out = vec![0.0; rows * matrix.outputs()];
        linear::linear(&self.decoder.cpu, x, rows, &matrix, bias.as_deref(), &mut out)?;
        Ok(out)
    }

    /// The part's norm of some rows, if it stands `here`.
    fn normed(&self, x: &[f32], here: bool) -> Result<Vec<f32>, Fault> {
        if !here {
            return Ok(x.to_vec());
        }
        let weight = self.vector("norm")?;
        let Decoder { cpu, epsilon, .. } = self.decoder;
        let mut out = vec![0.0; x.len()];
        match self.optional("norm_bias")? {
            Some(bias) => norm::layer_norm(cpu, x, &weight, &bias, *epsilon, &mut out)?,
            None => norm::rms_norm(cpu, x, &weight, *epsilon, &mut out)?,
        }
        Ok(out)
    }
}

/// How the kernels call a precision of the store.
pub fn format(precision: Precision) -> Format {
    match precision {
        Precision::Fp16 => Format::Fp16,
        Precision::Bf16 => Format::Bf16,
        Precision::Int8 => Format::Int8,
        Precision::Int4 => Format::Int4,
    }
}
