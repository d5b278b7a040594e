//! Checks what is read in pieces against checksums of blocks, without reading anything twice.
//!
//! A run is checksummed in blocks of [`BLOCK`], but a plan cuts it where it likes: into units, resident
//! and streamed, and those into pieces. Each piece is hashed as it arrives; checksums of neighbours
//! combine to that of both (`crc32fast`), so a block is checked as soon as all of it has been seen.
//!
//! # What holds
//!
//! - The order in which pieces arrive does not matter, nor which thread brings them.
//! - A block of which every piece has arrived once is proved, or the last of them is an error.
//! - A piece that comes again, pass after pass, must have the checksum it had: its damage is found at once.
//! - What lies in a block but outside the stretch that is read is hashed once, in [`Store::check`].
//! - [`Check::finish`] refuses a block of which only a part arrived, or pieces that overlap: nothing that
//!   was used stays unchecked behind a result.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{BLOCK, Place, Store, StoreError};

/// A stretch of a run that is read in pieces.
#[derive(Debug)]
pub struct Check {
    path: PathBuf,
    run: Place,
    /// Length of the run.
    length: u64,
    /// Bytes that one checksum covers.
    block: u64,
    /// Checksums of all blocks of the run.
    expected: Vec<u32>,
    /// Blocks that came in pieces, by number.
    seen: Mutex<BTreeMap<u64, Seen>>,
}

/// A block that came in pieces.
#[derive(Debug, Default)]
struct Seen {
    /// By its first byte: one after the last, and the checksum.
    pieces: BTreeMap<u64, (u64, u32)>,
    /// Whether any piece is of the stretch itself.
    used: bool,
}

impl Store {
    /// A check for a stretch of a run. Reads what lies beside it in its first and last block.
    pub fn check(&self, run: Place, stretch: Range<u64>) -> Result<Check, StoreError> {
        let length = self.length(run)?;
        let (offset, end) = (stretch.start, stretch.end);
        if offset > end || end > length {
            return Err(StoreError::OutOfRun { run, offset, end, length });
        }
        let path = self.data_path().to_owned();
        let expected = self.checksums(run).to_vec();
        let check = Check { path, run, length, block: BLOCK, expected, seen: Mutex::default() };
        if stretch.is_empty() {
            return Ok(check);
        }
        let last = check.whole((end - 1) / BLOCK);
        for beside in [offset / BLOCK * BLOCK..offset, end..last.end] {
            if !beside.is_empty() {
                let bytes = self.read_unchecked(run, beside.clone())?;
                check.note(beside, crc32fast::hash(&bytes), false)?;
            }
        }
        Ok(check)
    }
}

impl Check {
    /// A piece has been read: `bytes` are what the run has from `offset` on.
    pub fn piece(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let end = self.whole(at / self.block).end.min(at.saturating_add(rest.len() as u64));
            if end <= at {
                return Err(self.out_of_run(offset, bytes));
            }
            let (now, later) = rest.split_at(super::in_memory(end - at));
            self.note(at..end, crc32fast::hash(now), true)?;
            (at, rest) = (end, later);
        }
        Ok(())
    }

    /// After the last piece: every block that was used must have been seen as a whole.
    pub fn finish(&self) -> Result<(), StoreError> {
        for (&block, seen) in self.lock().iter().filter(|(_, seen)| seen.used) {
            match seen.combined(&self.whole(block)) {
                Some(found) => self.compare(block, found)?,
                None => return Err(StoreError::Unchecked { run: self.run, block }),
            }
        }
        Ok(())
    }

    /// A piece of one block.
    fn note(&self, piece: Range<u64>, crc: u32, used: bool) -> Result<(), StoreError> {
        let block = piece.start / self.block;
        let whole = self.whole(block);
        if piece == whole {
            return self.compare(block, crc);
        }
        let mut all = self.lock();
        let seen = all.entry(block).or_default();
        seen.used |= used;
        let known = seen.pieces.insert(piece.start, (piece.end, crc));
        match (known, seen.combined(&whole)) {
            (Some(known), _) if known == (piece.end, crc) => Ok(()),
            (_, Some(found)) => self.compare(block, found),
            (None, None) => Ok(()),
            // Read twice with two results, of which only one can be right.
            (Some((_, expected)), None) => Err(self.damaged(block, crc, expected)),
        }
    }

    /// The bytes of a block.
    fn whole(&self, block: u64) -> Range<u64> {
        let start = block.saturating_mul(self.block);
        start..start.saturating_add(self.block).min(self.length)
    }

    fn compare(&self, block: u64, found: u32) -> Result<(), StoreError> {
        match self.expected.get(super::in_memory(block)) {
            Some(&expected) if expected == found => Ok(()),
            Some(&expected) => Err(self.damaged(block, found, expected)),
            None => Err(StoreError::Unchecked { run: self.run, block }),
        }
    }

    fn damaged(&self, block: u64, found: u32, expected: u32) -> StoreError {
        StoreError::Checksum { path: self.path.clone(), run: self.run, block, found, expected }
    }

    fn out_of_run(&self, offset: u64, bytes: &[u8]) -> StoreError {
        let end = offset.saturating_add(bytes.len() as u64);
        StoreError::OutOfRun { run: self.run, offset, end, length: self.length }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// The checksum of the whole block, if its pieces follow each other from end to end.
    fn combined(&self, whole: &Range<u64>) -> Option<u32> {
        let mut all = crc32fast::Hasher::new();
        let mut at = whole.start;
        for (&start, &(end, crc)) in &self.pieces {
            if start != at {
                return None;
            }
            all.combine(&crc32fast::Hasher::new_with_initial_len(crc, end - start));
            at = end;
        }
        (at == whole.end).then(|| all.finalize())
    }
}

#[cfg(test)]
mod tests {
    use pipo_plan::model::Part;
    use proptest::prelude::*;

    use super::*;

    const LENGTH: usize = 200;
    const SMALL: usize = 64;

    fn bytes() -> Vec<u8> {
        (0..LENGTH).map(|i| u8::try_from(i * i % 251).unwrap()).collect()
    }

    /// Three blocks of 64 bytes and one of 8.
    fn check() -> Check {
        Check {
            path: "weights.bin".into(),
            run: Place { part: Part::Mlp, layer: 3 },
            length: LENGTH as u64,
            block: SMALL as u64,
            expected: bytes().chunks(SMALL).map(crc32fast::hash).collect(),
            seen: Mutex::default(),
        }
    }

    /// Cuts of the whole run, and an order in which the pieces between them arrive.
    fn pieces() -> impl Strategy<Value = Vec<Range<usize>>> {
        let cuts = prop::collection::btree_set(1..LENGTH, 0..12);
        cuts.prop_flat_map(|cuts| {
            let edges: Vec<usize> = [0].into_iter().chain(cuts).chain([LENGTH]).collect();
            let pieces: Vec<_> = edges.windows(2).map(|edge| edge[0]..edge[1]).collect();
            Just(pieces).prop_shuffle()
        })
    }

    fn walk(check: &Check, pieces: &[Range<usize>], bytes: &[u8]) -> Result<(), StoreError> {
        pieces.iter().try_for_each(|piece| check.piece(piece.start as u64, &bytes[piece.clone()]))
    }

    fn block_of(error: &StoreError) -> u64 {
        let StoreError::Checksum { block, .. } = error else { panic!("{error}") };
        *block
    }

    proptest! {
        /// In whatever pieces and order, walk after walk, each bit is checked in each of them.
        #[test]
        fn a_flipped_bit_is_found_in_the_walk_it_is_in(
            orders in pieces().prop_flat_map(|p| (Just(p.clone()), Just(p).prop_shuffle())),
            bit in 0..8 * LENGTH,
        ) {
            let (good, mut bad) = (bytes(), bytes());
            bad[bit / 8] ^= 1 << (bit % 8);
            let check = check();
            let error = walk(&check, &orders.0, &bad).unwrap_err();
            prop_assert_eq!(block_of(&error), (bit / 8 / SMALL) as u64);

            let check = self::check();
            walk(&check, &orders.0, &good).unwrap();
            walk(&check, &orders.1, &good).unwrap();
            check.finish().unwrap();
            let error = walk(&check, &orders.1, &bad).unwrap_err();
            prop_assert_eq!(block_of(&error), (bit / 8 / SMALL) as u64);
        }

        /// What never arrives is not mistaken for what did.
        #[test]
        fn a_missing_piece_is_found_at_the_end(pieces in pieces(), missing in any::<prop::sample::Index>()) {
            let mut pieces = pieces;
            let missing = pieces.remove(missing.index(pieces.len()));
            let check = check();
            walk(&check, &pieces, &bytes()).unwrap();
            let touched = |piece: &Range<usize>| piece.start / SMALL..=(piece.end - 1) / SMALL;
            let partly = touched(&missing).any(|block| pieces.iter().any(|p| touched(p).contains(&block)));
            prop_assert_eq!(check.finish().is_err(), partly);
        }
    }

    #[test]
    fn pieces_that_overlap_prove_nothing() {
        let (check, bytes) = (check(), bytes());
        check.piece(0, &bytes[..40]).unwrap();
        check.piece(30, &bytes[30..64]).unwrap();
        insta::assert_snapshot!(check.finish().unwrap_err(), @"block 0 of the run `layer 3 mlp` was read in pieces that do not make it up; this is an error in pipo, please report it");
    }

    #[test]
    fn two_reads_that_differ_are_an_error_before_the_block_is_whole() {
        let (check, mut bytes) = (check(), bytes());
        check.piece(0, &bytes[..40]).unwrap();
        bytes[39] ^= 128;
        assert_eq!(block_of(&check.piece(0, &bytes[..40]).unwrap_err()), 0);
    }

    #[test]
    fn what_lies_outside_the_run_is_refused() {
        for (offset, length) in [(190, 11), (200, 1), (u64::MAX, 2)] {
            let error = check().piece(offset, &vec![0; length]).unwrap_err();
            assert!(
                matches!(error, StoreError::OutOfRun { .. } | StoreError::Checksum { .. }),
                "{error}"
            );
        }
    }
}
