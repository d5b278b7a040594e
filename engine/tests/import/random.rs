//! Random weights: the right shapes and sizes, the same from the same seed.

use std::fs;
use std::path::Path;

use pipo_engine::import::{Import, Source, import};
use pipo_engine::store::{DATA, Origin, Place, Store};
use pipo_plan::diagnostic::Document;
use pipo_plan::model::{Model, Part, Precision};
use tempfile::TempDir;

use crate::checkpoint::{FAMILIES, small};
use crate::support::{listed, stored};

fn model(family: &str) -> Model {
    let config = small(family, "F32", false).config.to_string();
    Model::from_config(&Document::new("tiny/config.json", config)).unwrap()
}

fn fill(target: &Path, family: &str, seed: u64, precision: Precision) {
    let source = Source::Random { model: model(family), seed };
    import(&Import { source, precision, target }, &mut |_| ()).unwrap();
}

fn tensor(store: &Store, part: Part, name: &str) -> Vec<f32> {
    stored(store, Place { part, layer: 0 }, name, None)
}

#[test]
fn numbers_have_the_sizes_of_trained_ones() {
    let folder = TempDir::new().unwrap();
    let target = folder.path().join("store");
    fill(&target, "opt", 3, Precision::Fp16);
    let store = Store::open(&target).unwrap();
    assert_eq!(*store.origin(), Origin::Random { seed: 3 });
    let moments = |numbers: &[f32]| {
        let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
        let square = numbers.iter().map(|n| (n - mean).powi(2)).sum::<f32>();
        (mean, (square / numbers.len() as f32).sqrt())
    };
    let (mean, deviation) = moments(&tensor(&store, Part::Mlp, "fc1"));
    let expected = 1.0 / 72.0_f32.sqrt();
    assert!(mean.abs() < 0.01 && (deviation / expected - 1.0).abs() < 0.05, "{mean} {deviation}");
    let (mean, deviation) = moments(&tensor(&store, Part::Attention, "norm"));
    assert!((mean - 1.0).abs() < 0.02 && deviation < 0.05);
    let (mean, deviation) = moments(&tensor(&store, Part::Mlp, "fc1_bias"));
    assert!(mean.abs() < 0.02 && deviation < 0.05);
    assert_ne!(tensor(&store, Part::Attention, "q"), tensor(&store, Part::Attention, "k"));
}

#[test]
fn a_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let folder = TempDir::new().unwrap();
    let bytes = |name: &str, family: &str, seed: u64, threads: usize| {
        let target = folder.path().join(name);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| fill(&target, family, seed, Precision::Int4));
        fs::read(target.join(DATA)).unwrap()
    };
    for family in FAMILIES {
        let one = bytes(&format!("{family}-1"), family, 5, 1);
        assert_eq!(one, bytes(&format!("{family}-2"), family, 5, 2));
        assert_ne!(one, bytes(&format!("{family}-3"), family, 6, 2));
    }
}

/// Three million rows of one number have 12 MB of scales and minima in int4.
#[test]
fn scales_beyond_what_memory_is_given_wait_in_a_file() {
    let folder = TempDir::new().unwrap();
    let model = Model {
        hidden: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 1,
        ffn: 1,
        vocab: 3_000_000,
        tied_embeddings: true,
        ..model("llama")
    };
    let numbers = |precision: Precision| {
        let target = folder.path().join(precision.name());
        let source = Source::Random { model: model.clone(), seed: 1 };
        import(&Import { source, precision, target: &target }, &mut |_| ()).unwrap();
        assert!(listed(folder.path()).iter().all(|name| !name.starts_with('.')));
        tensor(&Store::open(&target).unwrap(), Part::Embedding, "tokens")
    };
    let (exact, stored) = (numbers(Precision::Fp16), numbers(Precision::Int4));
    assert!(exact.iter().zip(&stored).all(|(a, b)| (a - b).abs() <= a.abs() / 500.0 + 1e-6));
}
