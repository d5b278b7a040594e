//! The arithmetic of a decoder: products by precision, rows and shape; attention; what is between them.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use pipo_kernels::attention::{Heads, attention};
use pipo_kernels::linear::linear;
use pipo_kernels::{Cpu, Format, Matrix, activation, norm, residual};
use pipo_plan::model::Precision;
use pipo_plan::units::Bytes;

use super::ProfileError;
use super::sampling::{Middle, Sampler};
use crate::decoder::format;

/// Outputs and inputs of the matrices, from a small model's to a large one's MLP.
const SHAPES: [(usize, usize); 4] = [(768, 768), (2048, 2048), (4096, 4096), (11008, 4096)];

/// Rows that share a matrix.
const ROWS: [usize; 8] = [1, 2, 4, 8, 16, 64, 128, 256];

/// Weights are found in no cache: matrices lie one after another in this much memory.
const ARENA: usize = 384 << 20;

/// One measured product.
pub(super) struct Product {
    pub(super) precision: Precision,
    pub(super) rows: usize,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) time: Middle,
}

/// What arithmetic takes.
pub(super) struct Kernels {
    pub(super) products: Vec<Product>,
    /// Attention over a prompt, and its operations.
    pub(super) prefill: (u64, Middle),
    /// Attention of single tokens over a cache, and its operations.
    pub(super) decode: (u64, Middle),
    /// What is between the products, and its bytes as a schedule counts them.
    pub(super) elementwise: (Bytes, Middle),
    /// 16-bit numbers out of 4-bit ones, and their bytes.
    pub(super) dequantise: (Bytes, Middle),
    /// A product of next to nothing.
    pub(super) launch: Middle,
}

pub(super) fn measure(sampler: &mut Sampler, threads: usize) -> Result<Kernels, ProfileError> {
    let cpu = Cpu::new(threads);
    // Any bytes are numbers in every format, but a quarter of all 16-bit patterns are tiny or huge; this
    // one is 0.0078 in fp16 and bf16 alike in every place that is read as 16 bits.
    let arena: Vec<u8> = [0x00, 0x20].into_iter().cycle().take(ARENA).collect();
    let mut products = Vec::new();
    for precision in Precision::ALL {
        for (outputs, inputs) in SHAPES {
            for rows in ROWS {
                let mut work = Multiply::new(&cpu, &arena, precision, [rows, outputs, inputs]);
                let size = format!("{precision} {rows} x {outputs} x {inputs}");
                let time = sampler.time("gpu.kernels", &size, || work.once())?;
                products.push(Product { precision, rows, outputs, inputs, time });
            }
        }
    }
    let mut tiny = Multiply::new(&cpu, &arena, Precision::Fp16, [1, 16, 64]);
    let launch = sampler.time("gpu.launch", "1 x 16 x 64", || tiny.once())?;
    Ok(Kernels {
        products,
        prefill: attend(sampler, &cpu, 192, 256)?,
        decode: attend(sampler, &cpu, 1, 512)?,
        elementwise: elementwise(sampler, &cpu)?,
        dequantise: dequantise(sampler, &arena)?,
        launch,
    })
}

/// A product that meets another matrix each time.
struct Multiply<'a> {
    cpu: &'a Cpu,
    arena: &'a [u8],
    format: Format,
    shape: [usize; 3],
    bytes: usize,
    at: usize,
    x: Vec<f32>,
    out: Vec<f32>,
}

impl<'a> Multiply<'a> {
    fn new(cpu: &'a Cpu, arena: &'a [u8], precision: Precision, shape: [usize; 3]) -> Self {
        let [rows, outputs, inputs] = shape;
        let bytes = precision.matrix_bytes(outputs as u64, inputs as u64);
        Self {
            cpu,
            arena,
            format: format(precision),
            shape,
            bytes: crate::store::in_memory(bytes.0),
            at: 0,
            x: vec![0.5; rows * inputs],
            out: vec![0.0; rows * outputs],
        }
    }

    fn once(&mut self) -> Result<(), ProfileError> {
        let [rows, outputs, inputs] = self.shape;
        self.at =
            if self.at + 2 * self.bytes > self.arena.len() { 0 } else { self.at + self.bytes };
        let matrix = &self.arena[self.at..self.at + self.bytes];
        let matrix = Matrix::new(self.format, outputs, inputs, matrix)?;
        linear(self.cpu, &self.x, rows, &matrix, None, &mut self.out)?;
        std::hint::black_box(&self.out);
        Ok(())
    }
}

/// Attention of `rows` rows that end at `context`, in the shape of a model of a billion parameters.
fn attend(
    sampler: &mut Sampler,
    cpu: &Cpu,
    rows: usize,
    context: usize,
) -> Result<(u64, Middle), ProfileError> {
    let heads = Heads { query: 32, kv: 32, dim: 64, window: None, scale: 0.125 };
    let cache: Vec<u8> = f16::from_f32(0.25).to_le_bytes().repeat(context * heads.kv * heads.dim);
    let matrix = || Matrix::new(Format::Fp16, context * heads.kv, heads.dim, &cache);
    let (keys, values) = (matrix()?, matrix()?);
    let q = vec![0.1; rows * heads.query * heads.dim];
    let mut out = vec![0.0; q.len()];
    let size = format!("{rows} rows, {context} positions");
    let time = sampler.time("gpu.attention", &size, || {
        attention(cpu, &heads, &q, context - rows, &keys, &values, &mut out)
    })?;
    let seen: usize = (context - rows..context).map(|position| position + 1).sum();
    Ok((4 * (heads.query * heads.dim * seen) as u64, time))
}

/// What an MLP does between its products: rows out of 16 bits, norm, gate, residual, rows back.
fn elementwise(sampler: &mut Sampler, cpu: &Cpu) -> Result<(Bytes, Middle), ProfileError> {
    let (rows, hidden, inner) = (16, 2048, 5632);
    let mut stored = vec![f16::from_f32(0.5).to_bits(); rows * hidden];
    let weight = vec![1.0; hidden];
    let mut normed = vec![0.0; rows * hidden];
    let mut gate = vec![0.3; rows * inner];
    let up = vec![0.7; rows * inner];
    let size = format!("{rows} rows of {hidden} and {inner}");
    let time = sampler.time("gpu.elementwise", &size, || -> Result<(), ProfileError> {
        let mut x = vec![0.0; rows * hidden];
        stored.reinterpret_cast::<f16>().convert_to_f32_slice(&mut x);
        norm::rms_norm(cpu, &x, &weight, 1e-5, &mut normed)?;
        gate.fill(0.3);
        activation::silu_gated(&mut gate, &up)?;
        residual::add(&mut x, &normed)?;
        stored.reinterpret_cast_mut::<f16>().convert_from_f32_slice(&x);
        Ok(())
    })?;
    // As a schedule counts: four bytes for each output of the products, and of the norm.
    Ok((Bytes(4 * (rows * (2 * inner + hidden) + rows * hidden) as u64), time))
}

fn dequantise(sampler: &mut Sampler, arena: &[u8]) -> Result<(Bytes, Middle), ProfileError> {
    let (outputs, inputs) = (256, 4096);
    let bytes = Precision::Int4.matrix_bytes(outputs as u64, inputs as u64);
    let matrix =
        Matrix::new(Format::Int4, outputs, inputs, &arena[..crate::store::in_memory(bytes.0)])?;
    let mut row = vec![0.0; inputs];
    let mut dense = vec![f16::ZERO; inputs];
    let time = sampler.time("gpu.dequantise", &format!("{outputs} x {inputs}"), || {
        for output in 0..outputs {
            pipo_kernels::format::dequantise_row(&matrix, output, &mut row)?;
            dense.convert_from_f32_slice(&row);
        }
        std::hint::black_box(&dense);
        Ok::<(), ProfileError>(())
    })?;
    Ok((Bytes(2 * (outputs * inputs) as u64), time))
}
