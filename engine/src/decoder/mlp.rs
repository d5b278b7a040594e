//! The MLP part: two matrices, three with a gate, or experts of three.

use pipo_kernels::router::Choice;
use pipo_kernels::{activation, residual, router};
use pipo_plan::model::{Experts, Part};

use super::{Decoder, Run, Weights};
use crate::executor::Fault;
use crate::store::in_memory;

/// What is inside an MLP that is computed in steps.
#[derive(Debug, Clone, Default)]
pub struct Inner {
    input: Vec<f32>,
    /// Where each row is sent, in a mixture: as many a row as experts are active.
    choices: Vec<Choice>,
    /// One for each expert, or one.
    networks: Vec<Network>,
}

/// The inner rows of one feed-forward network.
#[derive(Debug, Clone, Default)]
struct Network {
    /// Of `gate`, or of `fc1`.
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Decoder {
    /// The whole part.
    pub fn mlp<'a>(
        &self,
        run: impl Into<Run<&'a [u8]>>,
        hidden: &[f32],
    ) -> Result<Vec<f32>, Fault> {
        let out = self.mlp_step(&run.into(), hidden, &mut Inner::default())?;
        out.ok_or_else(|| Fault("the mlp is not all there".into()))
    }

    /// What is there of the part; its result, once its last matrix is.
    pub fn mlp_step(
        &self,
        run: &Run<&[u8]>,
        hidden: &[f32],
        inner: &mut Inner,
    ) -> Result<Option<Vec<f32>>, Fault> {
        let weights = self.weights(Part::Mlp, run);
        let rows = hidden.len() / in_memory(self.model().hidden).max(1);
        let experts = self.model().experts;
        let first = if self.model().family.gated_mlp() { "gate" } else { "fc1" };
        if weights.of_expert(experts.map(|_| 0)).has(first) {
            let input = weights.normed(hidden, !self.model().post_norm)?;
            let networks = vec![Network::default(); experts.map_or(1, |e| e.count as usize)];
            *inner = Inner { input, choices: Vec::new(), networks };
        }
        let out = match (experts, &mut inner.networks[..]) {
            (Some(experts), _) => mixture(&weights, experts, rows, inner)?,
            (None, [network]) => network.advance(&weights, &inner.input, rows)?,
            (None, _) => return Err(Fault("the first matrix of the mlp is not there".into())),
        };
        let Some(mut out) = out else { return Ok(None) };
        residual::add(&mut out, hidden)?;
        weights.normed(&out, self.model().post_norm).map(Some)
    }
}

impl Network {
    /// What is there of the network; its result, once the last matrix is.
    fn advance(
        &mut self,
        weights: &Weights,
        x: &[f32],
        rows: usize,
    ) -> Result<Option<Vec<f32>>, Fault> {
        let gated = weights.decoder.model().family.gated_mlp();
        let (first, last) = if gated { ("gate", "down") } else { ("fc1", "fc2") };
        weights.advance(first, x, rows, &mut self.gate)?;
        if gated {
            weights.advance("up", x, rows, &mut self.up)?;
        }
        if !weights.has(last) {
            return Ok(None);
        }
        let Self { mut gate, up } = std::mem::take(self);
        if gated {
            activation::silu_gated(&mut gate, &up)?;
        } else {
            activation::relu(&mut gate);
        }
        weights.linear(last, &gate, rows).map(Some)
    }
}

/// Each expert works on the rows that were sent to it. A row adds up its experts in their order, so that
/// its sum does not depend on the rows beside it.
fn mixture(
    weights: &Weights,
    experts: Experts,
    rows: usize,
    inner: &mut Inner,
) -> Result<Option<Vec<f32>>, Fault> {
    let Inner { input, choices, networks } = inner;
    let width = input.len() / rows.max(1);
    let (count, active) = (experts.count as usize, experts.active as usize);
    if weights.has("router") {
        let logits = weights.linear("router", input, rows)?;
        *choices = router::route(&logits, count, active, true)?;
    }
    let mut out = None;
    for (expert, network) in (0..).zip(networks) {
        let sent =
            choices.iter().enumerate().filter(|(_, choice)| choice.expert == expert as usize);
        let sent: Vec<(usize, f32)> = sent.map(|(i, choice)| (i / active, choice.weight)).collect();
        if sent.is_empty() {
            continue;
        }
        let rows = sent.iter().flat_map(|&(row, _)| &input[row * width..(row + 1) * width]);
        let picked: Vec<f32> = rows.copied().collect();
        let of_expert = weights.of_expert(Some(expert));
        let Some(result) = network.advance(&of_expert, &picked, sent.len())? else { continue };
        let out = out.get_or_insert_with(|| vec![0.0; input.len()]);
        for (&(row, share), result) in sent.iter().zip(result.chunks_exact(width)) {
            for (out, value) in out[row * width..].iter_mut().zip(result) {
                *out += share * value;
            }
        }
    }
    Ok(out)
}
