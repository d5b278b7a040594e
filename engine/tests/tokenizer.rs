//! Text to tokens and back, compared with what transformers makes of it.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]

use std::path::Path;

use pipo_engine::import::{Import, Source, import};
use pipo_engine::store::{Store, TABLE, TOKENIZER};
use pipo_engine::tokenizer::{LARGEST, TextStream, Tokenizer, TokenizerError};
use pipo_plan::model::Precision;
use proptest::prelude::*;
use serde_json::Value;

const VOCABULARY: u64 = 320;

fn golden(file: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama3");
    std::fs::read(folder.join(file)).unwrap()
}

fn parse(bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::parse(bytes, TOKENIZER.into(), VOCABULARY)
}

/// Texts with their tokens.
fn cases() -> Vec<(String, Vec<u32>)> {
    let examples: Value = serde_json::from_slice(&golden("tokenizer-examples.json")).unwrap();
    let case = |case: &Value| {
        let tokens = case["ids_with_special"].clone();
        (case["text"].as_str().unwrap().into(), serde_json::from_value(tokens).unwrap())
    };
    examples["cases"].as_array().unwrap().iter().map(case).collect()
}

#[test]
fn texts_have_the_tokens_that_transformers_gives_them() {
    let tokenizer = parse(&golden(TOKENIZER)).unwrap();
    assert!(cases().len() > 3);
    for (text, tokens) in cases() {
        assert_eq!(tokenizer.encode(&text).unwrap(), tokens, "{text}");
        let shown = text.replace("<|begin|>", "").replace("<|end|>", "");
        assert_eq!(tokenizer.decode(&tokens).unwrap(), shown);
    }
}

/// What a stream shows token by token, and what it had held back.
fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> (Vec<String>, String) {
    let mut stream = TextStream::new(tokenizer);
    let pieces = tokens.iter().map(|&token| stream.push(token).unwrap()).collect();
    (pieces, stream.finish().unwrap())
}

#[test]
fn a_character_is_shown_when_all_its_bytes_are_there() {
    let tokenizer = parse(&golden(TOKENIZER)).unwrap();
    let text = "grün → 🦀!";
    let tokens = tokenizer.encode(text).unwrap();
    let (pieces, rest) = streamed(&tokenizer, &tokens);
    assert_eq!((pieces.concat().as_str(), rest.as_str()), (text, ""));
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    assert!(pieces.iter().any(String::is_empty), "the crab has several tokens");
    // A crab cut in two.
    let (pieces, rest) = streamed(&tokenizer, &tokens[..tokens.len() - 2]);
    assert_eq!(pieces.concat(), "grün → ");
    assert!(rest.chars().all(|c| c == '\u{fffd}') && !rest.is_empty());
}

#[test]
fn what_would_change_a_prompt_in_silence_is_ignored() {
    let mut json: Value = serde_json::from_slice(&golden(TOKENIZER)).unwrap();
    json["truncation"] = serde_json::json!({
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
    });
    json["padding"] = serde_json::json!({
        "strategy": { "Fixed": 1_u64 << 60 }, "direction": "Left", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|begin|>"
    });
    let tokenizer = parse(json.to_string().as_bytes()).unwrap();
    for (text, tokens) in cases() {
        assert_eq!(tokenizer.encode(&text).unwrap(), tokens);
    }
}

#[test]
fn errors_say_what_to_do() {
    let message = |error: TokenizerError| error.to_string();
    insta::assert_snapshot!(message(parse(b"{").unwrap_err()), @"tokenizer.json is no tokenizer that can be used: EOF while parsing an object at line 1 column 1; download the file again, or move it away to import without it");
    let other = Tokenizer::parse(&golden(TOKENIZER), TOKENIZER.into(), 300).unwrap();
    insta::assert_snapshot!(message(other.encode("The link").unwrap_err()), @"tokenizer.json makes the token 315 of the text, the model's vocabulary has 300; import again with the tokenizer.json of this model");
}

/// A store of the golden model.
fn store() -> (tempfile::TempDir, Store) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama3");
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("store");
    let source = Source::Checkpoint(&folder);
    let request = Import { source, precision: Precision::Int8, target: &target };
    assert!(import(&request, &mut |_| {}).unwrap().tokenizer);
    let store = Store::open(&target).unwrap();
    (scratch, store)
}

#[test]
fn a_store_has_the_checkpoints_tokenizer_and_notices_another() {
    let (_scratch, store) = store();
    assert_eq!(store.tokenizer().unwrap().unwrap(), golden(TOKENIZER));
    assert_eq!(Tokenizer::of(&store).unwrap().encode("The").unwrap(), [0, 295]);
    let mut bytes = golden(TOKENIZER);
    *bytes.last_mut().unwrap() ^= 1;
    for bad in [bytes.as_slice(), &bytes[..100], &[bytes.as_slice(), b" "].concat()] {
        std::fs::write(store.tokenizer_path(), bad).unwrap();
        let error = Tokenizer::of(&store).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json has") && error.contains("import"), "{error}");
    }
    std::fs::remove_file(store.tokenizer_path()).unwrap();
    let error = Tokenizer::of(&store).unwrap_err().to_string();
    assert!(error.contains("cannot open") && error.contains("tokenizer.json"), "{error}");
}

#[test]
fn a_file_larger_than_any_tokenizer_or_a_broken_one_stops_the_import() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, target) = (scratch.path().join("model"), scratch.path().join("store"));
    std::fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::write(folder.join(file), golden(file)).unwrap();
    }
    let source = Source::Checkpoint(&folder);
    let request = Import { source, precision: Precision::Int8, target: &target };
    let path = folder.join(TOKENIZER);
    std::fs::File::create(&path).unwrap().set_len(LARGEST + 1).unwrap();
    let error = import(&request, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json has 67108865 bytes"), "{error}");
    std::fs::write(&path, "[]").unwrap();
    let error = import(&request, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is no tokenizer"), "{error}");
    assert!(!target.exists());

    // What a killed import left is recognised, the tokenizer too.
    std::fs::remove_file(&path).unwrap();
    let abandoned = scratch.path().join(".store.importing");
    std::fs::create_dir(&abandoned).unwrap();
    std::fs::write(abandoned.join(TOKENIZER), golden(TOKENIZER)).unwrap();
    assert!(!import(&request, &mut |_| {}).unwrap().tokenizer);
    let store = Store::open(&target).unwrap();
    let error = Tokenizer::of(&store).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is not there") && error.contains("--tokens"), "{error}");
    assert!(!abandoned.exists());
}

#[test]
fn a_table_that_says_it_has_no_tokenizer_is_believed_only_with_its_own_checksum() {
    let (_scratch, store) = store();
    let path = store.data_path().with_file_name(TABLE);
    let table = std::fs::read_to_string(&path).unwrap();
    let kept = |line: &&str| !line.starts_with("\"tokenizer\"");
    let bare: Vec<&str> = table.lines().filter(kept).collect();
    assert!(bare.len() < table.lines().count());
    std::fs::write(&path, bare.join("\n")).unwrap();
    let error = Store::open(path.parent().unwrap()).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
}

proptest! {
    /// Whatever bytes tokens stand for, what is shown piece by piece is the text of the whole.
    #[test]
    fn a_stream_shows_the_text_of_the_whole(
        tokens in prop::collection::vec(0..330_u32, 0..60)
    ) {
        let tokenizer = parse(&golden(TOKENIZER)).unwrap();
        let (pieces, rest) = streamed(&tokenizer, &tokens);
        prop_assert_eq!(pieces.concat() + &rest, tokenizer.decode(&tokens).unwrap());
    }

    /// A damaged file is an error or a tokenizer, never a panic.
    #[test]
    fn a_damaged_tokenizer_never_panics(
        at in prop::collection::vec((0..9797_usize, any::<u8>()), 1..4), cut in 0..9797_usize, whole in any::<bool>()
    ) {
        let mut bytes = golden(TOKENIZER);
        for (at, byte) in at {
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut);
        }
        if let Ok(tokenizer) = parse(&bytes) {
            let tokens = tokenizer.encode("The link carries 12 weights, grün 🦀");
            prop_assert!(tokens.is_err() || tokenizer.decode(&tokens.unwrap()).is_ok());
        }
    }
}
