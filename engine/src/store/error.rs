//! What can be wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

use pipo_plan::diagnostic::Diagnostic;
use pipo_plan::units::Bytes;

use super::Place;

/// A failure to open, read or write a store. Nothing half-right is ever returned beside one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The system refused a file operation.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried: `open`, `write`.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The table is no JSON of the right form, or a field of it cannot be believed.
    #[error(transparent)]
    Table(#[from] Box<Diagnostic>),
    /// The data file is shorter or longer than the table's runs.
    #[error(
        "{} has {found} bytes, the table's runs need {expected}; import the model again",
        path.display()
    )]
    DataLength {
        /// The data file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The length that follows from the model and the precision.
        expected: u64,
    },
    /// A block does not have the bytes that were written.
    #[error(
        "{}: block {block} of the run `{run}` has the checksum {found:08x}, the table says {expected:08x}; \
         the disk or a copy damaged it: import the model again",
        path.display()
    )]
    Checksum {
        /// The data file.
        path: PathBuf,
        /// The damaged run.
        run: Place,
        /// The damaged block, counted from 0 within the run.
        block: u64,
        /// The checksum of the bytes on disk.
        found: u32,
        /// The checksum of the bytes that were written.
        expected: u32,
    },
    /// A block was used of which not all was seen.
    #[error(
        "block {block} of the run `{run}` was read in pieces that do not make it up; \
         this is an error in pipo, please report it"
    )]
    Unchecked {
        /// The run.
        run: Place,
        /// The block, counted from 0 within the run.
        block: u64,
    },
    /// Another file than the weights is not what was written.
    #[error(
        "{} has {} bytes and the checksum {:08x}, the table says {} and {:08x}; import the model again",
        path.display(), found.0, found.1, expected.0, expected.1
    )]
    Attached {
        /// The file.
        path: PathBuf,
        /// Its length, as far as it was read, and the checksum of that.
        found: (u64, u32),
        /// What was written.
        expected: (u64, u32),
    },
    /// A block could not be read.
    #[error("{}: cannot read block {block} of the run `{run}`: {source}", path.display())]
    Block {
        /// The data file.
        path: PathBuf,
        /// The run.
        run: Place,
        /// The block, counted from 0 within the run.
        block: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// The model has no such run.
    #[error("the model `{model}` has no run `{run}`; it has {layers} layers")]
    NoRun {
        /// The model's name.
        model: String,
        /// What was asked for.
        run: Place,
        /// How many layers it has.
        layers: u32,
    },
    /// A range ends after its run.
    #[error("bytes {offset} to {end} of the run `{run}` were asked for, it has {length}")]
    OutOfRun {
        /// The run.
        run: Place,
        /// The first byte asked for.
        offset: u64,
        /// One after the last.
        end: u64,
        /// The run's length.
        length: u64,
    },
    /// The model to be written contradicts itself.
    #[error("the model `{model}` cannot be stored: {reason}")]
    Model {
        /// Its name.
        model: String,
        /// What is wrong, with both values and the next step.
        reason: String,
    },
    /// The model is larger than a table can describe.
    #[error(
        "the store would have {blocks} blocks, its table can list {limit}; use a smaller precision"
    )]
    TooLarge {
        /// Blocks of all runs.
        blocks: u64,
        /// The most that are believed.
        limit: u64,
    },
    /// The disk has no room for the store.
    #[error(
        "{} takes {}, and {} is free on its disk; free some space, name another disk, or use fewer bits a weight",
        path.display(), needed.both(), free.both()
    )]
    NoRoom {
        /// The target.
        path: PathBuf,
        /// The length of its weights.
        needed: Bytes,
        /// What may still be written there.
        free: Bytes,
    },
    /// The target is there already.
    #[error("{} exists already; remove it or name another place", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The target cannot be the name of a store.
    #[error("{} is no name for a store; name a new folder in a folder that exists", path.display())]
    BadTarget {
        /// The target.
        path: PathBuf,
    },
    /// Another process writes the same store.
    #[error("another import is writing {}; wait for it, or end it", path.display())]
    Busy {
        /// The folder it writes.
        path: PathBuf,
    },
    /// A folder with the name of an abandoned import holds what no import writes.
    #[error(
        "{} looks like an abandoned import, but holds `{entry}`, which no import writes; \
         move it away",
        path.display()
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// The file in it.
        entry: String,
    },
    /// The writer was given more or fewer bytes than the layout has.
    #[error("{written} bytes were written to a store of {expected}; please report it")]
    Incomplete {
        /// What was written.
        written: u64,
        /// What the layout has.
        expected: u64,
    },
}

impl StoreError {
    /// Turns a system error into one that names the file.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; free some space, or name another disk",
        io::ErrorKind::PermissionDenied => "; check who may use it",
        io::ErrorKind::NotFound => "; check the path",
        _ => "",
    }
}
