//! The MLP part: two matrices, three with a gate, or experts of three.

use pipo_kernels::{activation, residual, router};
use pipo_plan::model::{Experts, Part};

use super::{Decoder, Weights};
use crate::executor::Fault;
use crate::store::in_memory;

impl Decoder {
    /// The whole part.
    pub fn mlp(&self, run: &[u8], hidden: &[f32]) -> Result<Vec<f32>, Fault> {
        let weights = self.weights(Part::Mlp, run);
        let rows = hidden.len() / in_memory(self.model().hidden).max(1);
        let x = weights.normed(hidden, !self.model().post_norm)?;
        let mut out = match self.model().experts {
            Some(experts) => mixture(&weights, experts, &x, rows)?,
            None => dense(&weights, &x, rows)?,
        };
        residual::add(&mut out, hidden)?;
        weights.normed(&out, self.model().post_norm)
    }
}

fn dense(weights: &Weights, x: &[f32], rows: usize) -> Result<Vec<f32>, Fault> {
    if weights.has("gate") {
        let mut gate = weights.linear("gate", x, rows)?;
        let up = weights.linear("up", x, rows)?;
        activation::silu_gated(&mut gate, &up)?;
        return weights.linear("down", &gate, rows);
    }
    let mut inner = weights.linear("fc1", x, rows)?;
    activation::relu(&mut inner);
    weights.linear("fc2", &inner, rows)
}

/// Each expert works on the rows that were sent to it. A row adds up its experts in their order, so that
/// its sum does not depend on the rows beside it.
fn mixture(weights: &Weights, experts: Experts, x: &[f32], rows: usize) -> Result<Vec<f32>, Fault> {
    let width = x.len() / rows.max(1);
    let (count, active) = (experts.count as usize, experts.active as usize);
    let logits = weights.linear("router", x, rows)?;
    let choices = router::route(&logits, count, active, true)?;
    let mut out = vec![0.0; x.len()];
    for expert in 0..experts.count {
        let sent =
            choices.iter().enumerate().filter(|(_, choice)| choice.expert == expert as usize);
        let sent: Vec<(usize, f32)> = sent.map(|(i, choice)| (i / active, choice.weight)).collect();
        if sent.is_empty() {
            continue;
        }
        let picked: Vec<f32> =
            sent.iter().flat_map(|&(row, _)| &x[row * width..(row + 1) * width]).copied().collect();
        let of_expert = Weights { expert: Some(expert), ..*weights };
        let result = dense(&of_expert, &picked, sent.len())?;
        for (&(row, share), result) in sent.iter().zip(result.chunks_exact(width)) {
            for (out, value) in out[row * width..].iter_mut().zip(result) {
                *out += share * value;
            }
        }
    }
    Ok(out)
}
