//! A way of the link that stands in for a slower one.
//!
//! Copies are queued as ever. The stream says when it gets to one, copies as fast as it goes, and waits
//! until a thread of the host admits it: no earlier than the slower link would have been done, behind all
//! that came before. So what is held back is the stream, not who gives it work, and copies that were queued
//! in time follow each other without a gap, as they would there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pipo_plan::units::{Bandwidth, Bytes};

use super::driver::{Stream, Words};
use super::fault;
use crate::executor::Fault;
use crate::shape::until;

/// A stream that gets to a copy so soon after the one before was admitted was not idle in between: it takes
/// the words microseconds to cross the link and come back.
const BEHIND: Duration = Duration::from_micros(15);

/// A copy that was queued: its number, and how long the slower link takes for it.
type Queued = (u32, Duration);

/// One way of the link.
#[derive(Debug)]
pub(super) struct Held {
    rate: Bandwidth,
    words: Arc<Words>,
    /// The last copy's number, and where the next is announced.
    queue: Mutex<(u32, Option<Sender<Queued>>)>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Held {
    pub(super) fn new(rate: Bandwidth) -> Result<Self, Fault> {
        let (sender, receiver) = channel();
        let words = Arc::new(Words::new()?);
        let over = Arc::new(AtomicBool::new(false));
        let (seen, end) = (Arc::clone(&words), Arc::clone(&over));
        let admit = move || admit(&receiver, &|| seen.reached(), &|n| seen.admit(n), &end);
        let thread = std::thread::Builder::new().name("held link".into()).spawn(admit);
        let thread = thread.map_err(|error| fault(&format!("no thread for a link: {error}")))?;
        let queue = Mutex::new((0, Some(sender)));
        Ok(Self { rate, words, queue, over, thread: Some(thread) })
    }

    /// Queues a copy of so many bytes, which ends no earlier than it would on the slower link.
    pub(super) fn pass(
        &self,
        stream: &Stream,
        bytes: Bytes,
        copy: impl FnOnce() -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let number = queue.0.wrapping_add(1);
        queue.0 = number;
        stream.reach(&self.words, number)?;
        let took = Duration::from_nanos(self.rate.time(bytes).0);
        let sent = queue.1.as_ref().is_some_and(|sender| sender.send((number, took)).is_ok());
        if !sent {
            return Err(fault("the thread that holds the link back has ended"));
        }
        copy()?;
        stream.wait_for_admission(&self.words, number)
    }
}

impl Drop for Held {
    /// The backend has waited for its streams, or they have failed.
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.queue.get_mut().unwrap_or_else(PoisonError::into_inner).1 = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Admits copies in their order, each when the slower link would be done with it.
fn admit(
    queued: &Receiver<Queued>,
    reached: &dyn Fn() -> u32,
    admit: &dyn Fn(u32),
    over: &AtomicBool,
) {
    let mut free = Instant::now();
    while let Ok((number, took)) = queued.recv() {
        while is_before(reached(), number) {
            if over.load(Ordering::Relaxed) {
                return;
            }
            // Who sleeps is late: the other threads get the core, if they want it.
            std::thread::yield_now();
        }
        let now = Instant::now();
        let start = if now.duration_since(free) < BEHIND { free } else { now };
        free = start + took;
        until(free);
        admit(number);
    }
}

/// Whether a counter that wraps around has still to get to a number.
fn is_before(counter: u32, number: u32) -> bool {
    number.wrapping_sub(counter).cast_signed() > 0
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    /// A device that gets to each copy as soon as the one before was admitted.
    #[test]
    fn copies_end_no_earlier_than_on_the_slower_link_and_in_their_order() {
        let (sender, receiver) = channel();
        let (first, each) = (u32::MAX - 1, Duration::from_millis(2));
        for copy in 0..4 {
            sender.send((first.wrapping_add(copy), each)).unwrap();
        }
        drop(sender);
        let reached = AtomicU32::new(first);
        let admitted = Mutex::new(Vec::new());
        let begin = Instant::now();
        let next = |number: u32| {
            admitted.lock().unwrap().push((number, begin.elapsed()));
            reached.store(number.wrapping_add(1), Ordering::Relaxed);
        };
        let over = AtomicBool::new(false);
        admit(&receiver, &|| reached.load(Ordering::Relaxed), &next, &over);
        let admitted = admitted.into_inner().unwrap();
        let numbers: Vec<u32> = admitted.iter().map(|&(number, _)| number).collect();
        assert_eq!(numbers, [u32::MAX - 1, u32::MAX, 0, 1]);
        for (before, (_, at)) in (1..).zip(&admitted) {
            assert!(*at >= before * each, "copy {before} was admitted after {at:?}");
        }
    }

    #[test]
    fn a_copy_that_is_never_reached_does_not_keep_the_thread() {
        let (sender, receiver) = channel();
        sender.send((1, Duration::ZERO)).unwrap();
        let over = AtomicBool::new(true);
        let never = |number| panic!("copy {number} was admitted");
        admit(&receiver, &|| 0, &never, &over);
    }
}
