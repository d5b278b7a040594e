//! Writing a store as a stream: one block in memory, whatever the model.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use pipo_plan::model::{Model, Part, Precision};
use pipo_plan::units::Bytes;

use super::staging::Staging;
use super::table::{Attached, MOST_BLOCKS, Table};
use super::{ALIGNMENT, BLOCK, Layout, Origin, StoreError, TOKENIZER, in_memory};
use crate::arithmetic::Arithmetic;

/// What a store is of.
#[derive(Debug, Clone)]
pub struct Header {
    /// The model.
    pub model: Model,
    /// What its shapes do not say.
    pub arithmetic: Arithmetic,
    /// How its matrices are stored.
    pub precision: Precision,
    /// Where the weights come from.
    pub origin: Origin,
}

/// Takes the bytes of all runs in the order of the layout, without padding, and makes a store.
///
/// Dropped before [`Writer::finish`], it leaves nothing behind.
pub struct Writer {
    // Before `staging`, so that the file is closed when the folder goes.
    out: Box<dyn Write>,
    staging: Staging,
    layout: Layout,
    arithmetic: Arithmetic,
    origin: Origin,
    tokenizer: Option<Attached>,
    block: Vec<u8>,
    /// Checksums of the finished blocks of each run begun.
    runs: Vec<Vec<u32>>,
    /// Bytes of the current run that are still to come.
    left: u64,
    /// Lengths of the runs to come.
    ahead: std::vec::IntoIter<u64>,
    written: u64,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("staging", &self.staging)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Begins a store at `target`, which must not exist.
    pub fn create(target: &Path, header: Header) -> Result<Self, StoreError> {
        Self::create_through(target, header, |file| Box::new(file))
    }

    /// The same, with the data going through a writer of the caller's: one that counts, slows down,
    /// or fails as a full disk does.
    pub fn create_through(
        target: &Path,
        header: Header,
        through: impl FnOnce(File) -> Box<dyn Write>,
    ) -> Result<Self, StoreError> {
        let Header { model, arithmetic, precision, origin } = header;
        let layout = Layout::new(&model, precision).map_err(|flaw| StoreError::Model {
            model: model.name.clone(),
            reason: flaw.to_string(),
        })?;
        let lengths = || layout.places().map(|place| layout.length(place.part));
        let blocks = lengths().map(|length| length.div_ceil(BLOCK)).fold(0, u64::saturating_add);
        if blocks > MOST_BLOCKS {
            return Err(StoreError::TooLarge { blocks, limit: MOST_BLOCKS });
        }
        let ahead: Vec<u64> = lengths().collect();
        let staging = Staging::create(target, Bytes(layout.file_length()))?;
        let out = through(staging.data()?);
        let mut writer = Self {
            out,
            staging,
            layout,
            arithmetic,
            origin,
            tokenizer: None,
            block: Vec::with_capacity(in_memory(BLOCK)),
            runs: Vec::new(),
            left: 0,
            ahead: ahead.into_iter(),
            written: 0,
        };
        writer.next_run()?;
        Ok(writer)
    }

    /// Where everything goes.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A folder on the target's disk for unnamed files that vanish with the process.
    pub fn scratch(&self) -> &Path {
        self.staging.folder()
    }

    /// Puts the model's tokenizer beside the weights.
    pub fn attach_tokenizer(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.staging.attach(TOKENIZER, bytes)?;
        self.tokenizer = Some(Attached::of(bytes));
        Ok(())
    }

    /// Takes the next bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            if self.left == 0 {
                let expected = self.weight_bytes();
                let written = expected.saturating_add(bytes.len() as u64);
                return Err(StoreError::Incomplete { written, expected });
            }
            let room = (BLOCK - self.block.len() as u64).min(self.left);
            let (now, later) = bytes.split_at(in_memory(room).min(bytes.len()));
            self.block.extend_from_slice(now);
            self.left -= now.len() as u64;
            bytes = later;
            if self.left == 0 || self.block.len() as u64 == BLOCK {
                self.end_block()?;
            }
            if self.left == 0 {
                self.next_run()?;
            }
        }
        Ok(())
    }

    /// Writes the table and gives the store its name; fails unless every byte was given.
    pub fn finish(mut self) -> Result<(), StoreError> {
        let missing = self.left + self.ahead.as_slice().iter().sum::<u64>();
        if missing > 0 {
            let expected = self.weight_bytes();
            return Err(StoreError::Incomplete { written: expected - missing, expected });
        }
        self.out.flush().map_err(StoreError::io("write", &self.path()))?;
        let table =
            Table::new(&self.layout, self.arithmetic, self.origin, self.tokenizer, self.runs);
        self.staging.publish(&table.to_json())
    }

    fn end_block(&mut self) -> Result<(), StoreError> {
        let checksum = crc32fast::hash(&self.block);
        if let Some(run) = self.runs.last_mut() {
            run.push(checksum);
        }
        let block = std::mem::take(&mut self.block);
        self.put(&block)?;
        self.block = block;
        self.block.clear();
        Ok(())
    }

    /// Begins the next run that has bytes, after padding to the alignment.
    fn next_run(&mut self) -> Result<(), StoreError> {
        while self.left == 0
            && let Some(length) = self.ahead.next()
        {
            let padding = self.written.next_multiple_of(ALIGNMENT) - self.written;
            self.put(&[0; 4096][..in_memory(padding).min(4096)])?;
            self.runs.push(Vec::new());
            self.left = length;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes).map_err(StoreError::io("write", &self.path()))
    }

    fn path(&self) -> PathBuf {
        self.staging.data_path()
    }

    /// All bytes of all runs, without padding.
    fn weight_bytes(&self) -> u64 {
        let layer = self.layout.length(Part::Attention) + self.layout.length(Part::Mlp);
        self.layout.length(Part::Embedding)
            + layer * u64::from(self.layout.model().layers)
            + self.layout.length(Part::Head)
    }
}
