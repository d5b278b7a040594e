//! Runs and imports that are interrupted or killed.

#![allow(clippy::unwrap_used, reason = "a command that cannot be started must stop the test")]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use assert_cmd::Command;
use tempfile::TempDir;

fn good(folder: &Path, line: &str) {
    let mut command = Command::cargo_bin("pipo").unwrap();
    command.current_dir(folder).args(line.split_whitespace()).assert().success();
}

/// Names of everything in a folder, hidden files too.
fn listed(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A run that would take minutes: a folder with a plan and a store of random weights.
fn long() -> TempDir {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/tests/golden/llama3");
    let config = fs::read_to_string(golden.join("config.json")).unwrap();
    let config =
        config.replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 200000");
    fs::create_dir(at.join("model")).unwrap();
    fs::write(at.join("model/config.json"), config).unwrap();
    good(at, "import --random model --weights int4 -o store");
    good(
        at,
        "tune --strategy resident --gpu-mem 2GB --model model --prompt 4 --new-tokens 8 --batch 1",
    );
    fs::remove_file(at.join("plan.svg")).unwrap();
    fs::remove_file(at.join("plan.trace.json")).unwrap();
    folder
}

fn start(folder: &Path, line: &str) -> Child {
    std::process::Command::new(assert_cmd::cargo::cargo_bin!("pipo"))
        .args(line.split_whitespace())
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for a process that must end soon.
fn ended(mut child: Child) -> Output {
    for _ in 0..2000 {
        if child.try_wait().unwrap().is_some() {
            return child.wait_with_output().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    panic!("it did not end within ten seconds");
}

fn interrupt(child: &Child) {
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

/// Waits until a process takes Ctrl-C itself, and is a moment into what it does then.
fn at_work(child: &mut Child) {
    let status = format!("/proc/{}/status", child.id());
    let catches = || {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        // The interrupt is signal 2.
        mask.is_some_and(|mask| mask & (1 << 1) != 0)
    };
    while !catches() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
}

/// A command that would take minutes is interrupted: it ends soon, says so, and leaves nothing.
fn is_interrupted(folder: &Path, line: &str) {
    let before = listed(folder);
    let mut child = start(folder, line);
    at_work(&mut child);
    interrupt(&child);
    let output = ended(child);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{error}");
    assert!(error.contains("interrupted"), "{error}");
    assert_eq!(listed(folder), before);
}

const LONG: &str = "run plan.toml --backend cpu --model store --tokens 1,2,3,4 --new-tokens 100000 --timeline t.json --svg t.svg";

#[test]
fn ctrl_c_ends_a_run_at_once_and_leaves_nothing() {
    let folder = long();
    let before = listed(folder.path());
    let mut child = start(folder.path(), LONG);
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    interrupt(&child);
    let output = ended(child);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{error}");
    assert!(error.contains("interrupted"), "{error}");
    assert_eq!(listed(folder.path()), before);
}

#[test]
fn a_killed_run_leaves_nothing() {
    let folder = long();
    let before = listed(folder.path());
    let mut child = start(folder.path(), LONG);
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    child.kill().unwrap();
    assert!(!ended(child).status.success());
    assert_eq!(listed(folder.path()), before);
}

#[test]
fn ctrl_c_ends_a_verification_which_writes_nothing() {
    let folder = long();
    let at = folder.path();
    let profile = "results/published/cpu-accuracy/machine.toml";
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(profile), at.join("machine.toml")).unwrap();
    let plan = fs::read_to_string(at.join("plan.toml")).unwrap();
    fs::write(at.join("plan.toml"), plan.replace("new_tokens = 8", "new_tokens = 3000")).unwrap();
    is_interrupted(
        at,
        "--threads 1 verify plan.toml --machine machine.toml --model store --baseline none --runs 1000",
    );
}

#[test]
fn ctrl_c_ends_a_benchmark() {
    let folder = long();
    is_interrupted(folder.path(), "bench --backend cpu --model store -p 0 -n 50000 -o csv");
    is_interrupted(
        folder.path(),
        "bench --backend cpu --model store --plan plan.toml -p 8 -n 0 -r 4000000000",
    );
}

#[test]
fn ctrl_c_ends_an_import_which_removes_what_it_made() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let child = start(at, "import --random opt-6.7b -o store");
    let begun = at.join(".store.importing/weights.bin");
    while !begun.metadata().is_ok_and(|data| data.len() > 0) {
        std::thread::sleep(Duration::from_millis(5));
    }
    interrupt(&child);
    let output = ended(child);
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(listed(at), Vec::<String>::new());
}
