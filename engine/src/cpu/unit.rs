//! One unit of the model: where its bytes are in the store, and in memory.

use pipo_plan::model::Part;
use pipo_plan::strategy::frame::Frame;
use pipo_plan::units::Bytes;

use super::source::{Source, Stretch};
use super::{fault, length, parts};
use crate::executor::Fault;
use crate::memory::{Account, Buffer};
use crate::run::RunError;
use crate::store::{Place, Store};

/// One unit of the model.
#[derive(Debug)]
pub(super) struct Unit {
    /// Its parts, in the order of the computation.
    pub(super) parts: Vec<Part>,
    pub(super) layer: usize,
    /// Whether what is kept of it is on the device.
    pub(super) on_device: bool,
    stretches: Vec<Stretch>,
    /// Its bytes, where they stay in memory; without the table of a tied head that stays with them.
    kept: Option<Buffer>,
    /// The unit whose first bytes are this one's last.
    shares: Option<usize>,
}

impl Unit {
    pub(super) fn new(frame: &Frame, index: usize, store: &Store) -> Result<Self, RunError> {
        let unit = &frame.units[index];
        let last = index + 1 == frame.units.len();
        let layered = unit.tensors.iter().any(|(part, _)| *part == Part::Mlp);
        let parts = parts(unit.part, layered && unit.part == Part::Attention);
        let whole = |&part: &Part| {
            let place = Place { part, layer: unit.layer };
            Stretch::new(store, place, 0..store.layout().length(part))
        };
        let mut stretches = parts.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
        if last && store.layout().tied() {
            // The table is the first tensor of the embedding.
            let place = Place { part: Part::Embedding, layer: 0 };
            stretches.push(Stretch::new(store, place, 0..frame.tied_table().0)?);
        }
        Ok(Self {
            parts,
            layer: unit.layer as usize,
            on_device: false,
            stretches,
            kept: None,
            shares: None,
        })
    }

    fn bytes(&self) -> u64 {
        self.stretches.iter().map(Stretch::length).sum()
    }

    /// Keeps all of it in memory.
    pub(super) fn keep(&mut self, account: &mut Account, source: &Source) -> Result<(), RunError> {
        self.fill(self.bytes(), account, source)
    }

    /// Keeps it; where the table of a tied head is kept at the same tier already, without that.
    pub(super) fn keep_sharing(
        &mut self,
        others: &[Self],
        account: &mut Account,
        source: &Source,
    ) -> Result<(), RunError> {
        let table = self.stretches.len() - self.parts.len();
        let held = others.first().filter(|embedding| table > 0 && embedding.kept.is_some());
        // What is left tells whether the plan counted the table once or twice.
        let own: u64 = self.stretches[..self.parts.len()].iter().map(Stretch::length).sum();
        if held.is_some() && account.left() < Bytes(self.bytes()) {
            self.shares = Some(0);
            return self.fill(own, account, source);
        }
        self.fill(self.bytes(), account, source)
    }

    fn fill(&mut self, bytes: u64, account: &mut Account, source: &Source) -> Result<(), RunError> {
        let buffer = account.draw(Bytes(bytes))?;
        self.read(source, 0, &mut buffer.write()?)?;
        self.kept = Some(buffer);
        Ok(())
    }

    /// After the run: whether everything that was read has been checked.
    pub(super) fn finish(&self) -> Result<(), RunError> {
        self.stretches.iter().try_for_each(Stretch::finish)
    }

    /// Reads from the store, from `offset` of the unit on.
    pub(super) fn read(&self, source: &Source, offset: u64, into: &mut [u8]) -> Result<(), Fault> {
        let mut rest = into;
        let mut at = offset;
        let mut before = 0;
        for stretch in &self.stretches {
            let end = before + stretch.length();
            if at < end && !rest.is_empty() {
                let take = length(Bytes(end - at))?.min(rest.len());
                let (now, later) = rest.split_at_mut(take);
                source.read(stretch, at - before, now)?;
                rest = later;
                at += take as u64;
            }
            before = end;
        }
        if rest.is_empty() { Ok(()) } else { Err(fault("a block lies outside its unit")) }
    }

    /// Copies what is kept in host memory, from `offset` of the unit on.
    pub(super) fn copy_from_host(
        &self,
        others: &[Self],
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Fault> {
        let outside = || fault("a block lies outside what is kept of its unit");
        let kept = self.kept.as_ref().ok_or_else(outside)?.read()?;
        let start = length(Bytes(offset))?;
        // The block may begin in the table that is kept elsewhere.
        let here = kept.get(start..).unwrap_or_default();
        let own = here.len().min(into.len());
        let (first, rest) = into.split_at_mut(own);
        first.copy_from_slice(&here[..own]);
        if rest.is_empty() {
            return Ok(());
        }
        let other = self.shares.and_then(|index| others.get(index)?.kept.as_ref());
        let other = other.ok_or_else(outside)?.read()?;
        let start = (start + own).saturating_sub(kept.len());
        let table = other.get(start..start + rest.len()).ok_or_else(outside)?;
        rest.copy_from_slice(table);
        Ok(())
    }

    /// The bytes that stay in memory, and those of the table that is kept with another unit.
    pub(super) fn kept<'u>(
        &'u self,
        others: &'u [Self],
    ) -> Option<(&'u Buffer, Option<&'u Buffer>)> {
        let shared = self.shares.and_then(|index| others.get(index)?.kept.as_ref());
        Some((self.kept.as_ref()?, shared))
    }

    /// Where each of its stretches lies within it.
    pub(super) fn ranges(&self) -> Result<Vec<std::ops::Range<usize>>, Fault> {
        let mut start = 0;
        let range = |stretch: &Stretch| {
            let end = start + length(Bytes(stretch.length()))?;
            Ok(std::mem::replace(&mut start, end)..end)
        };
        self.stretches.iter().map(range).collect()
    }
}
