//! `pipo bench` as a user types it.

#![allow(clippy::unwrap_used, reason = "a command that cannot be started must stop the test")]

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use shell::{bad, good};

mod shell;

/// A golden model in `store/`, and a plan of PIPO for two sequences of it.
fn tuned() -> TempDir {
    let folder = TempDir::new().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/tests/golden/llama3");
    let golden = golden.display();
    good(folder.path(), &format!("import {golden} --weights int4 -o store"));
    let tune = "tune --prompt 24 --new-tokens 6 --batch 2 --strategy pipo --gpu-mem 2GB";
    good(folder.path(), &format!("{tune} --model {golden}"));
    folder
}

const SMALL: &str = "bench --backend cpu --model store -p 16,32 -n 8 --pg 16,8 -r 2";

/// The cells of a Markdown row.
fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split('|').map(str::trim).collect()
}

/// Reads `12.34 ± 0.56`.
fn rate(cell: &str) -> (f64, f64) {
    let (mean, deviation) = cell.split_once(" ± ").unwrap();
    (mean.parse().unwrap(), deviation.parse().unwrap())
}

#[test]
fn the_table_has_a_row_for_each_test() {
    let folder = tuned();
    let text = good(folder.path(), &format!("{SMALL} --threads 1"));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(cells(lines[0]), ["model", "size", "params", "backend", "threads", "test", "t/s"]);
    let tests: Vec<&str> = lines[2..].iter().map(|line| cells(line)[5]).collect();
    assert_eq!(tests, ["pp16", "pp32", "tg8", "pp16+tg8"]);
    for line in &lines[2..] {
        let cells = cells(line);
        assert_eq!((cells[0], cells[3], cells[4]), ("llama3 int4", "CPU", "1"));
        let (mean, deviation) = rate(cells[6]);
        assert!(mean > 0.0 && deviation >= 0.0, "{line}");
    }
}

#[test]
fn a_plan_keeps_its_sequences_and_has_a_column() {
    let folder = tuned();
    let text =
        good(folder.path(), "bench --backend cpu --model store --plan plan.toml -p 16 -n 0 -r 1");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(cells(lines[0])[5], "plan");
    let row = cells(lines[2]);
    assert_eq!((row[5], row[6]), ("plan.toml: pipo, 2 sequences", "pp16"));
    assert_eq!(lines.len(), 3);
}

#[test]
fn csv_and_json_have_every_field() {
    let folder = tuned();
    let at = folder.path();
    let text = good(at, &format!("{SMALL} --plan plan.toml -o csv"));
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 5);
    for line in &lines[1..] {
        assert_eq!(line.len(), lines[0].len());
        let rate = lines[0].iter().position(|name| *name == "avg_ts").unwrap();
        assert!(line[rate].parse::<f64>().unwrap() > 0.0);
    }
    for line in ["-o json", "--json"] {
        let rows: Value = serde_json::from_str(&good(at, &format!("{SMALL} {line}"))).unwrap();
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), 4);
        for row in rows {
            assert_eq!(row["samples_ns"].as_array().unwrap().len(), 2);
            assert_eq!((row["strategy"].as_str(), &row["plan"]), (Some("resident"), &Value::Null));
            // The rate is that of the tokens that the test counts.
            let tokens = row["n_prompt"].as_f64().unwrap() + row["n_gen"].as_f64().unwrap();
            let time = row["samples_ns"][0].as_f64().unwrap() / 1e9;
            let rate = row["samples_ts"][0].as_f64().unwrap();
            assert!((rate * time / tokens - 1.0).abs() < 1e-9);
        }
    }
}

#[test]
fn what_cannot_be_measured_is_said() {
    let folder = tuned();
    let at = folder.path();
    assert!(bad(at, "bench", 2).contains("--model"));
    assert!(bad(at, "bench --backend cpu --model store -r 0", 2).contains("--repetitions"));
    assert!(
        bad(at, "bench --backend cpu --model store --pg 16", 1)
            .contains("write one such as 512,128")
    );
    assert!(bad(at, "bench --model nowhere", 1).contains("nowhere/store.json"));
    // Its own positions are what a test is bounded by, however large the number.
    for prompt in ["512", "18446744073709551615"] {
        let error = bad(at, &format!("bench --backend cpu --model store -p {prompt}"), 1);
        assert!(error.contains("resident with") && error.contains("prompt tokens"), "{error}");
    }
    assert!(
        bad(at, "bench --backend cpu --model store --plan store/store.json", 1)
            .contains("store.json")
    );
}
