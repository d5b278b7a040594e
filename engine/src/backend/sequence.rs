//! A sequence as it grows.

use pipo_kernels::sample::Sampler;

use super::{Rows, fault};
use crate::executor::Fault;
use crate::run::NewToken;

/// One sequence of a micro-batch.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    /// Its place among the prompts.
    number: usize,
    sampler: Sampler,
    prompt: Vec<u32>,
    new: Vec<u32>,
    logits: Vec<f32>,
}

impl Sequence {
    pub(crate) fn new(number: usize, sampler: Sampler, prompt: &[u32]) -> Self {
        Self { number, sampler, prompt: prompt.to_vec(), new: Vec::new(), logits: Vec::new() }
    }

    /// The tokens that a pass works on: of the prompt, or the newest.
    pub(crate) fn tokens(&self, rows: Rows) -> Result<&[u32], Fault> {
        let tokens = match rows.pass {
            0 => self.prompt.get(rows.first..rows.first + rows.count),
            pass => self.new.get(pass as usize - 1..pass as usize),
        };
        tokens.ok_or_else(|| fault("a token is not there yet"))
    }

    /// Takes the next token.
    pub(crate) fn choose(&mut self, logits: Vec<f32>) -> Result<NewToken, Fault> {
        let token = self.sampler.sample(&logits).map_err(|error| Fault(error.to_string()))?;
        let token = u32::try_from(token).map_err(|_| fault("a token has more than 32 bits"))?;
        self.logits = logits;
        Ok(self.push(token))
    }

    /// Takes a token that was chosen elsewhere.
    pub(crate) fn push(&mut self, token: u32) -> NewToken {
        self.new.push(token);
        NewToken { sequence: self.number, token }
    }

    /// Keeps the logits that chose the last token.
    pub(crate) fn keep(&mut self, logits: Vec<f32>) {
        self.logits = logits;
    }

    /// New tokens and last logits.
    pub(crate) fn into_results(self) -> (Vec<u32>, Vec<f32>) {
        (self.new, self.logits)
    }
}

/// The tokens that a pass works on, one sequence after the other.
pub(crate) fn tokens(sequences: &[Sequence], rows: Rows) -> Result<Vec<u32>, Fault> {
    let mut all = Vec::with_capacity(sequences.len() * rows.count);
    for sequence in sequences {
        all.extend_from_slice(sequence.tokens(rows)?);
    }
    Ok(all)
}
