//! Plan files: what is read back is what was written, and what is wrong is said where it stands.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]

use pipo_plan::diagnostic::Document;
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::model::{Precision, catalog};
use pipo_plan::plan::{Batching, Plan, Precisions, Prediction, RunnerUp};
use pipo_plan::strategy::pipo::Pipo;
use pipo_plan::strategy::{Strategy, lower};
use pipo_plan::units::{Bytes, Nanos};
use pipo_plan::workload::{Budget, Objective, Workload};
use proptest::prelude::*;

fn plan() -> Plan {
    Plan {
        machine: "rtx3060-laptop".into(),
        profile: "0123456789abcdef".into(),
        seed: 1,
        workload: Workload {
            prompt: 512,
            new_tokens: 32,
            batch: None,
            objective: Objective::Throughput,
            token_within: Some(Nanos(1_500_000_000)),
        },
        budget: Budget { gpu: Bytes(6_000_000_000), host: Bytes(16 << 30), disk: Bytes(1 << 40) },
        precision: Precisions { weights: Precision::Int4, kv: Precision::Fp16 },
        batch: Batching::single(4),
        strategy: Strategy::Pipo(Pipo { gpu_weights: Bytes(1 << 30), ..Pipo::default() }),
        model: catalog::find("opt-13b").unwrap(),
        prediction: Some(Prediction {
            request: Nanos(10),
            prefill: Nanos(4),
            step: Nanos(3),
            tokens_per_second: 12.5,
            decode_tokens_per_second: 13.25,
            prefill_tokens_per_second: 900.0,
            ceiling_tokens_per_second: 14.0,
            ceiling_resource: "H2D".into(),
            nvml: 0.98,
            kernel: 0.41,
            link_bytes_per_step: Bytes(5),
            disk_bytes_per_step: Bytes(6),
            gpu_bytes: Bytes(7),
            host_bytes: Bytes(8),
            candidates: 1000,
            simulated: 100,
        }),
        runners_up: vec![RunnerUp {
            strategy: "pipo".into(),
            difference: "gpu_slots 3 instead of 2".into(),
            tokens_per_second: 12.25,
        }],
    }
}

fn read(text: &str) -> Result<Plan, String> {
    Plan::from_toml(&Document::new("plan.toml", text)).map_err(|e| e.to_string())
}

#[test]
fn a_plan_reads_back_as_written() {
    let text = plan().to_toml();
    assert_eq!(read(&text), Ok(plan()));
    assert_eq!(read(&text).unwrap().to_toml(), text);
    insta::assert_snapshot!(text);
}

#[test]
fn what_is_wrong_is_said_where_it_stands() {
    let text = plan().to_toml();
    let error = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} is not in the text");
        read(&text.replacen(from, to, 1)).unwrap_err()
    };
    let all = [
        error("version = 1", "version = 2"),
        error("gpu_slots = 2", "gpu_slotz = 2"),
        error("gpu_slots = 2", "gpu_slots = 0"),
        error("gpu = \"6GB\"", "gpu = \"6g\""),
        error("gpu = \"6GB\"", "gpu = \"-1GB\""),
        error("gpu = \"6GB\"", "gpu = \"1e99GB\""),
        error("gpu = \"6GB\"", "gpu = 6"),
        error("strategy = \"pipo\"", "strategy = \"pippo\""),
        error("strategy = \"pipo\"", "strategy = \"resident\""),
        error("layers = 40", "layers = 0"),
        error("micro = 4", "micro = -4"),
        error("prompt = 512", "prompt = 4096"),
        error("block = \"32MB\"", "block = \"1B\""),
        read(&text[..text.len() / 3]).unwrap_err(),
    ];
    insta::assert_snapshot!(all.join("\n\n"));
}

#[test]
fn a_plan_edited_beyond_its_budget_is_refused_with_both_values() {
    let overheads = Overheads {
        gpu_context: Bytes(300 << 20),
        host_reserved: Bytes(2 << 30),
        ..Overheads::default()
    };
    let mut edited = plan();
    edited.budget.gpu = Bytes(2_000_000_000);
    let layout = lower(&edited).unwrap().layout;
    let table = MemoryTable::new(&layout, overheads);
    let error = table.check(&edited).unwrap_err();
    let document = Document::new("plan.toml", edited.to_toml());
    insta::assert_snapshot!(error.in_document(&document));

    let needed = table.gpu();
    edited.budget.gpu = needed;
    assert_eq!(table.check(&edited), Ok(()), "exactly enough is enough");
    edited.budget.gpu = needed - Bytes(1);
    assert!(table.check(&edited).is_err(), "one byte too few is too few");
}

#[test]
fn the_memory_table_is_auditable() {
    let overheads = Overheads {
        gpu_context: Bytes(300 << 20),
        host_reserved: Bytes(2 << 30),
        ..Overheads::default()
    };
    let table = MemoryTable::new(&lower(&plan()).unwrap().layout, overheads);
    let line = |r: &pipo_plan::memory::Row| {
        let slots = r.slots.map_or(String::new(), |(n, each)| format!(" = {n} x {}", each.0));
        format!("{}: {}: {}{slots}", r.tier.name(), r.name, r.bytes.0)
    };
    let lines: Vec<String> = table.rows.iter().map(line).collect();
    insta::assert_snapshot!(lines.join("\n"));
    assert_eq!(table.gpu() + table.host() + table.disk(), table.rows.iter().map(|r| r.bytes).sum());
}

#[test]
fn pinned_memory_has_its_page_tables_on_the_gpu() {
    let layout = lower(&plan()).unwrap().layout;
    let table = |page_tables| {
        MemoryTable::new(&layout, Overheads { page_tables, ..Overheads::default() }).gpu()
    };
    let pinned = layout.bytes(pipo_plan::schedule::Tier::Pinned);
    assert!(pinned > Bytes::ZERO);
    assert_eq!(table(1.0 / 512.0) - table(0.0), Bytes(pinned.0.div_ceil(512)));
    assert_eq!(Overheads::default().tables_of(Bytes(u64::MAX)), Bytes::ZERO);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// No edit of a plan file, however wild, panics; what is accepted lowers.
    #[test]
    fn mutated_plans_never_panic(
        at in 0_usize..1000,
        length in 0_usize..40,
        with in "[-0-9a-zA-Z\"=\\[\\]. \n]{0,12}",
    ) {
        let text = plan().to_toml();
        let start = text.len() * at / 1000;
        let end = (start + length).min(text.len());
        let mutated = format!("{}{with}{}", &text[..start], &text[end..]);
        if let Ok(plan) = read(&mutated) {
            prop_assert!(lower(&plan).is_ok());
        }
    }

    /// Numbers of any size where numbers stand.
    #[test]
    fn absurd_numbers_never_panic(line in 0_usize..200, value in any::<u64>()) {
        let text = plan().to_toml();
        let lines: Vec<String> = text.lines().enumerate().map(|(i, l)| match l.split_once(" = ") {
            Some((key, old)) if i == line % text.lines().count() => {
                let unit: String = old.chars().filter(|c| c.is_alphabetic()).collect();
                let value = if old.starts_with('"') { format!("\"{value}{unit}\"") } else { value.to_string() };
                format!("{key} = {value}")
            }
            _ => l.to_owned(),
        }).collect();
        let _ = read(&lines.join("\n"));
    }
}
