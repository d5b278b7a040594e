//! Fills a store: from a Hugging Face checkpoint, or with random numbers.
//!
//! Everything about the source is checked before the first byte is written. Then tensor after tensor
//! passes through memory in pieces of a few megabytes, so that the largest model takes no more memory
//! than the smallest.

mod checkpoint;
mod error;
mod header;
mod names;
pub mod quantise;
mod random;
mod report;
mod source;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use pipo_plan::model::{Model, Precision};

use self::checkpoint::Checkpoint;
use self::quantise::{Refused, Squares};
use self::random::Random;
use self::report::Ledger;
use self::source::{Rows, Wanted};
use crate::arithmetic::Arithmetic;
use crate::store::{Header, Layout, Origin, StoreError, Writer, in_memory};

pub use error::ImportError;
pub use header::{Entry, HeaderFlaw, LONGEST_HEADER, read as read_header};
pub use report::{KindError, Report, TensorError};

/// Numbers in memory at a time, where a row has no more.
const PIECE: u64 = 4 << 20;

/// Scales of one matrix that wait in memory for its codes to be written; more go to a file.
const SCALES_IN_MEMORY: usize = 8 << 20;

/// Where weights come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source<'a> {
    /// A folder with config.json and safetensors.
    Checkpoint(&'a Path),
    /// Random numbers in the shapes of a model.
    Random {
        /// The model.
        model: Model,
        /// What the numbers follow from.
        seed: u64,
    },
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the store that are written.
    pub done: u64,
    /// Bytes of the whole.
    pub total: u64,
}

/// An import: what to fill, from where.
#[derive(Debug, Clone)]
pub struct Import<'a> {
    /// Where weights come from.
    pub source: Source<'a>,
    /// How matrices are stored.
    pub precision: Precision,
    /// The store to make; it must not exist.
    pub target: &'a Path,
}

/// Imports a model into a new store.
pub fn import(request: &Import, progress: &mut dyn FnMut(Progress)) -> Result<Report, ImportError> {
    import_through(request, progress, |file| Box::new(file))
}

/// The same, with the weights going through a writer of the caller's; see
/// [`Writer::create_through`].
pub fn import_through(
    request: &Import,
    progress: &mut dyn FnMut(Progress),
    through: impl FnOnce(File) -> Box<dyn Write>,
) -> Result<Report, ImportError> {
    let (model, mut rows): (Model, Box<dyn Rows>);
    let (arithmetic, origin, unused, tokenizer);
    match &request.source {
        Source::Checkpoint(folder) => {
            let checkpoint = Checkpoint::open(folder)?;
            model = checkpoint.model().clone();
            arithmetic = checkpoint.arithmetic().clone();
            unused = checkpoint.check(&layout(&model, request.precision)?)?;
            origin = Origin::Safetensors;
            tokenizer = checkpoint.tokenizer()?;
            rows = Box::new(checkpoint);
        }
        Source::Random { model: wanted, seed } => {
            model = wanted.clone();
            arithmetic = Arithmetic::default_of(model.family);
            unused = Vec::new();
            origin = Origin::Random { seed: *seed };
            tokenizer = None;
            rows = Box::new(Random { seed: *seed });
        }
    }
    let header = Header { model, arithmetic, precision: request.precision, origin };
    let mut writer = Writer::create_through(request.target, header, through)?;
    if let Some(tokenizer) = &tokenizer {
        writer.attach_tokenizer(tokenizer)?;
    }
    let layout = writer.layout().clone();
    let mut ledger = Ledger::default();
    for place in layout.places() {
        let start = layout.range(place).map_or(0, |range| range.start);
        for placed in layout.tensors(place.part) {
            let wanted = Wanted { place, placed };
            let squares = convert(&wanted, &layout, rows.as_mut(), &mut writer)?;
            let tensor = TensorError {
                place,
                name: placed.tensor.name,
                precision: layout.precision_of(&placed.tensor),
                parameters: placed.tensor.outputs * placed.tensor.inputs,
                relative: 0.0,
            };
            ledger.note(tensor, squares);
            let done = start + placed.offset + placed.length;
            progress(Progress { done, total: layout.file_length() });
        }
    }
    let bytes = layout.file_length();
    writer.finish()?;
    Ok(ledger.report(bytes, unused, tokenizer.is_some()))
}

fn layout(model: &Model, precision: Precision) -> Result<Layout, StoreError> {
    Layout::new(model, precision)
        .map_err(|flaw| StoreError::Model { model: model.name.clone(), reason: flaw.to_string() })
}

/// Moves one tensor from the source to the store.
fn convert(
    wanted: &Wanted,
    layout: &Layout,
    rows: &mut dyn Rows,
    writer: &mut Writer,
) -> Result<Squares, ImportError> {
    let tensor = wanted.placed.tensor;
    let precision = layout.precision_of(&tensor);
    let inputs = tensor.inputs.max(1);
    let step = (PIECE / inputs).max(1);
    let mut numbers = vec![0.0; in_memory(step.min(tensor.outputs) * inputs)];
    let folder = writer.scratch().to_owned();
    // The second plane follows when the first is complete.
    let mut scales = tempfile::spooled_tempfile_in(SCALES_IN_MEMORY, &folder);
    let mut length = 0;
    let failed = |source| StoreError::io("use a temporary file in", &folder)(source);
    let mut squares = Squares::default();
    let mut first = 0;
    while first < tensor.outputs {
        let count = step.min(tensor.outputs - first);
        let numbers = &mut numbers[..in_memory(count * inputs)];
        rows.read(wanted, first, numbers)?;
        let encoded = quantise::encode(precision, in_memory(inputs), numbers);
        let encoded = encoded.map_err(|refused| match refused {
            Refused::Number { index, value } => ImportError::Unrepresentable {
                tensor: wanted.to_string(),
                row: first + index as u64 / inputs,
                column: index as u64 % inputs,
                value,
                precision,
            },
            Refused::Shape(error) => {
                ImportError::Unaddressable { tensor: wanted.to_string(), error }
            }
        })?;
        squares.add(encoded.squares);
        writer.write(&encoded.data)?;
        scales.write_all(&encoded.scales).map_err(failed)?;
        length += encoded.scales.len();
        first += count;
    }
    scales.rewind().map_err(failed)?;
    let mut piece = vec![0; length.min(1 << 20)];
    while length > 0 {
        let now = length.min(piece.len());
        scales.read_exact(&mut piece[..now]).map_err(failed)?;
        writer.write(&piece[..now])?;
        length -= now;
    }
    Ok(squares)
}
