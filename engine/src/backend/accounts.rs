//! The lines of the plan's memory table that are drawn from.

use std::collections::BTreeMap;

use pipo_plan::schedule::{Layout, Tier};
use pipo_plan::units::Bytes;

use crate::memory::{Account, Buffer};
use crate::run::RunError;

/// The lines of the plan's memory table that are drawn from.
pub(crate) struct Accounts<'a> {
    layout: &'a Layout,
    open: BTreeMap<(Tier, &'static str), Account>,
}

impl<'a> Accounts<'a> {
    pub(crate) fn new(layout: &'a Layout) -> Self {
        Self { layout, open: BTreeMap::new() }
    }

    pub(crate) fn get(&mut self, tier: Tier, name: &'static str) -> &mut Account {
        let layout = self.layout;
        self.open.entry((tier, name)).or_insert_with(|| Account::open(layout, tier, name))
    }

    pub(crate) fn many(
        &mut self,
        tier: Tier,
        name: &'static str,
        each: Bytes,
        count: u64,
    ) -> Result<Vec<Buffer>, RunError> {
        let account = self.get(tier, name);
        Ok((0..count).map(|_| account.draw(each)).collect::<Result<_, _>>()?)
    }

    pub(crate) fn rest(&mut self, tier: Tier, name: &'static str) -> Result<Buffer, RunError> {
        let account = self.get(tier, name);
        Ok(account.draw(account.left())?)
    }

    /// Counts bytes that are allocated elsewhere.
    pub(crate) fn claim(
        &mut self,
        tier: Tier,
        name: &'static str,
        bytes: Bytes,
    ) -> Result<Bytes, RunError> {
        self.get(tier, name).claim(bytes)?;
        Ok(bytes)
    }

    /// Counts all that is left of a line, which is allocated elsewhere.
    pub(crate) fn claim_rest(&mut self, tier: Tier, name: &'static str) -> Result<Bytes, RunError> {
        let left = self.get(tier, name).left();
        self.claim(tier, name, left)
    }

    /// What the tiers of memory hold; every account must be used up, and the rings are added.
    pub(crate) fn close(self) -> Result<Vec<(Tier, Bytes)>, RunError> {
        let mut sums: BTreeMap<Tier, Bytes> = BTreeMap::new();
        for ((tier, _), account) in self.open {
            *sums.entry(tier).or_default() += account.close()?;
        }
        for ring in &self.layout.rings {
            *sums.entry(ring.tier).or_default() += ring.slot_bytes * u64::from(ring.slots);
        }
        Ok(sums.into_iter().collect())
    }
}
