//! The arithmetic of a decoder: products by precision, rows and shape; attention; what is between them.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use ::half::f16;
use ::half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use pipo_kernels::attention::{Heads, attentions, caches};
use pipo_kernels::format::Layout;
use pipo_kernels::linear::linear;
use pipo_kernels::{Cpu, Format, Matrix, activation, embedding, norm, residual};
use pipo_plan::machine::AttentionTime;
use pipo_plan::model::Precision;
use pipo_plan::units::{Bytes, Nanos};

use super::gpu::Card;
use super::machine::by;
use super::sampling::{Middle, Sampler};
use super::walk::{Walk, beyond_caches};
use super::{ProfileError, Settings};
use crate::decoder::format;
use crate::disk::{AlignedBuf, PAGE};
use crate::half;
use crate::run::Device;

/// Outputs and inputs of the matrices, from a small model's to a large one's MLP.
const SHAPES: [(usize, usize); 4] = [(768, 768), (2048, 2048), (4096, 4096), (11008, 4096)];

/// Rows that share a matrix.
const ROWS: [usize; 8] = [1, 2, 4, 8, 16, 64, 128, 256];

/// Query heads of the attentions: of a model of a billion parameters.
const QUERY_HEADS: usize = 32;

/// Query heads that share a key, and features of a head.
const HEADS: [[usize; 2]; 4] = [[1, 64], [1, 128], [4, 64], [4, 128]];

/// New positions, and positions attended to.
const EXTENTS: [[usize; 2]; 5] = [[128, 128], [32, 32], [1, 512], [1, 128], [1, 24]];

/// Sequences whose single tokens attend together: threads share the work of all of them, and the more there are,
/// the longer the pieces that each reads. More than the first of these take as long each.
const SEQUENCES: [usize; 3] = [32, 8, 1];

/// One measured product.
pub(super) struct Product {
    pub(super) precision: Precision,
    pub(super) rows: usize,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) time: Middle,
}

/// One measured attention.
pub(super) struct Attended {
    pub(super) attention: AttentionTime,
    pub(super) operations: u64,
    pub(super) time: Middle,
}

/// What arithmetic takes.
pub(super) struct Kernels {
    pub(super) products: Vec<Product>,
    /// Attentions: the first over a prompt, others of a single token.
    pub(super) attentions: Vec<Attended>,
    /// What is between the products, and its bytes as a schedule counts them.
    pub(super) elementwise: (Bytes, Middle),
    /// Rows of an embedding, and their bytes as 16-bit numbers.
    pub(super) gather: (Bytes, Middle),
    /// 16-bit numbers out of 4-bit ones, and their bytes.
    pub(super) dequantise: (Bytes, Middle),
    /// A product of next to nothing.
    pub(super) launch: Middle,
}

pub(super) fn measure(
    sampler: &mut Sampler,
    settings: &Settings,
    mut beside: Option<&mut Card>,
) -> Result<Kernels, ProfileError> {
    let cpu = Cpu::new(settings.threads);
    let arena = Arena::new()?;
    let mut products = Vec::new();
    for precision in Precision::ALL {
        for (outputs, inputs) in SHAPES.into_iter().filter(|(o, i)| o * i <= settings.largest) {
            for rows in ROWS.into_iter().filter(|&rows| rows <= settings.most_rows) {
                let work = Multiply::new(&cpu, &arena, precision, [rows, outputs, inputs]);
                let size = format!("{precision} {rows} x {outputs} x {inputs}");
                let time = sampler.time(&named(settings, "kernels"), &size, || work.once())?;
                products.push(Product { precision, rows, outputs, inputs, time });
            }
        }
    }
    let tiny = Multiply::new(&cpu, &arena, Precision::Fp16, [1, 16, 64]);
    let launch = sampler.time(&named(settings, "launch"), "1 x 16 x 64", || tiny.once())?;
    let mut attentions = Vec::new();
    // The other 16-bit format runs at the same speed.
    for precision in [Precision::Fp16, Precision::Int8, Precision::Int4] {
        for [rows, context] in EXTENTS {
            for [group, dim] in HEADS {
                for &sequences in if rows == 1 { &SEQUENCES[..] } else { &[1] } {
                    let of = (precision, [group, dim, rows, context, sequences]);
                    let beside = beside.as_deref_mut();
                    attentions.push(attend(sampler, settings, beside, (&cpu, &arena), of)?);
                }
            }
        }
    }
    Ok(Kernels {
        products,
        attentions,
        elementwise: elementwise(sampler, &named(settings, "elementwise"), &cpu)?,
        gather: gather(sampler, &arena)?,
        dequantise: dequantise(sampler, &named(settings, "dequantise"), &arena)?,
        launch,
    })
}

/// What samples are called: beside a GPU, those of that name are the GPU's.
fn named(settings: &Settings, what: &str) -> String {
    let of = match settings.device {
        Device::Cpu => "gpu",
        Device::Cuda => "host",
    };
    format!("{of}.{what}")
}

/// Memory in which weights and caches lie one after another, so that none is found in a cache of the processor,
/// whatever was measured before; of the kind that a run keeps them in.
struct Arena {
    memory: AlignedBuf,
    walk: RefCell<Walk>,
}

impl Arena {
    /// All 16 bits are 0.0078 in fp16 and 1e-19 in bf16: normal numbers, whose products take no detour.
    fn new() -> Result<Self, ProfileError> {
        let length = beyond_caches();
        let mut memory = AlignedBuf::zeroed(length).ok_or(ProfileError::Memory(length))?;
        let (values, _) = memory.as_chunks_mut();
        values.fill([0x00, 0x20]);
        Ok(Self { memory, walk: RefCell::new(Walk::through(length)) })
    }

    /// The next bytes, from the beginning of a page as in a store.
    fn next(&self, bytes: usize) -> &[u8] {
        let at = self.walk.borrow_mut().next(bytes.next_multiple_of(PAGE));
        &self.memory[at..at + bytes]
    }
}

/// A product that meets another matrix each time.
struct Multiply<'a> {
    cpu: &'a Cpu,
    arena: &'a Arena,
    format: Format,
    shape: [usize; 3],
    bytes: usize,
    x: Vec<f32>,
}

impl<'a> Multiply<'a> {
    fn new(cpu: &'a Cpu, arena: &'a Arena, precision: Precision, shape: [usize; 3]) -> Self {
        let [rows, outputs, inputs] = shape;
        let bytes = precision.matrix_bytes(outputs as u64, inputs as u64);
        Self {
            cpu,
            arena,
            format: format(precision),
            shape,
            bytes: crate::store::in_memory(bytes.0),
            x: vec![0.5; rows * inputs],
        }
    }

    fn once(&self) -> Result<(), ProfileError> {
        let [rows, outputs, inputs] = self.shape;
        let matrix = Matrix::new(self.format, outputs, inputs, self.arena.next(self.bytes))?;
        // As the decoder does: a result of its own, in memory that was not used before.
        let mut out = vec![0.0; rows * outputs];
        linear(self.cpu, &self.x, rows, &matrix, None, &mut out)?;
        std::hint::black_box(&out);
        Ok(())
    }
}

/// Attention of `rows` rows of each sequence that end at `context`, over keys of so many query heads each; beside a
/// card while its link is busy.
fn attend(
    sampler: &mut Sampler,
    settings: &Settings,
    mut beside: Option<&mut Card>,
    (cpu, arena): (&Cpu, &Arena),
    (precision, [group, dim, rows, context, sequences]): (Precision, [usize; 5]),
) -> Result<Attended, ProfileError> {
    // Beside a GPU, threads fall asleep between two attentions, as in a run.
    let pause = match settings.device {
        Device::Cpu => Duration::ZERO,
        Device::Cuda => Duration::from_millis(1),
    };
    let heads =
        Heads { query: QUERY_HEADS, kv: QUERY_HEADS / group, dim, window: None, scale: 0.1 };
    let plane = Layout::new(format(precision), context * heads.kv, dim)?;
    let q = vec![0.1; sequences * rows * heads.query * dim];
    let (mut home, mut room) = (vec![0; 2 * q.len()], half::Room::default());
    half::store(&q, &mut home);
    let size = format!(
        "{precision} {sequences} x {rows} x {context}, {} heads of {dim} over {}",
        heads.query, heads.kv
    );
    let figure = named(settings, "attentions");
    let mut last = Duration::from_millis(1);
    let all = sampler.measure(&figure, &size, || -> Result<Duration, ProfileError> {
        let place = arena.next(2 * plane.bytes() * sequences);
        std::thread::sleep(pause);
        if let Some(card) = &mut beside {
            // A little longer than the one before took.
            card.copy_for(last * 5 / 4)?;
        }
        let begin = Instant::now();
        let caches = caches(&plane, place)?;
        let attend =
            |q: &[f32], out: &mut [f32]| attentions(cpu, &heads, q, context - rows, &caches, out);
        match settings.device {
            // As the decoder does: a result of its own, in memory that was not used before.
            Device::Cpu => {
                let mut out = vec![0.0; q.len()];
                attend(&q, &mut out)?;
                std::hint::black_box(&out);
            }
            // As beside a GPU: rows come and go as 16-bit numbers.
            Device::Cuda => room.replace(&mut home, attend)?,
        }
        last = begin.elapsed();
        if let Some(card) = &beside {
            card.wait()?;
        }
        Ok(last)
    })?;
    let one = Nanos((all.median.0 / sequences as u64).max(1));
    let time = Middle { median: one, ..all };
    let seen: usize = (context - rows..context).map(|position| position + 1).sum();
    let operations = 4 * (heads.query * dim * seen) as u64;
    let attention = AttentionTime {
        precision: precision.name().into(),
        rows: rows as u64,
        context: context as u64,
        heads: heads.query as u64,
        kv_heads: heads.kv as u64,
        head_dim: dim as u64,
        sequences: Some(sequences as u64),
        time: by(time.median, time),
    };
    Ok(Attended { attention, operations, time })
}

/// What an MLP does between its products: rows out of 16 bits, norm, gate, residual, rows back.
fn elementwise(
    sampler: &mut Sampler,
    figure: &str,
    cpu: &Cpu,
) -> Result<(Bytes, Middle), ProfileError> {
    let (rows, hidden, inner) = (16, 2048, 5632);
    let mut stored = vec![f16::from_f32(0.5).to_bits(); rows * hidden];
    let weight = vec![1.0; hidden];
    let up = vec![0.7; rows * inner];
    let size = format!("{rows} rows of {hidden} and {inner}");
    let time = sampler.time(figure, &size, || -> Result<(), ProfileError> {
        let mut x = vec![0.0; rows * hidden];
        stored.reinterpret_cast::<f16>().convert_to_f32_slice(&mut x);
        let mut normed = vec![0.0; rows * hidden];
        norm::rms_norm(cpu, &x, &weight, 1e-5, &mut normed)?;
        let mut gate = vec![0.3; rows * inner];
        activation::silu_gated(&mut gate, &up)?;
        residual::add(&mut x, &normed)?;
        stored.reinterpret_cast_mut::<f16>().convert_from_f32_slice(&x);
        Ok(())
    })?;
    // As a schedule counts: four bytes for each output of the products, and of the norm.
    Ok((Bytes(4 * (rows * (2 * inner + hidden) + rows * hidden) as u64), time))
}

fn dequantise(
    sampler: &mut Sampler,
    figure: &str,
    arena: &Arena,
) -> Result<(Bytes, Middle), ProfileError> {
    let (outputs, inputs) = (256, 4096);
    let bytes = Precision::Int4.matrix_bytes(outputs as u64, inputs as u64);
    let matrix = arena.next(crate::store::in_memory(bytes.0));
    let matrix = Matrix::new(Format::Int4, outputs, inputs, matrix)?;
    let mut row = vec![0.0; inputs];
    let mut dense = vec![f16::ZERO; inputs];
    let time = sampler.time(figure, &format!("{outputs} x {inputs}"), || {
        for output in 0..outputs {
            pipo_kernels::format::dequantise_row(&matrix, output, &mut row)?;
            dense.convert_from_f32_slice(&row);
        }
        std::hint::black_box(&dense);
        Ok::<(), ProfileError>(())
    })?;
    Ok((Bytes(2 * (outputs * inputs) as u64), time))
}

/// Rows of a 4-bit embedding that lie far apart.
fn gather(sampler: &mut Sampler, arena: &Arena) -> Result<(Bytes, Middle), ProfileError> {
    let (rows, outputs, inputs) = (32_u32, 50_272_u32, 2048);
    let bytes = Precision::Int4.matrix_bytes(u64::from(outputs), inputs as u64);
    let bytes = arena.next(crate::store::in_memory(bytes.0));
    let table = Matrix::new(Format::Int4, outputs as usize, inputs, bytes)?;
    let mut first = 0;
    let time = sampler.time("host.gather", &format!("{rows} x {inputs}"), || {
        first = (first + 1) % 997;
        let tokens: Vec<u32> = (0..rows).map(|row| (row * 1571 + first) % outputs).collect();
        let mut out = vec![0.0; tokens.len() * inputs];
        embedding::lookup(&table, &tokens, &mut out)?;
        std::hint::black_box(&out);
        Ok::<(), ProfileError>(())
    })?;
    Ok((Bytes(2 * u64::from(rows) * inputs as u64), time))
}
