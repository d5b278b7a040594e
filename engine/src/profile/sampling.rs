//! Samples, and what is said of them.

use std::collections::BTreeMap;
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
///
/// What is measured is gone through in several passes, each of which takes its part of every figure's samples.
/// Machines are shared, and a neighbour's work comes and goes: it may take two thirds of the memory's bandwidth
/// for a second, in which ten figures would be measured from the first sample to the last.
#[derive(Debug)]
pub(super) struct Sampler {
    least: usize,
    patience: Duration,
    passes: usize,
    /// The pass at hand.
    pass: usize,
    samples: Vec<Sample>,
    /// Times by figure and size, pass after pass.
    times: BTreeMap<(String, String), Vec<Vec<Nanos>>>,
    /// The same of cores that were measured one by one: the middle of each.
    cores: BTreeMap<(String, String), Vec<Middle>>,
}

/// No figure gets many more samples than this.
const MOST: usize = 64;

/// So many cores are measured at most.
const CORES: usize = 16;

impl Sampler {
    /// Takes at least so many samples of each figure, and more for as long as patience lasts: in all passes
    /// together.
    pub(super) fn new(least: usize, patience: Duration, passes: usize) -> Self {
        Self {
            least: least.max(3),
            patience,
            passes: passes.max(1),
            pass: 0,
            samples: Vec::new(),
            times: BTreeMap::new(),
            cores: BTreeMap::new(),
        }
    }

    /// Does `one` in every pass. What the last one returns is of the samples of all.
    pub(super) fn in_passes<T, E>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        for pass in 0..self.passes - 1 {
            self.pass = pass;
            one(self)?;
        }
        self.pass = self.passes - 1;
        one(self)
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
        let [least, most] = [self.least, MOST].map(|count| count.div_ceil(self.passes));
        let (begin, patience) = (Instant::now(), self.patience.div_f64(self.passes as f64));
        let mut times = Vec::new();
        while times.len() < least || (times.len() < most && begin.elapsed() < patience) {
            times.push(self.keep(figure, size, one()?));
        }
        let by_pass = self.times.entry((figure.into(), size.into())).or_default();
        debug_assert_eq!(by_pass.len(), self.pass, "{figure} of {size} names two measurements");
        by_pass.push(times);
        Ok(Middle::of(by_pass.concat()))
    }

    /// Takes samples of several sizes in turn from `one`, which is given the index of the size. Each size
    /// is warmed up once, and gets twice the least number of samples. Passes know nothing of each other.
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
    /// of the cores' medians, for a run does not choose its cores. Each pass takes some of the cores.
    pub(super) fn on_each_core<E>(
        &mut self,
        figure: &str,
        sizes: &[String],
        mut one: impl FnMut(usize) -> Result<Duration, E>,
    ) -> Result<Vec<Middle>, E> {
        let mut cores = Cores::of_this_thread(CORES);
        for core in 0..cores.count().max(1) {
            cores.next();
            if core % self.passes != self.pass {
                continue;
            }
            let begin = Instant::now();
            while begin.elapsed() < self.patience {
                one(sizes.len().saturating_sub(1))?;
            }
            for (index, size) in sizes.iter().enumerate() {
                one(index)?;
                let mut times = Vec::new();
                for _ in 0..self.least {
                    times.push(self.keep(figure, size, one(index)?));
                }
                let by_core = self.cores.entry((figure.into(), size.clone())).or_default();
                by_core.push(Middle::of(times));
            }
        }
        let by_core = |size: &String| self.cores.get(&(figure.to_owned(), size.clone()));
        Ok(sizes
            .iter()
            .map(|size| Middle::between(by_core(size).map_or(&[], Vec::as_slice)))
            .collect())
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
        let mut sampler = Sampler::new(5, Duration::ZERO, 1);
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
    fn a_disturbance_that_a_pass_ends_before_changes_no_middle() {
        // Each figure takes 100 ns, but three times as long while a neighbour works: throughout the second pass.
        let mut sampler = Sampler::new(9, Duration::ZERO, 3);
        let mut pass = 0;
        let middles = sampler.in_passes(|sampler| {
            pass += 1;
            let took = Duration::from_nanos(if pass == 2 { 300 } else { 100 });
            let mut of = |size| sampler.measure("host.attentions", size, || Ok::<_, ()>(took));
            Ok::<_, ()>([of("1 x 512")?, of("1 x 24")?])
        });
        for middle in middles.unwrap() {
            assert_eq!(middle.median, Nanos(100));
        }
        let samples = sampler.into_samples();
        assert_eq!(samples.len(), 18, "the least number of each, in all passes together");
        assert_eq!(samples.iter().filter(|sample| sample.time == Nanos(300)).count(), 6);
    }

    #[test]
    fn what_a_core_does_is_sampled_on_every_core_and_averaged() {
        let cores = Cores::of_this_thread(CORES).count().max(1);
        for passes in [1, 2, 5] {
            let mut sampler = Sampler::new(3, Duration::ZERO, passes);
            // Four calls on each core: the first warms up. What it takes grows from core to core.
            let mut calls = 0;
            let middles = sampler.in_passes(|sampler| {
                let one = |_| {
                    calls += 1;
                    Ok::<_, ()>(Duration::from_nanos(100 * (calls - 1) / 4))
                };
                sampler.on_each_core("link.pageable_h2d", &["1MiB".to_owned()], one)
            });
            assert_eq!(sampler.into_samples().len(), 3 * cores, "in {passes} passes");
            let medians = (0..cores as u64).map(|core| 100 * core + 50);
            let mean = medians.sum::<u64>() / cores as u64;
            assert_eq!(middles.unwrap()[0].median, Nanos(mean), "in {passes} passes");
        }
    }
}
