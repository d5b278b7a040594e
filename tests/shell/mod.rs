//! Lines as a user types them.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

pub(crate) fn pipo(folder: &Path, line: &str) -> Output {
    let mut command = Command::cargo_bin("pipo").unwrap();
    command.current_dir(folder).args(line.split_whitespace()).output().unwrap()
}

/// Runs a line that must succeed.
pub(crate) fn good(folder: &Path, line: &str) -> String {
    let output = pipo(folder, line);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`pipo {line}` failed: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a line that must fail with a code, and returns what it says.
pub(crate) fn bad(folder: &Path, line: &str, code: i32) -> String {
    let output = pipo(folder, line);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "`pipo {line}`: {error}");
    error
}
