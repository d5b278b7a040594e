//! Attention is near its reference, and the same bits however a sequence is cut.

#![allow(clippy::unwrap_used, reason = "a test whose data cannot be made has failed")]

use pipo_kernels::attention::{Heads, attention, attentions, reference};
use pipo_kernels::format::quantise;
use pipo_kernels::{Cpu, Format, Level, Matrix};
use proptest::prelude::*;

fn values(count: usize, shift: f32) -> Vec<f32> {
    (0..count).map(|i| 2.0 * (i as f32 * 1.7 + shift).sin()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn near_the_reference_and_the_same_bits_in_pieces(
        format in prop::sample::select(Format::ALL.to_vec()),
        kv in 1_usize..4,
        group in 1_usize..4,
        dim in prop::sample::select(vec![2_usize, 16, 20, 64, 80]),
        first in 0_usize..80,
        rows in 1_usize..6,
        window in prop::option::of(1_usize..70),
        shift in 0.0_f32..9.0,
    ) {
        let heads = Heads { query: kv * group, kv, dim, window, scale: 0.3 };
        let capacity = (first + rows + 2) * kv;
        let cache = |shift| {
            quantise(format, &values(capacity * dim, shift), capacity, dim).unwrap().0
        };
        let (keys, v) = (cache(shift), cache(shift + 1.0));
        let keys = Matrix::new(format, capacity, dim, &keys).unwrap();
        let v = Matrix::new(format, capacity, dim, &v).unwrap();
        let row = heads.query * dim;
        let q = values(rows * row, shift + 2.0);
        let (mut found, mut expected) = (vec![0.0; rows * row], vec![0.0; rows * row]);
        attention(&Cpu::new(1), &heads, &q, first, &keys, &v, &mut found).unwrap();
        reference(&heads, &q, first, &keys, &v, &mut expected).unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            // A score is at most 0.3 * 80 * 4, so its error is some 1e-5, and so is that of its weight.
            prop_assert!((found - expected).abs() < 1e-4, "{found} for {expected}");
        }
        for level in [Level::Portable, Level::Avx2, Level::Avx512] {
            let Some(cpu) = Cpu::with_level(level, 3) else { continue };
            for index in 0..rows {
                let mut out = vec![0.0; row];
                let q = &q[index * row..(index + 1) * row];
                attention(&cpu, &heads, q, first + index, &keys, &v, &mut out).unwrap();
                prop_assert_eq!(bits(&out), bits(&found[index * row..(index + 1) * row]));
            }
        }
        // Two sequences together, the second with keys and values exchanged, are the two apart.
        let mut other = vec![0.0; rows * row];
        attention(&Cpu::new(1), &heads, &q, first, &v, &keys, &mut other).unwrap();
        let (both, mut out) = ([&q[..], &q].concat(), vec![0.0; 2 * rows * row]);
        attentions(&Cpu::new(2), &heads, &both, first, &[(keys, v), (v, keys)], &mut out).unwrap();
        prop_assert_eq!(bits(&out), [bits(&found), bits(&other)].concat());
    }
}

/// Keys and values in different formats, and a scale below zero, where the smallest product counts most.
#[test]
fn keys_and_values_may_differ_and_a_scale_may_be_negative() {
    let (kv, dim, positions) = (2, 32, 37);
    let heads = Heads { query: 4, kv, dim, window: None, scale: -0.3 };
    let q = values(heads.query * dim, 2.0);
    for (of_keys, of_values) in [(Format::Fp16, Format::Int8), (Format::Int8, Format::Fp32)] {
        let cache = |format, shift| {
            let rows = positions * kv;
            quantise(format, &values(rows * dim, shift), rows, dim).unwrap().0
        };
        let (keys, v) = (cache(of_keys, 0.0), cache(of_values, 1.0));
        let keys = Matrix::new(of_keys, positions * kv, dim, &keys).unwrap();
        let v = Matrix::new(of_values, positions * kv, dim, &v).unwrap();
        let (mut found, mut expected) = (vec![0.0; q.len()], vec![0.0; q.len()]);
        attention(&Cpu::new(1), &heads, &q, positions - 1, &keys, &v, &mut found).unwrap();
        reference(&heads, &q, positions - 1, &keys, &v, &mut expected).unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-4, "{found} for {expected}");
        }
    }
}

#[test]
fn a_row_that_sees_itself_alone_returns_its_value() {
    let heads = Heads { query: 2, kv: 1, dim: 2, window: Some(1), scale: 1.0 };
    let (bytes, _) = quantise(Format::Fp32, &[1.0, 2.0, 3.0, 4.0], 2, 2).unwrap();
    let cache = Matrix::new(Format::Fp32, 2, 2, &bytes).unwrap();
    let mut out = [0.0; 4];
    attention(&Cpu::new(1), &heads, &[9.0; 4], 1, &cache, &cache, &mut out).unwrap();
    assert_eq!(bits(&out), bits(&[3.0, 4.0, 3.0, 4.0]));
}

#[test]
fn shapes_are_checked() {
    let (bytes, _) = quantise(Format::Fp32, &[0.0; 8], 4, 2).unwrap();
    let cache = Matrix::new(Format::Fp32, 4, 2, &bytes).unwrap();
    let good = Heads { query: 4, kv: 2, dim: 2, window: None, scale: 1.0 };
    let run = |heads: Heads, count: usize, first: usize| {
        let (q, mut out) = (vec![0.0; count], vec![0.0; count]);
        attention(&Cpu::new(1), &heads, &q, first, &cache, &cache, &mut out)
    };
    assert!(run(good, 8, 1).is_ok());
    assert!(run(good, 8, 2).is_err());
    assert!(run(good, 16, usize::MAX).is_err());
    assert!(run(good, 7, 0).is_err());
    assert!(run(Heads { query: 3, ..good }, 6, 0).is_err());
    assert!(run(Heads { kv: 0, ..good }, 8, 0).is_err());
    assert!(run(Heads { dim: 0, ..good }, 8, 0).is_err());
    assert!(run(Heads { query: usize::MAX - 1, ..good }, 8, 0).is_err());
    assert!(run(Heads { window: Some(0), ..good }, 8, 0).is_err());
}
