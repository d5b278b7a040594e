//! The head: logits of every sequence's last row, and its next token.

use pipo_kernels::cuda::{Linear, Out, Region, Then};
use pipo_plan::model::Part;
use pipo_plan::schedule::OpKind;

use super::apart::{deliver, floats};
use super::arithmetic::Step;
use super::{CudaBackend, fault};
use crate::decoder::{Owner, Run};
use crate::executor::{Fault, Task};
use crate::store::in_memory;

impl Step<'_> {
    /// Logits and tokens, on the device and on their way to host memory.
    pub(super) fn head(&self, embedding: &Run<Region>) -> Result<(), Fault> {
        if !self.rows.last_chunk {
            return Ok(());
        }
        let rows = self.sequences();
        let mut last = self.last_rows()?;
        if !self.post_norm() {
            self.norm(last, rows, last)?;
        }
        if self.has("project_out") {
            // The hidden states are not needed any more.
            let matrix = self.matrix("project_out")?;
            let bytes = 2 * (rows * matrix.layout().outputs) as u64;
            let out = self.hidden()?.slice(0, bytes)?;
            self.product(self, "project_out", last, out, Out::Fp16)?;
            last = out;
        }
        let vocabulary = in_memory(self.arithmetic().tensors.model().vocab);
        let logits = self.arithmetic().inner.slice(0, 4 * (rows * vocabulary) as u64)?;
        if self.arithmetic().tensors.model().tied_embeddings {
            let owner = Owner { part: Part::Embedding, expert: None };
            let table = Step { owner, run: embedding, ..*self };
            self.product(&table, "tokens", last, logits, Out::Fp32)?;
        } else {
            self.product(self, "head", last, logits, Out::Fp32)?;
        }
        self.choose(logits, vocabulary)
    }

    fn product(
        &self,
        weights: &Step,
        name: &str,
        x: Region,
        out: Region,
        out_type: Out,
    ) -> Result<(), Fault> {
        let matrix = self.decoded(weights.matrix(name)?)?;
        let linear = Linear {
            x,
            rows: self.sequences(),
            matrix: &matrix,
            bias: None,
            then: Then::Store,
            out,
            out_type,
            spare: Region::EMPTY,
        };
        Ok(self.kernels().linear(self.stream.raw(), &linear)?)
    }

    /// The last row of every sequence, copied to where norms are written.
    fn last_rows(&self) -> Result<Region, Fault> {
        let row = 2 * self.arithmetic().hidden() as u64;
        let rows = self.sequences() as u64;
        let hidden = self.hidden()?;
        let to = self.backend.normed(self.task, self.rows)?.slice(0, rows * row)?;
        let each = self.rows.count as u64;
        for sequence in 0..rows {
            let from = hidden.slice((sequence * each + each - 1) * row, row)?;
            self.stream.copy(from, to.slice(sequence * row, row)?)?;
        }
        Ok(to)
    }

    /// The next token of every sequence. What is drawn is drawn by the host, which then waits here.
    fn choose(&self, logits: Region, vocabulary: usize) -> Result<(), Fault> {
        let (backend, micro) = (self.backend, self.task.op.micro);
        let (tokens, at) = backend.apart.tokens(micro, self.rows.pass)?;
        if !backend.greedy || backend.is_last(self.task) {
            self.download(logits, &backend.apart.logits_home, backend.apart.logits(micro).start)?;
        }
        if backend.greedy {
            let rows = self.sequences();
            self.kernels().argmax(self.stream.raw(), logits, rows, vocabulary, tokens)?;
            return self.download(tokens, &backend.apart.tokens_home, at);
        }
        self.stream.synchronise()?;
        let mut drawn = Vec::new();
        let home = backend.apart.logits_home.read()?;
        let all =
            home.get(backend.apart.logits(micro)).ok_or_else(|| fault("logits are not there"))?;
        let mut sequences = backend.host.sequences(micro)?;
        for (sequence, logits) in sequences.iter_mut().zip(all.chunks_exact(4 * vocabulary.max(1)))
        {
            let new = sequence.choose(floats(logits))?;
            drawn.extend(new.token.to_le_bytes());
            (backend.host.observer)(new);
        }
        // SAFETY: the bytes outlive the copy, which is waited for.
        unsafe { self.stream.upload(&drawn, tokens) }?;
        self.stream.synchronise()
    }

    fn download(&self, from: Region, to: &crate::memory::Buffer, at: usize) -> Result<(), Fault> {
        let length = in_memory(from.bytes());
        let home = to.read()?;
        let place =
            home.get(at..at + length).ok_or_else(|| fault("there is no room for results"))?;
        // SAFETY: the buffer lives as long as the backend; this part of it is read only once the operation
        // has ended, and written again only by a later pass.
        unsafe { self.stream.download(from, place.as_ptr().cast_mut(), length) }
    }
}

impl CudaBackend<'_> {
    /// What the host does once an operation of the device has ended: new tokens are taken in.
    pub(super) fn follow(&self, task: &Task) -> Result<(), Fault> {
        let is_head = task.op.kind == OpKind::Compute
            && usize::from(task.op.unit) + 1 == self.host.units.len()
            && self.host.rows(task).last_chunk;
        if !is_head || !self.greedy {
            return Ok(());
        }
        let (tokens, at) = self.apart.tokens(task.op.micro, task.pass)?;
        let home = self.apart.tokens_home.read()?;
        let tokens = home.get(at..at + in_memory(tokens.bytes()));
        let tokens = tokens.ok_or_else(|| fault("tokens are not there"))?;
        let logits = self.apart.logits_home.read()?;
        let logits = self.is_last(task).then(|| logits.get(self.apart.logits(task.op.micro)));
        deliver(&self.host, task, tokens, logits.flatten())
    }

    /// Whether a task belongs to the last pass.
    fn is_last(&self, task: &Task) -> bool {
        task.pass + 1 == self.host.frame.passes()
    }
}
