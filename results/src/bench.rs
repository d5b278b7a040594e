//! Rates of repeated measurements in the columns of llama-bench (llama.cpp), to be laid beside its own.
//!
//! Names and meanings of the fields are llama-bench's where it has them: a rate is the mean of the rates
//! of the samples, and its deviation is that of a sample (n - 1).

use std::fmt::Write;

use pipo_plan::units::Nanos;
use serde::Serialize;

/// What was measured, and how often it took how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// The store.
    pub model_filename: String,
    /// The model and the precision of its weights.
    pub model_type: String,
    /// Bytes of its weights.
    pub model_size: u64,
    /// Its parameters.
    pub model_n_params: u64,
    /// Threads of one computation.
    pub n_threads: usize,
    /// The plan's file; none where everything is on the device.
    pub plan: Option<String>,
    /// Its strategy.
    pub strategy: String,
    /// Sequences at once.
    pub n_sequences: u64,
    /// Prompt tokens of each.
    pub n_prompt: u64,
    /// New tokens of each.
    pub n_gen: u64,
    /// How long each repetition took.
    pub samples: Vec<Nanos>,
}

/// A row with its means.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    model_filename: String,
    model_type: String,
    model_size: u64,
    model_n_params: u64,
    backends: &'static str,
    n_threads: usize,
    plan: Option<String>,
    strategy: String,
    n_sequences: u64,
    n_prompt: u64,
    n_gen: u64,
    avg_ns: f64,
    stddev_ns: f64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
}

/// Header of [`Row::csv`]: the fields without the samples.
pub const CSV_HEADER: &str = "model_filename,model_type,model_size,model_n_params,backends,n_threads,\
    plan,strategy,n_sequences,n_prompt,n_gen,avg_ns,stddev_ns,avg_ts,stddev_ts";

impl Row {
    /// Sums up samples.
    pub fn new(measured: Measured) -> Self {
        let tokens = (measured.n_sequences * (measured.n_prompt + measured.n_gen)) as f64;
        let samples = measured.samples;
        let times: Vec<f64> = samples.iter().map(|time| time.as_f64()).collect();
        let rate = |time: &Nanos| if *time == Nanos::ZERO { 0.0 } else { tokens / time.seconds() };
        let rates: Vec<f64> = samples.iter().map(rate).collect();
        Self {
            model_filename: measured.model_filename,
            model_type: measured.model_type,
            model_size: measured.model_size,
            model_n_params: measured.model_n_params,
            backends: "CPU",
            n_threads: measured.n_threads,
            plan: measured.plan,
            strategy: measured.strategy,
            n_sequences: measured.n_sequences,
            n_prompt: measured.n_prompt,
            n_gen: measured.n_gen,
            avg_ns: mean(&times),
            stddev_ns: deviation(&times),
            avg_ts: mean(&rates),
            stddev_ts: deviation(&rates),
            samples_ns: samples.iter().map(|time| time.0).collect(),
            samples_ts: rates,
        }
    }

    /// A line of the Markdown table, with or without the plan.
    pub fn markdown(&self, with_plan: bool) -> String {
        let values = [
            self.model_type.clone(),
            size(self.model_size),
            parameters(self.model_n_params),
            self.backends.to_owned(),
            self.n_threads.to_string(),
            self.plan_text(),
            self.test(),
            format!("{:.2} ± {:.2}", self.avg_ts, self.stddev_ts),
        ];
        line(&values.each_ref().map(String::as_str), with_plan)
    }

    /// A line of CSV.
    pub fn csv(&self) -> String {
        let fields = [
            self.model_filename.clone(),
            self.model_type.clone(),
            self.model_size.to_string(),
            self.model_n_params.to_string(),
            self.backends.to_owned(),
            self.n_threads.to_string(),
            self.plan.clone().unwrap_or_default(),
            self.strategy.clone(),
            self.n_sequences.to_string(),
            self.n_prompt.to_string(),
            self.n_gen.to_string(),
            self.avg_ns.to_string(),
            self.stddev_ns.to_string(),
            self.avg_ts.to_string(),
            self.stddev_ts.to_string(),
        ];
        fields.map(|field| quoted(&field)).join(",")
    }

    fn plan_text(&self) -> String {
        let sequences = match self.n_sequences {
            1 => String::new(),
            several => format!(", {several} sequences"),
        };
        match &self.plan {
            Some(plan) => format!("{plan}: {}{sequences}", self.strategy),
            None => format!("{}{sequences}", self.strategy),
        }
    }

    fn test(&self) -> String {
        match (self.n_prompt, self.n_gen) {
            (prompt, 0) => format!("pp{prompt}"),
            (0, new) => format!("tg{new}"),
            (prompt, new) => format!("pp{prompt}+tg{new}"),
        }
    }
}

/// The two lines above the rows of a Markdown table.
pub fn markdown_header(with_plan: bool) -> String {
    let names = ["model", "size", "params", "backend", "threads", "plan", "test", "t/s"];
    let mut rule = String::from("|");
    for (index, &(width, right)) in COLUMNS.iter().enumerate() {
        if index != PLAN || with_plan {
            let end = if right { ":" } else { "-" };
            let _ = write!(rule, " {}{end} |", "-".repeat(width - 1));
        }
    }
    format!("{}\n{rule}", line(&names, with_plan))
}

/// Width of each column, and whether it is flush right.
const COLUMNS: [(usize, bool); 8] = [
    (30, false),
    (10, true),
    (10, true),
    (10, false),
    (7, true),
    (30, false),
    (13, true),
    (20, true),
];
/// The column that llama-bench has not.
const PLAN: usize = 5;

fn line(values: &[&str; 8], with_plan: bool) -> String {
    let mut line = String::from("|");
    for (index, (value, &(width, right))) in values.iter().zip(&COLUMNS).enumerate() {
        if index == PLAN && !with_plan {
            continue;
        }
        let _ = if right {
            write!(line, " {value:>width$} |")
        } else {
            write!(line, " {value:<width$} |")
        };
    }
    line
}

fn size(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    match bytes {
        0..0x4000_0000 => format!("{mebibytes:.2} MiB"),
        _ => format!("{:.2} GiB", mebibytes / 1024.0),
    }
}

fn parameters(count: u64) -> String {
    match count {
        0..1_000_000_000 => format!("{:.2} M", count as f64 / 1e6),
        _ => format!("{:.2} B", count as f64 / 1e9),
    }
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len().max(1) as f64
}

/// Of a sample; zero of fewer than two, which show none.
fn deviation(samples: &[f64]) -> f64 {
    let mean = mean(samples);
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    (squares / samples.len().saturating_sub(1).max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n_prompt: u64, n_gen: u64, plan: Option<&str>) -> Row {
        row_of(n_prompt, n_gen, plan, &[1, 2, 4])
    }

    fn row_of(n_prompt: u64, n_gen: u64, plan: Option<&str>, seconds: &[u64]) -> Row {
        Row::new(Measured {
            model_filename: "a, \"b\"".into(),
            model_type: "llama3 int4".into(),
            model_size: 5 << 29,
            model_n_params: 6_738_000_000,
            n_threads: 8,
            plan: plan.map(str::to_owned),
            strategy: if plan.is_some() { "pipo" } else { "resident" }.into(),
            n_sequences: if plan.is_some() { 4 } else { 1 },
            n_prompt,
            n_gen,
            samples: seconds.iter().map(|seconds| Nanos(seconds * 1_000_000_000)).collect(),
        })
    }

    #[test]
    fn means_and_deviations_are_those_of_a_sample() {
        let row = row(100, 0, None);
        // 100, 50 and 25 tokens a second.
        assert!((row.avg_ts - 175.0 / 3.0).abs() < 1e-9);
        assert!((row.stddev_ts - (4375.0_f64 / 3.0).sqrt()).abs() < 1e-9);
        assert!((row.avg_ns - 7e9 / 3.0).abs() < 1e-3);
        assert_eq!(row.samples_ns, [1_000_000_000, 2_000_000_000, 4_000_000_000]);
        let one = row_of(100, 0, None, &[7]);
        assert!(one.stddev_ts.abs() < 1e-12 && (one.avg_ns - 7e9).abs() < 1e-3);
    }

    #[test]
    fn the_table_is_that_of_llama_bench() {
        let rows = [row(512, 0, None), row(0, 128, None), row(512, 128, None)];
        let lines = rows.each_ref().map(|row| row.markdown(false)).join("\n");
        insta::assert_snapshot!(format!("{}\n{lines}", markdown_header(false)), @"
        | model                          |       size |     params | backend    | threads |          test |                  t/s |
        | ------------------------------ | ---------: | ---------: | ---------- | ------: | ------------: | -------------------: |
        | llama3 int4                    |   2.50 GiB |     6.74 B | CPU        |       8 |         pp512 |      298.67 ± 195.52 |
        | llama3 int4                    |   2.50 GiB |     6.74 B | CPU        |       8 |         tg128 |        74.67 ± 48.88 |
        | llama3 int4                    |   2.50 GiB |     6.74 B | CPU        |       8 |   pp512+tg128 |      373.33 ± 244.40 |
        ");
        let with_plan = row(0, 16, Some("plan.toml")).markdown(true);
        insta::assert_snapshot!(format!("{}\n{with_plan}", markdown_header(true)), @"
        | model                          |       size |     params | backend    | threads | plan                           |          test |                  t/s |
        | ------------------------------ | ---------: | ---------: | ---------- | ------: | ------------------------------ | ------------: | -------------------: |
        | llama3 int4                    |   2.50 GiB |     6.74 B | CPU        |       8 | plan.toml: pipo, 4 sequences   |          tg16 |        37.33 ± 24.44 |
        ");
    }

    #[test]
    fn csv_quotes_what_would_break_it() {
        let text = format!("{CSV_HEADER}\n{}\n", row(512, 0, Some("plan.toml")).csv());
        let mut reader = ::csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers().unwrap().clone();
        let record = reader.records().next().unwrap().unwrap();
        assert_eq!((header.len(), record.len()), (15, 15));
        assert_eq!(&record[0], "a, \"b\"");
        assert_eq!(&record[6], "plan.toml");
    }
}
