//! Products are near those in `f64`, and the same bits however they are computed.

#![allow(clippy::unwrap_used, reason = "a test whose data cannot be made has failed")]

use pipo_kernels::format::{dequantise_row, quantise};
use pipo_kernels::linear::{linear, reference};
use pipo_kernels::{Cpu, Format, Level, Matrix};
use proptest::prelude::*;

const LEVELS: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

/// Every set of vectors that this machine has.
fn cpus(threads: usize) -> impl Iterator<Item = Cpu> {
    LEVELS.into_iter().filter_map(move |level| Cpu::with_level(level, threads))
}

/// Numbers of both signs and of several magnitudes.
fn values(count: usize, mut state: u64) -> Vec<f32> {
    let next = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0;
        unit * [0.01, 1.0, 3.0, 20.0][(state >> 20 & 3) as usize]
    };
    (0..count).map(next).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[derive(Debug, Clone)]
struct Case {
    format: Format,
    rows: usize,
    outputs: usize,
    inputs: usize,
    bias: bool,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let formats = prop::sample::select(Format::ALL.to_vec());
    (formats, 1_usize..10, 1_usize..24, 1_usize..600, any::<bool>(), any::<u64>()).prop_map(
        |(format, rows, outputs, inputs, bias, seed)| Case {
            format,
            rows,
            outputs,
            inputs,
            bias,
            seed,
        },
    )
}

struct Data {
    x: Vec<f32>,
    bytes: Vec<u8>,
    bias: Option<Vec<f32>>,
}

impl Case {
    fn data(&self) -> Data {
        let weights = values(self.outputs * self.inputs, self.seed);
        Data {
            x: values(self.rows * self.inputs, self.seed ^ 1),
            bytes: quantise(self.format, &weights, self.outputs, self.inputs).unwrap().0,
            bias: self.bias.then(|| values(self.outputs, self.seed ^ 2)),
        }
    }

    fn matrix<'a>(&self, data: &'a Data) -> Matrix<'a> {
        Matrix::new(self.format, self.outputs, self.inputs, &data.bytes).unwrap()
    }

    fn run(&self, cpu: &Cpu, data: &Data) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.rows * self.outputs];
        let bias = data.bias.as_deref();
        linear(cpu, &data.x, self.rows, &self.matrix(data), bias, &mut out).unwrap();
        out
    }
}

proptest! {
    #[test]
    fn a_product_is_near_its_reference(case in case()) {
        let data = case.data();
        let matrix = case.matrix(&data);
        let mut expected = vec![0.0; case.rows * case.outputs];
        let bias = data.bias.as_deref();
        reference(&data.x, case.rows, &matrix, bias, &mut expected).unwrap();
        let found = case.run(&Cpu::new(1), &data);
        let mut weights = vec![0.0; case.inputs];
        for output in 0..case.outputs {
            dequantise_row(&matrix, output, &mut weights).unwrap();
            for row in 0..case.rows {
                let x = &data.x[row * case.inputs..][..case.inputs];
                let terms = x.iter().zip(&weights).map(|(x, w)| f64::from((x * w).abs()));
                let bias = bias.map_or(0.0, |bias| f64::from(bias[output].abs()));
                let roundings = case.inputs as f64 / 16.0 + 8.0;
                let limit = roundings * f64::from(f32::EPSILON) / 2.0 * (terms.sum::<f64>() + bias);
                let index = row * case.outputs + output;
                let error = (f64::from(found[index]) - f64::from(expected[index])).abs();
                prop_assert!(error <= limit, "off by {error} where {limit} is allowed");
            }
        }
    }

    #[test]
    fn vectors_threads_and_rows_change_no_bit(case in case()) {
        let data = case.data();
        let whole = bits(&case.run(&Cpu::new(1), &data));
        for cpu in cpus(1).chain([Cpu::new(3)]) {
            prop_assert_eq!(&bits(&case.run(&cpu, &data)), &whole, "{:?}", cpu);
        }
        // Each row alone.
        let cpu = Cpu::new(1);
        for (row, x) in data.x.chunks(case.inputs).enumerate() {
            let mut out = vec![0.0; case.outputs];
            let bias = data.bias.as_deref();
            linear(&cpu, x, 1, &case.matrix(&data), bias, &mut out).unwrap();
            prop_assert_eq!(&bits(&out), &whole[row * case.outputs..][..case.outputs]);
        }
        // Each output alone: a matrix that was split by its rows.
        let weights = values(case.outputs * case.inputs, case.seed);
        for (output, weights) in weights.chunks(case.inputs).enumerate() {
            let (bytes, _) = quantise(case.format, weights, 1, case.inputs).unwrap();
            let matrix = Matrix::new(case.format, 1, case.inputs, &bytes).unwrap();
            let bias = data.bias.as_ref().map(|bias| &bias[output..=output]);
            let mut out = vec![0.0; case.rows];
            linear(&cpu, &data.x, case.rows, &matrix, bias, &mut out).unwrap();
            let column = whole.iter().skip(output).step_by(case.outputs).copied();
            prop_assert_eq!(bits(&out), column.collect::<Vec<_>>());
        }
    }

    #[test]
    fn any_bytes_multiply_without_a_panic(
        format in prop::sample::select(Format::ALL.to_vec()),
        rows in 0_usize..4,
        inputs in 0_usize..80,
        outputs in 0_usize..6,
        mut bytes in prop::collection::vec(any::<u8>(), 1920),
    ) {
        let size = pipo_kernels::format::matrix_bytes(format, outputs as u64, inputs as u64);
        bytes.truncate(usize::try_from(size.unwrap()).unwrap());
        let matrix = Matrix::new(format, outputs, inputs, &bytes).unwrap();
        let mut out = vec![0.0; rows * outputs];
        linear(&Cpu::new(1), &vec![1.0; rows * inputs], rows, &matrix, None, &mut out).unwrap();
    }
}

/// Wide enough for several tasks, panels and blocks of scales.
#[test]
fn a_large_product_is_the_same_on_all_machines() {
    for format in Format::ALL {
        for rows in [1, 2, 7, 101] {
            let case = Case { format, rows, outputs: 90, inputs: 2000, bias: false, seed: 5 };
            let data = case.data();
            let expected = bits(&case.run(&Cpu::new(1), &data));
            for cpu in cpus(4) {
                assert_eq!(bits(&case.run(&cpu, &data)), expected, "{format} {cpu:?}");
            }
        }
    }
}

#[test]
fn shapes_are_checked() {
    let matrix = Matrix::new(Format::Fp16, 2, 3, &[0; 12]).unwrap();
    let cpu = Cpu::new(1);
    let mut out = [0.0; 2];
    assert!(linear(&cpu, &[0.0; 3], 1, &matrix, None, &mut out).is_ok());
    assert!(linear(&cpu, &[0.0; 4], 1, &matrix, None, &mut out).is_err());
    assert!(linear(&cpu, &[0.0; 3], usize::MAX, &matrix, None, &mut out).is_err());
    assert!(linear(&cpu, &[0.0; 3], 1, &matrix, Some(&[0.0; 3]), &mut out).is_err());
    assert!(linear(&cpu, &[0.0; 3], 1, &matrix, None, &mut out[..1]).is_err());
}
