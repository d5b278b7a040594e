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

use std::ops::Range;

use pipo_kernels::rotary::{self, Rotary};
use pipo_kernels::{Cpu, Matrix, ShapeError, embedding, linear, norm};
use pipo_plan::model::{Model, Part};

use crate::arithmetic::{Arithmetic, Scaling};
use crate::executor::Fault;
use crate::store::{Layout, in_memory};

mod attention;
mod cache;
mod mlp;
mod tensors;

pub use attention::Projected;
pub use cache::Cache;
pub use mlp::Inner;
pub use tensors::{Bytes, Owner, Run, Stored, Tensors, format};

/// A model's arithmetic on this machine's CPU.
#[derive(Debug)]
pub struct Decoder {
    tensors: Tensors,
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
        let rotary = rotary_of(layout.model(), arithmetic);
        Ok(Self {
            tensors: Tensors::new(layout),
            epsilon: arithmetic.norm_epsilon,
            rotary: rotary.transpose()?,
            cpu,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.tensors.model()
    }

    /// Hidden states of some tokens of one sequence, of which the first is at position `first`.
    pub fn embed<'a>(
        &self,
        run: impl Into<Run<&'a [u8]>>,
        tokens: &[u32],
        first: usize,
    ) -> Result<Vec<f32>, Fault> {
        self.embed_all(&run.into(), tokens, first..first + tokens.len())
    }

    /// Hidden states of the tokens of several sequences, each at the same positions.
    pub fn embed_all(
        &self,
        run: &Run<&[u8]>,
        tokens: &[u32],
        positions: Range<usize>,
    ) -> Result<Vec<f32>, Fault> {
        self.embed_in(run, tokens, positions, |_| {})
    }

    /// The same in steps that are rounded one by one.
    pub fn embed_in(
        &self,
        run: &Run<&[u8]>,
        tokens: &[u32],
        positions: Range<usize>,
        round: impl Fn(&mut [f32]),
    ) -> Result<Vec<f32>, Fault> {
        let weights = self.weights(Part::Embedding, run);
        let table = weights.matrix("tokens")?;
        let mut hidden = vec![0.0; tokens.len() * table.inputs()];
        embedding::lookup(&table, tokens, &mut hidden)?;
        round(&mut hidden);
        if weights.has("project_in") {
            hidden = weights.linear("project_in", &hidden, tokens.len())?;
            round(&mut hidden);
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
        run: impl Into<Run<&'a [u8]>>,
        embedding: impl Into<Run<&'a [u8]>>,
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

    fn weights<'a>(&'a self, part: Part, run: &'a Run<&'a [u8]>) -> Weights<'a> {
        Weights { decoder: self, owner: Owner { part, expert: None }, run }
    }
}

/// The rotation of a model's heads, where it has one.
pub(crate) fn rotary_of(
    model: &Model,
    arithmetic: &Arithmetic,
) -> Option<Result<Rotary, ShapeError>> {
    let rotation = arithmetic.rotation.as_ref()?;
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
    Some(Rotary::new(in_memory(model.head_dim), f64::from(rotation.theta), scaling))
}

/// One run of the store, by the names of its tensors.
#[derive(Clone, Copy)]
struct Weights<'a> {
    decoder: &'a Decoder,
    owner: Owner,
    run: &'a Run<&'a [u8]>,
}

impl<'a> Weights<'a> {
    /// Those of one expert.
    fn of_expert(self, expert: Option<u32>) -> Self {
        Self { owner: Owner { expert, ..self.owner }, ..self }
    }

    /// Whether the model has such a tensor, and its bytes are there.
    fn has(&self, name: &str) -> bool {
        self.decoder.tensors.has(self.owner, self.run, name)
    }

    fn get(&self, name: &str) -> Result<Stored<&'a [u8]>, Fault> {
        self.decoder.tensors.get(self.owner, self.run, name)
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'a>, Fault> {
        let Stored { format, outputs, inputs, bytes } = self.get(name)?;
        Ok(Matrix::new(format, outputs, inputs, bytes)?)
    }

    /// A bias or the weights of a norm, if they are there.
    fn optional(&self, name: &str) -> Result<Option<Vec<f32>>, Fault> {
        self.has(name).then(|| self.vector(name)).transpose()
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, Fault> {
        // A vector has one column in 16 bits, and so the same bytes as a matrix of one row.
        let Stored { format, outputs, bytes, .. } = self.get(name)?;
        let mut values = vec![0.0; outputs];
        let row = Matrix::new(format, 1, values.len(), bytes)?;
        pipo_kernels::format::dequantise_row(&row, 0, &mut values)?;
        Ok(values)
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
