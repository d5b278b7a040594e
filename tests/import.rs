//! `pipo import` as a user types it.

#![allow(clippy::unwrap_used, reason = "a command that cannot be started must stop the test")]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use shell::{bad, good};

mod shell;

/// Names of everything in a folder, hidden files too.
fn listed(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A folder with a one-layer Llama in `tiny/`, every number of it 0.25, norms aside.
fn tiny() -> TempDir {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("tiny");
    fs::create_dir(&model).unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32,
        "max_position_embeddings": 128, "tie_word_embeddings": true,
    });
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![32, 64]),
        (layer("input_layernorm"), vec![64]),
        (layer("self_attn.q_proj"), vec![64, 64]),
        (layer("self_attn.k_proj"), vec![32, 64]),
        (layer("self_attn.v_proj"), vec![32, 64]),
        (layer("self_attn.o_proj"), vec![64, 64]),
        (layer("post_attention_layernorm"), vec![64]),
        (layer("mlp.gate_proj"), vec![128, 64]),
        (layer("mlp.up_proj"), vec![128, 64]),
        (layer("mlp.down_proj"), vec![64, 128]),
        ("model.norm.weight".to_owned(), vec![64]),
    ];
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            data.extend(0.25_f32.to_le_bytes());
        }
        let offsets = [start, data.len()];
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": offsets }));
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    fs::write(model.join("model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn a_checkpoint_becomes_a_store_and_the_errors_are_shown() {
    let folder = tiny();
    let at = folder.path();
    for precision in ["fp16", "bf16", "int8", "int4"] {
        let text = good(at, &format!("import tiny --weights {precision} -o {precision}"));
        for expected in ["tiny", "store ", precision, "Relative error", "mlp down", "Worst tensors"]
        {
            assert!(text.contains(expected), "`{expected}` is not in:\n{text}");
        }
        assert_eq!(listed(&at.join(precision)), ["store.json", "weights.bin"]);
    }
    assert_eq!(listed(at), ["bf16", "fp16", "int4", "int8", "tiny"]);
}

#[test]
fn random_weights_are_those_of_their_seed() {
    let folder = tiny();
    let at = folder.path();
    for (store, seed) in [("a", ""), ("b", "--seed 1 --threads 1"), ("c", "--seed 2")] {
        good(at, &format!("import --random tiny --weights int8 -o {store} {seed}"));
    }
    let weights = |store: &str| fs::read(at.join(store).join("weights.bin")).unwrap();
    assert_eq!(weights("a"), weights("b"));
    assert_ne!(weights("a"), weights("c"));
}

#[test]
fn programs_get_every_tensor() {
    let folder = tiny();
    let text = good(folder.path(), "import tiny --weights int4 -o store --json");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["weights"], "int4");
    assert_eq!(value["tensors"].as_array().unwrap().len(), 11);
    // A quarter is a half's own number: a minimum that leaves nothing for the codes to do.
    assert_eq!(value["relative_error"], 0.0);
    let length = fs::metadata(folder.path().join("store/weights.bin")).unwrap().len();
    assert_eq!(value["bytes"], length);
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let folder = tiny();
    let at = folder.path();
    assert!(bad(at, "import -o store", 2).contains("DIR"));
    assert!(bad(at, "import tiny", 2).contains("--output"));
    assert!(bad(at, "import tiny --random opt-125m -o store", 2).contains("--random"));
    assert!(bad(at, "import tiny --seed 3 -o store", 2).contains("--seed"));
    assert!(bad(at, "import tiny --weights int2 -o store", 2).contains("int4"));
    assert!(bad(at, "import nowhere -o store", 1).contains("nowhere/config.json"));
    assert!(bad(at, "import --random opt-125 -o store", 1).contains("did you mean `opt-125m`"));
    assert!(bad(at, "import tiny -o no/such/place", 1).contains("no/such"));
    good(at, "import tiny -o store");
    assert!(bad(at, "import tiny -o store", 1).contains("exists already"));
    assert_eq!(listed(at), ["store", "tiny"]);
}

#[test]
fn a_damaged_checkpoint_leaves_nothing_behind() {
    let folder = tiny();
    let at = folder.path();
    let path = at.join("tiny/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    assert!(bad(at, "import tiny -o store", 1).contains("`head norm` holds NaN"));
    bytes.truncate(last);
    fs::write(&path, &bytes).unwrap();
    assert!(bad(at, "import tiny -o store", 1).contains("model.norm.weight"));
    assert_eq!(listed(at), ["tiny"]);
}

/// The system's own limit on a file's length: the write that passes it fails as on a full disk.
#[test]
#[cfg(target_os = "linux")]
fn a_write_that_the_system_refuses_leaves_nothing_behind() {
    let folder = tiny();
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$0\" import tiny --weights fp16 -o store";
    let output = std::process::Command::new("bash")
        .args(["-c", script])
        .arg(assert_cmd::cargo::cargo_bin!("pipo"))
        .current_dir(folder.path())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write") && error.contains("weights.bin"), "{error}");
    assert_eq!(listed(folder.path()), ["tiny"]);
}

#[test]
fn what_a_killed_import_leaves_is_recognised_and_removed_by_the_next() {
    let folder = tiny();
    let at = folder.path();
    let mut killed = std::process::Command::new(assert_cmd::cargo::cargo_bin!("pipo"))
        .args(["import", "--random", "opt-6.7b", "-o", "store"])
        .current_dir(at)
        .spawn()
        .unwrap();
    let begun = at.join(".store.importing/weights.bin");
    while !begun.metadata().is_ok_and(|data| data.len() > 0) {
        assert!(killed.try_wait().unwrap().is_none(), "it ended before it began");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(bad(at, "import tiny -o store", 1).contains("another import is writing"));
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(listed(at), [".store.importing", "tiny"]);
    good(at, "import tiny -o store");
    assert_eq!(listed(at), ["store", "tiny"]);
}
