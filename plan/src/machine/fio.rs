//! Reads what `fio --output-format=json` (or `json+`) prints.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::import::{Imported, Measured, Target};
use crate::diagnostic::{Diagnostic, Document};
use crate::units::{Bandwidth, Bytes, LIMIT};

type Options = BTreeMap<String, Value>;

/// The tool's output. It grows from version to version, so unknown keys are let through.
#[derive(Deserialize)]
struct Output {
    #[serde(default, rename = "global options")]
    global: Options,
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    #[serde(default)]
    jobname: String,
    #[serde(default)]
    groupid: u64,
    #[serde(default)]
    error: i64,
    #[serde(default, rename = "job options")]
    options: Options,
    #[serde(default)]
    read: Direction,
    #[serde(default)]
    write: Direction,
}

#[derive(Deserialize, Default)]
struct Direction {
    /// Bytes per second.
    bw_bytes: Option<u64>,
    /// KiB per second, all that versions before 3 have.
    bw: Option<u64>,
}

impl Direction {
    fn rate(&self) -> u64 {
        let old = self.bw.unwrap_or(0).saturating_mul(1024);
        self.bw_bytes.unwrap_or(old).min(LIMIT)
    }
}

/// What a group of jobs measured: they ran at the same time, so their rates add up.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
struct Test {
    target: Target,
    block: Bytes,
}

/// One point per block size for reads and writes with `direct=1`, and for buffered reads.
///
/// Buffered writes are left out: they measure the page cache. Jobs of one group (no `stonewall`
/// between them) ran together and must agree on direction and block size.
pub fn fio(document: &Document) -> Result<Vec<Imported>, Box<Diagnostic>> {
    if !document.text.trim_start().starts_with('{') {
        return Err(document.whole(
            "this is not JSON alone: it does not start with `{`",
            "run fio with --output=FILE --output-format=json, so that warnings stay out of it",
        ));
    }
    let output: Output = document.parse_json()?;
    let refuse = |job: &Job, what: &str, help: &str| {
        let name = job.jobname.escape_debug();
        document.at_path("jobs", format!("the job `{name}` {what}"), help)
    };
    let mut groups: BTreeMap<u64, (Test, Bandwidth)> = BTreeMap::new();
    for job in &output.jobs {
        if job.error != 0 {
            let what = format!("failed with error {}", job.error);
            return Err(refuse(job, &what, "run it again until it passes"));
        }
        let (read, write) = (job.read.rate(), job.write.rate());
        if read > 0 && write > 0 {
            let help = "run reads and writes as jobs of their own, with a stonewall between them";
            return Err(refuse(job, "reads and writes at once", help));
        }
        let option = |key: &str| option(&job.options, key).or_else(|| option(&output.global, key));
        let direct = option("direct").is_some_and(|v| v != "0")
            || option("buffered").is_some_and(|v| v == "0");
        let target = match (read > 0, write > 0, direct) {
            (true, _, true) => Target::DiskRead,
            (true, _, false) => Target::DiskBufferedRead,
            (_, true, true) => Target::DiskWrite,
            _ => continue,
        };
        let typed = option("bs").or_else(|| option("blocksize")).unwrap_or_else(|| "4k".into());
        let decimal = option("kb_base").is_some_and(|v| v == "1000");
        let Some(block) = block_size(&typed, decimal) else {
            let what = format!("has the block size `{}`", typed.escape_debug());
            return Err(refuse(job, &what, "give each job one block size, such as bs=1M"));
        };
        let test = Test { target, block };
        let (known, sum) = groups.entry(job.groupid).or_insert((test, Bandwidth::ZERO));
        if *known != test {
            let what = "ran together with a job of another direction or block size";
            return Err(refuse(job, what, "put `stonewall` between jobs that should run alone"));
        }
        *sum += Bandwidth(read.max(write));
    }
    let mut curves: BTreeMap<Target, Vec<(Bytes, Bandwidth)>> = BTreeMap::new();
    for (test, rate) in groups.into_values() {
        curves.entry(test.target).or_default().push((test.block, rate));
    }
    if curves.is_empty() {
        return Err(document.at_path(
            "jobs",
            "no job in this file read anything, or wrote with direct=1",
            "run fio with --direct=1 --rw=read and one job per block size",
        ));
    }
    let source = format!("fio, file {}", document.name);
    let imported = |(target, points)| Imported {
        target,
        measured: Measured::Points(points),
        source: source.clone(),
    };
    Ok(curves.into_iter().map(imported).collect())
}

fn option(options: &Options, key: &str) -> Option<String> {
    match options.get(key)? {
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// A size as fio reads it: `4k` and `4kb` are 4096 bytes and `4ki` is 4000, the reverse of the
/// standard, unless the job says `kb_base=1000`.
fn block_size(typed: &str, decimal: bool) -> Option<Bytes> {
    let lower = typed.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.strip_suffix('b').unwrap_or(unit);
    let (letter, marked) = match unit.strip_suffix('i') {
        Some(letter) => (letter, true),
        None => (unit, false),
    };
    let base: u64 = if marked == decimal { 1024 } else { 1000 };
    let scale = match (letter, marked) {
        ("", false) => 1,
        ("k", _) => base,
        ("m", _) => base.pow(2),
        ("g", _) => base.pow(3),
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(scale)?;
    (1..=LIMIT).contains(&bytes).then_some(Bytes(bytes))
}
