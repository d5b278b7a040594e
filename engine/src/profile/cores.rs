//! One core after another.

/// Lets the calling thread run on one core at a time, and in the end wherever it might before.
///
/// Cores of one machine differ: two may share a physical one, or its memory lies nearer to some. On a virtual
/// machine with 16 of them, the same copy took from 4 to 8 ms, by where it ran, and the scheduler leaves a
/// thread where it is for seconds.
#[derive(Debug)]
pub(super) struct Cores {
    #[cfg(target_os = "linux")]
    all: Option<rustix::thread::CpuSet>,
    numbers: Vec<usize>,
    at: usize,
}

#[cfg(target_os = "linux")]
impl Cores {
    /// Those that this thread may run on, `most` of them evenly spaced; none where the system does not say.
    pub(super) fn of_this_thread(most: usize) -> Self {
        use rustix::thread::{CpuSet, sched_getaffinity};

        let all = sched_getaffinity(None).ok();
        let is_in = |set: &CpuSet, number: &usize| set.is_set(*number);
        let numbers = all.iter().flat_map(|set| (0..CpuSet::MAX_CPU).filter(|n| is_in(set, n)));
        let numbers: Vec<usize> = numbers.collect();
        let step = numbers.len().div_ceil(most.max(1)).max(1);
        Self { all, numbers: numbers.into_iter().step_by(step).collect(), at: 0 }
    }

    /// Moves the thread to the next. Where the system forbids it, it stays where it is.
    pub(super) fn next(&mut self) {
        let Some(number) = self.numbers.get(self.at % self.numbers.len().max(1)) else { return };
        let mut one = rustix::thread::CpuSet::new();
        one.set(*number);
        let _ = rustix::thread::sched_setaffinity(None, &one);
        self.at += 1;
    }
}

#[cfg(target_os = "linux")]
impl Drop for Cores {
    fn drop(&mut self) {
        if let Some(all) = &self.all {
            let _ = rustix::thread::sched_setaffinity(None, all);
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Cores {
    /// None: other systems do not let a thread choose.
    pub(super) fn of_this_thread(_: usize) -> Self {
        Self { numbers: Vec::new(), at: 0 }
    }

    pub(super) fn next(&mut self) {
        self.at += 1;
    }
}

impl Cores {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.numbers.len()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::thread::{sched_getaffinity, sched_getcpu};

    use super::*;

    #[test]
    fn a_thread_is_on_one_core_after_another_and_then_wherever_it_was_allowed() {
        let before = sched_getaffinity(None).unwrap();
        let mut cores = Cores::of_this_thread(3);
        assert!((1..=3).contains(&cores.count()));
        for number in cores.numbers.clone() {
            cores.next();
            assert_eq!(sched_getcpu(), number);
        }
        drop(cores);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
