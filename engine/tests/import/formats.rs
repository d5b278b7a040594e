//! The bytes of each format, by hand.

use half::f16;
use pipo_engine::import::quantise::encode;
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
                Err(at) => {
                    prop_assert_eq!(at.value.to_bits(), numbers[at.index].to_bits());
                    prop_assert!(!at.value.is_finite() || at.value.abs() > 60_000.0);
                }
            }
        }
    }
}
