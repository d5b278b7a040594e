//! Every kernel on a GPU against its reference. Skipped, with the reason, where there is no GPU.

#![allow(unsafe_code, reason = "the driver is a C interface")]
#![allow(clippy::unwrap_used, reason = "a test whose data cannot be made has failed")]

mod device;

use device::{Buffer, Device, floats, halves, read, read_floats, read_halves};
use half::{bf16, f16};
use pipo_kernels::attention::{self, Heads};
use pipo_kernels::cuda::{
    Activation, Append, Attention, DeviceCache, DeviceMatrix, DeviceVector, Kernels, Linear, Out,
    Region, Then, Turn, Unit,
};
use pipo_kernels::format::{Layout, dequantise_row, quantise, quantise_rows};
use pipo_kernels::rotary::{Rotary, Scaling};
use pipo_kernels::{Cpu, Format, Matrix, activation, embedding, linear, norm, router};

/// A plain generator: tests must be the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next()).unwrap() % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Numbers around zero of about this size, as fp16 holds them.
    fn numbers(&mut self, count: usize, size: f32) -> Vec<f32> {
        let mut one = || (self.next() & 0xffff) as f32 / 32768.0 - 1.0;
        let next = |_| f16::from_f32((one() + one() + one()) * size).to_f32();
        (0..count).map(next).collect()
    }
}

/// The error's norm over the expectation's. Not a number where anything found is not.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let off = found.iter().zip(expected).map(|(f, e)| square(f64::from(*f) - f64::from(*e)));
    let off: f64 = off.sum();
    let size: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    if off == 0.0 { 0.0 } else { (off / size).sqrt() }
}

/// fp16 rounds to 2^-11 of a number at most; the rest is for operands that are rounded on the way.
const NEAR: f64 = 1e-3;

fn near(found: &[f32], expected: &[f32], what: &str) {
    let error = error(found, expected);
    assert!(error <= NEAR, "{what}: off by {error}");
}

/// A vector in a format, on the device and as numbers.
fn vector(values: &[f32], format: Format, offset: usize) -> (Buffer, DeviceVector, Vec<f32>) {
    let to = |v: &f32| match format {
        Format::Bf16 => (bf16::from_f32(*v).to_le_bytes(), bf16::from_f32(*v).to_f32()),
        _ => (f16::from_f32(*v).to_le_bytes(), f16::from_f32(*v).to_f32()),
    };
    let bytes: Vec<u8> = values.iter().flat_map(|v| to(v).0).collect();
    let (buffer, region) = Buffer::at(&bytes, offset);
    let vector = DeviceVector::new(format, values.len(), region).unwrap();
    (buffer, vector, values.iter().map(|v| to(v).1).collect())
}

#[derive(Debug, Clone, Copy)]
struct Product {
    format: Format,
    rows: usize,
    outputs: usize,
    inputs: usize,
    bias: Option<Format>,
    residual: bool,
    activation: Option<Activation>,
    in_place: bool,
    out: Out,
    spare: usize,
}

impl Product {
    /// Runs with every operand some bytes into its allocation; returns the result's bytes.
    fn run(&self, gpu: &Device, offset: usize, seed: u64) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
        let Self { format, rows, outputs, inputs, .. } = *self;
        let mut random = Random(seed);
        let weights = random.numbers(outputs * inputs, 0.3);
        let stored = quantise(format, &weights, outputs, inputs).unwrap().0;
        let x = random.numbers(rows * inputs, 1.0);
        let bias = random.numbers(outputs, 1.0);
        let residual = random.numbers(rows * outputs, 1.0);
        let (_x, x_region) = Buffer::at(&halves(&x), 2 * offset);
        let (_m, m_region) = Buffer::at(&stored, offset);
        let matrix = DeviceMatrix::new(format, outputs, inputs, m_region).unwrap();
        let bias = self.bias.map(|format| vector(&bias, format, 2 * offset));
        let (_r, r_region) = Buffer::at(&halves(&residual), 2 * offset);
        let width = if self.out == Out::Fp32 { 4 } else { 2 };
        let (_o, o_region) = Buffer::at(&vec![0xff; rows * outputs * width], 4 * offset);
        let out = if self.in_place { r_region } else { o_region };
        let spare = Buffer::new(self.spare);
        let linear = Linear {
            x: x_region,
            rows,
            matrix: &matrix,
            bias: bias.as_ref().map(|(_, vector, _)| vector),
            then: match self.activation {
                Some(activation) => Then::Activate(activation),
                None if self.residual => Then::Add(r_region),
                None => Then::Store,
            },
            out,
            out_type: self.out,
            spare: spare.region(),
        };
        gpu.kernels.linear(gpu.stream, &linear).unwrap();
        gpu.wait();
        let cpu_matrix = Matrix::new(format, outputs, inputs, &stored).unwrap();
        let mut expected = vec![0.0; rows * outputs];
        let bias = bias.as_ref().map(|(_, _, values)| &values[..]);
        linear::reference(&x, rows, &cpu_matrix, bias, &mut expected).unwrap();
        if self.residual {
            expected.iter_mut().zip(&residual).for_each(|(e, r)| *e += r);
        }
        match self.activation {
            Some(Activation::Relu) => activation::relu(&mut expected),
            Some(Activation::GeluTanh) => activation::gelu_tanh(&mut expected),
            None => {}
        }
        let found = if self.out == Out::Fp32 { read_floats(out) } else { read_halves(out) };
        (read(out), found, expected)
    }
}

#[test]
fn products() {
    device::with(|gpu| {
        let shapes = [
            (48, 64),
            (33, 48),
            (128, 256),
            (256, 200),
            (100, 20),
            (7, 1),
            (6200, 136),
            (512, 1024),
            (1032, 320),
            (64, 4096),
            (40, 1280),
            (4200, 384),
        ];
        let mut random = Random(1);
        let mut worst = [0.0_f64; 4];
        for (index, &format) in Unit::FORMATS.iter().enumerate() {
            for (outputs, inputs) in shapes {
                for rows in [1, 3, 8, 9, 16, 17, 40, 65, 200] {
                    let full =
                        usize::try_from(Kernels::linear_spare(rows, format, outputs, inputs));
                    let full = full.unwrap();
                    let residual = random.below(2) == 0;
                    let out = random.pick(&[Out::Fp16, Out::Fp16, Out::Fp32]);
                    let kinds = [None, Some(Activation::Relu), Some(Activation::GeluTanh)];
                    let activation =
                        if residual || out == Out::Fp32 { None } else { random.pick(&kinds) };
                    let product = Product {
                        format,
                        rows,
                        outputs,
                        inputs,
                        activation,
                        bias: random.pick(&[None, Some(Format::Fp16), Some(Format::Bf16)]),
                        residual,
                        in_place: residual && out == Out::Fp16 && random.below(2) == 0,
                        out,
                        spare: random.pick(&[0, full, full, 1024 * 2 * inputs]),
                    };
                    let seed = random.next();
                    let (bits, found, expected) = product.run(gpu, 0, seed);
                    let error = error(&found, &expected);
                    worst[index] = worst[index].max(error);
                    assert!(error <= NEAR, "{product:?}: off by {error}");
                    assert!(
                        bits == product.run(gpu, 16, seed).0,
                        "{product:?}: other bits elsewhere"
                    );
                    // An odd address cannot go to cuBLAS, so it is compared with what cannot either.
                    let shifted = Product { spare: 0, ..product };
                    if rows <= 16 || (format != Format::Fp16) || inputs % 8 != 0 || outputs % 8 != 0
                    {
                        assert!(
                            shifted.run(gpu, 0, seed).0 == shifted.run(gpu, 1, seed).0,
                            "{product:?}: other bits at an odd address"
                        );
                    }
                    near(&shifted.run(gpu, 1, seed).1, &expected, "at an odd address");
                }
            }
        }
        println!("products: worst errors of fp16, bf16, int8, int4: {worst:?}");
    });
}

#[test]
fn a_rows_result_does_not_depend_on_the_rows_beside_it() {
    device::with(|gpu| {
        for format in Unit::FORMATS {
            let product = |rows| Product {
                format,
                rows,
                outputs: 256,
                inputs: 512,
                bias: None,
                residual: false,
                activation: None,
                in_place: false,
                out: Out::Fp32,
                spare: 0,
            };
            // The generator makes weights first, then x row by row, so the first row is the same.
            let alone = product(1).run(gpu, 0, 5).0;
            for rows in [2, 8, 9, 16] {
                assert_eq!(&product(rows).run(gpu, 0, 5).0[..alone.len()], &alone[..]);
            }
        }
    });
}

/// The same bits, in one launch or several: this is what lets a plan cut a part anywhere.
#[test]
fn products_together_are_products_apart() {
    device::with(|gpu| {
        let (kernels, s, mut random) = (&gpu.kernels, gpu.stream, Random(11));
        for format in Unit::FORMATS {
            for (rows, inputs, outputs) in [
                (1, 1024, [512, 128, 128]),
                (4, 4096, [4096, 4096, 4096]),
                (9, 200, [48, 33, 8]),
                (16, 512, [4096, 1024, 8200]),
                (100, 512, [256, 128, 64]),
            ] {
                let x = Buffer::of(&halves(&random.numbers(rows * inputs, 1.0)));
                let stored = outputs.map(|outputs| {
                    let values = random.numbers(outputs * inputs, 0.3);
                    Buffer::of(&quantise(format, &values, outputs, inputs).unwrap().0)
                });
                let matrices = [0, 1, 2].map(|i| {
                    DeviceMatrix::new(format, outputs[i], inputs, stored[i].region()).unwrap()
                });
                let biases = outputs.map(|n| vector(&random.numbers(n, 1.0), Format::Fp16, 0));
                let apart = outputs.map(|outputs| Buffer::new(2 * rows * outputs));
                let together = outputs.map(|outputs| Buffer::new(2 * rows * outputs));
                let spare = Buffer::new(2 * 8200 * inputs);
                let then = Then::Activate(random.pick(&[Activation::Relu, Activation::GeluTanh]));
                let Then::Activate(kind) = then else { return };
                let linears = [0, 1, 2].map(|i| Linear {
                    x: x.region(),
                    rows,
                    matrix: &matrices[i],
                    bias: Some(&biases[i].1),
                    then,
                    out: together[i].region(),
                    out_type: Out::Fp16,
                    spare: spare.region(),
                });
                kernels.linears(s, &linears).unwrap();
                for (i, linear) in linears.iter().enumerate() {
                    let out = apart[i].region();
                    let linear = Linear { bias: None, then: Then::Store, out, ..*linear };
                    kernels.linear(s, &linear).unwrap();
                    kernels.add_bias(s, out, rows, &biases[i].1).unwrap();
                    kernels.activate(s, kind, out, rows * outputs[i]).unwrap();
                    let what = format!("{format}, {rows} rows, {inputs} inputs, matrix {i}");
                    assert!(read(out) == read(together[i].region()), "{what}");
                }
            }
        }
    });
}

/// A product starts before the kernels before it have ended, and takes weights ahead; still it reads what they made:
/// the same bits as with a wait after each.
#[test]
fn products_read_what_the_ones_before_them_made() {
    device::with(|gpu| {
        let mut random = Random(12);
        for (format, width) in Unit::FORMATS.into_iter().flat_map(|f| [(f, 256), (f, 4096)]) {
            let matrices = [0, 1].map(|_| {
                let values = random.numbers(width * width, 0.5 / (width as f32).sqrt());
                Buffer::of(&quantise(format, &values, width, width).unwrap().0)
            });
            let matrices = matrices
                .each_ref()
                .map(|stored| DeviceMatrix::new(format, width, width, stored.region()).unwrap());
            for rows in [1, 8, 16] {
                let x = halves(&random.numbers(rows * width, 1.0));
                let chain = |wait: bool| {
                    let all = Buffer::new(2 * rows * width * 21);
                    all.write(0, &x);
                    let bytes = (2 * rows * width) as u64;
                    let step = |i: u64| all.region().slice(i * bytes, bytes).unwrap();
                    for i in 0..20 {
                        let linear = Linear {
                            x: step(i),
                            rows,
                            matrix: &matrices[(i % 2) as usize],
                            bias: None,
                            then: Then::Add(step(i)),
                            out: step(i + 1),
                            out_type: Out::Fp16,
                            spare: Region::EMPTY,
                        };
                        gpu.kernels.linear(gpu.stream, &linear).unwrap();
                        if wait {
                            gpu.wait();
                        }
                    }
                    gpu.wait();
                    read(all.region())
                };
                let expected = chain(true);
                for _ in 0..5 {
                    assert!(chain(false) == expected, "{format}, {width} inputs, {rows} rows");
                }
            }
        }
    });
}

/// Two matrices are decoded in turn to where products read them: none reads what was there before.
#[test]
fn products_wait_for_matrices_that_kernels_decode() {
    device::with(|gpu| {
        let mut random = Random(13);
        for (outputs, inputs) in [(64, 1024), (512, 2048), (4096, 4096)] {
            let values = [0, 1].map(|_| random.numbers(outputs * inputs, 0.3));
            let stored = values.each_ref().map(|values| {
                Buffer::of(&quantise(Format::Int4, values, outputs, inputs).unwrap().0)
            });
            let matrices = stored.each_ref().map(|stored| {
                DeviceMatrix::new(Format::Int4, outputs, inputs, stored.region()).unwrap()
            });
            for rows in [1, 8, 16] {
                let x = Buffer::of(&halves(&random.numbers(rows * inputs, 1.0)));
                let product = |matrix: &DeviceMatrix, out: Region| {
                    let (then, out_type, spare) = (Then::Store, Out::Fp16, Region::EMPTY);
                    let x = x.region();
                    let linear = Linear { x, rows, matrix, bias: None, then, out, out_type, spare };
                    gpu.kernels.linear(gpu.stream, &linear).unwrap();
                };
                let bytes = 2 * rows * outputs;
                let expected = matrices.each_ref().map(|matrix| {
                    let (dense, out) = (Buffer::new(2 * outputs * inputs), Buffer::new(bytes));
                    let dense = gpu.kernels.dequantise(gpu.stream, matrix, dense.region()).unwrap();
                    gpu.wait();
                    product(&dense, out.region());
                    gpu.wait();
                    read(out.region())
                });
                let (dense, out) = (Buffer::new(2 * outputs * inputs), Buffer::new(40 * bytes));
                for i in 0..40 {
                    let (matrix, dense) = (&matrices[i % 2], dense.region());
                    let dense = gpu.kernels.dequantise(gpu.stream, matrix, dense).unwrap();
                    product(&dense, out.region().slice((i * bytes) as u64, bytes as u64).unwrap());
                }
                gpu.wait();
                for (i, found) in read(out.region()).chunks(bytes).enumerate() {
                    assert!(found == expected[i % 2], "{outputs} x {inputs}, {rows} rows, {i}");
                }
            }
        }
    });
}

#[test]
fn decoded_matrices() {
    device::with(|gpu| {
        let mut random = Random(2);
        for format in Unit::FORMATS {
            for (outputs, inputs) in [(3, 64), (5, 20), (16, 200), (7, 1024), (9, 96)] {
                let values = random.numbers(outputs * inputs, 1.0);
                let stored = quantise(format, &values, outputs, inputs).unwrap().0;
                let matrix = Matrix::new(format, outputs, inputs, &stored).unwrap();
                let mut expected = vec![0.0; outputs * inputs];
                for (row, out) in expected.chunks_mut(inputs).enumerate() {
                    dequantise_row(&matrix, row, out).unwrap();
                }
                for offset in [0, 1] {
                    let (_buffer, region) = Buffer::at(&stored, offset);
                    let matrix = DeviceMatrix::new(format, outputs, inputs, region).unwrap();
                    let out = Buffer::new(2 * outputs * inputs);
                    gpu.kernels.dequantise(gpu.stream, &matrix, out.region()).unwrap();
                    assert_eq!(
                        read(out.region()),
                        halves(&expected),
                        "{format} {outputs} x {inputs}"
                    );
                }
            }
        }
    });
}

#[test]
fn norms() {
    device::with(|gpu| {
        let (cpu, mut random) = (Cpu::new(1), Random(3));
        for width in [1, 8, 20, 64, 128, 512, 513, 1024, 4096, 5000, 12288] {
            for rows in [1, 7, 33] {
                let x = random.numbers(rows * width, 2.0);
                let format = random.pick(&[Format::Fp16, Format::Bf16]);
                let (_w, weight, w) = vector(&random.numbers(width, 1.0), format, 2);
                let (_b, bias, b) = vector(&random.numbers(width, 1.0), format, 0);
                let (mut rms, mut layer) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                norm::rms_norm(&cpu, &x, &w, 1e-5, &mut rms).unwrap();
                norm::layer_norm(&cpu, &x, &w, &b, 1e-5, &mut layer).unwrap();
                let mut bits = Vec::new();
                for (offset, in_place) in [(0, false), (0, true), (2, false), (16, true)] {
                    let (_x, from) = Buffer::at(&halves(&x), offset);
                    let other = Buffer::new(2 * x.len());
                    let out = if in_place { from } else { other.region() };
                    gpu.kernels.rms_norm(gpu.stream, from, rows, &weight, 1e-5, out).unwrap();
                    near(&read_halves(out), &rms, &format!("rms norm of {width}"));
                    let first = read(out);
                    let (_x, from) = Buffer::at(&halves(&x), offset);
                    let out = if in_place { from } else { other.region() };
                    gpu.kernels
                        .layer_norm(gpu.stream, from, rows, &weight, &bias, 1e-5, out)
                        .unwrap();
                    near(&read_halves(out), &layer, &format!("layer norm of {width}"));
                    bits.push((first, read(out)));
                }
                assert!(bits.iter().all(|b| *b == bits[0]), "{width}: other bits elsewhere");
            }
        }
    });
}

#[test]
fn turned_heads() {
    device::with(|gpu| {
        let mut random = Random(4);
        for (dim, query, kv, sequences, positions, first) in [
            (8, 1, 1, 1, 1, 0),
            (64, 3, 1, 2, 5, 1000),
            (128, 32, 8, 1, 9, 0),
            (20, 2, 2, 3, 2, 7),
            (128, 40, 8, 2, 3, 131_000),
            (256, 5, 5, 1, 2, 40),
        ] {
            let heads = Heads { query, kv, dim, window: None, scale: 1.0 };
            let rotary = Rotary::new(dim, 500_000.0, Scaling::None).unwrap();
            for (normed, rotated) in [(false, true), (true, true), (true, false)] {
                let mut side = |heads: usize| {
                    let x = random.numbers(sequences * positions * heads * dim, 1.0);
                    let format = random.pick(&[Format::Fp16, Format::Bf16]);
                    let (buffer, weight, numbers) = vector(&random.numbers(dim, 1.0), format, 2);
                    let mut expected = x.clone();
                    if normed {
                        norm::rms_norm(&Cpu::new(1), &x, &numbers, 1e-5, &mut expected).unwrap();
                    }
                    if rotated {
                        for sequence in expected.chunks_mut(positions * heads * dim) {
                            rotary.apply(sequence, heads, first).unwrap();
                        }
                    }
                    (Buffer::of(&halves(&x)), expected, buffer, weight)
                };
                let (q, k) = (side(query), side(kv));
                let frequencies = Buffer::of(&floats(rotary.frequencies()));
                let turn = Turn {
                    q: q.0.region(),
                    k: k.0.region(),
                    sequences,
                    positions,
                    first_position: first,
                    heads: &heads,
                    q_norm: normed.then_some(&q.3),
                    k_norm: normed.then_some(&k.3),
                    epsilon: 1e-5,
                    frequencies: rotated.then_some(frequencies.region()),
                };
                gpu.kernels.turn(gpu.stream, &turn).unwrap();
                for (on, expected, ..) in [q, k] {
                    near(
                        &read_halves(on.region()),
                        &expected,
                        &format!("turn of {dim} from {first}"),
                    );
                }
            }
        }
    });
}

#[test]
fn numbers_alone() {
    device::with(|gpu| {
        let mut random = Random(5);
        for count in [1, 7, 8, 2048, 10_001] {
            for offset in [0, 2] {
                let x = random.numbers(count, 3.0);
                let y = random.numbers(count, 1.0);
                let (_y, up) = Buffer::at(&halves(&y), offset);
                let mut expected = [x.clone(), x.clone(), x.clone(), x.clone()];
                activation::relu(&mut expected[0]);
                activation::gelu_tanh(&mut expected[1]);
                activation::silu_gated(&mut expected[2], &y).unwrap();
                expected[3].iter_mut().zip(&y).for_each(|(x, y)| *x += y);
                for (index, expected) in expected.iter().enumerate() {
                    let (_x, on) = Buffer::at(&halves(&x), offset);
                    let (kernels, stream) = (&gpu.kernels, gpu.stream);
                    match index {
                        0 => kernels.activate(stream, Activation::Relu, on, count),
                        1 => kernels.activate(stream, Activation::GeluTanh, on, count),
                        2 => kernels.gated_silu(stream, on, up, count),
                        _ => kernels.add(stream, on, up, count),
                    }
                    .unwrap();
                    near(&read_halves(on), expected, &format!("function {index} of {count}"));
                }
            }
        }
    });
}

#[test]
fn embeddings() {
    device::with(|gpu| {
        let mut random = Random(6);
        for format in Unit::FORMATS {
            for (vocabulary, width) in [(50, 64), (33, 20), (300, 520)] {
                let values = random.numbers(vocabulary * width, 1.0);
                let stored = quantise(format, &values, vocabulary, width).unwrap().0;
                let cpu_table = Matrix::new(format, vocabulary, width, &stored).unwrap();
                let (_t, region) = Buffer::at(&stored, random.below(3));
                let table = DeviceMatrix::new(format, vocabulary, width, region).unwrap();
                let limit = u32::try_from(vocabulary).unwrap();
                let (sequences, positions, first) = (3, 4, 5);
                let mut tokens: Vec<u32> =
                    (0..12).map(|_| u32::try_from(random.next()).unwrap() % limit).collect();
                let mut expected = vec![0.0; tokens.len() * width];
                embedding::lookup(&cpu_table, &tokens, &mut expected).unwrap();
                // One that the table does not have, and the mark of logits that are not finite.
                tokens.extend([limit, Kernels::NOT_FINITE]);
                let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
                let (on, count) = (Buffer::of(&bytes), tokens.len());
                let out = Buffer::new(2 * count * width);
                gpu.kernels.embed(gpu.stream, on.region(), count, &table, out.region()).unwrap();
                let found = read_halves(out.region());
                near(&found[..expected.len()], &expected, &format!("embedding in {format}"));
                assert!(found[expected.len()..].iter().all(|x| x.is_nan()));
                for rows in expected.chunks_mut(positions * width) {
                    embedding::add_positions(&cpu_table, first, 2, rows).unwrap();
                }
                gpu.kernels
                    .add_positions(gpu.stream, &table, first, 2, sequences, positions, out.region())
                    .unwrap();
                let found = read_halves(out.region());
                near(&found[..expected.len()], &expected, &format!("positions in {format}"));
                let beyond = vocabulary - 2 - 3;
                let result =
                    gpu.kernels.add_positions(gpu.stream, &table, beyond, 2, 1, 4, out.region());
                assert!(result.is_err());
            }
        }
    });
}

#[test]
fn the_cache_is_stored_bit_by_bit() {
    device::with(|gpu| {
        let mut random = Random(7);
        for format in Unit::FORMATS {
            for dim in [8, 20, 64, 80, 128, 256] {
                let (sequences, kv_heads, capacity, first, positions) = (2, 3, 11, 4, 5);
                let rows = sequences * positions * kv_heads;
                let mut x = random.numbers(rows * dim, 1.0);
                // Rows that are zero, constant, very small, very large, infinite, and not numbers.
                x[..dim].fill(0.0);
                x[dim..2 * dim].fill(-3.5);
                x[2 * dim..3 * dim].iter_mut().for_each(|x| *x *= 1e-6);
                x[3 * dim..4 * dim].iter_mut().for_each(|x| *x *= 20000.0);
                x[4 * dim] = f32::INFINITY;
                x[4 * dim + 1] = f32::NEG_INFINITY;
                x[5 * dim + 2] = f32::NAN;
                x[6 * dim..7 * dim].fill(f32::NAN);
                x[7 * dim..8 * dim].fill(f32::INFINITY);
                let x: Vec<f32> = x.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
                let other: Vec<f32> = x.iter().rev().copied().collect();
                let plane = Layout::new(format, capacity * kv_heads, dim).unwrap();
                let mut expected = vec![0xff; sequences * 2 * plane.bytes()];
                let each = positions * kv_heads * dim;
                let rows = x.chunks(each).zip(other.chunks(each)).flat_map(|(k, v)| [k, v]);
                for (x, cache) in rows.zip(expected.chunks_mut(plane.bytes())) {
                    let range = first * kv_heads..(first + positions) * kv_heads;
                    let (weights, scales) = cache.split_at_mut(plane.scales(0..0).start);
                    let scales_at = plane.scales(range.clone());
                    let at = scales_at.start - weights.len()..scales_at.end - weights.len();
                    let weights = &mut weights[plane.weights(range)];
                    quantise_rows(&plane, x, weights, &mut scales[at]).unwrap();
                }
                let buffer = Buffer::new(expected.len());
                let region = buffer.region();
                let cache =
                    DeviceCache::new(format, sequences, capacity, kv_heads, dim, region).unwrap();
                let (keys, values) = (Buffer::of(&halves(&x)), Buffer::of(&halves(&other)));
                let append = Append {
                    keys: keys.region(),
                    values: values.region(),
                    cache: &cache,
                    first_position: first,
                    positions,
                };
                gpu.kernels.append_cache(gpu.stream, &append).unwrap();
                let found = read(region);
                let off = found.iter().zip(&expected).position(|(f, e)| f != e);
                let around = off.map(|at| at / 16 * 16..(at / 16 * 16 + 16).min(found.len()));
                let bytes = around.map(|range| (&found[range.clone()], &expected[range]));
                assert_eq!(off, None, "{format} {dim}: {bytes:x?}");
            }
        }
    });
}

#[derive(Debug, Clone, Copy)]
struct Attended {
    format: Format,
    heads: Heads,
    sequences: usize,
    first: usize,
    positions: usize,
    room: usize,
}

impl Attended {
    fn run(&self, gpu: &Device, offset: usize, in_place: bool, seed: u64) -> (Vec<u8>, f64) {
        let Self { format, heads, sequences, first, positions, room, .. } = *self;
        let mut random = Random(seed);
        let capacity = first + positions + room;
        let rows = capacity * heads.kv;
        let mut cache = Vec::new();
        for _ in 0..2 * sequences {
            let values = random.numbers(rows * heads.dim, 1.0);
            cache.extend(quantise(format, &values, rows, heads.dim).unwrap().0);
        }
        let row = heads.query * heads.dim;
        let q = random.numbers(sequences * positions * row, 1.0);
        let mut expected = vec![0.0; q.len()];
        let plane = cache.len() / (2 * sequences);
        for sequence in 0..sequences {
            let (keys, values) =
                cache[2 * sequence * plane..2 * (sequence + 1) * plane].split_at(plane);
            let keys = Matrix::new(format, rows, heads.dim, keys).unwrap();
            let values = Matrix::new(format, rows, heads.dim, values).unwrap();
            let range = sequence * positions * row..(sequence + 1) * positions * row;
            attention::reference(
                &heads,
                &q[range.clone()],
                first,
                &keys,
                &values,
                &mut expected[range],
            )
            .unwrap();
        }
        // What lies beyond the last position must not matter.
        for plane in cache.chunks_mut(plane) {
            let layout = Layout::new(format, rows, heads.dim).unwrap();
            let beyond = (first + positions) * heads.kv..rows;
            plane[layout.weights(beyond.clone())].fill(0xff);
            plane[layout.scales(beyond)].fill(0xff);
        }
        let (_c, region) = Buffer::at(&cache, offset);
        let device_cache =
            DeviceCache::new(format, sequences, capacity, heads.kv, heads.dim, region).unwrap();
        let (_q, q_region) = Buffer::at(&halves(&q), 2 * offset);
        let (_o, o_region) = Buffer::at(&vec![0xff; 2 * q.len()], 2 * offset);
        let out = if in_place { q_region } else { o_region };
        let spare = Kernels::attention_spare(&heads, sequences, first, positions);
        let spare = Buffer::new(usize::try_from(spare).unwrap());
        let attention = Attention {
            q: q_region,
            out,
            cache: &device_cache,
            heads: &heads,
            first_position: first,
            positions,
            spare: spare.region(),
        };
        gpu.kernels.attention(gpu.stream, &attention).unwrap();
        gpu.wait();
        (read(out), error(&read_halves(out), &expected))
    }
}

#[test]
fn attentions() {
    device::with(|gpu| {
        let mut random = Random(8);
        let mut worst = 0.0_f64;
        for index in 0..260 {
            let dim = random.pick(&[8, 20, 32, 48, 64, 64, 80, 96, 128, 128, 192, 256, 250]);
            let (kv, group) =
                random.pick(&[(1, 1), (2, 4), (1, 8), (3, 2), (2, 1), (1, 20), (4, 7)]);
            let (first, positions) = random.pick(&[
                (0, 1),
                (0, 5),
                (37, 1),
                (511, 1),
                (512, 1),
                (600, 1),
                (1500, 3),
                (0, 100),
                (500, 70),
                (15, 17),
                (1040, 2),
            ]);
            let scale = 1.0 / (dim as f32).sqrt();
            let window = random.pick(&[None, None, Some(1), Some(17), Some(64), Some(530)]);
            let case = Attended {
                format: Unit::FORMATS[index % 4],
                heads: Heads { query: kv * group, kv, dim, window, scale },
                // The contexts of many heads and sequences are cut into longer parts.
                sequences: if index % 130 == 64 {
                    128_usize.div_ceil(kv)
                } else {
                    random.pick(&[1, 1, 2, 3])
                },
                first,
                positions,
                room: random.pick(&[0, 1, 40]),
            };
            let seed = random.next();
            let (bits, error) = case.run(gpu, 0, dim <= 128, seed);
            worst = worst.max(error);
            assert!(error <= 1.5e-3, "{case:?}: off by {error}");
            for offset in [0, 16, 1] {
                assert!(
                    bits == case.run(gpu, offset, false, seed).0,
                    "{case:?}: other bits at {offset}"
                );
            }
        }
        println!("attention: worst error {worst}");
    });
}

#[test]
fn most_likely_tokens() {
    device::with(|gpu| {
        let mut random = Random(9);
        for vocabulary in [1, 5, 1000, 50_272] {
            let rows = 6;
            let mut logits = random.numbers(rows * vocabulary, 4.0);
            let last = vocabulary - 1;
            // Equal ones: the lowest counts. All equal: the first.
            logits[0] = 100.0;
            logits[last] = 100.0;
            logits[vocabulary..2 * vocabulary].fill(-7.0);
            logits[2 * vocabulary + last] = f32::NAN;
            logits[3 * vocabulary] = f32::NEG_INFINITY;
            logits[4 * vocabulary + last] = 1000.0;
            let on = Buffer::of(&floats(&logits));
            let out = Buffer::new(4 * rows);
            gpu.kernels.argmax(gpu.stream, on.region(), rows, vocabulary, out.region()).unwrap();
            let found = read(out.region());
            for (logits, found) in logits.chunks(vocabulary).zip(found.as_chunks::<4>().0) {
                let expected = pipo_kernels::sample::greedy(logits);
                let expected = expected.map_or(Kernels::NOT_FINITE, |t| u32::try_from(t).unwrap());
                assert_eq!(u32::from_le_bytes(*found), expected);
            }
        }
    });
}

#[test]
fn experts() {
    device::with(|gpu| {
        let mut random = Random(10);
        for (experts, top, renormalise) in
            [(8, 2, true), (60, 4, false), (128, 8, true), (3, 3, false)]
        {
            let (rows, width) = (13, 72);
            let mut logits = random.numbers(rows * experts, 3.0);
            logits[1] = logits[0];
            logits[experts] = f32::NAN;
            let choices = router::route(&logits, experts, top, renormalise).unwrap();
            let mut expected = vec![0.0; rows * experts];
            for (index, choice) in choices.iter().enumerate() {
                expected[index / top * experts + choice.expert] = choice.weight;
            }
            let on = Buffer::of(&floats(&logits));
            let weights = Buffer::new(4 * rows * experts);
            let w = weights.region();
            gpu.kernels.route(gpu.stream, on.region(), rows, experts, top, renormalise, w).unwrap();
            let found = read_floats(w);
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-6, "{found} for {expected}");
            }
            let out = Buffer::new(2 * rows * width);
            let mut sum = vec![0.0; rows * width];
            for expert in 0..experts {
                let x = random.numbers(rows * width, 1.0);
                for (i, (sum, x)) in sum.iter_mut().zip(&x).enumerate() {
                    *sum += expected[i / width * experts + expert] * x;
                }
                let on = Buffer::of(&halves(&x));
                let first = expert == 0;
                gpu.kernels
                    .add_expert(
                        gpu.stream,
                        w,
                        experts,
                        expert,
                        on.region(),
                        rows,
                        width,
                        first,
                        out.region(),
                    )
                    .unwrap();
            }
            near(&read_halves(out.region()), &sum, "experts");
        }
    });
}

#[test]
fn small_regions_are_refused() {
    device::with(|gpu| {
        let buffer = Buffer::new(64);
        let (small, kernels, s) = (buffer.region(), &gpu.kernels, gpu.stream);
        let matrix = DeviceMatrix::new(Format::Fp16, 4, 8, small).unwrap();
        let weight = DeviceVector::new(Format::Fp16, 32, small).unwrap();
        assert!(kernels.embed(s, small, 17, &matrix, small).is_err());
        assert!(kernels.rms_norm(s, small, 2, &weight, 1e-5, small).is_err());
        assert!(kernels.rms_norm(s, small, usize::MAX, &weight, 1e-5, small).is_err());
        assert!(kernels.activate(s, Activation::Relu, small, 33).is_err());
        assert!(kernels.argmax(s, small, 1, 17, small).is_err());
        let linear = Linear {
            x: small,
            rows: 5,
            matrix: &matrix,
            bias: None,
            then: Then::Store,
            out: small,
            out_type: Out::Fp16,
            spare: Region::EMPTY,
        };
        assert!(kernels.linear(s, &linear).is_err());
        assert!(kernels.linear(s, &Linear { bias: Some(&weight), rows: 1, ..linear }).is_err());
        let logits = Linear { out_type: Out::Fp32, rows: 1, ..linear };
        assert!(kernels.linear(s, &logits).is_ok());
        let then = Then::Activate(Activation::Relu);
        assert!(kernels.linear(s, &Linear { then, ..logits }).is_err());
    });
}
