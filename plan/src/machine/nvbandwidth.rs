//! Reads what `nvbandwidth -j` prints.

use serde::Deserialize;
use serde_json::Value;

use super::import::{Imported, Measured, Target};
use crate::diagnostic::{Diagnostic, Document};
use crate::units::Bandwidth;

/// The tool's output. It grows from version to version, so unknown keys are let through.
#[derive(Deserialize)]
struct Output {
    nvbandwidth: Body,
}

#[derive(Deserialize)]
struct Body {
    error: Option<String>,
    #[serde(default)]
    testcases: Vec<Testcase>,
}

#[derive(Deserialize)]
struct Testcase {
    name: String,
    #[serde(default)]
    status: String,
    /// GB/s as texts, a row per CPU, a column per GPU; `N/A` where there is no such pair.
    #[serde(default)]
    bandwidth_matrix: Option<Vec<Option<Vec<Value>>>>,
}

/// Link and memory bandwidths of the first GPU in the file.
///
/// The bidirectional tests report one direction while the other is busy, so the duplex total is the
/// sum of the two, and needs both. The size of the copies (512 MiB unless told otherwise) is not in
/// the file; it is taken to be large.
pub fn nvbandwidth(document: &Document) -> Result<Vec<Imported>, Box<Diagnostic>> {
    let Output { nvbandwidth: body } = document.parse_json()?;
    if let Some(error) = body.error {
        return Err(document.at_path(
            "error",
            format!("nvbandwidth failed: {}", error.escape_debug()),
            "run it again until it passes; a file with an error holds no figures to trust",
        ));
    }
    let rate = |name: &str| match body.testcases.iter().find(|t| t.name == name) {
        Some(testcase) if testcase.status == "Passed" => first_value(document, testcase),
        _ => Ok(None),
    };
    let there = rate("host_to_device_bidirectional_memcpy_ce")?;
    let back = rate("device_to_host_bidirectional_memcpy_ce")?;
    let figures = [
        (Target::HostToDevice, rate("host_to_device_memcpy_ce")?),
        (Target::DeviceToHost, rate("device_to_host_memcpy_ce")?),
        (Target::Duplex, there.zip(back).map(|(a, b)| a + b)),
        (Target::GpuMemory, rate("device_local_copy")?),
    ];
    let source = format!("nvbandwidth -j, file {}", document.name);
    let found: Vec<Imported> = figures
        .into_iter()
        .filter_map(|(target, rate)| {
            let measured = Measured::Rate(rate?);
            Some(Imported { target, measured, source: source.clone() })
        })
        .collect();
    if found.is_empty() {
        return Err(document.at_path(
            "testcases",
            "no test of host and device copies passed in this file",
            "run `nvbandwidth -j` with all tests, or with -t host_to_device_memcpy_ce and its kin",
        ));
    }
    Ok(found)
}

fn first_value(
    document: &Document,
    testcase: &Testcase,
) -> Result<Option<Bandwidth>, Box<Diagnostic>> {
    let rows = testcase.bandwidth_matrix.iter().flatten().flatten();
    let Some(cell) = rows.flatten().find(|cell| cell.as_str() != Some("N/A")) else {
        return Ok(None);
    };
    let number = match cell {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match format!("{number}GB/s").parse() {
        Ok(rate) if rate > Bandwidth::ZERO => Ok(Some(rate)),
        _ => Err(document.at_path(
            "testcases",
            format!(
                "{} has the bandwidth `{}`, a number of GB/s above zero is expected",
                testcase.name.escape_debug(),
                number.escape_debug()
            ),
            "run nvbandwidth again; the file may have been edited or cut",
        )),
    }
}
