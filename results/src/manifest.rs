//! What a result was made from and with: the file that stands beside every published output.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};

/// Everything needed to make a result again, or to see why it differs.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Manifest {
    /// The command line.
    pub command: String,
    /// Version of the program.
    pub version: String,
    /// Commit it was built from, as far as the caller knows.
    pub commit: Option<String>,
    /// SHA-256 of each input by its role, such as `plan`, `machine`, `model`.
    pub inputs: BTreeMap<String, String>,
    /// Seed of everything random.
    pub seed: u64,
    /// GPU, driver, link, CPU, memory and disk by name; empty for a simulation.
    pub hardware: BTreeMap<String, String>,
    /// Raw samples behind a measured figure.
    pub samples: Vec<Samples>,
    /// The outputs beside the manifest.
    pub files: Vec<FileHash>,
}

/// Every repetition of one measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Samples {
    /// What was measured.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// In the order of measuring.
    pub values: Vec<f64>,
}

/// A file and what it held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileHash {
    /// Path relative to the manifest.
    pub path: String,
    /// Length.
    pub bytes: usize,
    /// Of the contents, in hexadecimal.
    pub sha256: String,
}

impl FileHash {
    /// Hashes the contents of a file about to be written.
    pub fn of(path: &str, contents: &[u8]) -> Self {
        Self { path: path.to_owned(), bytes: contents.len(), sha256: sha256(contents) }
    }
}

/// SHA-256 in hexadecimal.
pub fn sha256(contents: &[u8]) -> String {
    Sha256::digest(contents).iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Manifest {
    /// Pretty JSON with a fixed order of fields.
    pub fn to_json(&self) -> String {
        // Text keys and plain values always serialise; a NaN sample becomes null.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_as_written() {
        let manifest = Manifest {
            command: "pipo reproduce fig-8".into(),
            version: "0.1.0".into(),
            commit: Some("afbbcc2".into()),
            inputs: [("plan".into(), sha256(b"plan"))].into(),
            seed: 7,
            hardware: [("gpu".into(), "none (simulated)".into())].into(),
            samples: vec![Samples {
                name: "decode".into(),
                unit: "tokens/s".into(),
                values: vec![8.25, 8.5],
            }],
            files: vec![FileHash::of("figure.svg", b"<svg/>")],
        };
        insta::assert_snapshot!(manifest.to_json(), @r#"
        {
          "command": "pipo reproduce fig-8",
          "version": "0.1.0",
          "commit": "afbbcc2",
          "inputs": {
            "plan": "64879f7d6b960a01909762d911a32d4582c20010c5641ee90278b644a9e3b525"
          },
          "seed": 7,
          "hardware": {
            "gpu": "none (simulated)"
          },
          "samples": [
            {
              "name": "decode",
              "unit": "tokens/s",
              "values": [
                8.25,
                8.5
              ]
            }
          ],
          "files": [
            {
              "path": "figure.svg",
              "bytes": 6,
              "sha256": "d4dc56669143034f31aa309635d4113d9ad76a02b1739da22c965ed2049be9e6"
            }
          ]
        }
        "#);
    }

    #[test]
    fn the_hash_is_sha_256() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b""), empty);
    }
}
