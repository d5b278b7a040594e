//! Products on a GPU against their reference. Skipped, with the reason, where there is no GPU.

#![allow(unsafe_code, reason = "the driver is a C interface")]
#![allow(clippy::unwrap_used, reason = "a test whose data cannot be made has failed")]

mod device;

use device::values::{NEAR, Random, error, near, vector};
use device::{Buffer, Device, halves, read, read_floats, read_halves};
use pipo_kernels::cuda::{Activation, DeviceMatrix, Kernels, Linear, Out, Region, Then, Unit};
use pipo_kernels::format::quantise;
use pipo_kernels::{Format, Matrix, activation, linear};

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
