//! A mixture of experts on the device.
//!
//! Which rows go to which expert is known on the device alone, and the host never asks: launches have to be
//! sized before, so each expert works on all rows, and of what it says the router's share is added up, which
//! is nothing for a row that was sent elsewhere. With few rows a product takes as long as its weights take
//! to be read, however many rows there are; a long prompt pays for it with as many times more arithmetic as
//! there are experts for each that a row is sent to.
//!
//! A row adds up its experts in their order, so that its sum does not depend on the rows beside it.

use pipo_kernels::cuda::{Linear, Out, Region, Then};
use pipo_plan::model::Experts;

use super::arithmetic::Step;
use super::fault;
use super::mlp::numbers;
use crate::decoder::Owner;
use crate::executor::Fault;
use crate::store::in_memory;

/// Memory for what is between the products of a mixture.
struct Rooms {
    /// By expert, where the part is cut and they must stay; otherwise one for all of them.
    gates: Vec<Region>,
    ups: Vec<Region>,
    /// For copies of weights: as large wherever the part is cut, because which way a product is computed
    /// depends on it.
    spare: Region,
    /// What an expert says.
    down: Region,
    /// What all of them say, by their shares.
    sum: Region,
    /// Rows x experts in single precision.
    logits: Region,
    /// The same.
    shares: Region,
}

impl Step<'_> {
    /// What is there of the part.
    pub(super) fn mixture(&self, experts: Experts) -> Result<(), Fault> {
        let (count, rows, stream) = (experts.count as usize, self.count(), self.stream.raw());
        let hidden = self.hidden()?;
        // The norm stands before the router, and the router before the first matrices.
        let input = self.input("router")?;
        let rooms = self.rooms(experts)?;
        let Rooms { spare, down, sum, logits, shares, .. } = rooms;
        if self.has("router") {
            self.route(experts, input, logits, shares)?;
        }
        let mut is_whole = false;
        for expert in 0..count {
            let number = u32::try_from(expert).ok();
            let own = Step { owner: Owner { expert: number, ..self.owner }, ..*self };
            let room = |rooms: &[Region]| rooms.get(expert % rooms.len().max(1)).copied();
            let (Some(gate), Some(up)) = (room(&rooms.gates), room(&rooms.ups)) else {
                return Err(fault("there is no room for an expert"));
            };
            own.advance(input, &[("gate", gate, spare), ("up", up, spare)], Then::Store)?;
            if !own.has("down") {
                continue;
            }
            self.kernels().gated_silu(stream, gate, up, numbers(gate))?;
            own.advance(gate, &[("down", down, spare)], Then::Store)?;
            let (width, first) = (self.arithmetic().hidden(), expert == 0);
            self.kernels()
                .add_expert(stream, shares, count, expert, down, rows, width, first, sum)?;
            is_whole = true;
        }
        if !is_whole {
            return Ok(());
        }
        self.kernels().add(stream, hidden, sum, numbers(sum))?;
        if self.post_norm() {
            self.norm(hidden, rows, hidden)?;
        }
        Ok(())
    }

    /// The shares that experts have in rows.
    fn route(
        &self,
        experts: Experts,
        input: Region,
        logits: Region,
        shares: Region,
    ) -> Result<(), Fault> {
        let (rows, stream) = (self.count(), self.stream.raw());
        let router = Linear {
            x: input,
            rows,
            matrix: &self.matrix("router")?,
            bias: None,
            then: Then::Store,
            out: logits,
            out_type: Out::Fp32,
            spare: Region::EMPTY,
        };
        self.kernels().linear(stream, &router)?;
        let (count, active) = (experts.count as usize, experts.active as usize);
        Ok(self.kernels().route(stream, logits, rows, count, active, true, shares)?)
    }

    /// Parts of the workspace.
    fn rooms(&self, experts: Experts) -> Result<Rooms, Fault> {
        let arithmetic = self.arithmetic();
        let owner = Owner { expert: Some(0), ..self.owner };
        let width = arithmetic.tensors.outputs(owner, "gate");
        let width = width.ok_or_else(|| fault("a matrix is not in the model"))? as u64;
        let (hidden, count) = (arithmetic.hidden() as u64, u64::from(experts.count));
        let kept = if arithmetic.cut { count } else { 1 };
        // As `strategy::shapes` accounts for it.
        let numbers = count.next_multiple_of(2);
        let row = 4 * kept * width + 4 * width + 4 * hidden + 8 * numbers;
        let (mut at, rows) = (self.own_room(row), self.count() as u64);
        let mut take = |bytes: u64| {
            let region = arithmetic.inner.slice(at, bytes * rows);
            at += bytes * rows;
            region
        };
        Ok(Rooms {
            gates: (0..in_memory(kept)).map(|_| take(2 * width)).collect::<Result<_, _>>()?,
            ups: (0..in_memory(kept)).map(|_| take(2 * width)).collect::<Result<_, _>>()?,
            spare: take(4 * width)?,
            down: take(2 * hidden)?,
            sum: take(2 * hidden)?,
            logits: take(4 * numbers)?,
            shares: take(4 * numbers)?,
        })
    }
}
