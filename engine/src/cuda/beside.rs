//! Attention beside the device: queries and new rows go down, what was attended comes back.
//!
//! The first halves of all micro-batches are issued before the second ones, so each has room of its own for
//! what travels. New rows are stored on the device as the cache stores them, and go down as they are. What was
//! attended the second half fetches by a kernel that reads the memory of the host: a copy would wait until the
//! engine has got through a block of weights.

use std::sync::{Mutex, PoisonError};

use pipo_kernels::cuda::{Append, Region};
use pipo_plan::schedule::Tier;
use pipo_plan::units::Bytes;

use super::arithmetic::{Step, span};
use super::driver::{self, Arena, Stream};
use super::{CudaBackend, fault};
use crate::backend::accounts::Accounts;
use crate::backend::knobs::Knobs;
use crate::backend::{fetched, moved};
use crate::executor::{Fault, Task};
use crate::half::Room;
use crate::memory::Buffer;
use crate::run::RunError;
use crate::store::in_memory;

/// What is on its way between the halves of an attention, of one micro-batch.
#[derive(Debug)]
pub(super) struct Crossing {
    /// On the device: rows of queries, and then, in their place, what was attended.
    attended: Region,
    /// On the device: a cache with room for one position.
    rows: Region,
    /// In host memory: queries, and then what was attended.
    pub(super) home: Buffer,
    /// The same rows as the CPU computes with them.
    room: Mutex<Room>,
}

impl Crossing {
    /// One for each micro-batch; none where the device attends.
    pub(super) fn all(
        knobs: &Knobs,
        accounts: &mut Accounts,
        arena: &mut Arena,
    ) -> Result<Vec<Self>, RunError> {
        let (frame, line) = (&knobs.frame, "queries and new rows");
        if accounts.get(Tier::Gpu, line).left() == Bytes::ZERO {
            return Ok(Vec::new());
        }
        let (queries, rows) = (frame.query(1), frame.new_cache(1));
        let mut one = || {
            Ok(Self {
                attended: arena.take(accounts.claim(Tier::Gpu, line, queries)?)?,
                rows: arena.take(accounts.claim(Tier::Gpu, line, rows)?)?,
                home: accounts.get(Tier::Pinned, "queries").draw(queries)?,
                room: Mutex::default(),
            })
        };
        (0..frame.plan.batch.count).map(|_| one()).collect()
    }
}

impl Step<'_> {
    /// The end of the first half: queries and new rows are put where they can travel from.
    pub(super) fn leave(&self, [q, k, v]: [Region; 3]) -> Result<(), Fault> {
        let crossing = self.backend.crossing(self.task)?;
        self.kernels().copy(self.stream.raw(), q, crossing.attended)?;
        let cache = self.cache_in(crossing.rows)?;
        let append = Append { keys: k, values: v, cache: &cache, first_position: 0, positions: 1 };
        Ok(self.kernels().append_cache(self.stream.raw(), &append)?)
    }

    /// The second half, from what was attended.
    pub(super) fn after_attention(&self) -> Result<(), Fault> {
        let crossing = self.backend.crossing(self.task)?;
        let attended = crossing.attended;
        // SAFETY: the buffer is pinned for as long as the backend lives, and is written again only behind this
        // half, for which the next queries wait.
        let home = unsafe { driver::mapped(&crossing.home.read()?) }?;
        self.kernels().copy(self.stream.raw(), home, attended)?;
        fetched(self.task, in_memory(home.bytes()))?;
        let [_, k, _, o] = self.results(["q", "k", "v", "o"])?;
        self.close("o", attended, span(k, o))
    }
}

impl CudaBackend<'_> {
    /// Queries and new rows of every sequence to host memory; the rows to where the cache stays.
    pub(super) fn save_queries(&self, task: &Task, stream: &Stream) -> Result<(), Fault> {
        let crossing = self.crossing(task)?;
        let (queries, cache) = (crossing.home.read()?, self.home(task)?.read()?);
        let place = queries.as_ptr().cast_mut();
        // SAFETY: the buffer lives as long as the backend; the CPU reads it once this operation has ended,
        // and what was attended before has been copied out of it, for this half waited for that.
        unsafe { stream.download(crossing.attended, place, queries.len()) }?;
        let first = self.host.before(task);
        let (device, host) = ((crossing.rows, 0..1), (&cache[..], first..first + 1));
        let copied = self.copy_rows(stream, device, host, false)?;
        moved(task, queries.len() + copied)
    }

    /// Attention over the cache in host memory.
    pub(super) fn attend_beside(&self, task: &Task) -> Result<(), Fault> {
        let Crossing { home, room, .. } = self.crossing(task)?;
        let (mut home, cache) = (home.write()?, self.home(task)?.read()?);
        let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.host.before(task);
        room.replace(&mut home, |queries, attended| {
            self.host.attend_into(&self.decoder, queries, &cache, before, attended)
        })
    }

    fn crossing(&self, task: &Task) -> Result<&Crossing, Fault> {
        let crossing = self.crossings.get(usize::from(task.op.micro));
        crossing.ok_or_else(|| fault("an attention beside the device has no room"))
    }
}
