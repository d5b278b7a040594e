//! The bytes of each format, by hand.

use half::f16;
use pipo_engine::decoder::format;
use pipo_engine::import::quantise::{Refused, encode};
use pipo_kernels::format::quantise;
use pipo_plan::model::Precision;
use proptest::prelude::*;

use crate::support::decode;

#[test]
fn int4_holds_input_k_in_the_low_nibble_and_input_k_plus_32_in_the_high() {
    // 64 inputs of one row, then 3 of a second group that is padded.
    let mut row: Vec<f32> = (0..64_u8).map(|k| f32::from(k % 16) * 0.5 - 2.0).collect();
    row.extend([-1.0, 6.5, 0.0]);
    let encoded = encode(Precision::Int4, 67, &row).unwrap();
    assert_eq!((encoded.data.len(), encoded.scales.len()), (64, 8));
    for k in 0..32_u8 {
        assert_eq!(encoded.data[usize::from(k)], (k % 16) | ((k + 32) % 16) << 4);
    }
    assert_eq!(encoded.data[32..36], [0, 15, 2, 0]);
    assert!(encoded.data[35..].iter().all(|&byte| byte == 0), "padding is zero");
    let halves: Vec<f16> =
        encoded.scales.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b)).collect();
    assert_eq!(halves, [0.5, -2.0, 0.5, -1.0].map(f16::from_f32), "scale, then minimum");
    let bytes = [encoded.data, encoded.scales].concat();
    assert_eq!(decode(Precision::Int4, 1, 67, &bytes).unwrap(), row);
}

#[test]
fn int8_has_its_codes_row_by_row_and_then_a_scale_for_each_row() {
    let rows = [127.0, -127.0, 1.0, 0.0, 63.5, -0.5];
    let encoded = encode(Precision::Int8, 3, &rows).unwrap();
    assert_eq!(encoded.data, [127, 129, 1, 0, 127, 255]);
    let scales = [1.0, 0.5].map(|s| f16::from_f32(s).to_le_bytes()).concat();
    assert_eq!(encoded.scales, scales);
}

#[test]
fn zeros_are_exact_in_every_format() {
    for precision in Precision::ALL {
        let encoded = encode(precision, 70, &[0.0; 140]).unwrap();
        let bytes = [encoded.data, encoded.scales].concat();
        assert_eq!(decode(precision, 2, 70, &bytes).unwrap(), [0.0; 140]);
    }
}

#[test]
fn only_the_exact_number_of_bytes_is_decoded() {
    for precision in Precision::ALL {
        let length = usize::try_from(precision.matrix_bytes(3, 5).0).unwrap();
        assert!(decode(precision, 3, 5, &vec![0; length]).is_some());
        assert!(decode(precision, 3, 5, &vec![0; length - 1]).is_none());
        assert!(decode(precision, u64::MAX, u64::MAX, &[]).is_none());
        assert!(decode(precision, 0, 0, &[]).is_none());
    }
}

proptest! {
    /// A store's bytes are those that the kernels make of the same numbers, and what the rounding did is
    /// what they read back.
    #[test]
    fn bytes_are_those_of_the_kernels(
        numbers in prop::collection::vec(-3.0_f32..3.0, 1..600),
        inputs in 1..200_usize,
        scale in prop::sample::select(vec![1e-6_f32, 0.02, 1.0, 900.0]),
    ) {
        let outputs = numbers.len().div_ceil(inputs);
        let mut rows: Vec<f32> = numbers.iter().map(|number| number * scale).collect();
        rows.resize(outputs * inputs, 0.25);
        for precision in Precision::ALL {
            let encoded = encode(precision, inputs, &rows).unwrap();
            let (expected, _) = quantise(format(precision), &rows, outputs, inputs).unwrap();
            prop_assert_eq!([encoded.data, encoded.scales].concat(), &expected[..]);
            let back = decode(precision, outputs as u64, inputs as u64, &expected).unwrap();
            let square = |x: f64| x * x;
            let error: f64 =
                rows.iter().zip(&back).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
            let norm: f64 = rows.iter().map(|a| square(f64::from(*a))).sum();
            prop_assert!((encoded.squares.error - error).abs() <= 1e-9 * error);
            prop_assert!((encoded.squares.norm - norm).abs() <= 1e-9 * norm);
        }
    }

    /// Any numbers at all: stored within half a step, or refused by the first that does not fit.
    #[test]
    fn any_bits_are_stored_or_refused(
        bits in prop::collection::vec(any::<u32>(), 1..200),
        shrink in any::<bool>(),
    ) {
        let numbers: Vec<f32> = bits
            .iter()
            .map(|&bits| if shrink { f32::from_bits(bits & 0xbfff_ffff) } else { f32::from_bits(bits) })
            .collect();
        for precision in Precision::ALL {
            match encode(precision, numbers.len(), &numbers) {
                Ok(encoded) => {
                    let bytes = [encoded.data, encoded.scales].concat();
                    let back = decode(precision, 1, numbers.len() as u64, &bytes).unwrap();
                    prop_assert!(back.iter().all(|number| number.is_finite()));
                    prop_assert!(encoded.squares.relative() <= 1.0 + 1e-6);
                }
                Err(Refused::Number { index, value }) => {
                    prop_assert_eq!(value.to_bits(), numbers[index].to_bits());
                    prop_assert!(!value.is_finite() || value.abs() > 60_000.0);
                }
                Err(Refused::Shape(error)) => prop_assert!(false, "{}", error),
            }
        }
    }
}
