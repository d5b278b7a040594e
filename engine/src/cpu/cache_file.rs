//! A cache on disk: one file without a name, which is gone when the run has ended, however it ended.
//!
//! It lies beside the store's data, has room for the cache of every layer and micro-batch, and takes only
//! what is written of it. It is read and written through the page cache: its rows begin anywhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::CpuBackend;
use crate::backend::cache_rows::{Shape, outside};
use crate::backend::{fault, length, moved};
use crate::executor::{Fault, Task};
use crate::run::RunError;

/// The file.
#[derive(Debug)]
pub(super) struct CacheFile {
    folder: PathBuf,
    file: File,
    /// Bytes of one layer and micro-batch.
    room: usize,
    /// For each unit and micro-batch: new rows between the device and the file. The plan counts no
    /// memory for them.
    leaving: Mutex<BTreeMap<(u16, u16), Vec<u8>>>,
}

impl CacheFile {
    pub(super) fn create(data: &Path, room: usize) -> Result<Self, RunError> {
        let folder = data.parent().unwrap_or(Path::new(".")).to_owned();
        let file = tempfile::tempfile_in(&folder)
            .map_err(|source| RunError::Scratch { folder: folder.clone(), source })?;
        Ok(Self { folder, file, room, leaving: Mutex::default() })
    }

    fn fault(&self, action: &str, bytes: usize, at: u64, error: &io::Error) -> Fault {
        Fault(format!(
            "{}: cannot {action} {bytes} bytes at byte {at} of the cache's scratch file: {error}; \
             check the disk and its free space, or keep the cache in host memory",
            self.folder.display()
        ))
    }
}

impl CpuBackend<'_> {
    /// Everything before this pass, from the file into a host slot.
    pub(super) fn read_cache(&self, task: &Task) -> Result<(), Fault> {
        let file = self.cache_file()?;
        let slot = task.bound.host.ok_or_else(|| fault("a cache has no slot"))?;
        let mut slot = self.host.rings.slot(slot)?.write()?;
        let shape = self.host.shape(slot.len())?;
        let mut read = 0;
        let before = 0..self.host.before(task);
        for (at, place) in self.stretches(file, task, shape, before)? {
            let into = slot.get_mut(place).ok_or_else(outside)?;
            let result = file.file.read_exact_at(into, at);
            result.map_err(|error| file.fault("read", into.len(), at, &error))?;
            read += into.len();
        }
        moved(task, read)
    }

    /// The rows of this pass, from the device towards the file.
    pub(super) fn save_towards_file(&self, task: &Task) -> Result<(), Fault> {
        let file = self.cache_file()?;
        let slot = self.slot(task)?.read()?;
        let shape = self.host.shape(slot.len())?;
        let mut rows = Vec::with_capacity(length(task.work.bytes())?);
        for plane in slot.chunks_exact(shape.plane()) {
            for place in shape.places(self.host.new_positions(task)) {
                rows.extend_from_slice(plane.get(place).ok_or_else(outside)?);
            }
        }
        let saved = rows.len();
        let mut leaving = file.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.insert((task.op.unit, task.op.micro), rows);
        moved(task, saved)
    }

    /// The rows of this pass, into the file.
    pub(super) fn write_cache(&self, task: &Task) -> Result<(), Fault> {
        let file = self.cache_file()?;
        let mut leaving = file.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = leaving.remove(&(task.op.unit, task.op.micro));
        drop(leaving);
        let rows = rows.ok_or_else(|| fault("rows are written that were not saved"))?;
        let mut rest = &rows[..];
        let shape = self.host.shape(file.room)?;
        for (at, place) in self.stretches(file, task, shape, self.host.new_positions(task))? {
            let (now, later) = rest.split_at_checked(place.len()).ok_or_else(outside)?;
            let result = file.file.write_all_at(now, at);
            result.map_err(|error| file.fault("write", now.len(), at, &error))?;
            rest = later;
        }
        moved(task, rows.len() - rest.len())
    }

    /// Where the rows of some positions lie in the file, and in a slot with the same room.
    fn stretches(
        &self,
        file: &CacheFile,
        task: &Task,
        shape: Shape,
        positions: Range<usize>,
    ) -> Result<Vec<(u64, Range<usize>)>, Fault> {
        let micros = usize::from(self.host.frame.micros());
        let cache = self.host.unit(task)?.layer * micros + usize::from(task.op.micro);
        let begin = cache as u64 * file.room as u64;
        let planes = file.room / shape.plane();
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

    fn cache_file(&self) -> Result<&CacheFile, Fault> {
        self.cache_file.as_ref().ok_or_else(|| fault("there is no cache on disk"))
    }
}
