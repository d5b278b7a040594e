//! What the device has been given and has not finished, and when it did.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pipo_plan::schedule::{LaneKind, Layout, OpId};

use super::driver::{Event, Part, Stream};
use crate::backend::fault;
use crate::executor::{Fault, Interval, Task};

/// An event's time on the host's clock. Times are read from the last anchor of the lane: the driver gives
/// them as single-precision milliseconds, which are exact to a microsecond only over short stretches.
#[derive(Debug)]
struct Anchor {
    event: Arc<Event>,
    at: Instant,
}

/// How long an anchor is good for: 2^-24 of it is 60 ns.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// One lane of the device.
#[derive(Debug)]
struct Lane {
    stream: Stream,
    anchor: Mutex<Anchor>,
    /// The end of what was issued last.
    last: Mutex<Arc<Event>>,
}

/// When an operation began and ended.
#[derive(Debug, Clone)]
struct Marks {
    /// Of the lane that works it off.
    lane: usize,
    /// It began at the last of these.
    starts: Vec<Arc<Event>>,
    end: Arc<Event>,
}

/// The streams of the lanes that the device works off, and the events of what is under way.
#[derive(Debug)]
pub(crate) struct Queues {
    /// By lane; none where a thread of the host does the work.
    lanes: Vec<Option<Lane>>,
    /// Lane of each queue of the schedule.
    of_queue: Vec<usize>,
    under_way: Mutex<BTreeMap<OpId, Marks>>,
    spare: Mutex<Vec<Event>>,
}

impl Queues {
    pub(crate) fn new(layout: &Layout, part: Option<&Part>) -> Result<Self, Fault> {
        let lane = |lane: &pipo_plan::schedule::Lane| {
            if !lane.kind.is_of_gpu() {
                return Ok(None);
            }
            let stream = match part.filter(|_| lane.kind == LaneKind::Gpu) {
                Some(part) => part.stream()?,
                None => Stream::new()?,
            };
            let event = Arc::new(Event::new()?);
            stream.record(&event)?;
            event.synchronise()?;
            let (at, last) = (Instant::now(), Mutex::new(Arc::clone(&event)));
            Ok(Some(Lane { stream, anchor: Mutex::new(Anchor { event, at }), last }))
        };
        Ok(Self {
            lanes: layout.lanes.iter().map(lane).collect::<Result<_, Fault>>()?,
            of_queue: layout.queues.iter().map(|lane| usize::from(lane.0)).collect(),
            under_way: Mutex::default(),
            spare: Mutex::default(),
        })
    }

    /// The stream of a task's lane; none where a thread of the host does the work.
    pub(crate) fn stream(&self, task: &Task) -> Option<&Stream> {
        self.lane(task).map(|(_, lane)| &lane.stream)
    }

    fn lane(&self, task: &Task) -> Option<(usize, &Lane)> {
        let index = *self.of_queue.get(usize::from(task.op.queue.0))?;
        self.lanes.get(index)?.as_ref().map(|lane| (index, lane))
    }

    /// Gives work to a stream, behind what the task waits for, and notes when it begins and ends.
    ///
    /// Each mark costs the device microseconds between two kernels. Work that is behind something else when
    /// it is issued begins where that ends, and only the first behind nothing needs a mark of its own.
    pub(crate) fn issue(
        &self,
        task: &Task,
        work: impl FnOnce(&Stream) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (index, lane) = self.lane(task).ok_or_else(|| fault("a lane has no stream"))?;
        let mut starts = self.wait_for(task)?;
        let mut last = lane.last.lock().unwrap_or_else(PoisonError::into_inner);
        starts.push(Arc::clone(&last));
        let over = starts.iter().map(|event| event.has_happened());
        if over.collect::<Result<Vec<_>, _>>()?.into_iter().all(|over| over) {
            let start = self.event()?;
            lane.stream.record(&start)?;
            starts = vec![Arc::new(start)];
        }
        let end = Arc::new(self.event()?);
        work(&lane.stream)?;
        lane.stream.record(&end)?;
        let before = std::mem::replace(&mut *last, Arc::clone(&end));
        drop(last);
        self.give_back(before);
        self.lock().insert(task.id, Marks { lane: index, starts, end });
        Ok(())
    }

    /// Lets a stream wait for what the task waits for on others: the ends of that. What is not under way
    /// any more has ended; what is of the same stream goes before it anyhow, and to wait for it all the same
    /// would keep the device idle for microseconds between two kernels.
    fn wait_for(&self, task: &Task) -> Result<Vec<Arc<Event>>, Fault> {
        let (index, lane) = self.lane(task).ok_or_else(|| fault("a lane has no stream"))?;
        // Locked throughout: an event that is given back may be recorded anew.
        let under_way = self.lock();
        let others = task.after.iter().filter_map(|id| under_way.get(id));
        let others = others.filter(|marks| marks.lane != index);
        let wait = |marks: &Marks| {
            lane.stream.wait(&marks.end)?;
            Ok(Arc::clone(&marks.end))
        };
        others.map(wait).collect()
    }

    /// Lets the host wait for what the task waits for.
    pub(crate) fn wait_on_host(&self, task: &Task) -> Result<(), Fault> {
        self.wait_for(task)?;
        self.stream(task).ok_or_else(|| fault("a lane has no stream"))?.synchronise()
    }

    /// Waits until a task has ended.
    pub(crate) fn wait(&self, task: &Task) -> Result<Interval, Fault> {
        let missing = || fault("an operation is waited for that was not issued");
        let Marks { starts, end: last, .. } =
            self.lock().get(&task.id).cloned().ok_or_else(missing)?;
        last.synchronise()?;
        self.lock().remove(&task.id);
        let (_, lane) = self.lane(task).ok_or_else(missing)?;
        let mut anchor = lane.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let after_anchor = |event: &Event| anchor.event.until(event).map(milliseconds);
        let begins = starts.iter().map(|event| after_anchor(event));
        let begins = begins.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or_default();
        let end = anchor.at + after_anchor(&last)?;
        let start = (anchor.at + begins).min(end);
        for event in starts {
            self.give_back(event);
        }
        if end.duration_since(anchor.at) > GOOD_FOR {
            let old = std::mem::replace(&mut *anchor, Anchor { event: last, at: end });
            self.give_back(old.event);
        } else {
            self.give_back(last);
        }
        Ok(Interval { start, end })
    }

    /// An event is used again once nobody else needs it any more.
    fn give_back(&self, event: Arc<Event>) {
        if let Some(event) = Arc::into_inner(event) {
            self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        }
    }

    fn event(&self) -> Result<Event, Fault> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(Event::new, Ok)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<OpId, Marks>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(time: f32) -> Duration {
    Duration::from_secs_f64(f64::from(time.max(0.0)) / 1e3)
}
