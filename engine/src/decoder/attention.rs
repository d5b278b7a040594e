//! The attention part, in the three pieces that a schedule may tell apart.

use std::ops::Range;

use pipo_kernels::attention::{Heads, attentions};
use pipo_kernels::{Matrix, norm, residual};
use pipo_plan::model::Part;

use super::{Cache, Decoder, Run, Weights};
use crate::executor::Fault;
use crate::store::in_memory;

/// What comes before attention: rows of queries, keys and values, in the end normed and rotated.
#[derive(Debug, Clone, Default)]
pub struct Projected {
    /// What they are projections of.
    input: Vec<f32>,
    /// Rows of `heads * head_dim` numbers.
    pub queries: Vec<f32>,
    /// Rows of `kv_heads * head_dim` numbers.
    pub keys: Vec<f32>,
    /// The same.
    pub values: Vec<f32>,
}

impl Decoder {
    /// The whole part for rows of one sequence that follow what its cache holds.
    pub fn attention<'a>(
        &self,
        run: impl Into<Run<&'a [u8]>>,
        hidden: &[f32],
        cache: &mut Cache,
    ) -> Result<Vec<f32>, Fault> {
        let run = run.into();
        let first = cache.positions();
        let rows = hidden.len() / in_memory(self.model().hidden).max(1);
        let mut projected = Projected::default();
        self.project(&run, hidden, first..first + rows, &mut projected)?;
        cache.append(&projected.keys, &projected.values);
        let (keys, values) = cache.matrices(self.model().kv_heads as usize)?;
        let mut attended = vec![0.0; projected.queries.len()];
        self.attend(&projected.queries, first, &[(keys, values)], &mut attended)?;
        self.after_attention(&run, hidden, &attended)
    }

    /// Norm, projections, norms of heads, rotation, for rows of sequences that stand at `positions`.
    ///
    /// What is there of it: the last two stand before the output projection, and come with it.
    pub fn project(
        &self,
        run: &Run<&[u8]>,
        hidden: &[f32],
        positions: Range<usize>,
        projected: &mut Projected,
    ) -> Result<(), Fault> {
        let weights = self.weights(Part::Attention, run);
        let rows = hidden.len() / in_memory(self.model().hidden).max(1);
        let Projected { input, queries, keys, values } = projected;
        if weights.has("q") {
            *input = weights.normed(hidden, !self.model().post_norm)?;
        }
        weights.advance("q", input, rows, queries)?;
        weights.advance("k", input, rows, keys)?;
        weights.advance("v", input, rows, values)?;
        if !weights.has("o") {
            return Ok(());
        }
        input.clear();
        self.turn(&weights, "q_norm", queries, self.model().heads as usize, &positions)?;
        self.turn(&weights, "k_norm", keys, self.model().kv_heads as usize, &positions)
    }

    /// Each head on its own: its norm, where there is one, then the rotation by its position.
    fn turn(
        &self,
        weights: &Weights,
        name: &str,
        x: &mut Vec<f32>,
        heads: usize,
        positions: &Range<usize>,
    ) -> Result<(), Fault> {
        if let Some(weight) = weights.optional(name)? {
            let mut out = vec![0.0; x.len()];
            norm::rms_norm(&self.cpu, x, &weight, self.epsilon, &mut out)?;
            *x = out;
        }
        if let Some(rotary) = &self.rotary {
            let width = heads * in_memory(self.model().head_dim);
            for sequence in x.chunks_mut((positions.len() * width).max(1)) {
                rotary.apply(sequence, heads, positions.start)?;
            }
        }
        Ok(())
    }

    /// Attention of sequences' rows from position `first` on, over keys and values of each that hold them
    /// already. All of `out`, which is as long as the queries, is written.
    pub fn attend(
        &self,
        queries: &[f32],
        first: usize,
        caches: &[(Matrix, Matrix)],
        out: &mut [f32],
    ) -> Result<(), Fault> {
        let dim = in_memory(self.model().head_dim);
        let heads = Heads {
            query: self.model().heads as usize,
            kv: self.model().kv_heads as usize,
            dim,
            window: self.model().sliding_window.map(in_memory),
            scale: 1.0 / (dim as f32).sqrt(),
        };
        Ok(attentions(&self.cpu, &heads, queries, first, caches, out)?)
    }

    /// Output projection and residual; the norm, in a model that has it behind.
    pub fn after_attention(
        &self,
        run: &Run<&[u8]>,
        hidden: &[f32],
        attended: &[f32],
    ) -> Result<Vec<f32>, Fault> {
        let weights = self.weights(Part::Attention, run);
        let rows = hidden.len() / in_memory(self.model().hidden).max(1);
        let mut out = weights.linear("o", attended, rows)?;
        residual::add(&mut out, hidden)?;
        weights.normed(&out, self.model().post_norm)
    }
}
