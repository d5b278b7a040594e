//! A pool of threads that live as long as it does.
//!
//! A decode step has hundreds of operations of a millisecond or less, so starting threads for each is
//! out of the question. Waiting threads spin for some tens of microseconds, which is longer than the
//! gaps between operations, and then sleep.
#![allow(
    unsafe_code,
    reason = "one lifetime is erased, because threads outlive the calls they serve"
)]

use std::any::Any;
use std::fmt;
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};

/// Looks at the counter before a waiting thread sleeps: some tens of microseconds.
const SPINS: u32 = 2000;

/// The work of one call: each thread calls it once, and it takes items until there are none.
type Work<'a> = dyn Fn() + Sync + 'a;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    started: Condvar,
    /// Counts calls; written under the lock, read without it while spinning.
    call: AtomicU64,
    /// Workers that have not finished the call.
    busy: AtomicUsize,
    finished: Condvar,
}

#[derive(Default)]
struct State {
    work: Option<&'static Work<'static>>,
    stop: bool,
    panic: Option<Box<dyn Any + Send>>,
}

/// A pool of threads, the caller's among them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a call.
    calling: Mutex<()>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

/// A poisoned lock is taken: what it guards is whole between any two statements here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; fewer where the system refuses to start more.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let start = |worker| {
            let shared = Arc::clone(&shared);
            let name = format!("kernel-{worker}");
            thread::Builder::new().name(name).spawn(move || serve(&shared)).ok()
        };
        let workers = (1..threads).map_while(start).collect();
        Self { shared, workers, calling: Mutex::new(()) }
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body` once with each item, on any thread and in any order, and returns when all are done.
    ///
    /// A call from within a call, or from a second thread at the same time, runs on its own thread alone.
    /// A panic in `body` is passed on once every thread is out of it.
    pub fn for_each<T: Send>(&self, items: Vec<T>, body: impl Fn(T) + Sync) {
        let free = match self.calling.try_lock() {
            Ok(guard) => Some(guard),
            // A call that panicked was over before it let go.
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if items.len() < 2 || self.workers.is_empty() || free.is_none() {
            items.into_iter().for_each(body);
            return;
        }
        let items = Mutex::new(items.into_iter());
        self.call(&|| {
            loop {
                // The lock must not be held while the item is worked on.
                let item = lock(&items).next();
                let Some(item) = item else { return };
                body(item);
            }
        });
    }

    fn call(&self, work: &Work) {
        // SAFETY: only the lifetime changes. A worker takes the reference out of the state only during
        // this call and counts itself out of `busy` after its last use; this function does not return,
        // or unwind, before `busy` is zero and the reference is gone from the state.
        let erased = unsafe { std::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
        let shared = &*self.shared;
        {
            let mut state = lock(&shared.state);
            state.work = Some(erased);
            shared.busy.store(self.workers.len(), Ordering::Relaxed);
            shared.call.fetch_add(1, Ordering::Release);
        }
        shared.started.notify_all();
        let own = catch_unwind(AssertUnwindSafe(work));
        let mut spins = 0;
        while shared.busy.load(Ordering::Acquire) != 0 && spins < SPINS {
            spins += 1;
            hint::spin_loop();
        }
        let mut state = lock(&shared.state);
        while shared.busy.load(Ordering::Acquire) != 0 {
            state = shared.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.work = None;
        let panic = state.panic.take();
        drop(state);
        if let Some(panic) = own.err().or(panic) {
            resume_unwind(panic);
        }
    }
}

/// The life of a worker: each call is served exactly once.
fn serve(shared: &Shared) {
    let mut served = 0;
    loop {
        let mut spins = 0;
        while shared.call.load(Ordering::Acquire) == served && spins < SPINS {
            spins += 1;
            hint::spin_loop();
        }
        let mut state = lock(&shared.state);
        while shared.call.load(Ordering::Acquire) == served && !state.stop {
            state = shared.started.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stop {
            return;
        }
        // Calls follow one another only when every worker has served the last, so none is skipped.
        served += 1;
        let work = state.work;
        drop(state);
        let result = work.map_or(Ok(()), |work| catch_unwind(AssertUnwindSafe(work)));
        let mut state = lock(&shared.state);
        if let Err(panic) = result {
            state.panic = Some(panic);
        }
        if shared.busy.fetch_sub(1, Ordering::Release) == 1 {
            shared.finished.notify_one();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.started.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches every panic of the work it is given, so there is nothing to pass on.
            drop(worker.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Pool;

    #[test]
    fn every_item_is_visited_once() {
        let pool = Pool::new(3);
        for count in 0..200 {
            let mut seen = vec![0_u8; count];
            pool.for_each(seen.iter_mut().collect(), |seen| *seen += 1);
            assert!(seen.iter().all(|&seen| seen == 1));
        }
    }

    #[test]
    fn a_call_within_a_call_runs() {
        let (pool, sum) = (Pool::new(2), AtomicUsize::new(0));
        pool.for_each(vec![1, 2, 3], |outer| {
            pool.for_each(vec![10, 20], |inner| {
                sum.fetch_add(outer * inner, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 180);
    }

    #[test]
    fn a_panic_is_passed_on_and_the_pool_lives() {
        let pool = Pool::new(2);
        let run = || pool.for_each((0..50).collect(), |item| assert_ne!(item, 25));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        let sum = AtomicUsize::new(0);
        pool.for_each((0..50).collect(), |item| {
            sum.fetch_add(item, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 1225);
    }
}
