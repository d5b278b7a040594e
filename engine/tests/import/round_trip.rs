//! What goes in comes out, within half a step of its format.

use std::fs;

use pipo_engine::store::{ALIGNMENT, DATA, Origin, Place, Store, TABLE};
use pipo_plan::model::{Part, Precision, TensorKind};
use serde_json::json;

use crate::checkpoint::{Checkpoint, FAMILIES, Tensor, small};
use crate::support::{run, stored, target, written};

/// The farthest that a stored number may lie from its source.
fn bound(precision: Precision, inputs: usize, numbers: &[f32], at: usize) -> f64 {
    // Arithmetic in 32 bits on the way, and numbers too small for a normal half.
    let slack = |largest: f64| largest * 1e-6 + 6e-8;
    let number = f64::from(numbers[at]).abs();
    let row = &numbers[at / inputs * inputs..][..inputs];
    let extremes = |part: &[f32]| {
        let low = part.iter().copied().fold(f32::INFINITY, f32::min);
        let high = part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (f64::from(low), f64::from(high))
    };
    // A half has 11 significant bits: rounded up or down it moves by less than a 1024th.
    let rounded = 1.0 + 1.0 / 1024.0;
    match precision {
        Precision::Fp16 => number / 2048.0 + slack(number),
        Precision::Bf16 => number / 256.0 + slack(number),
        Precision::Int8 => {
            let (low, high) = extremes(row);
            let largest = high.max(-low);
            largest / 127.0 / 2.0 * rounded + slack(largest)
        }
        Precision::Int4 => {
            let group = at % inputs / 64 * 64;
            let (low, high) = extremes(&row[group..inputs.min(group + 64)]);
            let range = high - low + low.abs() / 1024.0;
            range / 15.0 / 2.0 * rounded + slack(high.abs().max(low.abs()))
        }
    }
}

fn read(store: &Store, tensor: &Tensor) -> Vec<f32> {
    stored(store, tensor.place, tensor.name, tensor.expert)
}

fn check(checkpoint: &Checkpoint, precision: Precision) {
    let folder = written(checkpoint, 1);
    let report = run(&folder, precision).unwrap();
    let store = Store::open(&target(&folder)).unwrap();
    store.verify().unwrap();
    assert_eq!(store.precision(), precision);
    assert_eq!(*store.origin(), Origin::Safetensors);
    assert_eq!(store.model().name, "tiny");
    let (mut all_error, mut all_norm) = (0.0, 0.0);
    for tensor in &checkpoint.tensors {
        let stored = read(&store, tensor);
        assert_eq!(stored.len(), tensor.numbers.len());
        let inputs = tensor.shape.get(1).map_or(1, |&n| usize::try_from(n).unwrap());
        let (_, placed) = store.layout().find(tensor.place, tensor.name, tensor.expert).unwrap();
        let format = store.layout().precision_of(&placed.tensor);
        let quantised = format.is_quantised();
        assert_eq!(quantised, precision.is_quantised() && placed.tensor.kind == TensorKind::Matrix);
        for (at, (&number, &stored)) in tensor.numbers.iter().zip(&stored).enumerate() {
            let error = f64::from(number) - f64::from(stored);
            let bound = bound(format, inputs, &tensor.numbers, at);
            assert!(
                error.abs() <= bound,
                "{} at {at}: {number} became {stored} in {format}, more than {bound} away",
                tensor.called
            );
            all_error += error * error;
            all_norm += f64::from(number) * f64::from(number);
        }
    }
    let relative = (all_error / all_norm).sqrt();
    assert!((report.relative - relative).abs() <= 1e-9, "{} against {relative}", report.relative);
    let worst = report.worst(9);
    assert!(worst.is_sorted_by(|a, b| a.relative >= b.relative));
    assert!(report.tensors.iter().all(|tensor| tensor.relative <= worst[0].relative));
}

#[test]
fn every_family_in_every_format_comes_back_within_half_a_step() {
    for (family, dtype) in FAMILIES.into_iter().zip(["F32", "F16", "BF16"].into_iter().cycle()) {
        for precision in Precision::ALL {
            check(&small(family, dtype, family == "opt"), precision);
        }
    }
}

/// OPT-350m alone: a narrow embedding with projections on both sides, norms last, none at the end.
#[test]
fn opt_with_a_narrow_embedding_and_its_norms_last() {
    let mut checkpoint = small("opt", "F16", true);
    checkpoint.config["word_embed_proj_dim"] = json!(40);
    checkpoint.config["do_layer_norm_before"] = json!(false);
    checkpoint.tensors.retain(|t| !t.called.starts_with("model.decoder.final_layer_norm"));
    let tokens = checkpoint.tensor("model.decoder.embed_tokens.weight");
    tokens.shape = vec![50, 40];
    tokens.numbers.truncate(50 * 40);
    let mut project = |part, name, shape: [u64; 2]| {
        let mut tensor = checkpoint.tensors[0].clone();
        tensor.place = Place { part, layer: 0 };
        (tensor.name, tensor.called) = (name, format!("model.decoder.{name}.weight"));
        tensor.shape = shape.to_vec();
        tensor.numbers = tensor.numbers.into_iter().cycle().take(40 * 72).collect();
        checkpoint.tensors.push(tensor);
    };
    project(Part::Embedding, "project_in", [72, 40]);
    project(Part::Head, "project_out", [40, 72]);
    for precision in Precision::ALL {
        check(&checkpoint, precision);
    }
}

#[test]
fn sixteen_bits_that_stay_what_they_are_lose_nothing() {
    for (dtype, precision) in [("F16", Precision::Fp16), ("BF16", Precision::Bf16)] {
        let folder = written(&small("qwen3", dtype, false), 1);
        assert_eq!(run(&folder, precision).unwrap().relative.to_bits(), 0.0_f64.to_bits());
    }
}

#[test]
fn runs_are_aligned_exactly_as_long_as_the_model_says_and_in_order() {
    for family in FAMILIES {
        for (precision, tied) in [(Precision::Int4, true), (Precision::Fp16, false)] {
            let folder = written(&small(family, "F32", tied), 1);
            let report = run(&folder, precision).unwrap();
            let store = Store::open(&target(&folder)).unwrap();
            let (model, layout) = (store.model(), store.layout());
            let (mut end, mut sum) = (0, 0);
            for place in layout.places() {
                let range = layout.range(place).unwrap();
                assert_eq!(range.start % ALIGNMENT, 0);
                assert!(range.start >= end && range.start - end < ALIGNMENT);
                end = range.end;
                sum += range.end - range.start;
                if !(tied && place.part == Part::Head) {
                    assert_eq!(range.end - range.start, model.bytes(place.part, precision).0);
                }
                let tensors: u64 = layout.tensors(place.part).map(|t| t.length).sum();
                assert_eq!(tensors, range.end - range.start);
            }
            assert_eq!(sum, model.total_bytes(precision).0);
            assert_eq!(end, report.bytes);
            assert_eq!(fs::metadata(store.data_path()).unwrap().len(), end);
        }
    }
}

#[test]
fn a_tied_head_is_found_in_the_embedding() {
    let folder = written(&small("llama", "F32", true), 1);
    run(&folder, Precision::Int8).unwrap();
    let store = Store::open(&target(&folder)).unwrap();
    let head = Place { part: Part::Head, layer: 0 };
    let (run, placed) = store.layout().find(head, "head", None).unwrap();
    assert_eq!((run.part, placed.tensor.name, placed.offset), (Part::Embedding, "tokens", 0));
    let table = fs::read_to_string(target(&folder).join(TABLE)).unwrap();
    assert!(table.contains("\"tied\":true"));
}

#[test]
fn an_expert_is_one_contiguous_read() {
    let folder = written(&small("mixtral", "F32", false), 1);
    run(&folder, Precision::Int4).unwrap();
    let store = Store::open(&target(&folder)).unwrap();
    let tensors: Vec<_> = store.layout().tensors(Part::Mlp).collect();
    let names: Vec<_> = tensors.iter().map(|t| (t.tensor.name, t.expert)).collect();
    assert_eq!(names[..2], [("norm", None), ("router", None)]);
    assert_eq!(names[5..8], [("gate", Some(1)), ("up", Some(1)), ("down", Some(1))]);
    let expert = tensors[5].offset..tensors[8].offset;
    assert_eq!(expert.end - expert.start, store.model().expert_bytes(Precision::Int4).unwrap().0);
}

#[test]
fn shards_prefixes_and_places_do_not_change_a_byte() {
    let bytes = |folder: &tempfile::TempDir| {
        run(folder, Precision::Int4).unwrap();
        [DATA, TABLE].map(|file| fs::read(target(folder).join(file)).unwrap())
    };
    for family in FAMILIES {
        let checkpoint = small(family, "BF16", true);
        let whole = bytes(&written(&checkpoint, 1));
        assert_eq!(whole, bytes(&written(&checkpoint, 3)), "{family} in shards");
        let mut bare = checkpoint.clone();
        for tensor in &mut bare.tensors {
            tensor.called = tensor.called.strip_prefix("model.").unwrap().to_owned();
        }
        assert_eq!(whole, bytes(&written(&bare, 1)), "{family} without prefix");
    }
}

#[test]
fn a_tied_head_saved_a_second_time_and_rotary_frequencies_are_left_unused() {
    let mut checkpoint = small("llama", "F32", true);
    for called in ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"] {
        let mut tensor = checkpoint.tensors[0].clone();
        tensor.called = called.into();
        checkpoint.tensors.push(tensor);
    }
    let report = run(&written(&checkpoint, 1), Precision::Fp16).unwrap();
    assert_eq!(report.unused.len(), 2);
}

#[test]
fn any_range_can_be_read() {
    let folder = written(&small("opt", "F32", true), 1);
    run(&folder, Precision::Fp16).unwrap();
    let store = Store::open(&target(&folder)).unwrap();
    let place = Place { part: Part::Mlp, layer: 1 };
    let range = store.layout().range(place).unwrap();
    let data = fs::read(store.data_path()).unwrap();
    let run = &data[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
    for (from, to) in [(0, run.len()), (1, 2), (17, 4000), (run.len() - 1, run.len()), (5, 5)] {
        let mut bytes = vec![0; to - from];
        store.read(place, from as u64, &mut bytes).unwrap();
        assert_eq!(bytes, run[from..to]);
    }
    let outside = store.read(place, run.len() as u64, &mut [0]).unwrap_err().to_string();
    assert!(outside.contains("layer 1 mlp") && outside.contains(&run.len().to_string()));
    let absent = store.read(Place { part: Part::Mlp, layer: 2 }, 0, &mut [0]).unwrap_err();
    assert!(absent.to_string().contains("no run `layer 2 mlp`"));
}
