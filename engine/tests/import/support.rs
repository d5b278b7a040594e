//! Imports and what can be asked of the folders around them.

use std::fs;
use std::path::{Path, PathBuf};

use pipo_engine::decoder::format;
use pipo_engine::import::{Import, ImportError, Progress, Report, Source, import};
use pipo_engine::store::{Place, Store};
use pipo_kernels::Matrix;
use pipo_kernels::format::dequantise_row;
use pipo_plan::model::Precision;
use tempfile::TempDir;

use crate::checkpoint::Checkpoint;

/// A folder with a checkpoint in `tiny/`; stores go to `store/`.
pub(crate) fn written(checkpoint: &Checkpoint, files: usize) -> TempDir {
    let folder = TempDir::new().unwrap();
    checkpoint.write(&folder.path().join("tiny"), files);
    folder
}

pub(crate) fn target(folder: &TempDir) -> PathBuf {
    folder.path().join("store")
}

pub(crate) fn run(folder: &TempDir, precision: Precision) -> Result<Report, ImportError> {
    let (source, target) = (folder.path().join("tiny"), target(folder));
    let request = Import { source: Source::Checkpoint(&source), precision, target: &target };
    let mut last = Progress { done: 0, total: 0 };
    let report = import(&request, &mut |progress| {
        assert!(progress.done >= last.done && progress.done <= progress.total);
        last = progress;
    })?;
    assert_eq!(last.done, last.total, "progress ends at its total");
    Ok(report)
}

/// Names of everything in a folder, hidden files too.
pub(crate) fn listed(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// An import that must fail, leaving nothing, and saying all of `words`.
pub(crate) fn refused(folder: &TempDir, precision: Precision, words: &[&str]) {
    let before = listed(folder.path());
    let error = run(folder, precision).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
    assert_eq!(listed(folder.path()), before, "something was left behind after: {error}");
}

/// A table with the checksum that its text deserves, as somebody would make who means harm.
pub(crate) fn resealed(table: &str) -> String {
    let field = "\"checksum\":";
    let Some((before, after)) = table.split_once(field) else { return table.to_owned() };
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    let checksum = crc32fast::hash(format!("{before}{field}0{after}").as_bytes());
    format!("{before}{field}{checksum}{after}")
}

/// Numbers of a whole matrix in the bytes of a store; `None` unless there are exactly as many bytes as
/// the matrix has.
pub(crate) fn decode(
    precision: Precision,
    outputs: u64,
    inputs: u64,
    bytes: &[u8],
) -> Option<Vec<f32>> {
    let (outputs, inputs) = (usize::try_from(outputs).ok()?, usize::try_from(inputs).ok()?);
    let matrix = Matrix::new(format(precision), outputs, inputs, bytes).ok()?;
    let mut numbers = vec![0.0; outputs * inputs];
    if numbers.is_empty() {
        return None;
    }
    for (row, numbers) in numbers.chunks_exact_mut(inputs).enumerate() {
        dequantise_row(&matrix, row, numbers).ok()?;
    }
    Some(numbers)
}

/// The numbers of one tensor of a store.
pub(crate) fn stored(store: &Store, place: Place, name: &str, expert: Option<u32>) -> Vec<f32> {
    let layout = store.layout();
    let (run, placed) = layout.find(place, name, expert).unwrap();
    let mut bytes = vec![0; usize::try_from(placed.length).unwrap()];
    store.read(run, placed.offset, &mut bytes).unwrap();
    let precision = layout.precision_of(&placed.tensor);
    decode(precision, placed.tensor.outputs, placed.tensor.inputs, &bytes).unwrap()
}
