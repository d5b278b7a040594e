//! A cache on disk: one file without a name, which is gone when the run has ended, however it ended.
//!
//! It lies beside the store's data, has room for the cache of every layer and micro-batch, and takes only
//! what is written of it. Its rows begin anywhere, so it is read and written through the page cache; but nothing
//! stays there, because a plan that keeps its cache on a disk has no memory for it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pipo_plan::schedule::Tier;

use super::cache_rows::{Shape, outside};
use super::knobs::Knobs;
use super::{Host, bound, length, moved};
use crate::disk::passing;
use crate::executor::{Fault, Task};
use crate::run::RunError;

/// The file.
#[derive(Debug)]
pub(crate) struct CacheFile {
    folder: PathBuf,
    file: File,
    /// Bytes of one layer and micro-batch.
    room: usize,
}

impl CacheFile {
    /// What a plan needs: nothing where all caches are in memory. It is noted how it is read.
    pub(crate) fn for_plan(
        knobs: &Knobs,
        data: &Path,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>, RunError> {
        if !knobs.cache.contains(&Tier::Disk) {
            return Ok(None);
        }
        notes.push("the cache on disk passed through the page cache and did not stay there".into());
        Self::create(data, length(knobs.frame.cache_room())?).map(Some)
    }

    fn create(data: &Path, room: usize) -> Result<Self, RunError> {
        let folder = data.parent().unwrap_or(Path::new(".")).to_owned();
        let file = tempfile::tempfile_in(&folder)
            .map_err(|source| RunError::Scratch { folder: folder.clone(), source })?;
        Ok(Self { folder, file, room })
    }

    /// Everything before this pass, from the file into a host slot.
    pub(crate) fn read(&self, host: &Host, task: &Task) -> Result<(), Fault> {
        let slot = bound(task.bound.host, "a host slot")?;
        let mut slot = host.rings.slot(slot)?.write()?;
        let shape = host.shape(slot.len())?;
        let stretches = self.stretches(host, task, shape, 0..host.before(task))?;
        let places = stretches.iter().map(|(at, place)| *at..*at + place.len() as u64);
        passing::fetch(&self.file, places);
        let mut read = 0;
        for (at, place) in stretches {
            let into = slot.get_mut(place).ok_or_else(outside)?;
            let result = self.file.read_exact_at(into, at);
            result.map_err(|error| self.fault("read", into.len(), at, &error))?;
            read += into.len();
        }
        passing::forget(&self.file, &self.place(host, task)?);
        moved(task, read)
    }

    /// The rows of this pass, from a host slot into the file: in the slot they lie as in a cache that has
    /// room for them alone.
    pub(crate) fn write(&self, host: &Host, task: &Task) -> Result<(), Fault> {
        let rows = host.rings.slot(bound(task.bound.host, "a host slot")?)?.read()?;
        let rows = rows.get(..length(task.work.bytes())?).ok_or_else(outside)?;
        let mut rest = rows;
        let shape = host.shape(self.room)?;
        for (at, place) in self.stretches(host, task, shape, host.new_positions(task))? {
            let (now, later) = rest.split_at_checked(place.len()).ok_or_else(outside)?;
            let result = self.file.write_all_at(now, at);
            result.map_err(|error| self.fault("write", now.len(), at, &error))?;
            rest = later;
        }
        let all = self.place(host, task)?;
        let put = passing::put(&self.file, &all);
        put.map_err(|error| self.fault("write back", rows.len(), all.start, &error))?;
        moved(task, rows.len() - rest.len())
    }

    /// Where the cache of a task's layer and micro-batch lies in the file.
    fn place(&self, host: &Host, task: &Task) -> Result<Range<u64>, Fault> {
        let micros = usize::from(host.frame.micros());
        let cache = host.unit(task)?.layer * micros + usize::from(task.op.micro);
        let begin = cache as u64 * self.room as u64;
        Ok(begin..begin + self.room as u64)
    }

    /// Where the rows of some positions lie in the file, and in a slot with the same room.
    fn stretches(
        &self,
        host: &Host,
        task: &Task,
        shape: Shape,
        positions: Range<usize>,
    ) -> Result<Vec<(u64, Range<usize>)>, Fault> {
        let begin = self.place(host, task)?.start;
        let planes = self.room / shape.plane();
        let mut stretches = Vec::new();
        for plane in 0..planes {
            for place in shape.places(positions.clone()) {
                let place = plane * shape.plane() + place.start..plane * shape.plane() + place.end;
                if !place.is_empty() {
                    stretches.push((begin + place.start as u64, place));
                }
            }
        }
        Ok(stretches)
    }

    fn fault(&self, action: &str, bytes: usize, at: u64, error: &io::Error) -> Fault {
        Fault(format!(
            "{}: cannot {action} {bytes} bytes at byte {at} of the cache's scratch file: {error}; \
             check the disk and its free space, or keep the cache in host memory",
            self.folder.display()
        ))
    }
}
