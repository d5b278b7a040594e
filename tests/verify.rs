//! `pipo profile` and `pipo verify` as a user types them, on a golden model.

#![allow(clippy::unwrap_used, reason = "a command that cannot be started must stop the test")]

use std::fs;
use std::path::{Path, PathBuf};

use pipo_plan::diagnostic::Document;
use pipo_plan::machine::Machine;
use serde_json::Value;
use tempfile::TempDir;

use shell::{bad, good};

mod shell;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A folder with the golden model in `store/`, the published profile of a machine without a GPU, and a
/// plan for both that keeps little on the device.
fn prepared() -> TempDir {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let model = repository("engine/tests/golden/llama3");
    fs::copy(repository("results/published/cpu-accuracy/machine.toml"), at.join("machine.toml"))
        .unwrap();
    good(at, &format!("import {} --weights fp16 -o store", model.display()));
    good(
        at,
        &format!(
            "tune --model {} --weights fp16 --machine machine.toml --prompt 16 --new-tokens 4 \
             --batch 2 --strategy pipo --gpu-mem 150kB -o plan.toml",
            model.display()
        ),
    );
    folder
}

#[test]
fn a_machine_is_measured_in_full_and_can_be_planned_for() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let report = good(
        at,
        "--threads 1 --json profile --backend cpu --quick --disk-size 128MiB -o host.toml",
    );
    let report: Value = serde_json::from_str(&report).unwrap();
    let machine = good(at, "machines host.toml");
    for figure in ["gpu.kernels.time", "link.h2d", "disk.read", "host.gather", "software.handover"]
    {
        assert!(machine.contains(figure), "{figure} is not in {machine}");
    }
    // Every sample is kept, and nothing but the two files stays.
    let samples = fs::read_to_string(at.join("host.samples.csv")).unwrap();
    assert_eq!(samples.lines().count() as u64 - 1, report["samples"].as_u64().unwrap());
    assert!(samples.lines().skip(1).all(|line| {
        line.rsplit(',').next().unwrap().parse::<u64>().is_ok_and(|nanoseconds| nanoseconds > 0)
    }));
    assert_eq!(fs::read_dir(at).unwrap().count(), 2);
    good(at, "tune --model opt-125m --machine host.toml --gpu-mem 60MB --batch 1 --effort 1");

    // All but the disk again: that and what is known of it are the first profile's.
    let line = "--threads 1 profile --backend cpu --only host --quick -o again.toml --base";
    let text = good(at, &format!("{line} host.toml"));
    assert!(text.contains("host.copy") && !text.contains("disk."), "{text}");
    let read = |name: &str| {
        let text = fs::read_to_string(at.join(name)).unwrap();
        Machine::from_toml(&Document::new(name, text)).unwrap()
    };
    let (first, again) = (read("host.toml"), read("again.toml"));
    assert_eq!(first.disk, again.disk);
    assert_eq!(first.software.disk_request, again.software.disk_request);
    assert_eq!(first.sources, again.sources);
    assert_ne!(first.gpu.kernels, again.gpu.kernels);
    assert_eq!(first.gpu.kernels.len(), again.gpu.kernels.len());
    let samples = fs::read_to_string(at.join("again.samples.csv")).unwrap();
    assert!(samples.contains("host.memory_bandwidth,") && !samples.contains("disk."));
    let error = bad(at, &format!("{line} rtx3060-laptop"), 1);
    assert!(error.contains("`rtx3060-laptop` is no profile of this machine"), "{error}");
    let error = bad(at, &format!("{line} host.toml --file host.toml"), 1);
    assert!(error.contains("--file is what --only disk reads"), "{error}");
}

#[test]
fn the_disk_alone_is_measured_again() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let published = repository("results/published/cpu-accuracy/machine.toml");
    fs::copy(published, at.join("machine.toml")).unwrap();
    let line = "profile --only disk --base machine.toml --quick --disk-size 128MiB -o again.toml";
    let text = good(at, line);
    for figure in
        ["read_total", "buffered_pair", "buffered_total", "buffered_jump", "page_fault_total"]
    {
        assert!(text.contains(&format!("disk.{figure}")), "{figure}: {text}");
    }
    assert!(!text.contains("host.copy"), "{text}");
    let read = |name: &str| {
        let text = fs::read_to_string(at.join(name)).unwrap();
        Machine::from_toml(&Document::new(name, text)).unwrap()
    };
    let (mut base, again) = (read("machine.toml"), read("again.toml"));
    for entry in again.figures() {
        let of_disk = entry.path.starts_with("disk.") || entry.path == "software.disk_request";
        assert_eq!(of_disk, entry.source == "disk-measured", "{}", entry.path);
    }
    // Nothing else differs.
    base.disk.clone_from(&again.disk);
    base.software.disk_request = again.software.disk_request.clone();
    base.sources.clone_from(&again.sources);
    assert!(base == again);
    let samples = fs::read_to_string(at.join("again.samples.csv")).unwrap();
    assert!(
        samples.lines().skip(1).all(|line| {
            line.starts_with("disk.") || line.starts_with("software.disk_request,")
        })
    );
    // It can be a base again.
    good(at, &line.replace("machine.toml", "again.toml"));
    assert_eq!(fs::read_dir(at).unwrap().count(), 3);

    // Of a file that is there, only reads are measured, and nothing is written but the profile.
    fs::File::create(at.join("weights.bin")).unwrap().set_len(128 << 20).unwrap();
    let line = "profile --only disk --base machine.toml --quick --file weights.bin -o file.toml";
    good(at, line);
    let file = read("file.toml");
    assert_eq!(file.disk.as_ref().unwrap().write, read("machine.toml").disk.unwrap().write);
    assert_eq!(file.disk.unwrap().read.source, "disk-measured");
    assert_eq!(fs::read_dir(at).unwrap().count(), 6);
    fs::File::create(at.join("weights.bin")).unwrap().set_len(1 << 20).unwrap();
    let error = bad(at, line, 1);
    assert!(error.contains("weights.bin: it has 1.05 MB") && error.contains("134 MB"), "{error}");

    bad(at, "profile --only disk", 2);
    bad(at, "profile --file weights.bin", 2);
    bad(at, "profile --base machine.toml", 2);
    let error = bad(at, "profile --only disk --base nowhere.toml", 1);
    assert!(error.contains("nowhere.toml"), "{error}");
}

#[test]
fn a_plan_and_a_baseline_are_run_beside_their_predictions() {
    let folder = prepared();
    let at = folder.path();
    let line = "--threads 1 --json verify plan.toml --machine machine.toml --model store --runs 2";
    let report: Value = serde_json::from_str(&good(at, line)).unwrap();
    let cases = report["cases"].as_array().unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["plan", "accelerate"], "{report}");
    for case in cases {
        assert_eq!(case["request_runs_ns"].as_array().unwrap().len(), 2);
        for side in ["predicted", "measured"] {
            assert!(case[side]["request_ns"].as_u64().unwrap() > 0);
            assert!(case[side]["prefill_ns"].as_u64() <= case[side]["request_ns"].as_u64());
        }
        // The same operations on the same lanes: only times differ.
        let lanes = |side: &str| -> Vec<String> {
            let busy = case[side]["busy"].as_array().unwrap();
            busy.iter().map(|lane| lane["lane"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(lanes("predicted"), lanes("measured"));
    }
    let text = good(at, &line.replace("--json ", ""));
    assert_eq!(text.matches("exact").count(), 6, "{text}");
    assert!(text.contains("times was predicted"), "{text}");
    for file in ["verify.svg", "verify.trace.json", "verify.csv"] {
        assert!(at.join(file).is_file(), "{file} was not written");
    }
    let trace: Value =
        serde_json::from_str(&fs::read_to_string(at.join("verify.trace.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let processes = events.iter().filter(|event| event["name"] == "process_name");
    assert_eq!(processes.count(), 4);
}

#[test]
fn several_baselines_are_run_in_turn() {
    let folder = prepared();
    let at = folder.path();
    let line = "--threads 1 verify plan.toml --machine machine.toml --model store --runs 1 \
                --baseline accelerate,pipo";
    let text = good(at, line);
    for name in ["accelerate", "pipo"] {
        assert!(text.contains(&format!("times as fast as `{name}`")), "{text}");
    }
    let trace = fs::read_to_string(at.join("verify.trace.json")).unwrap();
    for name in ["plan", "accelerate", "pipo"] {
        for side in ["predicted", "measured"] {
            assert!(trace.contains(&format!("{{\"name\":\"{name}, {side}\"}}")), "{name}, {side}");
        }
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let folder = prepared();
    let at = folder.path();
    let error = bad(at, "verify plan.toml --machine rtx3060-laptop --model store", 1);
    assert!(error.contains("profile this machine with `pipo profile`"), "{error}");
    let error = bad(at, "--threads 2 verify plan.toml --machine machine.toml --model store", 1);
    assert!(error.contains("was measured with 1 threads"), "{error}");
    let error = bad(at, "--threads 1 verify plan.toml --machine machine.toml --model nowhere", 1);
    assert!(error.contains("nowhere"), "{error}");
    let line = "verify plan.toml --machine machine.toml --model store --threads 1";
    let error = bad(at, &format!("{line} --baseline flexgem"), 1);
    assert!(error.contains("`flexgem` is not a strategy") && error.contains("flexgen"), "{error}");
    let error = bad(at, &format!("{line} --baseline resident,flexgen,resident"), 1);
    assert!(error.contains("`resident` is a baseline twice"), "{error}");
    let error = bad(at, &format!("{line} --baseline none,flexgen"), 1);
    assert!(error.contains("`none` is not a strategy"), "{error}");
    bad(at, &format!("{line} --runs 0"), 2);
    // A baseline that cannot be is said, and the plan is run all the same.
    let line = "--threads 1 verify plan.toml --machine machine.toml --model store --baseline resident --runs 1";
    let text = good(at, line);
    assert!(text.contains("no baseline `resident`: "), "{text}");
    assert!(text.contains("1 runs on the CPU: request from"), "{text}");
}
