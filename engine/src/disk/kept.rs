//! What the page cache keeps of a file that may have no more than so much of it.

use std::collections::BTreeMap;
use std::ops::Range;

use pipo_plan::units::Bytes;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// What is kept or forgotten together: as much as the system ever holds in one piece (2 MiB on x86-64 and on
/// 64-bit Arm with 4 KiB pages), beginning where such pieces do. Of a piece that reaches beyond what is to be
/// forgotten it drops nothing: with the borders of reads of 1 MiB instead, three times the capacity stayed.
const BLOCK: u64 = 2 << 20;

/// What was read of a file and is still kept, no more than a capacity in all.
///
/// What has to go is drawn at random, because that is what a prediction assumes of a page cache: of a scan that
/// is read round and round and does not fit, dropping what was read longest ago would keep nothing, since
/// everything would go just before it is read again, and protecting what came first would keep all that fits.
/// The system's own approximate lists stand between the two, and so does chance.
#[derive(Debug)]
pub(super) struct Kept {
    capacity: u64,
    /// Of all blocks.
    bytes: u64,
    /// What was read of each block that is kept, from the first byte of it to the last. In any order, to draw
    /// from.
    blocks: Vec<Range<u64>>,
    /// Where a block is among them, by its number in the file.
    places: BTreeMap<u64, usize>,
    random: Pcg64,
}

impl Kept {
    /// Nothing is kept yet.
    pub(super) fn new(capacity: Bytes) -> Self {
        Self {
            capacity: capacity.0,
            bytes: 0,
            blocks: Vec::new(),
            places: BTreeMap::new(),
            // Always the same victims, so that a run differs from the next in nothing that is chosen.
            random: Pcg64::seed_from_u64(0),
        }
    }

    /// Notes what has been read, and says what the system must forget for it.
    pub(super) fn note(&mut self, read: Range<u64>) -> Vec<Range<u64>> {
        let mut forgotten = Vec::new();
        let mut from = read.start;
        while from < read.end {
            let to = end(from).min(read.end);
            self.note_within(from..to, &mut forgotten);
            from = to;
        }
        forgotten
    }

    /// The same within one block.
    fn note_within(&mut self, read: Range<u64>, forgotten: &mut Vec<Range<u64>>) {
        let number = read.start / BLOCK;
        let mut block = read;
        if let Some(&place) = self.places.get(&number) {
            let known = &self.blocks[place];
            if known.start <= block.start && block.end <= known.end {
                return;
            }
            block = known.start.min(block.start)..known.end.max(block.end);
            self.take(place);
        }
        let length = block.end - block.start;
        if length > self.capacity {
            // Not what follows: it may have been read ahead, and is wanted next.
            forgotten.push(number * BLOCK..block.end);
            return;
        }
        while self.bytes > self.capacity - length && !self.blocks.is_empty() {
            let victim = self.random.random_range(0..self.blocks.len());
            let victim = self.take(victim).start;
            forgotten.push(victim / BLOCK * BLOCK..end(victim));
        }
        self.places.insert(number, self.blocks.len());
        self.blocks.push(block);
        self.bytes += length;
    }

    /// Takes a block out of all accounts.
    fn take(&mut self, place: usize) -> Range<u64> {
        let block = self.blocks.swap_remove(place);
        self.places.remove(&(block.start / BLOCK));
        if let Some(moved) = self.blocks.get(place) {
            self.places.insert(moved.start / BLOCK, place);
        }
        self.bytes -= block.end - block.start;
        block
    }
}

/// Where the block ends that a byte lies in.
fn end(at: u64) -> u64 {
    (at / BLOCK + 1).saturating_mul(BLOCK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn bytes(range: &Range<u64>) -> u64 {
        range.end - range.start
    }

    impl Kept {
        /// How much of what is read is kept already.
        fn hits(&self, read: &Range<u64>) -> u64 {
            let within = |known: &Range<u64>| {
                known.end.min(read.end).saturating_sub(known.start.max(read.start))
            };
            let known = parts(read).filter_map(|part| self.places.get(&(part.start / BLOCK)));
            known.map(|&place| within(&self.blocks[place])).sum()
        }

        /// Whether the three accounts agree, and what they say is within the capacity.
        fn is_sound(&self) -> bool {
            let listed = (0..).zip(&self.blocks);
            let listed: BTreeMap<u64, usize> =
                listed.map(|(place, block)| (block.start / BLOCK, place)).collect();
            let whole = |block: &Range<u64>| !block.is_empty() && block.end <= end(block.start);
            listed == self.places
                && self.blocks.len() == self.places.len()
                && self.blocks.iter().all(whole)
                && self.blocks.iter().map(bytes).sum::<u64>() == self.bytes
                && self.bytes <= self.capacity
        }
    }

    /// Stretches behind one another, from a place that is no border of blocks.
    fn scan(lengths: &[u64]) -> Vec<Range<u64>> {
        let ends = lengths.iter().scan(12_345, |end, length| {
            *end += length;
            Some(*end - length..*end)
        });
        ends.collect()
    }

    /// Cut at the borders of blocks.
    fn parts(read: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let numbers = read.start / BLOCK..read.end.div_ceil(BLOCK);
        let read = read.clone();
        numbers.map(move |n| (n * BLOCK).max(read.start)..((n + 1) * BLOCK).min(read.end))
    }

    proptest! {
        /// Whatever is read: what is kept fits; nothing is forgotten that was not kept or just read; and what
        /// was read is kept until it is forgotten.
        #[test]
        fn what_is_kept_fits_whatever_is_read(
            capacity in 0..40 * MIB,
            reads in prop::collection::vec((0..40 * MIB, 1..9 * MIB), 0..60),
        ) {
            let mut kept = Kept::new(Bytes(capacity));
            let mut at_once = Kept::new(Bytes(capacity));
            // By number: what there should be of each block.
            let mut expected: BTreeMap<u64, Range<u64>> = BTreeMap::new();
            for (start, length) in reads {
                let read = start..start + length;
                let mut forgotten_in_all = Vec::new();
                for part in parts(&read) {
                    let hit = kept.hits(&part) == bytes(&part);
                    let forgotten = kept.note(part.clone());
                    prop_assert!(kept.is_sound());
                    prop_assert!(forgotten.is_empty() || !hit, "a hit changed something");
                    let block = expected.entry(part.start / BLOCK).or_insert(part.clone());
                    *block = block.start.min(part.start)..block.end.max(part.end);
                    for gone in &forgotten {
                        prop_assert_eq!(gone.start % BLOCK, 0);
                        let block = expected.remove(&(gone.start / BLOCK));
                        let block = block.ok_or_else(|| TestCaseError::fail("was not kept"))?;
                        prop_assert!(gone.end == end(gone.start) || gone.end == block.end);
                    }
                    let found = kept.places.iter();
                    let found = found.map(|(&number, &place)| (number, kept.blocks[place].clone()));
                    prop_assert_eq!(found.collect::<BTreeMap<_, _>>(), expected.clone());
                    forgotten_in_all.extend(forgotten);
                }
                // A read of several blocks is one of each.
                prop_assert_eq!(at_once.note(read), forgotten_in_all);
            }
        }

        #[test]
        fn a_scan_that_fits_is_never_forgotten(
            lengths in prop::collection::vec(1..9 * MIB, 1..50),
            spare in 0..3_u64,
        ) {
            let all: u64 = lengths.iter().sum();
            let mut kept = Kept::new(Bytes(all + spare));
            for pass in 0..3 {
                for read in scan(&lengths) {
                    prop_assert_eq!(kept.hits(&read), if pass == 0 { 0 } else { bytes(&read) });
                    prop_assert!(kept.note(read).is_empty());
                }
            }
            prop_assert_eq!(kept.bytes, all);
        }

        /// All of what was read is forgotten, and nothing of what follows, which may have been read ahead.
        #[test]
        fn a_capacity_of_nothing_keeps_nothing(start in 0..9 * MIB, length in 1..9 * MIB) {
            let mut kept = Kept::new(Bytes::ZERO);
            let forgotten = kept.note(start..start + length);
            prop_assert_eq!(forgotten[0].start, start / BLOCK * BLOCK);
            prop_assert_eq!(forgotten.last().map(|last| last.end), Some(start + length));
            prop_assert!(forgotten.windows(2).all(|pair| pair[0].end == pair[1].start));
            prop_assert!(kept.blocks.is_empty() && kept.is_sound());
        }
    }

    /// The root below one of `h = exp(-(1 - h) ratio)`, which the simulator takes for the share of hits: iterated
    /// from below, it is the first that is met.
    fn predicted(ratio: f64) -> f64 {
        (0..10_000).fold(0.0, |share: f64, _| (-(1.0 - share) * ratio).exp())
    }

    /// A scan of 20000 blocks, in reads of less than one and of several, which begin anywhere: once the first passes
    /// are over, the share of bytes that hits is the predicted one, within half a percent of all bytes.
    #[test]
    fn a_scan_that_does_not_fit_hits_the_share_that_is_predicted() {
        let all = 20_000 * BLOCK;
        for read in [MIB, 4 * MIB + 4096] {
            let lengths = vec![read; usize::try_from(all / read).unwrap()];
            let scan = scan(&lengths);
            // Of what is read, so much in 100 fits.
            for fits in [10, 50, 75, 90] {
                let mut kept = Kept::new(Bytes(all / 100 * fits));
                let mut hits = 0;
                for pass in 0..30 {
                    for read in &scan {
                        hits += if pass >= 15 { kept.hits(read) } else { 0 };
                        kept.note(read.clone());
                    }
                }
                assert!(kept.is_sound());
                let share = hits as f64 / (15 * all) as f64;
                let predicted = predicted(100.0 / fits as f64);
                let case = format!("{read} bytes, {fits} % fit");
                assert!((share - predicted).abs() < 0.005, "{case}: {share}, not {predicted}");
            }
        }
    }
}
