//! Checkpoints that are not what they claim: each refused with its names and both values.

use std::fs;

use pipo_plan::model::Precision::{Fp16, Int4};
use serde_json::json;
use tempfile::TempDir;

use crate::checkpoint::{file, safetensors, small};
use crate::support::{refused, written};

const INDEX: &str = "tiny/model.safetensors.index.json";
const Q: &str = "model.layers.1.self_attn.q_proj.weight";

/// A good checkpoint in two shards with its index edited.
fn indexed(from: &str, to: &str) -> TempDir {
    let folder = written(&small("llama", "F32", false), 2);
    let path = folder.path().join(INDEX);
    let index = fs::read_to_string(&path).unwrap();
    assert!(index.contains(from));
    fs::write(path, index.replacen(from, to, 1)).unwrap();
    folder
}

/// A checkpoint of one file of these bytes.
fn raw(bytes: &[u8]) -> TempDir {
    let folder = written(&small("llama", "F32", false), 1);
    fs::write(folder.path().join("tiny/model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn a_missing_shard() {
    let folder = written(&small("llama", "F32", false), 3);
    fs::remove_file(folder.path().join("tiny/model-00002-of-00003.safetensors")).unwrap();
    refused(
        &folder,
        Int4,
        &["model.safetensors.index.json", "model-00002-of-00003", "download it"],
    );
}

#[test]
fn an_index_that_leads_out_of_the_folder() {
    for outside in ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\\\b"]
    {
        let folder = indexed("model-00001-of-00002.safetensors", outside);
        refused(&folder, Int4, &["not a file of the same folder"]);
    }
}

#[test]
fn an_index_that_lies() {
    let folder = indexed("lm_head.weight", "lm_head.wait");
    refused(&folder, Int4, &["`lm_head.wait`", "does not list it"]);
    let folder = indexed("\"weight_map\":", "\"weightmap\":");
    refused(&folder, Int4, &["index.json", "weight_map"]);
    let folder = indexed("{", "{{");
    refused(&folder, Int4, &["index.json:1:2"]);
}

#[test]
fn a_folder_without_weights_or_config() {
    let folder = written(&small("llama", "F32", false), 1);
    fs::remove_file(folder.path().join("tiny/model.safetensors")).unwrap();
    refused(&folder, Int4, &["neither", "safetensors"]);
    let folder = written(&small("llama", "F32", false), 1);
    fs::remove_file(folder.path().join("tiny/config.json")).unwrap();
    refused(&folder, Int4, &["config.json"]);
}

#[test]
fn headers_that_claim_more_than_there_is() {
    let mut huge = (1_u64 << 60).to_le_bytes().to_vec();
    huge.extend([b' '; 100]);
    refused(&raw(&huge), Int4, &["model.safetensors", &(1_u64 << 60).to_string(), "believed"]);
    let mut long = 1000_u64.to_le_bytes().to_vec();
    long.extend(b"{}");
    refused(&raw(&long), Int4, &["has 10 bytes", "needs 1008"]);
    refused(&raw(b"abc"), Int4, &["has 3 bytes", "needs 8"]);
    refused(&raw(b""), Int4, &["has 0 bytes"]);
}

#[test]
fn tensors_that_cannot_lie_where_the_header_says() {
    let header = |entries: &str| raw(&file(entries, &[0; 64]));
    let past = r#"{"a": {"dtype": "F32", "shape": [32], "data_offsets": [0, 128]}}"#;
    refused(&header(past), Int4, &["`a`", "0 to 128", "has 64"]);
    let beyond =
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1152921504606846976]}}"#;
    refused(&header(beyond), Int4, &["`a`", "1152921504606846976"]);
    let backwards = r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}"#;
    refused(&header(backwards), Int4, &["`a`", "8 to 4"]);
    let wrong = r#"{"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}"#;
    refused(&header(wrong), Int4, &["`a` has 16 bytes", "[5] in F32 needs 20"]);
    let overflow =
        r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 16]}}"#;
    refused(&header(overflow), Int4, &["more than any file has"]);
    let overlap = r#"{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [12, 28]}}"#;
    refused(&header(overlap), Int4, &["`a` ends", "`b` begins"]);
    let twice = r#"{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}}"#;
    refused(&header(twice), Int4, &["`a` is listed twice"]);
    refused(&header("[1]"), Int4, &["malformed"]);
    refused(&header(&"[".repeat(100_000)), Int4, &["malformed"]);
}

#[test]
fn a_file_that_ends_early() {
    let checkpoint = small("llama", "F32", false);
    let bytes = safetensors(&checkpoint.tensors.iter().collect::<Vec<_>>(), "F32");
    refused(&raw(&bytes[..bytes.len() - 1]), Int4, &["lm_head.weight", "download"]);
}

#[test]
fn tensors_that_are_not_those_of_the_config() {
    let mut missing = small("llama", "F32", false);
    missing.tensors.retain(|tensor| tensor.called != Q);
    refused(&written(&missing, 1), Int4, &["tiny", Q, "layer 1 attention q"]);

    let mut shape = small("llama", "F32", false);
    shape.tensor(Q).shape.reverse();
    refused(&written(&shape, 1), Int4, &["model.safetensors", Q, "[72, 80]", "[80, 72]"]);

    let mut more = small("llama", "F32", false);
    let mut bias = more.tensors[1].clone();
    bias.called = Q.replace("weight", "bias");
    more.tensors.push(bias);
    refused(&written(&more, 1), Int4, &["q_proj.bias", "belongs to nothing"]);

    let mut fewer = small("llama", "F32", false);
    fewer.config["num_hidden_layers"] = json!(1);
    refused(&written(&fewer, 1), Int4, &["model.layers.1.", "belongs to nothing"]);
}

#[test]
fn numbers_of_another_kind() {
    let mut checkpoint = small("llama", "F32", false);
    checkpoint.dtype = "I32";
    refused(&written(&checkpoint, 1), Int4, &["`model.embed_tokens.weight`", "`I32`", "BF16"]);
    checkpoint.dtype = "Q4_K";
    refused(&written(&checkpoint, 1), Int4, &["`Q4_K`"]);
}

#[test]
fn numbers_that_no_format_holds() {
    for (number, precision, words) in [
        (f32::NAN, Int4, ["NaN", "int4", "damaged"]),
        (f32::INFINITY, Fp16, ["inf", "fp16", "damaged"]),
        (1e6, Fp16, ["1000000", "fp16", "bf16 can"]),
    ] {
        let mut checkpoint = small("llama", "F32", false);
        checkpoint.tensor(Q).numbers[72 * 3 + 5] = number;
        let place = ["layer 1 attention q", "row 3, column 5"];
        refused(&written(&checkpoint, 1), precision, &[&words[..], &place].concat());
    }
}
