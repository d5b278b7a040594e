//! Logits and tokens against Hugging Face transformers, on a tiny random model of every family.
//!
//! `golden/README.md` says what the files hold and which tolerance the reference itself supports.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]

use half::f16;
use pipo_engine::decoder::{Decoder, format};
use pipo_engine::store::{Layout, Place, Placed};
use pipo_kernels::format::{self as kernels, dequantise_row};
use pipo_kernels::{Cpu, Format, Matrix};
use pipo_plan::model::Precision;

use exact::{Imported, difference};
use fixture::MODELS;

#[path = "fixture/exact.rs"]
mod exact;
mod fixture;

impl Imported {
    /// Makes what quantised weights stand for exact in fp16: each scale a power of two, each minimum a
    /// multiple of its scale. Otherwise rounding to fp16 would be most of what a comparison shows.
    fn round_scales(&mut self) {
        let layout = self.fixture.store.layout();
        for (place, bytes) in &mut self.runs {
            let quantised = layout.tensors(place.part).filter_map(|placed| {
                let matrix = matrix(layout, &placed)?;
                let start = size(placed.offset) + matrix.scales(0..matrix.outputs).start;
                Some((matrix.format, start..size(placed.offset + placed.length)))
            });
            for (format, scales) in quantised {
                // A minimum follows its scale.
                let step = if format == Format::Int4 { 4 } else { 2 };
                for numbers in bytes[scales].chunks_exact_mut(step) {
                    let read = |at: usize| f16::from_le_bytes([numbers[at], numbers[at + 1]]);
                    let scale = f16::from_bits(read(0).to_bits() & 0x7C00).to_f32();
                    let minimum =
                        if step == 4 { (read(2).to_f32() / scale).round() * scale } else { 0.0 };
                    numbers[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                    numbers[2..].copy_from_slice(&f16::from_f32(minimum).to_le_bytes()[..step - 2]);
                }
            }
        }
    }

    /// The same model in fp16.
    fn dequantised(self) -> Self {
        let store = &self.fixture.store;
        let layout = Layout::new(store.model(), Precision::Fp16).unwrap();
        let dense = |(place, bytes): &(Place, Vec<u8>)| {
            let mut out = Vec::new();
            for placed in store.layout().tensors(place.part) {
                let stored = &bytes[size(placed.offset)..size(placed.offset + placed.length)];
                let Some(matrix) = matrix(store.layout(), &placed) else {
                    out.extend_from_slice(stored);
                    continue;
                };
                let quantised =
                    Matrix::new(matrix.format, matrix.outputs, matrix.inputs, stored).unwrap();
                let mut row = vec![0.0; matrix.inputs];
                for index in 0..matrix.outputs {
                    dequantise_row(&quantised, index, &mut row).unwrap();
                    let exact = |&x: &f32| f16::from_f32(x).to_f32().to_bits() == x.to_bits();
                    assert!(row.iter().all(exact), "{} is rounded", placed.tensor.name);
                    out.extend(row.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
                }
            }
            assert_eq!(out.len() as u64, layout.length(place.part));
            (*place, out)
        };
        let runs = self.runs.iter().map(dense).collect();
        let decoder = Decoder::new(&layout, store.arithmetic(), Cpu::new(1)).unwrap();
        Self { decoder, runs, ..self }
    }
}

fn size(length: u64) -> usize {
    usize::try_from(length).unwrap()
}

/// Where the rows of a quantised matrix lie; nothing for what stays in 16 bits.
fn matrix(layout: &Layout, placed: &Placed) -> Option<kernels::Layout> {
    let precision = layout.precision_of(&placed.tensor);
    let [outputs, inputs] = [placed.tensor.outputs, placed.tensor.inputs].map(size);
    precision
        .is_quantised()
        .then(|| kernels::Layout::new(format(precision), outputs, inputs).unwrap())
}

fn greedy(logits: &[f32]) -> u32 {
    let best = (0..).zip(logits).fold((0, f32::NEG_INFINITY), |best, (token, &logit)| {
        if logit > best.1 { (token, logit) } else { best }
    });
    best.0
}

/// Prefill and 64 greedy steps of both sequences.
fn check(model: &str) {
    let imported = Imported::new(model, Precision::Fp16);
    let vocabulary = imported.vocabulary();
    let last_step = imported.floats("last-step.f32");
    for sequence in 0..2 {
        let prompt = imported.fixture.tokens("prompts", sequence);
        let mut caches = imported.caches();
        let mut logits = imported.logits(&prompt, &mut caches);
        let (found, file) = match sequence {
            0 => (&logits[..], "prompt-0.f32"),
            _ => (&logits[logits.len() - vocabulary..], "prompt-1-last.f32"),
        };
        let apart = difference(found, &imported.floats(file), vocabulary);
        assert!(apart <= 1e-4, "{model}, {file}: {apart:e}");
        let mut tokens = Vec::new();
        for step in 0..64 {
            let last = &logits[logits.len() - vocabulary..];
            if step == 63 {
                let expected = &last_step[sequence * vocabulary..][..vocabulary];
                let apart = difference(last, expected, vocabulary);
                assert!(apart <= 1e-4, "{model}, sequence {sequence}, last step: {apart:e}");
            }
            tokens.push(greedy(last));
            logits = imported.logits(&tokens[step..], &mut caches);
        }
        assert_eq!(
            tokens,
            imported.fixture.tokens("greedy", sequence),
            "{model}, sequence {sequence}"
        );
    }
}

#[test]
fn logits_and_tokens_are_those_of_transformers() {
    for model in MODELS {
        check(model);
    }
}

#[test]
fn shards_make_the_same_model() {
    let [whole, sharded] = ["llama-tied", "llama-tied-sharded"]
        .map(|model| Imported::new(model, Precision::Int4).runs);
    assert_eq!(whole, sharded);
}

#[test]
fn a_store_in_bf16_computes_with_weights_rounded_to_bf16() {
    for model in MODELS {
        let imported = Imported::new(model, Precision::Bf16);
        let vocabulary = imported.vocabulary();
        let expected = imported.floats("bf16-weights.f32");
        for sequence in 0..2 {
            let prompt = imported.fixture.tokens("prompts", sequence);
            let logits = imported.logits(&prompt, &mut imported.caches());
            let found = &logits[logits.len() - vocabulary..];
            let apart =
                difference(found, &expected[sequence * vocabulary..][..vocabulary], vocabulary);
            assert!(apart <= 1e-4, "{model}, sequence {sequence}: {apart:e}");
        }
    }
}

/// A store of quantised weights computes what those weights stand for: the whole model, not a product.
#[test]
fn quantised_weights_compute_what_they_stand_for() {
    for (model, precision) in
        MODELS.into_iter().flat_map(|model| [(model, Precision::Int8), (model, Precision::Int4)])
    {
        let mut quantised = Imported::new(model, precision);
        quantised.round_scales();
        let vocabulary = quantised.vocabulary();
        let prompts = [0, 1].map(|sequence| quantised.fixture.tokens("prompts", sequence));
        let logits = |imported: &Imported| {
            prompts.each_ref().map(|prompt| imported.logits(prompt, &mut imported.caches()))
        };
        let found = logits(&quantised);
        let expected = logits(&quantised.dequantised());
        for (found, expected) in found.iter().zip(&expected) {
            let apart = difference(found, expected, vocabulary);
            assert!(apart <= 1e-4, "{model} in {precision}: {apart:e}");
        }
    }
}

/// A prompt in one piece, in pieces, and token by token: not a bit is different.
#[test]
fn chunks_of_a_prompt_change_nothing() {
    for model in MODELS {
        let imported = Imported::new(model, Precision::Int4);
        let prompt = imported.fixture.tokens("prompts", 0);
        let whole = imported.logits(&prompt, &mut imported.caches());
        for chunk in [1, 7, 16] {
            let mut caches = imported.caches();
            let pieces: Vec<f32> = prompt
                .chunks(chunk)
                .flat_map(|tokens| imported.logits(tokens, &mut caches))
                .collect();
            let same = whole.iter().zip(&pieces).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && whole.len() == pieces.len(), "{model} in chunks of {chunk}");
        }
    }
}
