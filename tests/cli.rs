//! The command line as a user types it.

#![allow(clippy::unwrap_used, reason = "a command that cannot be started must stop the test")]

use std::fs;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use tempfile::TempDir;

fn pipo(folder: &Path, line: &str) -> Output {
    let mut command = Command::cargo_bin("pipo").unwrap();
    command.current_dir(folder).args(line.split_whitespace()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a line that must succeed.
fn good(folder: &Path, line: &str) -> String {
    let output = pipo(folder, line);
    assert!(output.status.success(), "`pipo {line}` failed: {}", stderr(&output));
    stdout(&output)
}

/// Runs a line that must fail with a code, and returns what it says.
fn bad(folder: &Path, line: &str, code: i32) -> String {
    let output = pipo(folder, line);
    assert_eq!(output.status.code(), Some(code), "`pipo {line}`: {}", stderr(&output));
    stderr(&output)
}

/// A request small enough for a test without optimisation.
const SMALL: &str = "tune --model opt-1.3b --gpu-mem 1GB --prompt 64 --new-tokens 4 --batch 2";

#[test]
fn tuning_leaves_a_plan_a_picture_and_a_trace_that_the_other_commands_read() {
    let folder = TempDir::new().unwrap();
    let text = good(folder.path(), SMALL);
    for expected in [
        "model ",
        "machine ",
        "verdict ",
        "candidates",
        "Memory",
        "tokens/s",
        "nvml",
        "kernel",
        "ceiling",
        "What if",
        "runner-up",
        "baseline flexgen",
    ] {
        assert!(text.contains(expected), "`{expected}` is not in:\n{text}");
    }
    for file in ["plan.toml", "plan.svg", "plan.trace.json"] {
        assert!(folder.path().join(file).is_file(), "{file} was not written");
    }
    let explained = good(folder.path(), "explain plan.toml");
    assert!(explained.contains("critical path") && explained.contains("ceiling"));
    good(
        folder.path(),
        "simulate plan.toml --timeline t.json --svg t.svg --trace t.trace.json --csv t.csv",
    );
    good(folder.path(), "plot t.json -o drawn.svg");
    let drawn = fs::read_to_string(folder.path().join("drawn.svg")).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"));
    let trace = fs::read_to_string(folder.path().join("t.trace.json")).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&trace).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().len() > 100);
    for engine in ["llama.cpp", "accelerate", "vllm", "flexgen", "deepspeed"] {
        assert!(!good(folder.path(), &format!("emit plan.toml {engine}")).is_empty());
    }
}

#[test]
fn the_same_request_gives_the_same_bytes_on_one_thread_and_on_two() {
    let outputs = |threads: u32, folder: &Path| {
        let text = good(folder, &format!("{SMALL} --threads {threads} --seed 7"));
        let files = "simulate plan.toml --timeline t.json --svg t.svg --trace t.trace --csv t.csv";
        good(folder, files);
        let mut all = vec![text.into_bytes()];
        for file in
            ["plan.toml", "plan.svg", "plan.trace.json", "t.json", "t.svg", "t.trace", "t.csv"]
        {
            all.push(fs::read(folder.join(file)).unwrap());
        }
        all
    };
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap()];
    let one = outputs(1, folders[0].path());
    assert_eq!(one, outputs(2, folders[1].path()), "one thread against two");
    assert_eq!(one, outputs(2, folders[2].path()), "a second run");
}

#[test]
fn the_plan_and_its_runners_up_are_written_best_first() {
    let folder = TempDir::new().unwrap();
    good(folder.path(), &format!("{SMALL} --top 3 --plans ranked"));
    let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
    assert_eq!(read("ranked/01.toml"), read("plan.toml"));
    let mut ranked: Vec<String> =
        (1..=4).map(|rank| read(&format!("ranked/0{rank}.toml"))).collect();
    ranked.dedup();
    assert_eq!(ranked.len(), 4, "each is another plan");
    assert_eq!(fs::read_dir(folder.path().join("ranked")).unwrap().count(), 4);
    good(folder.path(), "simulate ranked/04.toml");
}

#[test]
fn what_run_cannot_execute_is_said_and_left_out_on_request() {
    let folder = TempDir::new().unwrap();
    let line = format!("{SMALL} --strategy cpu-split");
    let text = good(folder.path(), &line);
    assert!(text.contains("cannot execute this plan") && text.contains("--runnable"), "{text}");
    let text = bad(folder.path(), &format!("{line} --runnable"), 1);
    assert!(text.contains("cpu-split"), "{text}");
    let text = good(folder.path(), &format!("{line},flexgen --runnable"));
    assert!(!text.contains("cannot execute"), "{text}");
    let plan = fs::read_to_string(folder.path().join("plan.toml")).unwrap();
    assert!(plan.contains("strategy = \"flexgen\""), "{plan}");
}

#[test]
fn a_model_that_fits_needs_no_offload() {
    let folder = TempDir::new().unwrap();
    let line = "tune --model opt-1.3b --gpu-mem 4GB --prompt 32 --new-tokens 2 --batch 1";
    assert!(good(folder.path(), line).contains("no offload needed"));
}

#[test]
fn a_budget_beyond_the_machine_is_noted() {
    let folder = TempDir::new().unwrap();
    let tune = |more: &str| good(folder.path(), &format!("{SMALL} --strategy flexgen {more}"));
    assert!(!tune("").contains("less than this budget"));
    let text = tune("--host-mem 99GB");
    let note = "note     the machine has 17.2 GB (16.0 GiB) of host memory, less than this budget";
    assert!(text.contains(note), "{text}");
    assert!(!text.contains("of GPU memory, less than"), "{text}");
}

#[test]
fn what_cannot_be_met_is_said_with_its_reason() {
    let folder = TempDir::new().unwrap();
    let nothing = bad(folder.path(), "tune --model opt-1.3b --gpu-mem 200MB --prompt 64", 3);
    assert!(nothing.contains("no plan fits") && nothing.contains("--gpu-mem"), "{nothing}");
    let one = bad(folder.path(), "tune --strategy resident --gpu-mem 6GB", 3);
    assert!(one.contains("none of the strategies asked for fits: budget.gpu"), "{one}");
    let slow = bad(folder.path(), &format!("{SMALL} --token-within 1us"), 3);
    assert!(slow.contains("alone needs"), "{slow}");
}

#[test]
fn a_config_json_and_its_folder_are_models() {
    let folder = TempDir::new().unwrap();
    let config = r#"{"model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 1000, "max_position_embeddings": 2048, "tie_word_embeddings": false}"#;
    fs::create_dir(folder.path().join("tiny")).unwrap();
    fs::write(folder.path().join("tiny/config.json"), config).unwrap();
    assert!(good(folder.path(), "models tiny").contains("tiny: llama, 4 layers"));
    assert!(good(folder.path(), "models tiny/config.json").contains("4 layers"));
    good(folder.path(), "tune --model tiny --prompt 16 --new-tokens 2 --batch 1");
}

#[test]
fn bad_input_is_refused_where_it_stands() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for size in ["6g", "-1GB", "1e99GB", "6"] {
        let text = bad(at, &format!("tune --gpu-mem={size}"), 2);
        assert!(text.contains(size) && text.contains("GB"), "{text}");
    }
    assert!(bad(at, "tune --model opt-13", 1).contains("did you mean `opt-13b`"));
    assert!(bad(at, "tune --machine rtx3060", 1).contains("did you mean `rtx3060-laptop`"));
    fs::write(at.join("bert.json"), r#"{"model_type": "bert"}"#).unwrap();
    assert!(bad(at, "tune --model bert.json", 1).contains("bert.json:1:"));
    fs::write(at.join("cut.json"), r#"{"model_type": "opt", "#).unwrap();
    assert!(bad(at, "models cut.json", 1).contains("cut.json:1:"));

    good(at, SMALL);
    let plan = fs::read_to_string(at.join("plan.toml")).unwrap();
    let edit = |from: &str, to: &str| {
        assert!(plan.contains(from), "{from}");
        fs::write(at.join("edited.toml"), plan.replacen(from, to, 1)).unwrap();
        bad(at, "simulate edited.toml", 1)
    };
    assert!(edit("version = 1", "version = 2").contains("edited.toml:1:11"));
    assert!(edit("[workload]\n", "[workload]\nspeed = 1\n").contains("unknown field `speed`"));
    let too_small = edit("gpu = \"1GB\"", "gpu = \"100MB\"");
    assert!(
        too_small.contains("the budget is 100 MB") && too_small.contains("edited.toml:"),
        "{too_small}"
    );
}

#[test]
fn everything_has_json() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    good(at, SMALL);
    for line in [
        "models",
        "models opt-13b",
        "machines",
        "machines h200",
        "doctor",
        "explain plan.toml",
        "simulate plan.toml",
        "emit plan.toml vllm",
        "reproduce",
    ] {
        let text = good(at, &format!("{line} --json"));
        let value: Result<serde_json::Value, _> = serde_json::from_str(&text);
        assert!(value.is_ok(), "`pipo {line} --json` printed {text}");
    }
    let error = pipo(at, "models nothing-like-it --json");
    let value: serde_json::Value = serde_json::from_slice(&error.stderr).unwrap();
    assert!(value["error"].as_str().unwrap().contains("nothing-like-it"));
}

#[test]
fn absence_of_a_gpu_is_an_answer() {
    let folder = TempDir::new().unwrap();
    let text = good(folder.path(), "doctor");
    assert!(text.contains("NVRTC") && text.contains("need none of these"));
}

#[test]
fn help_completions_and_manual_come_from_one_definition() {
    let folder = TempDir::new().unwrap();
    insta::assert_snapshot!(good(folder.path(), "--help"));
    assert!(good(folder.path(), "completions bash").contains("_pipo"));
    assert!(good(folder.path(), "man").contains(".TH pipo"));
}

#[test]
fn measurements_are_imported_into_a_profile_that_tune_accepts() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let fio = r#"{"fio version": "fio-3.36", "global options": {"direct": "1", "bs": "1M"},
        "jobs": [{"jobname": "seq", "groupid": 0, "error": 0, "job options": {"rw": "read"},
        "read": {"bw_bytes": 1500000000, "io_bytes": 15000000000, "runtime": 10000}, "write": {"bw_bytes": 0}}]}"#;
    fs::write(at.join("fio.json"), fio).unwrap();
    good(at, "machines rtx3060-laptop --fio fio.json -o mine.toml");
    let mine = fs::read_to_string(at.join("mine.toml")).unwrap();
    assert!(mine.contains("fio.json"), "the source names the file");
    good(at, &format!("{SMALL} --machine mine.toml"));
}
