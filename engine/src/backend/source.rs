//! Where weights come from: the store's data file, read the way the plan says, and every byte checked.

use std::ops::Range;

use pipo_plan::schedule::{DiskIo, Work, checked_at_once};
use pipo_plan::units::Bytes;

use super::{fault, length};
use crate::disk::{BlockReader, Buffered, Direct, PAGE, overlapped};
use crate::executor::Fault;
use crate::run::{Request, RunError};
use crate::store::{Check, Place, Store};

/// How a plan reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) io: DiskIo,
    /// Bytes of one request.
    pub(crate) request: Bytes,
}

/// The store's data file, open.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    reader: Box<dyn BlockReader + 'a>,
    way: Way,
}

/// A stretch of a run of the store, and what has been seen of it.
#[derive(Debug)]
pub(crate) struct Stretch {
    /// Where it begins in the data file.
    at: u64,
    run: Place,
    range: Range<u64>,
    check: Check,
}

impl Stretch {
    pub(crate) fn new(store: &Store, run: Place, range: Range<u64>) -> Result<Self, RunError> {
        let start = store.layout().range(run).unwrap_or_default().start;
        let check = store.check(run, range.clone())?;
        Ok(Self { at: start + range.start, run, range, check })
    }

    pub(crate) fn run(&self) -> Place {
        self.run
    }

    /// Where it begins in its run.
    pub(crate) fn start(&self) -> u64 {
        self.range.start
    }

    pub(crate) fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// After the run: whether everything that was read of it has been checked.
    pub(crate) fn finish(&self) -> Result<(), RunError> {
        Ok(self.check.finish()?)
    }
}

impl<'a> Source<'a> {
    /// Opens the data file, and says what of the plan's way of reading cannot be followed.
    pub(crate) fn open(
        request: &Request<'a>,
        way: Way,
        notes: &mut Vec<String>,
    ) -> Result<Self, RunError> {
        let path = request.store.data_path();
        let size = length(way.request)?;
        let buffered = || {
            let reader = Buffered::open(path, size)?;
            // A disk that stands in for a slower one has no page cache, here as in its profile.
            let slower = request.shape.disk.is_some();
            Ok::<_, RunError>(Box::new(if slower { reader.forgetting() } else { reader }))
        };
        let reader: Box<dyn BlockReader + 'a> = match (request.reader, way.io) {
            (Some(reader), _) => Box::new(reader),
            (None, DiskIo::Buffered | DiskIo::PageFault) => buffered()?,
            (None, DiskIo::Direct) => match Direct::open(path, size) {
                Ok(direct) => Box::new(direct),
                Err(why) => {
                    notes.push(format!(
                        "{}: {why}; it was read through the page cache, so times of reads are not those of a disk",
                        path.display()
                    ));
                    buffered()?
                }
            },
        };
        Ok(Self { reader, way })
    }

    /// Whether an operation reads the way the file was opened for.
    pub(crate) fn serves(&self, work: &Work) -> Result<(), Fault> {
        match *work {
            Work::DiskRead { io, request, .. } if (Way { io, request }) == self.way => Ok(()),
            _ => Err(fault("weights are to be read in another way than the file was opened for")),
        }
    }

    /// Reads a stretch from its byte `offset` on, and checks what has arrived while it reads on.
    pub(crate) fn read(
        &self,
        stretch: &Stretch,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Fault> {
        let text = |error: &dyn std::fmt::Display| Fault(error.to_string());
        // Pieces end where requests do: a direct reader's are whole pages.
        let page = PAGE as u64;
        let request = (self.way.request.0 / page).max(1) * page;
        let step = checked_at_once(Bytes(request)).0;
        overlapped(
            stretch.at + offset,
            into,
            |at| at.saturating_add(step) / page * page,
            |at, piece| self.reader.read(at, piece).map_err(|error| text(&error)),
            |at, piece| {
                let at = at - stretch.at + stretch.start();
                stretch.check.piece(at, piece).map_err(|error| text(&error))
            },
        )
    }
}
