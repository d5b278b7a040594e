//! Reading a store: nothing is believed that was not checked.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pipo_plan::model::{Model, Part, Precision};

use super::table::{self, Attached, Table};
use super::{BLOCK, DATA, Layout, Origin, Place, StoreError, TABLE, TOKENIZER, in_memory};
use crate::arithmetic::Arithmetic;
use crate::tokenizer;

/// An open store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    data: File,
    table: Table,
    layout: Layout,
}

impl Store {
    /// Opens a store and checks its table and the length of its data; [`Store::read`] checks bytes.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let (table, layout) = Table::parse(&table::document(&folder.join(TABLE))?)?;
        let path = folder.join(DATA);
        let data = File::open(&path).map_err(StoreError::io("open", &path))?;
        let found = data.metadata().map_err(StoreError::io("inspect", &path))?.len();
        let expected = layout.file_length();
        if found != expected {
            return Err(StoreError::DataLength { path, found, expected });
        }
        Ok(Self { path, data, table, layout })
    }

    /// The model whose weights these are.
    pub fn model(&self) -> &Model {
        self.layout.model()
    }

    /// What its shapes do not say.
    pub fn arithmetic(&self) -> &Arithmetic {
        &self.table.arithmetic
    }

    /// How its matrices are stored.
    pub fn precision(&self) -> Precision {
        self.layout.precision()
    }

    /// Where the weights came from.
    pub fn origin(&self) -> &Origin {
        self.table.origin()
    }

    /// Where everything lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The data file, for those who read it their own way and let a [`super::Check`] see what they read.
    pub fn data_path(&self) -> &Path {
        &self.path
    }

    /// Asks the system to drop what it keeps of the data in memory, so that a measurement begins with a
    /// cold page cache. What it does about that is its own business.
    pub fn forget_cached(&self) {
        let _ = rustix::fs::fadvise(&self.data, 0, None, rustix::fs::Advice::DontNeed);
    }

    /// Where the model's tokenizer is, if there is one.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.path.with_file_name(TOKENIZER)
    }

    /// The bytes of the model's tokenizer, as they were written.
    pub fn tokenizer(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(expected) = self.table.tokenizer else { return Ok(None) };
        let path = self.tokenizer_path();
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        let mut bytes = Vec::new();
        let most = expected.length.min(tokenizer::LARGEST) + 1;
        file.take(most).read_to_end(&mut bytes).map_err(StoreError::io("read", &path))?;
        let found = Attached::of(&bytes);
        if found != expected {
            let pair = |file: Attached| (file.length, file.checksum);
            let (found, expected) = (pair(found), pair(expected));
            return Err(StoreError::Attached { path, found, expected });
        }
        Ok(Some(bytes))
    }

    /// Length of a run.
    pub fn length(&self, run: Place) -> Result<u64, StoreError> {
        self.range(run).map(|range| range.end - range.start)
    }

    /// Reads bytes of a run from `offset` on and checks every block that they lie in.
    ///
    /// A range that starts and ends at blocks is read in place; a block that is needed in part is
    /// read whole on the side, because only a whole block can be checked.
    pub fn read(&self, run: Place, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        let length = self.length(run)?;
        let end = offset.saturating_add(into.len() as u64);
        if end > length {
            return Err(StoreError::OutOfRun { run, offset, end, length });
        }
        let mut aside = Vec::new();
        let mut rest = into;
        let mut at = offset;
        while !rest.is_empty() {
            let block = at / BLOCK;
            let start = block * BLOCK;
            let whole = in_memory(BLOCK.min(length - start));
            let skip = in_memory(at - start);
            let take = (whole - skip).min(rest.len());
            let (now, later) = rest.split_at_mut(take);
            if take == whole {
                self.read_block(run, block, now)?;
            } else {
                aside.resize(whole, 0);
                self.read_block(run, block, &mut aside)?;
                now.copy_from_slice(&aside[skip..skip + take]);
            }
            rest = later;
            at += take as u64;
        }
        Ok(())
    }

    /// Whether the bytes of a whole block are those that were written.
    fn check_block(&self, run: Place, block: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let length = self.length(run)?;
        let offset = block.saturating_mul(BLOCK);
        let end = offset.saturating_add(bytes.len() as u64);
        let Some(&expected) = self.checksums(run).get(in_memory(block)) else {
            return Err(StoreError::OutOfRun { run, offset, end, length });
        };
        let found = crc32fast::hash(bytes);
        if found == expected {
            return Ok(());
        }
        Err(StoreError::Checksum { path: self.path.clone(), run, block, found, expected })
    }

    /// The checksums of a run's blocks.
    pub(super) fn checksums(&self, run: Place) -> &[u32] {
        self.table.blocks(match run.part {
            Part::Embedding => 0,
            Part::Attention => 1 + 2 * run.layer as usize,
            Part::Mlp => 2 + 2 * run.layer as usize,
            Part::Head => 1 + 2 * self.model().layers as usize,
        })
    }

    /// Bytes of a run that lie in one block, for who checks the block.
    pub(super) fn read_unchecked(
        &self,
        run: Place,
        place: std::ops::Range<u64>,
    ) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; in_memory(place.end.saturating_sub(place.start))];
        let at = self.range(run)?.start + place.start;
        self.data.read_exact_at(&mut bytes, at).map_err(|source| StoreError::Block {
            path: self.path.clone(),
            run,
            block: place.start / BLOCK,
            source,
        })?;
        Ok(bytes)
    }

    /// Reads every byte once and checks it.
    pub fn verify(&self) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        for run in self.layout.places() {
            let length = self.length(run)?;
            for block in 0..length.div_ceil(BLOCK) {
                bytes.resize(in_memory(BLOCK.min(length - block * BLOCK)), 0);
                self.read_block(run, block, &mut bytes)?;
            }
        }
        Ok(())
    }

    fn read_block(&self, run: Place, block: u64, into: &mut [u8]) -> Result<(), StoreError> {
        let start = self.range(run)?.start + block * BLOCK;
        self.data.read_exact_at(into, start).map_err(|source| StoreError::Block {
            path: self.path.clone(),
            run,
            block,
            source,
        })?;
        self.check_block(run, block, into)
    }

    fn range(&self, run: Place) -> Result<std::ops::Range<u64>, StoreError> {
        self.layout.range(run).ok_or_else(|| StoreError::NoRun {
            model: self.model().name.clone(),
            run,
            layers: self.model().layers,
        })
    }
}
