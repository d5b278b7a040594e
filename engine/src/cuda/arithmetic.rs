//! A unit's arithmetic as launches: rows stay on the device, and what is between products lies in the
//! plan's workspace.

use std::collections::BTreeSet;

use pipo_kernels::attention::Heads;
use pipo_kernels::cuda::{DeviceMatrix, DeviceVector, Kernels, Linear, Out, Region, Then};
use pipo_kernels::format::matrix_bytes;
use pipo_kernels::{Format, embedding};
use pipo_plan::model::{Part, TensorKind};
use pipo_plan::schedule::Piece;
use pipo_plan::strategy::Granularity;
use pipo_plan::strategy::frame::Frame;

use super::apart::{Apart, heads};
use super::driver::{Context, Stream};
use super::{CudaBackend, fault};
use crate::backend::Rows;
use crate::backend::knobs::Knobs;
use crate::backend::unit::Weights;
use crate::decoder::{Owner, Run, Stored, Tensors, format};
use crate::executor::{Fault, Task};
use crate::run::{Request, RunError};
use crate::store::in_memory;

/// What launches need to know of a model.
pub(super) struct Arithmetic {
    pub(super) tensors: Tensors,
    pub(super) kernels: Kernels,
    pub(super) heads: Heads,
    pub(super) frequencies: Option<Region>,
    pub(super) epsilon: f32,
    /// Whether products decode quantised weights as they read them.
    fused: bool,
    /// Where a decoded copy of a matrix goes, where they do not.
    dense: Region,
    /// What is between the products of a part, for one chunk or, where parts are cut, for all of them.
    pub(super) inner: Region,
    /// Whether a part is computed in several operations, and what is between them must stay.
    pub(super) cut: bool,
}

impl Arithmetic {
    pub(super) fn new(
        request: &Request,
        knobs: &Knobs,
        workspace: Region,
        context: &Context,
        apart: &Apart,
    ) -> Result<Self, RunError> {
        let (plan, store) = (request.plan, request.store);
        let style = knobs.frame.style;
        let sms = context.multiprocessors(&request.shape)?;
        let kernels =
            Kernels::load(context.architecture()?, sms, apart.blas).map_err(Fault::from)?;
        let mut formats = vec![format(style.weights)];
        // Copies that are decoded first, and the router, are in 16 bits whatever the weights are in.
        if !style.fused || plan.model.experts.is_some() && style.weights.is_quantised() {
            formats.push(Format::Fp16);
        }
        let head_dim = in_memory(plan.model.head_dim);
        kernels.prepare(&formats, format(style.kv), head_dim).map_err(Fault::from)?;
        let dense =
            if style.fused || !style.weights.is_quantised() { 0 } else { dense(&knobs.frame) };
        // The same for every plan with such rows, whatever else its workspace has room for: which way a
        // product is computed depends on the room beside it.
        let inner = if knobs.frame.granularity == Granularity::Tensor {
            workspace.bytes().saturating_sub(dense)
        } else {
            Frame::new(plan, Granularity::Part, true).workspace().0
        };
        let cut = |start, bytes| workspace.slice(start, bytes).map_err(Fault::from);
        Ok(Self {
            tensors: Tensors::new(store.layout()),
            kernels,
            heads: heads(plan),
            frequencies: apart.frequencies,
            epsilon: store.arithmetic().norm_epsilon,
            fused: style.fused,
            dense: cut(workspace.bytes().saturating_sub(dense), dense)?,
            inner: cut(0, inner.min(workspace.bytes()))?,
            cut: knobs.frame.granularity == Granularity::Tensor,
        })
    }

    /// Numbers of a hidden state.
    pub(super) fn hidden(&self) -> usize {
        in_memory(self.tensors.model().hidden)
    }
}

impl Arithmetic {
    /// Multiplies once in every shape that the prompt needs, on whatever lies in the workspace: libraries
    /// load the code of a product when it is first asked for, which takes longer than many products.
    pub(super) fn warm(
        &self,
        frame: &Frame,
        weights: Region,
        stream: &Stream,
    ) -> Result<(), Fault> {
        let computes = frame.units.iter().map(|unit| frame.compute(unit, 0, 0, Piece::Whole));
        let mut linears: BTreeSet<_> = computes.flat_map(|compute| compute.linears).collect();
        if frame.plan.model.experts.is_some() {
            // Here experts work on all rows: see `mixture.rs`.
            let rows = frame.rows(0, 0).count();
            let all_rows = |linear: pipo_plan::schedule::Linear| match linear.copies {
                1 => linear,
                _ => pipo_plan::schedule::Linear { rows, copies: 1, ..linear },
            };
            linears = linears.into_iter().map(all_rows).collect();
        }
        for linear in linears {
            let [rows, outputs, inputs] =
                [linear.rows, linear.outputs, linear.inputs].map(in_memory);
            let format = if self.fused { format(linear.precision) } else { Format::Fp16 };
            let bytes = matrix_bytes(format, linear.outputs, linear.inputs).unwrap_or(u64::MAX);
            let (x, out) = (2 * linear.rows * linear.inputs, 2 * linear.rows * linear.outputs);
            let regions =
                (weights.slice(0, bytes), self.inner.slice(0, x), self.inner.slice(0, out));
            // What does not fit is computed in another way than is warmed here.
            let (Ok(weights), Ok(x), Ok(result)) = regions else { continue };
            let spare = self.inner.slice(out, self.inner.bytes() - out)?;
            let matrix = DeviceMatrix::new(format, outputs, inputs, weights)?;
            let linear = Linear {
                x,
                rows,
                matrix: &matrix,
                bias: None,
                then: Then::Store,
                out: result,
                out_type: Out::Fp16,
                spare,
            };
            self.kernels.linear(stream.raw(), &linear)?;
        }
        stream.synchronise()
    }
}

/// Bytes of the largest matrix in 16 bits.
fn dense(frame: &Frame) -> u64 {
    let tensors = frame.units.iter().flat_map(|unit| &unit.tensors);
    let matrices =
        tensors.filter(|(part, t)| t.kind == TensorKind::Matrix && *part != Part::Embedding);
    matrices.map(|(_, t)| 2 * t.outputs * t.inputs).max().unwrap_or(0)
}

/// What an operation computes with.
pub(super) struct Step<'a> {
    pub(super) backend: &'a CudaBackend<'a>,
    pub(super) task: &'a Task<'a>,
    pub(super) stream: &'a Stream,
    pub(super) rows: Rows,
    pub(super) owner: Owner,
    pub(super) run: &'a Run<Region>,
}

impl CudaBackend<'_> {
    /// A unit's arithmetic for one chunk of one micro-batch.
    pub(super) fn compute(&self, task: &Task, stream: &Stream) -> Result<(), Fault> {
        let unit = self.host.unit(task)?;
        let slot = task.bound.weights.map(|slot| self.slot(slot)).transpose()?;
        let slot = slot.or(self.mapped.filter(|_| task.op.unit == 0));
        let kept = |unit: usize| self.kept.get(unit).copied().flatten();
        let weights = Weights { slot, kept: kept(usize::from(task.op.unit)), embedding: kept(0) };
        let rows = self.host.rows(task);
        for &part in &unit.parts {
            let run = unit.run(part, &weights)?;
            let owner = Owner { part, expert: None };
            let step = Step { backend: self, task, stream, rows, owner, run: &run };
            match part {
                Part::Embedding => step.embed()?,
                Part::Attention => step.attention()?,
                // Of a whole layer all that follows attention is its second half.
                _ if task.op.piece == Piece::BeforeAttention => {}
                Part::Mlp => step.mlp()?,
                Part::Head => step.head(&unit.run(Part::Embedding, &weights)?)?,
            }
        }
        Ok(())
    }
}

impl<'a> Step<'a> {
    pub(super) fn arithmetic(&self) -> &'a Arithmetic {
        &self.backend.arithmetic
    }

    pub(super) fn kernels(&self) -> &'a Kernels {
        &self.backend.arithmetic.kernels
    }

    /// Rows of all sequences.
    pub(super) fn count(&self) -> usize {
        self.sequences() * self.rows.count
    }

    pub(super) fn sequences(&self) -> usize {
        self.backend.host.micro()
    }

    /// The hidden states that it starts from, and leaves.
    pub(super) fn hidden(&self) -> Result<Region, Fault> {
        self.backend.chunk(self.task, self.rows)
    }

    pub(super) fn post_norm(&self) -> bool {
        self.arithmetic().tensors.model().post_norm
    }

    /// Memory for the results of a part's products, one after the other, and what is left behind the last.
    /// Where the part is cut, each chunk of each micro-batch has its own.
    pub(super) fn results<const N: usize>(&self, names: [&str; N]) -> Result<[Region; N], Fault> {
        let widths = names.map(|name| self.arithmetic().tensors.outputs(self.owner, name));
        let width = |i: usize| widths[i].ok_or_else(|| fault("a matrix is not in the model"));
        let mut row = 0;
        for i in 0..N {
            row += 2 * width(i)? as u64;
        }
        let all = self.arithmetic().inner;
        let mut start = self.own_room(row);
        let mut results = [Region::EMPTY; N];
        for (i, result) in results.iter_mut().enumerate() {
            let bytes = 2 * (width(i)? * self.count()) as u64;
            *result = all.slice(start, bytes)?;
            start += bytes;
        }
        Ok(results)
    }

    /// Where in that memory the results of these rows begin, of so many bytes a row.
    pub(super) fn own_room(&self, row: u64) -> u64 {
        if !self.arithmetic().cut {
            return 0;
        }
        let each =
            self.arithmetic().inner.bytes() / self.backend.host.frame.plan.batch.count.max(1);
        let before = if self.rows.pass == 0 { self.rows.first * self.sequences() } else { 0 };
        // Chunks after each other, at multiples of what copies like.
        let chunk = (row * before as u64).next_multiple_of(16);
        u64::from(self.task.op.micro) * (each / 16 * 16) + chunk
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.arithmetic().tensors.has(self.owner, self.run, name)
    }

    pub(super) fn matrix(&self, name: &str) -> Result<DeviceMatrix, Fault> {
        let stored = self.arithmetic().tensors.get(self.owner, self.run, name)?;
        let Stored { format, outputs, inputs, bytes } = stored;
        Ok(DeviceMatrix::new(format, outputs, inputs, bytes)?)
    }

    pub(super) fn vector(&self, name: &str) -> Result<DeviceVector, Fault> {
        let stored = self.arithmetic().tensors.get(self.owner, self.run, name)?;
        Ok(DeviceVector::new(stored.format, stored.outputs, stored.bytes)?)
    }

    pub(super) fn optional(&self, name: &str) -> Result<Option<DeviceVector>, Fault> {
        self.has(name).then(|| self.vector(name)).transpose()
    }

    /// The part's norm of some rows; it may be in place.
    pub(super) fn norm(&self, x: Region, rows: usize, out: Region) -> Result<(), Fault> {
        let weight = self.vector("norm")?;
        let (kernels, epsilon) = (self.kernels(), self.arithmetic().epsilon);
        let stream = self.stream.raw();
        match self.optional("norm_bias")? {
            Some(bias) => kernels.layer_norm(stream, x, rows, &weight, &bias, epsilon, out)?,
            None => kernels.rms_norm(stream, x, rows, &weight, epsilon, out)?,
        }
        Ok(())
    }

    /// What a part's first products read: the norm of its rows, unless that comes last.
    pub(super) fn input(&self, first: &str) -> Result<Region, Fault> {
        let hidden = self.hidden()?;
        if self.post_norm() {
            return Ok(hidden);
        }
        let normed = self.backend.normed(self.task, self.rows)?;
        if self.has(first) {
            self.norm(hidden, self.count(), normed)?;
        }
        Ok(normed)
    }

    /// Products of the same rows, each as far as it can be made here: the matrix, or the bias of the one in
    /// the operation before. The sum is rounded before the bias is added, wherever that is, and again before
    /// what follows, so that it makes no difference.
    pub(super) fn advance(
        &self,
        x: Region,
        products: &[(&str, Region, Region)],
        then: Then,
    ) -> Result<(), Fault> {
        let (rows, stream) = (self.count(), self.stream.raw());
        let mut operands = Vec::new();
        for &(name, out, spare) in products {
            let bias = self.optional(&format!("{name}_bias"))?;
            if self.has(name) {
                operands.push((self.matrix(name)?, bias, out, spare));
            } else if let Some(bias) = bias {
                self.kernels().add_bias(stream, out, rows, &bias)?;
            }
        }
        // A decoded copy is overwritten by the next.
        let together = if self.arithmetic().fused { operands.len().max(1) } else { 1 };
        for operands in operands.chunks(together) {
            let matrices = operands.iter().map(|operand| self.decoded(operand.0));
            let matrices = matrices.collect::<Result<Vec<_>, _>>()?;
            let linears = matrices.iter().zip(operands).map(|(matrix, (_, bias, out, spare))| {
                let (bias, out, spare) = (bias.as_ref(), *out, *spare);
                Linear { x, rows, matrix, bias, then, out, out_type: Out::Fp16, spare }
            });
            let linears: Vec<_> = linears.collect();
            self.kernels().linears(stream, &linears)?;
        }
        Ok(())
    }

    /// The last product of a part: it is added to the hidden states.
    pub(super) fn close(&self, name: &str, x: Region, spare: Region) -> Result<(), Fault> {
        let hidden = self.hidden()?;
        let matrix = self.decoded(self.matrix(name)?)?;
        let bias = self.optional(&format!("{name}_bias"))?;
        let linear = Linear {
            x,
            rows: self.count(),
            matrix: &matrix,
            bias: bias.as_ref(),
            then: Then::Add(hidden),
            out: hidden,
            out_type: Out::Fp16,
            spare,
        };
        self.kernels().linear(self.stream.raw(), &linear)?;
        if self.post_norm() {
            self.norm(hidden, self.count(), hidden)?;
        }
        Ok(())
    }

    /// A matrix as the product is to read it: itself, or a copy in 16 bits, where the plan wants one.
    pub(super) fn decoded(&self, matrix: DeviceMatrix) -> Result<DeviceMatrix, Fault> {
        let layout = *matrix.layout();
        let plain = matches!(layout.format, Format::Fp16 | Format::Bf16 | Format::Fp32);
        if self.arithmetic().fused || plain {
            return Ok(matrix);
        }
        let bytes = 2 * (layout.outputs * layout.inputs) as u64;
        let dense = self.arithmetic().dense.slice(0, bytes)?;
        Ok(self.kernels().dequantise(self.stream.raw(), &matrix, dense)?)
    }

    /// Hidden states of the tokens.
    fn embed(&self) -> Result<(), Fault> {
        let table = self.matrix("tokens")?;
        let (hidden, micro) = (self.hidden()?, self.task.op.micro);
        let tokens = match self.rows.pass {
            0 => self.backend.apart.prompt(micro, self.rows.first, self.rows.count)?,
            pass => self.backend.apart.tokens(micro, pass - 1)?.0,
        };
        let (kernels, stream, rows) = (self.kernels(), self.stream.raw(), self.count());
        if self.has("project_in") {
            let bytes = 2 * (table.layout().inputs * rows) as u64;
            let looked_up = self.arithmetic().inner.slice(0, bytes)?;
            kernels.embed(stream, tokens, rows, &table, looked_up)?;
            self.advance(looked_up, &[("project_in", hidden, Region::EMPTY)], Then::Store)?;
        } else {
            kernels.embed(stream, tokens, rows, &table, hidden)?;
        }
        if self.has("positions") {
            let table = self.matrix("positions")?;
            let offset = embedding::OPT_POSITION_OFFSET;
            let Rows { first, count, .. } = self.rows;
            kernels.add_positions(
                stream,
                &table,
                first,
                offset,
                self.sequences(),
                count,
                hidden,
            )?;
        }
        Ok(())
    }
}

/// From the beginning of one region to the end of a later one of the same memory.
pub(super) fn span(first: Region, last: Region) -> Region {
    let end = last.address() + last.bytes();
    // SAFETY: both are parts of one memory of the device, and so is what lies between them.
    unsafe { Region::new(first.address(), end.saturating_sub(first.address())) }
}
