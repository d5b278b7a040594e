//! Samples, and what is said of them.

use std::time::{Duration, Instant};

use pipo_plan::units::Nanos;

use super::cores::Cores;

/// One measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The figure it was taken for, as the profile calls it.
    pub figure: String,
    /// What was moved or computed: bytes, or rows x outputs x inputs.
    pub size: String,
    /// What it took.
    pub time: Nanos,
}

/// The middle of some samples, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Middle {
    pub(super) median: Nanos,
    /// Half the distance between the quartiles, as a share of the median.
    pub(super) spread: f64,
}

impl Middle {
    /// Of at least one sample.
    fn of(mut times: Vec<Nanos>) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an index below the length of a vector"
            )]
            let index = ((times.len().saturating_sub(1)) as f64 * share).round() as usize;
            times.get(index).copied().unwrap_or_default()
        };
        let median = at(0.5);
        let spread = (at(0.75) - at(0.25)).as_f64() / 2.0 / median.as_f64().max(1.0);
        Self { median, spread }
    }

    /// The mean of several medians, with their own spread.
    fn between(all: &[Self]) -> Self {
        let medians = || all.iter().map(|middle| middle.median);
        let sum: Nanos = medians().sum();
        let median = Nanos(sum.0 / (all.len() as u64).max(1));
        Self { median, spread: Self::of(medians().collect()).spread }
    }
}

/// Takes samples and keeps them.
#[derive(Debug)]
pub(super) struct Sampler {
    least: usize,
    patience: Duration,
    samples: Vec<Sample>,
}

/// No figure gets more samples than this.
const MOST: usize = 64;

/// So many cores are measured at most.
const CORES: usize = 16;

impl Sampler {
    pub(super) fn new(least: usize, patience: Duration) -> Self {
        Self { least: least.max(3), patience, samples: Vec::new() }
    }

    /// Times `work` again and again, after once for warming up.
    pub(super) fn time<E>(
        &mut self,
        figure: &str,
        size: &str,
        mut work: impl FnMut() -> Result<(), E>,
    ) -> Result<Middle, E> {
        work()?;
        self.measure(figure, size, || {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed())
        })
    }

    /// Takes samples from `one`, which times itself.
    pub(super) fn measure<E>(
        &mut self,
        figure: &str,
        size: &str,
        mut one: impl FnMut() -> Result<Duration, E>,
    ) -> Result<Middle, E> {
        let begin = Instant::now();
        let mut times = Vec::new();
        while times.len() < self.least || (times.len() < MOST && begin.elapsed() < self.patience) {
            times.push(self.keep(figure, size, one()?));
        }
        Ok(Middle::of(times))
    }

    /// Takes samples of several sizes in turn from `one`, which is given the index of the size. Each size
    /// is warmed up once, and gets twice the least number of samples.
    pub(super) fn in_turn<E>(
        &mut self,
        figure: &str,
        sizes: &[String],
        mut one: impl FnMut(usize) -> Result<Duration, E>,
    ) -> Result<Vec<Middle>, E> {
        let mut times = vec![Vec::new(); sizes.len()];
        for round in 0..=2 * self.least {
            for (index, (size, times)) in sizes.iter().zip(&mut times).enumerate() {
                let took = one(index)?;
                if round > 0 {
                    times.push(self.keep(figure, size, took));
                }
            }
        }
        Ok(times.into_iter().map(Middle::of).collect())
    }

    /// Takes samples of several sizes on one core after another from `one`, which is given the index of the size.
    /// Each core is kept busy with the last size for as long as patience goes before it counts: right after a
    /// move everything is slower than it is in a run, which stays on a core for seconds. The middle is the mean
    /// of the cores' medians, for a run does not choose its cores.
    pub(super) fn on_each_core<E>(
        &mut self,
        figure: &str,
        sizes: &[String],
        mut one: impl FnMut(usize) -> Result<Duration, E>,
    ) -> Result<Vec<Middle>, E> {
        let mut cores = Cores::of_this_thread(CORES);
        let mut by_size = vec![Vec::new(); sizes.len()];
        for _ in 0..cores.count().max(1) {
            cores.next();
            let begin = Instant::now();
            while begin.elapsed() < self.patience {
                one(sizes.len().saturating_sub(1))?;
            }
            for (index, (size, by_core)) in sizes.iter().zip(&mut by_size).enumerate() {
                one(index)?;
                let mut times = Vec::new();
                for _ in 0..self.least {
                    times.push(self.keep(figure, size, one(index)?));
                }
                by_core.push(Middle::of(times));
            }
        }
        Ok(by_size.iter().map(|by_core| Middle::between(by_core)).collect())
    }

    fn keep(&mut self, figure: &str, size: &str, took: Duration) -> Nanos {
        let time = nanos(took);
        self.samples.push(Sample { figure: figure.into(), size: size.into(), time });
        time
    }

    pub(super) fn into_samples(self) -> Vec<Sample> {
        self.samples
    }
}

fn nanos(time: Duration) -> Nanos {
    Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_samples_ignores_the_odd_one() {
        let times = [10, 11, 9, 10, 500].map(Nanos).to_vec();
        let middle = Middle::of(times);
        assert_eq!(middle.median, Nanos(10));
        assert!((middle.spread - 0.05).abs() < 1e-12, "{middle:?}");
        let one = Middle::of(vec![Nanos(7)]);
        assert_eq!((one.median, one.spread), (Nanos(7), 0.0));
    }

    #[test]
    fn every_sample_is_kept_and_the_warm_up_is_not() {
        let mut sampler = Sampler::new(5, Duration::ZERO);
        let mut calls = 0;
        let work = || {
            calls += 1;
            Ok::<(), ()>(())
        };
        sampler.time("host.copy", "1MiB", work).unwrap();
        assert_eq!(calls, 6);
        let samples = sampler.into_samples();
        assert_eq!(samples.len(), 5);
        assert!(samples.iter().all(|s| s.figure == "host.copy" && s.size == "1MiB"));
    }

    #[test]
    fn what_a_core_does_is_sampled_on_every_core_and_averaged() {
        let mut sampler = Sampler::new(3, Duration::ZERO);
        let cores = Cores::of_this_thread(CORES).count().max(1);
        // Four calls on each core: the first warms up. What it takes grows from core to core.
        let mut calls = 0;
        let one = |_| {
            calls += 1;
            Ok::<_, ()>(Duration::from_nanos(100 * (calls - 1) / 4))
        };
        let sizes = ["1MiB".to_owned()];
        let middles = sampler.on_each_core("link.pageable_h2d", &sizes, one).unwrap();
        assert_eq!(sampler.into_samples().len(), 3 * cores);
        let medians = (0..cores as u64).map(|core| 100 * core + 50);
        assert_eq!(middles[0].median, Nanos(medians.sum::<u64>() / cores as u64));
    }
}
