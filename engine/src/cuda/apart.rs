//! What is needed beside what a plan accounts for: it counts as the context's.
//!
//! Tokens on the device and back on the host, logits on the host, frequencies of the rotation, scratch of
//! cuBLAS and of attentions that are split along a long context.

use pipo_kernels::attention::Heads;
use pipo_kernels::cuda::{Kernels, Region};
use pipo_plan::schedule::Layout;
use pipo_plan::units::Bytes;

use super::driver::{Arena, Stream};
use crate::backend::sequence::Sequence;
use crate::backend::{Host, fault};
use crate::decoder::{format, rotary_of};
use crate::executor::{Fault, Task};
use crate::memory::Buffer;
use crate::run::{Request, RunError};
use crate::store::in_memory;

/// What cuBLAS wants on recent GPUs.
const BLAS: u64 = 32 << 20;

/// Bytes of a token.
const TOKEN: u64 = 4;

/// What is needed beside what a plan accounts for.
#[derive(Debug)]
pub(super) struct Apart {
    _arena: Arena,
    prompts: Region,
    /// For each pass of the window, for each sequence its new token.
    tokens: Region,
    /// The same in host memory.
    pub(super) tokens_home: Buffer,
    /// Last logits of every sequence.
    pub(super) logits_home: Buffer,
    pub(super) frequencies: Option<Region>,
    pub(super) blas: Region,
    pub(super) attention: Region,
    window: u32,
    prompt: u64,
    micro: u64,
    sequences: u64,
    vocabulary: u64,
}

impl Apart {
    pub(super) fn new(request: &Request, layout: &Layout) -> Result<Self, RunError> {
        let (plan, model) = (request.plan, &request.plan.model);
        let (micro, sequences) = (plan.batch.micro, plan.batch.sequences());
        let (prompt, vocabulary) = (plan.workload.prompt, model.vocab);
        let rotary =
            rotary_of(model, request.store.arithmetic()).transpose().map_err(Fault::from)?;
        let frequencies = rotary.as_ref().map_or(&[][..], |rotary| rotary.frequencies());
        let frequencies: Vec<u8> = frequencies.iter().flat_map(|f| f.to_le_bytes()).collect();
        let new_tokens = u64::from(layout.window) * sequences * TOKEN;
        // Of any context there will be: a longer one may be cut into fewer parts.
        let (kv, heads) = (format(plan.precision.kv), heads(plan));
        let chunk = plan.batch.prefill_chunk.unwrap_or(prompt).clamp(1, prompt.max(1));
        let rows = [1, in_memory(chunk), in_memory(prompt % chunk)];
        let context = in_memory(plan.workload.context());
        let spare = rows.into_iter().filter(|&rows| rows > 0).flat_map(|rows| {
            let before = 0..=context.saturating_sub(rows);
            let micro = in_memory(micro);
            before.map(move |first| Kernels::attention_spare(kv, &heads, micro, first, rows))
        });
        let attention = spare.max().unwrap_or(0);
        let sizes =
            [sequences * prompt * TOKEN, new_tokens, frequencies.len() as u64, BLAS, attention];
        let bytes = sizes.iter().map(|size| size.next_multiple_of(Arena::ALIGNMENT)).sum();
        let mut arena = Arena::new("tokens and scratch", bytes)?;
        let [prompts, tokens, of_rotation, blas, attention] =
            sizes.map(|size| arena.take(Bytes(size)));
        let of_rotation = of_rotation?;
        let stream = Stream::new()?;
        let upload = |bytes: &[u8], to: Region| {
            // SAFETY: the bytes outlive the copy, which is waited for.
            unsafe { stream.upload(bytes, to) }?;
            stream.synchronise()
        };
        upload(&frequencies, of_rotation)?;
        let prompts = prompts?;
        upload(&arranged(request, chunk), prompts)?;
        Ok(Self {
            _arena: arena,
            prompts,
            tokens: tokens?,
            tokens_home: Buffer::apart("new tokens", Bytes(new_tokens))?,
            logits_home: Buffer::apart("logits", Bytes(sequences * vocabulary * 4))?,
            frequencies: rotary.is_some().then_some(of_rotation),
            blas: blas?,
            attention: attention?,
            window: layout.window.max(1),
            prompt,
            micro,
            sequences,
            vocabulary,
        })
    }

    /// Buffers of the host that copies of the device reach.
    pub(super) fn buffers(&self) -> [&Buffer; 2] {
        [&self.tokens_home, &self.logits_home]
    }

    /// The tokens of some positions of the prompts of a micro-batch, a whole chunk of them.
    pub(super) fn prompt(&self, micro: u16, first: usize, count: usize) -> Result<Region, Fault> {
        let before = (u64::from(micro) * self.prompt + first as u64) * self.micro;
        let tokens = count as u64 * self.micro;
        Ok(self.prompts.slice(before * TOKEN, tokens * TOKEN)?)
    }

    /// Where the new tokens of a micro-batch lie, of a pass, on the device and in host memory. Of a pass
    /// that is a window later there is nothing before this one has ended.
    pub(super) fn tokens(&self, micro: u16, pass: u32) -> Result<(Region, usize), Fault> {
        let pass = u64::from(pass % self.window);
        let at = (pass * self.sequences + u64::from(micro) * self.micro) * TOKEN;
        Ok((self.tokens.slice(at, self.micro * TOKEN)?, in_memory(at)))
    }

    /// Where the logits of a micro-batch lie in host memory.
    pub(super) fn logits(&self, micro: u16) -> std::ops::Range<usize> {
        let length = in_memory(self.micro * self.vocabulary * 4);
        let start = usize::from(micro) * length;
        start..start + length
    }
}

/// The heads of a model.
pub(super) fn heads(plan: &pipo_plan::plan::Plan) -> Heads {
    let model = &plan.model;
    let dim = in_memory(model.head_dim);
    Heads {
        query: model.heads as usize,
        kv: model.kv_heads as usize,
        dim,
        window: model.sliding_window.map(in_memory),
        scale: 1.0 / (dim as f32).sqrt(),
    }
}

/// All prompts as the device reads them: micro-batch by micro-batch, in each chunk by chunk, in each
/// sequence by sequence.
fn arranged(request: &Request, chunk: u64) -> Vec<u8> {
    let chunk = in_memory(chunk).max(1);
    let mut bytes = Vec::new();
    for micro in request.prompts.chunks(in_memory(request.plan.batch.micro).max(1)) {
        let prompt = in_memory(request.plan.workload.prompt);
        for first in (0..prompt).step_by(chunk) {
            for sequence in micro {
                let tokens = sequence.get(first..prompt.min(first + chunk)).unwrap_or_default();
                bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
            }
        }
    }
    bytes
}

/// Hands new tokens that have arrived in host memory to their sequences.
pub(super) fn deliver(
    host: &Host,
    task: &Task,
    tokens: &[u8],
    logits: Option<&[u8]>,
) -> Result<(), Fault> {
    let mut sequences = host.sequences(task.op.micro)?;
    let each = logits.map_or(0, |all| all.len() / sequences.len().max(1));
    for (place, (sequence, token)) in
        sequences.iter_mut().zip(tokens.as_chunks::<4>().0).enumerate()
    {
        let token = u32::from_le_bytes(*token);
        if token == Kernels::NOT_FINITE {
            return Err(Fault("a logit is not a finite number: an earlier result of this step is wrong, or the weights are".into()));
        }
        if let Some(all) = logits {
            let one = all.get(place * each..(place + 1) * each);
            sequence.keep(floats(one.ok_or_else(|| fault("logits are not there"))?));
        }
        (host.observer)(Sequence::push(sequence, token));
    }
    Ok(())
}

/// Numbers as the device writes them.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}
