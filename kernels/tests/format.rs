//! What is stored can be read back, to half a step; nothing that is stored panics.

#![allow(clippy::unwrap_used, reason = "a test whose data cannot be made has failed")]

use pipo_kernels::format::{Layout, dequantise_row, matrix_bytes, quantise, quantise_rows};
use pipo_kernels::{Format, Matrix, ShapeError};
use proptest::prelude::*;

fn any_format() -> impl Strategy<Value = Format> {
    prop::sample::select(Format::ALL.to_vec())
}

fn row(matrix: &Matrix, row: usize) -> Vec<f32> {
    let mut out = vec![0.0; matrix.inputs()];
    dequantise_row(matrix, row, &mut out).unwrap();
    out
}

/// The largest error of a weight that a format may make, in a row or group that spans `low` to `high`.
fn tolerance(format: Format, value: f32, low: f32, high: f32) -> f32 {
    let largest = low.abs().max(high.abs());
    // A scale is rounded to fp16 (one part in 1024 when rounded up) or is among its subnormals.
    let half_step = |step: f32| 0.5 * (step * (1.0 + 1.0 / 1024.0) + 6.0e-8);
    match format {
        Format::Fp32 => 0.0,
        Format::Fp16 => (value.abs() / 2048.0).max(3.0e-8),
        Format::Bf16 => value.abs() / 256.0,
        Format::Int8 => half_step(largest / 127.0),
        // The minimum is rounded down, which widens the range by as much.
        Format::Int4 => half_step((high - low + low.abs() / 1024.0 + 6.0e-8) / 15.0),
    }
}

proptest! {
    #[test]
    fn an_error_is_at_most_half_a_step(
        format in any_format(),
        outputs in 1_usize..4,
        inputs in 1_usize..150,
        scale in prop::sample::select(vec![1e-9_f32, 1e-5, 0.02, 1.0, 300.0]),
        offset in prop::sample::select(vec![-2.0_f32, 0.0, 1.0]),
        seed in prop::collection::vec(-1.0_f32..1.0, 450),
    ) {
        let values: Vec<f32> =
            seed[..outputs * inputs].iter().map(|v| (v + offset) * scale).collect();
        let (bytes, saturation) = quantise(format, &values, outputs, inputs).unwrap();
        prop_assert_eq!(saturation, <_>::default());
        let matrix = Matrix::new(format, outputs, inputs, &bytes).unwrap();
        let group = if format == Format::Int4 { 64 } else { inputs };
        for (index, values) in values.chunks(inputs).enumerate() {
            let found = row(&matrix, index);
            for (values, found) in values.chunks(group).zip(found.chunks(group)) {
                let low = values.iter().copied().fold(f32::INFINITY, f32::min);
                let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                for (value, found) in values.iter().zip(found) {
                    let limit = tolerance(format, *value, low, high);
                    // The last bits are those of the float arithmetic around it.
                    let limit = limit + 1e-6 * low.abs().max(high.abs());
                    let limit = if format == Format::Fp32 { 0.0 } else { limit };
                    prop_assert!((value - found).abs() <= limit, "{found} for {value}, {limit}");
                }
            }
        }
    }

    #[test]
    fn rows_stored_in_pieces_are_the_same_bytes(
        format in any_format(),
        outputs in 1_usize..9,
        inputs in 1_usize..150,
        piece in 1_usize..9,
    ) {
        let values: Vec<f32> = (0..outputs * inputs).map(|i| (i as f32).sin()).collect();
        let (whole, _) = quantise(format, &values, outputs, inputs).unwrap();
        let layout = Layout::new(format, outputs, inputs).unwrap();
        // Old bytes must not shine through.
        let mut pieces = vec![0xa5; layout.bytes()];
        for first in (0..outputs).step_by(piece) {
            let rows = first..outputs.min(first + piece);
            let (weights, scales) = pieces.split_at_mut(layout.weights(0..outputs).end);
            let shift = weights.len();
            let scale_rows = layout.scales(rows.clone());
            let scales = &mut scales[scale_rows.start - shift..scale_rows.end - shift];
            let weights = &mut weights[layout.weights(rows.clone())];
            let values = &values[rows.start * inputs..rows.end * inputs];
            quantise_rows(&layout, values, weights, scales).unwrap();
        }
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn any_values_are_stored_finite_and_counted(
        format in any_format(),
        bits in prop::collection::vec(any::<u32>(), 1..200),
        special in prop::collection::vec(prop::sample::select(vec![
            f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0, 1e-45, 7e4,
        ]), 0..20),
    ) {
        let mut values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        values.extend(&special);
        let nan = values.iter().filter(|v| v.is_nan()).count() as u64;
        let infinite = values.iter().filter(|v| v.is_infinite()).count() as u64;
        let (bytes, saturation) = quantise(format, &values, 1, values.len()).unwrap();
        prop_assert_eq!(saturation.nan, nan);
        prop_assert!(saturation.clipped >= infinite);
        let matrix = Matrix::new(format, 1, values.len(), &bytes).unwrap();
        prop_assert!(row(&matrix, 0).iter().all(|v| v.is_finite()));
    }
}

#[test]
fn sizes_are_those_of_a_plan() {
    assert_eq!(matrix_bytes(Format::Fp32, 3, 65), Some(3 * 65 * 4));
    assert_eq!(matrix_bytes(Format::Fp16, 3, 65), Some(3 * 65 * 2));
    assert_eq!(matrix_bytes(Format::Bf16, 3, 65), Some(3 * 65 * 2));
    assert_eq!(matrix_bytes(Format::Int8, 3, 65), Some(3 * (65 + 2)));
    assert_eq!(matrix_bytes(Format::Int4, 3, 65), Some(3 * 2 * 36));
    assert_eq!(matrix_bytes(Format::Fp32, u64::MAX, 2), None);
    assert_eq!(matrix_bytes(Format::Int4, u64::MAX, u64::MAX), None);
}

#[test]
fn the_nibbles_of_a_group_are_where_they_are_said_to_be() {
    // 0 to 15, four times: scale 1, minimum 0.
    let values: Vec<f32> = (0_u8..64).map(|i| f32::from(i % 16)).collect();
    let (bytes, _) = quantise(Format::Int4, &values, 1, 64).unwrap();
    assert_eq!(bytes[..4], [0x00, 0x11, 0x22, 0x33]);
    assert_eq!(bytes[32..], [0x00, 0x3c, 0x00, 0x00]);
}

#[test]
fn a_group_beyond_fp16_is_clipped_to_its_end() {
    for (value, stored) in [(-330_944.0_f32, -65504.0), (f32::MIN, -65504.0)] {
        let (bytes, saturation) = quantise(Format::Int4, &[value; 3], 1, 3).unwrap();
        assert_eq!((saturation.clipped, saturation.nan), (3, 0));
        let matrix = Matrix::new(Format::Int4, 1, 3, &bytes).unwrap();
        assert_eq!(row(&matrix, 0), [stored; 3]);
    }
}

#[test]
fn a_wrong_length_is_an_error() {
    assert!(matches!(
        Matrix::new(Format::Int8, 2, 3, &[0; 11]),
        Err(ShapeError::MatrixBytes { expected: 10, found: 11, .. })
    ));
    assert!(Matrix::new(Format::Fp32, usize::MAX, usize::MAX, &[]).is_err());
    assert!(quantise(Format::Fp16, &[0.0; 5], 2, 3).is_err());
    let matrix = Matrix::new(Format::Fp16, 1, 2, &[0; 4]).unwrap();
    assert!(dequantise_row(&matrix, 1, &mut [0.0; 2]).is_err());
    assert!(dequantise_row(&matrix, 0, &mut [0.0; 3]).is_err());
}
