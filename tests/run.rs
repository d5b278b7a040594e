//! `pipo run` as a user types it, on a golden model with its tokenizer.

#![allow(clippy::unwrap_used, reason = "a command that cannot be started must stop the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

fn pipo(folder: &Path, words: &[&str]) -> Output {
    // What is expected here was computed on the CPU, also on a machine with a GPU.
    let backend: &[&str] = if words.first() == Some(&"run") { &["--backend", "cpu"] } else { &[] };
    let mut command = Command::cargo_bin("pipo").unwrap();
    command.current_dir(folder).args(words).args(backend).output().unwrap()
}

/// Standard output and error of a line that must succeed.
fn good(folder: &Path, words: &[&str]) -> (String, String) {
    let output = pipo(folder, words);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "`pipo {words:?}` failed: {error}");
    (String::from_utf8(output.stdout).unwrap(), error)
}

/// What a line says that must fail with a code.
fn bad(folder: &Path, words: &[&str], code: i32) -> String {
    let output = pipo(folder, words);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "`pipo {words:?}`: {error}");
    error
}

fn document(folder: &Path, words: &[&str]) -> Value {
    serde_json::from_str(&good(folder, words).0).unwrap()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/tests/golden/llama3")
}

/// A folder with the golden model in `store/` and two plans for it: what the tuner made of PIPO, for two
/// prompts of 24 tokens, and everything on the device, for one.
fn tuned() -> TempDir {
    let folder = TempDir::new().unwrap();
    let (at, model) = (folder.path(), golden().display().to_string());
    good(at, &["import", &model, "--weights", "fp16", "-o", "store"]);
    let tune = |strategy: &str, batch: &str| {
        let plan = format!("{strategy}.toml");
        let request =
            ["--model", &model, "--weights", "fp16", "--prompt", "24", "--new-tokens", "6"];
        let choice = ["--strategy", strategy, "--batch", batch, "--gpu-mem", "2GB", "-o", &plan];
        good(at, &[&["tune"], request.as_slice(), choice.as_slice()].concat());
    };
    tune("pipo", "2");
    tune("resident", "1");
    for picture in ["pipo.svg", "pipo.trace.json", "resident.svg", "resident.trace.json"] {
        fs::remove_file(at.join(picture)).unwrap();
    }
    folder
}

/// What transformers says: prompts, and the tokens after them.
fn expected() -> Value {
    serde_json::from_str(&fs::read_to_string(golden().join("golden.json")).unwrap()).unwrap()
}

fn ids(tokens: &Value) -> String {
    let tokens = tokens.as_array().unwrap();
    tokens.iter().map(Value::to_string).collect::<Vec<_>>().join(",")
}

const STORE: [&str; 2] = ["--model", "store"];

#[test]
fn token_ids_give_the_tokens_of_transformers_whatever_the_plan_was_for() {
    let folder = tuned();
    let (at, golden) = (folder.path(), expected());
    let prompts = [ids(&golden["prompts"][0]), ids(&golden["prompts"][1])];
    fs::write(at.join("ids.txt"), prompts.join("\n\n")).unwrap();
    for plan in ["pipo.toml", "resident.toml"] {
        let words = [
            "run",
            plan,
            "--model",
            "store",
            "--tokens-file",
            "ids.txt",
            "--new-tokens",
            "20",
            "--json",
        ];
        let value = document(at, &words);
        for sequence in 0..2 {
            let tokens = value["sequences"][sequence]["tokens"].as_array().unwrap();
            assert_eq!(tokens.as_slice(), &golden["greedy"][sequence].as_array().unwrap()[..20]);
            assert_eq!(value["sequences"][sequence]["prompt"], golden["prompts"][sequence]);
        }
        assert_eq!(value["runs"][0]["sequences"], 2);
        assert!(value["runs"][0]["figures"]["tokens_per_second"].as_f64().unwrap() > 0.0);
        assert!(value["runs"][0]["memory"]["GPU"].as_u64().unwrap() > 0);
    }
}

#[test]
fn one_prompt_is_its_text_on_standard_output_and_all_else_beside_it() {
    let folder = tuned();
    let run = |plan: &str, more: &[&str]| {
        let prompt = ["--prompt", "The link carries the weights of the next layer."];
        let words = [&["run", plan], STORE.as_slice(), &prompt, more].concat();
        good(folder.path(), &words)
    };
    let (text, notes) = run("pipo.toml", &[]);
    assert_eq!(text, run("resident.toml", &["--threads", "2"]).0);
    assert!(notes.contains("adapted to 1 x 24 tokens and 6 new ones"), "{notes}");
    for word in ["tokens/s", "decode", "prefill", "memory", "GPU", "CPU"] {
        assert!(notes.contains(word), "`{word}` is not in {notes}");
    }
    // The plan is for one prompt of as many tokens: there is nothing to adapt.
    assert!(!run("resident.toml", &[]).1.contains("adapted"));

    // The stream is the text of the tokens, whatever bytes they are.
    let value: Value = serde_json::from_str(&run("pipo.toml", &["--json"]).0).unwrap();
    assert_eq!(text, format!("{}\n", value["sequences"][0]["text"].as_str().unwrap()));
    assert_eq!(value["sequences"][0]["tokens"].as_array().unwrap().len(), 6);
    assert_eq!(value["sequences"][0]["ended"], false);
}

#[test]
fn prompts_of_several_lengths_come_out_in_their_order() {
    let folder = tuned();
    let at = folder.path();
    let prompts = ["The link carries", "The processor waits for the weights", "The link carries"];
    fs::write(at.join("prompts.txt"), prompts.join("\n\n")).unwrap();
    let file = ["run", "pipo.toml", "--model", "store", "--prompt-file", "prompts.txt"];
    let (text, notes) = good(at, &file);
    for (line, prompt) in text.split_inclusive("\n[").zip(prompts) {
        let (alone, _) = good(at, &["run", "pipo.toml", "--model", "store", "--prompt", prompt]);
        assert!(line.contains(alone.trim_end_matches('\n')), "{line:?} is not {alone:?}");
    }
    let numbers: Vec<usize> = ["[1] ", "[2] ", "[3] "].map(|n| text.find(n).unwrap()).to_vec();
    assert!(numbers.is_sorted(), "{text}");
    assert_eq!(notes.matches("adapted to").count(), 2, "{notes}");
    for wanted in [["--svg", "run.svg"], ["--counters", "run.csv"]] {
        let refused = bad(at, &[file.as_slice(), &wanted].concat(), 1);
        assert!(
            refused.contains("2 different lengths") && refused.contains(wanted[0]),
            "{refused}"
        );
    }
}

#[test]
fn what_cannot_be_written_is_said_before_anything_runs() {
    let folder = tuned();
    let at = folder.path();
    let run = ["run", "pipo.toml", "--model", "store", "--prompt", "The link carries"];
    fs::write(at.join("file"), "").unwrap();
    for (wanted, why) in [
        (["--csv", "store"], "it is a folder"),
        (["--trace", "file/trace.json"], "cannot create the folder file"),
        (["--counters", "counters.csv"], "the CPU has none that NVML reads"),
    ] {
        let line = [run.as_slice(), &wanted].concat();
        let refused = bad(at, &line, 1);
        assert!(refused.contains(why), "{wanted:?}: {refused}");
        assert!(!refused.contains("tokens/s"), "{refused}");
    }
    let taken = bad(at, &["tune", "--model", "opt-125m", "-o", "store"], 1);
    assert!(taken.contains("it is a folder"), "{taken}");
}

#[test]
fn drawn_text_follows_from_its_seed() {
    let folder = tuned();
    let run = |more: &[&str]| {
        let words = ["run", "pipo.toml", "--random-prompt", "--temperature", "1.5", "--json"];
        let value = document(folder.path(), &[&words, STORE.as_slice(), more].concat());
        value["sequences"].clone()
    };
    let first = run(&["--seed", "3"]);
    assert_eq!(first, run(&["--seed", "3"]));
    assert_ne!(first, run(&["--seed", "4"]));
    assert_ne!(first, run(&["--seed", "3", "--top-k", "1"]));
    assert_eq!(first[1]["prompt"].as_array().unwrap().len(), 24);
}

#[test]
fn the_measured_timeline_is_written_as_simulate_does() {
    let folder = tuned();
    let at = folder.path();
    let files =
        ["--timeline", "t.json", "--svg", "t.svg", "--trace", "t.trace.json", "--csv", "t.csv"];
    let prompt = ["run", "pipo.toml", "--model", "store", "--random-prompt", "--json"];
    let value = document(at, &[prompt.as_slice(), &files].concat());
    assert_eq!(value["wrote"], json!(["t.json", "t.svg", "t.trace.json", "t.csv"]));
    good(at, &["plot", "t.json", "-o", "drawn.svg"]);
    assert!(fs::read_to_string(at.join("t.svg")).unwrap().contains("measured"));
    assert!(fs::read_to_string(at.join("t.trace.json")).unwrap().contains("measured"));
    assert!(fs::read_to_string(at.join("t.csv")).unwrap().lines().count() > 20);
}

#[test]
fn a_text_ends_at_its_end_token() {
    let folder = tuned();
    let at = folder.path();
    let words = ["run", "pipo.toml", "--model", "store", "--prompt", "The link", "--json"];
    let value = document(at, &words);
    let tokens = value["sequences"][0]["tokens"].as_array().unwrap().clone();
    // The same model, which calls the third of these tokens an end.
    let model = at.join("model");
    fs::create_dir(&model).unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::copy(golden().join(file), model.join(file)).unwrap();
    }
    let config = fs::read_to_string(golden().join("config.json")).unwrap();
    let ends = format!("\"eos_token_id\": {}", tokens[2]);
    fs::write(model.join("config.json"), config.replace("\"eos_token_id\": [1, 2]", &ends))
        .unwrap();
    good(at, &["import", "model", "--weights", "fp16", "-o", "ends"]);
    let run = |more: &[&str]| {
        let words = ["run", "pipo.toml", "--model", "ends", "--prompt", "The link"];
        good(at, &[words.as_slice(), more].concat()).0
    };
    let ended: Value = serde_json::from_str(&run(&["--json"])).unwrap();
    let ended = &ended["sequences"][0];
    assert_eq!(ended["ended"], true);
    assert_eq!(ended["tokens"].as_array().unwrap(), &tokens, "the computation goes on");
    let text = ended["text"].as_str().unwrap();
    assert_ne!(ended["text"], value["sequences"][0]["text"]);
    assert_eq!(run(&[]), format!("{text}\n"));
}

#[test]
fn what_is_missing_or_does_not_belong_together_is_said() {
    let folder = tuned();
    let at = folder.path();
    let run = |plan: &str, store: &str, more: &[&str], code: i32| {
        bad(at, &[&["run", plan, "--model", store], more].concat(), code)
    };
    let model = golden().display().to_string();
    good(at, &["import", "--random", &model, "--weights", "fp16", "-o", "random"]);
    let error = run("pipo.toml", "random", &["--prompt", "The link"], 1);
    for word in ["random/tokenizer.json", "--tokens", "import again"] {
        assert!(error.contains(word), "{error}");
    }
    let (text, _) = good(at, &["run", "pipo.toml", "--model", "random", "--tokens", "1, 2,3"]);
    assert_eq!(text.split_whitespace().filter(|id| id.parse::<u32>().is_ok()).count(), 6, "{text}");

    good(at, &["import", &model, "--weights", "int8", "-o", "int8"]);
    assert!(
        run("pipo.toml", "int8", &["--random-prompt"], 1).contains("import with --weights fp16")
    );
    good(at, &["import", &golden().with_file_name("opt").display().to_string(), "-o", "opt"]);
    let error = run("pipo.toml", "opt", &["--tokens", "1"], 1);
    assert!(error.contains("the plan is for `llama3`, the store holds `opt`"), "{error}");

    assert!(
        run("pipo.toml", "store", &["--tokens", "1", "--threads", "0"], 2).contains("1..=1024")
    );
    assert!(run("pipo.toml", "store", &[], 2).contains("--prompt"));
    assert!(
        run("pipo.toml", "store", &["--prompt", "a", "--tokens", "1"], 2)
            .contains("cannot be used")
    );
    assert!(run("pipo.toml", "nowhere", &["--prompt", "a"], 1).contains("nowhere/store.json"));
    assert!(run("nowhere.toml", "store", &["--prompt", "a"], 1).contains("nowhere.toml"));
    assert!(run("pipo.toml", "store", &["--tokens", "1,x"], 1).contains("`x` is no token id"));
    assert!(run("pipo.toml", "store", &["--tokens", "320"], 1).contains("vocabulary 320"));
    fs::write(at.join("empty.txt"), "\n \n").unwrap();
    assert!(run("pipo.toml", "store", &["--prompt-file", "empty.txt"], 1).contains("no prompts"));
    fs::write(at.join("bad.txt"), "1,2\n3;4\n").unwrap();
    assert!(run("pipo.toml", "store", &["--tokens-file", "bad.txt"], 1).contains("bad.txt:2"));
    let long = ["--random-prompt", "--new-tokens", "600"];
    assert!(run("pipo.toml", "store", &long, 1).contains("the model was made for 512"));
    let hot = ["--prompt", "a", "--temperature=-1"];
    assert!(run("pipo.toml", "store", &hot, 1).contains("the temperature is -1"));

    // More prompts than the plan's budget has room for.
    let plan = fs::read_to_string(at.join("pipo.toml")).unwrap();
    let poor = plan.replace("gpu = \"2GB\"", "gpu = \"400kB\"");
    assert_ne!(plan, poor);
    fs::write(at.join("poor.toml"), poor).unwrap();
    fs::write(at.join("many.txt"), "The link carries the weights of the next layer.\n".repeat(200))
        .unwrap();
    good(at, &["run", "poor.toml", "--model", "store", "--prompt", "The link"]);
    let error = run("poor.toml", "store", &["--prompt-file", "many.txt"], 1);
    assert!(error.contains("adapted to 200 x 24 tokens") && error.contains("budget"), "{error}");
}
