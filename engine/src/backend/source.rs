//! Where weights come from: the store's data file, read the way the plan says, and every byte checked.

use std::ops::Range;

use pipo_plan::schedule::{DiskIo, Layout, Tier, Work, checked_at_once};
use pipo_plan::units::Bytes;

use super::{fault, length};
use crate::disk::{BlockReader, Buffered, Direct, PAGE, overlapped, page_behind};
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
    /// Reads what is read once, where `reader` has the page cache keep no more than so much: what never comes
    /// again must not take its place there.
    once: Option<Buffered>,
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
        layout: &Layout,
        way: Way,
        notes: &mut Vec<String>,
    ) -> Result<Self, RunError> {
        let path = request.store.data_path();
        let size = length(way.request)?;
        if let Some(reader) = request.reader {
            return Ok(Self { reader: Box::new(reader), once: None, way });
        }
        if way.io == DiskIo::Direct {
            match Direct::open(path, size) {
                Ok(direct) => return Ok(Self { reader: Box::new(direct), once: None, way }),
                Err(why) => notes.push(format!(
                    "{}: {why}; it was read through the page cache, so times of reads are not those of a disk",
                    path.display()
                )),
            }
        }
        let open = || {
            let reader = Buffered::open(path, size)?;
            Ok::<_, RunError>(if way.io == DiskIo::PageFault { reader.apart() } else { reader })
        };
        let reader = open()?;
        match page_cache(request, layout, way) {
            Some(capacity) => {
                let once = Some(open()?);
                Ok(Self { reader: Box::new(reader.holding(capacity)), once, way })
            }
            None => Ok(Self { reader: Box::new(reader), once: None, way }),
        }
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
        self.read_by(&*self.reader, stretch, offset, into)
    }

    /// The same for what then stays in memory, and is not read again.
    pub(crate) fn read_once(
        &self,
        stretch: &Stretch,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Fault> {
        match &self.once {
            Some(once) => self.read_by(once, stretch, offset, into),
            None => self.read(stretch, offset, into),
        }
    }

    fn read_by(
        &self,
        reader: &dyn BlockReader,
        stretch: &Stretch,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Fault> {
        let text = |error: &dyn std::fmt::Display| Fault(error.to_string());
        // Pieces end where requests do: a direct reader's are whole pages.
        let page = PAGE as u64;
        let request = (self.way.request.0 / page).max(1) * page;
        let step = checked_at_once(Bytes(request)).0;
        let own = reader.of_a_stretch().map_err(|error| text(&error))?;
        let reader = own.as_deref().unwrap_or(reader);
        overlapped(
            stretch.at + offset,
            into,
            |at| page_behind(at.saturating_add(step)),
            |at, piece| reader.read(at, piece).map_err(|error| text(&error)),
            |at, piece| {
                let at = at - stretch.at + stretch.start();
                stretch.check.piece(at, piece).map_err(|error| text(&error))
            },
        )
    }
}

/// What the page cache may keep of what a plan reads pass after pass; nothing where the system decides.
fn page_cache(request: &Request, layout: &Layout, way: Way) -> Option<Bytes> {
    // A disk that stands in for a slower one has no page cache, here as in its profile.
    if request.shape.disk.is_some() {
        return Some(Bytes::ZERO);
    }
    match way.io {
        // These were to come from the disk, and were refused.
        DiskIo::Direct => None,
        // What the plan leaves of its host memory, as in a prediction.
        DiskIo::Buffered | DiskIo::BufferedPair | DiskIo::BufferedInTurn | DiskIo::PageFault => {
            let taken = layout.bytes(Tier::Pinned) + layout.bytes(Tier::Pageable);
            Some(request.plan.budget.host - taken - request.host_reserved)
        }
    }
}
