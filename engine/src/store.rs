//! Weights on disk, laid out for the pipeline.
//!
//! A store is a directory of two files, or three. `store.json` is the table: the model, the precision,
//! and for each run its place and the checksums of its blocks. `weights.bin` holds the runs: the
//! embedding, the attention and the MLP of each layer, the head. `tokenizer.json` is the checkpoint's,
//! where it had one; the table has its checksum. A run starts at a multiple of [`ALIGNMENT`] and
//! is exactly as long as [`pipo_plan::model::Model::bytes`] says, so that one read moves one part
//! and the simulator's sizes are the engine's.
//!
//! The files are untrusted. The layout follows from the model and the precision alone, so that
//! [`Store::open`] computes it and refuses a table that says anything else: overlaps, holes, runs
//! outside the file and sizes beyond belief are all the same mismatch, found before anything is
//! allocated for it.

mod check;
mod error;
mod layout;
mod reader;
mod staging;
mod table;
mod writer;

pub use check::Check;
pub use error::StoreError;
pub use layout::{ALIGNMENT, Layout, Place, Placed};
pub use reader::Store;
pub use table::{BLOCK, Origin};
pub use writer::{Header, Writer};

/// The table's file name.
pub const TABLE: &str = "store.json";
/// The data's file name.
pub const DATA: &str = "weights.bin";
/// The file name of the model's tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";

/// A length in memory. Longer than memory can be stays too long and fails where it is allocated or
/// compared; no platform this runs on has narrower addresses than the lengths that pass the checks.
pub(crate) fn in_memory(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
