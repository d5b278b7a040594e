//! One unit of the model: where its bytes are in the store, in memory, and in a slot.
//!
//! A unit is a row of pieces, each of one run of the store and at one tier. Those of the device are kept
//! there; the others follow each other in the slot that the unit is loaded into.

use std::collections::BTreeMap;
use std::ops::Range;

use pipo_plan::model::Part;
use pipo_plan::schedule::{Op, Tier};
use pipo_plan::units::Bytes;

use super::accounts::Accounts;
use super::knobs::Knobs;
use super::source::{Source, Stretch};
use super::{fault, length};
use crate::decoder::{Bytes as Cut, Run};
use crate::executor::Fault;
use crate::memory::Buffer;
use crate::run::RunError;
use crate::store::{Place, Store, in_memory};

/// Consecutive bytes of a run that live at one tier.
#[derive(Debug)]
struct Piece {
    stretch: Stretch,
    tier: Tier,
    /// Where it begins in its unit's slot; nothing where it is on the device.
    slot: usize,
    /// Where it is kept in memory.
    kept: Option<Kept>,
}

/// A place in what a unit keeps at a tier: its own, or, for the table of a tied head, the embedding's.
#[derive(Debug, Clone, Copy)]
struct Kept {
    unit: usize,
    at: usize,
}

/// One unit of the model.
#[derive(Debug)]
pub(crate) struct Unit {
    /// Its parts, in the order of the computation.
    pub(crate) parts: Vec<Part>,
    pub(crate) layer: usize,
    /// Whether attention over the cache happens in it.
    pub(crate) attends: bool,
    pieces: Vec<Piece>,
    /// Where numbered blocks begin in the slot, in a plan that says no offsets.
    blocks: Option<Vec<usize>>,
    /// What stays in memory.
    kept: BTreeMap<Tier, Buffer>,
}

/// Where the bytes are that a computation needs.
pub(crate) struct Weights<B> {
    /// What was loaded.
    pub(crate) slot: Option<B>,
    /// What the unit keeps on the device.
    pub(crate) kept: Option<B>,
    /// What the embedding keeps there.
    pub(crate) embedding: Option<B>,
}

impl Unit {
    /// Lays a unit out; its bytes are not there yet.
    pub(crate) fn new(knobs: &Knobs, index: usize, store: &Store) -> Result<Self, RunError> {
        let unit = &knobs.frame.units[index];
        let mut pieces: Vec<Piece> = Vec::new();
        let mut slot = 0;
        let mut sizes: BTreeMap<Tier, usize> = BTreeMap::new();
        for (run, range, tier) in cut(knobs, index, store)? {
            let stretch = Stretch::new(store, run, range)?;
            let size = in_memory(stretch.length());
            let shared = run.part == Part::Embedding && index > 0 && shares_table(knobs, tier);
            let kept = match tier {
                Tier::Disk => None,
                _ if shared => Some(Kept { unit: 0, at: 0 }),
                _ => {
                    let end = sizes.entry(tier).or_default();
                    let at = std::mem::replace(end, *end + size);
                    Some(Kept { unit: index, at })
                }
            };
            pieces.push(Piece { stretch, tier, slot, kept });
            slot += if tier == Tier::Gpu { 0 } else { size };
        }
        let mut parts: Vec<Part> = unit.tensors.iter().map(|&(part, _)| part).collect();
        parts.dedup();
        let (layer, attends) = (unit.layer as usize, unit.attends);
        let blocks = knobs.by_tensor.then(|| blocks(knobs, index));
        Ok(Self { parts, layer, attends, pieces, blocks, kept: BTreeMap::new() })
    }

    /// Reads what stays at some tiers of the host's memory.
    pub(crate) fn keep(
        &mut self,
        index: usize,
        accounts: &mut Accounts,
        name: &'static str,
        source: &Source,
        tiers: &[Tier],
    ) -> Result<(), RunError> {
        for &tier in tiers {
            let bytes: u64 = self.own(index, tier).map(Stretch::length).sum();
            if bytes == 0 {
                continue;
            }
            let buffer = accounts.get(tier, name).draw(Bytes(bytes))?;
            let mut memory = buffer.write()?;
            let mut rest = &mut memory[..];
            for stretch in self.own(index, tier) {
                let (now, later) = rest.split_at_mut(in_memory(stretch.length()));
                source.read_once(stretch, 0, now)?;
                rest = later;
            }
            drop(memory);
            self.kept.insert(tier, buffer);
        }
        Ok(())
    }

    /// What stays at a tier and is the unit's own, in the order in which it lies there.
    pub(crate) fn own(&self, index: usize, tier: Tier) -> impl Iterator<Item = &Stretch> {
        let own = move |p: &&Piece| p.tier == tier && p.kept.is_some_and(|kept| kept.unit == index);
        self.pieces.iter().filter(own).map(|piece| &piece.stretch)
    }

    /// After the run: whether everything that was read has been checked.
    pub(crate) fn finish(&self) -> Result<(), RunError> {
        self.pieces.iter().try_for_each(|piece| piece.stretch.finish())
    }

    /// What it keeps at a tier.
    pub(crate) fn kept(&self, tier: Tier) -> Option<&Buffer> {
        self.kept.get(&tier)
    }

    /// Where in the unit's slot the block of an operation begins.
    pub(crate) fn block(&self, op: &Op) -> Result<usize, Fault> {
        let Some(blocks) = &self.blocks else { return length(op.offset) };
        let block = blocks.get(usize::from(op.block)).copied();
        block.ok_or_else(|| fault("a unit has no such block"))
    }

    /// Reads a block from the store.
    pub(crate) fn read(&self, source: &Source, at: usize, into: &mut [u8]) -> Result<(), Fault> {
        self.each(at, into.len(), |piece, from, range| match piece.tier {
            Tier::Disk => source.read(&piece.stretch, from as u64, &mut into[range]),
            _ => Err(fault("a block that is read is not on disk")),
        })
    }

    /// Copies a block from host memory.
    pub(crate) fn copy(&self, units: &[Self], at: usize, into: &mut [u8]) -> Result<(), Fault> {
        self.visit(units, at, into.len(), |bytes, range| {
            into[range].copy_from_slice(bytes);
            Ok(())
        })
    }

    /// The bytes of a block in host memory, stretch by stretch, with their place in the block.
    pub(crate) fn visit(
        &self,
        units: &[Self],
        at: usize,
        length: usize,
        mut one: impl FnMut(&[u8], Range<usize>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.each(at, length, |piece, from, range| {
            let outside = || fault("a block that is copied is not in host memory");
            let kept = piece.kept.ok_or_else(outside)?;
            let buffer = units.get(kept.unit).and_then(|unit| unit.kept(piece.tier));
            let buffer = buffer.ok_or_else(outside)?.read()?;
            let start = kept.at + from;
            one(buffer.get(start..start + range.len()).ok_or_else(outside)?, range)
        })
    }

    /// The pieces that a block of the slot consists of: where it begins in each, and its place in the block.
    fn each(
        &self,
        at: usize,
        length: usize,
        mut one: impl FnMut(&Piece, usize, Range<usize>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut done = 0;
        for piece in self.pieces.iter().filter(|piece| piece.tier != Tier::Gpu) {
            let size = in_memory(piece.stretch.length());
            let from = (at + done).checked_sub(piece.slot).filter(|&from| from < size);
            let Some(from) = from.filter(|_| done < length) else { continue };
            let now = (length - done).min(size - from);
            one(piece, from, done..done + now)?;
            done += now;
        }
        if done == length { Ok(()) } else { Err(fault("a block lies outside its unit")) }
    }

    /// The tensors of a part, for a computation.
    pub(crate) fn run<B: Cut>(&self, part: Part, weights: &Weights<B>) -> Result<Run<B>, Fault> {
        let mine = self.pieces.iter().filter(|piece| piece.stretch.run().part == part);
        let bytes = |piece: &Piece| {
            let (bytes, at) = match (piece.tier, piece.kept) {
                (Tier::Gpu, Some(Kept { unit: 0, at })) if self.parts != [Part::Embedding] => {
                    (weights.embedding, at)
                }
                (Tier::Gpu, Some(Kept { at, .. })) => (weights.kept, at),
                _ => (weights.slot, piece.slot),
            };
            let end = at.saturating_add(in_memory(piece.stretch.length()));
            let bytes = bytes.and_then(|bytes| bytes.cut(at..end));
            let bytes = bytes.ok_or_else(|| fault("a unit's weights are not where it computes"))?;
            Ok((piece.stretch.start(), bytes))
        };
        mine.map(bytes).collect()
    }
}

/// The pieces of a unit in the order in which they lie in its slot.
fn cut(
    knobs: &Knobs,
    index: usize,
    store: &Store,
) -> Result<Vec<(Place, Range<u64>, Tier)>, Fault> {
    let (layout, unit) = (store.layout(), &knobs.frame.units[index]);
    let mut ranges: Vec<(Place, Range<u64>)> = Vec::new();
    for &(part, tensor) in &unit.tensors {
        let table = layout.tied() && part == Part::Head && tensor.name == "head";
        let (part, name) = if table { (Part::Embedding, "tokens") } else { (part, tensor.name) };
        let layer = if table { 0 } else { unit.layer };
        let copies = layout.tensors(part).filter(|placed| placed.tensor.name == name);
        let range = |offset, length| (Place { part, layer }, offset..offset + length);
        ranges.extend(copies.map(|placed| range(placed.offset, placed.length)));
    }
    if !knobs.by_tensor {
        for run in ranges.chunk_by_mut(|a, b| a.0 == b.0) {
            run.sort_by_key(|(_, range)| range.start);
        }
    }
    let mut pieces: Vec<(Place, Range<u64>, Tier)> = Vec::new();
    let mut before = 0;
    for (run, range) in ranges {
        let tier = tier_of(knobs, index, before)?;
        before += range.end - range.start;
        match pieces.last_mut() {
            Some(last) if (last.0, last.1.end, last.2) == (run, range.start, tier) => {
                last.1.end = range.end;
            }
            _ => pieces.push((run, range, tier)),
        }
    }
    let placed: Bytes = knobs.placement[index].iter().map(|segment| segment.bytes).sum();
    if placed == Bytes(before) {
        Ok(pieces)
    } else {
        Err(fault("a unit is not as long as its run"))
    }
}

/// The tier of a unit's bytes from `offset` on.
fn tier_of(knobs: &Knobs, index: usize, offset: u64) -> Result<Tier, Fault> {
    let mut end = 0;
    let segment = knobs.placement[index].iter().find(|segment| {
        end += segment.bytes.0;
        offset < end
    });
    segment.map(|s| s.tier).ok_or_else(|| fault("a unit is longer than what was placed of it"))
}

/// Whether a tied head and the embedding, both kept at a tier, are the same bytes.
fn shares_table(knobs: &Knobs, tier: Tier) -> bool {
    let embedding = knobs.placement[0].first().map(|segment| segment.tier);
    knobs.shares_table && knobs.embedding.is_none() && embedding == Some(tier)
}

/// Where the blocks of a unit begin in its slot: each segment that is not on the device is one.
fn blocks(knobs: &Knobs, index: usize) -> Vec<usize> {
    let moved = knobs.placement[index].iter().filter(|segment| segment.tier != Tier::Gpu);
    let begin = moved.scan(0, |end, segment| {
        let begin = *end;
        *end += in_memory(segment.bytes.0);
        Some(begin)
    });
    begin.collect()
}
