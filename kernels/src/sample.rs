//! The next token from its logits.

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};
use thiserror::Error;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// What logits are divided by; 0 always takes the most likely token.
    pub temperature: f32,
    /// Only this many of the most likely tokens are drawn from.
    pub top_k: Option<usize>,
    /// Only the fewest most likely tokens are drawn from whose probabilities reach this sum.
    pub top_p: Option<f32>,
    /// Where the random numbers start.
    pub seed: u64,
}

/// Why no token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
pub enum SampleError {
    /// There are no logits.
    #[error("there are no logits to sample from")]
    Empty,
    /// A logit is not a number, or infinite: an earlier result was wrong.
    #[error("logit {token} is {value}: an earlier result of this step is wrong")]
    NotFinite {
        /// Which.
        token: usize,
        /// What it is.
        value: f32,
    },
    /// A setting out of its range.
    #[error("{what} is {value}, but must be {rule}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What it is.
        value: f32,
        /// What it must be.
        rule: &'static str,
    },
}

/// The most likely token, the lowest of several.
pub fn greedy(logits: &[f32]) -> Result<usize, SampleError> {
    check(logits)?;
    let first = (0, logits[0]);
    let best = logits
        .iter()
        .enumerate()
        .fold(first, |best, (token, &logit)| if logit > best.1 { (token, logit) } else { best });
    Ok(best.0)
}

/// Draws tokens. The same settings and logits give the same tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Settings,
    random: Pcg64,
}

impl Sampler {
    /// Checks the settings and starts the random numbers.
    pub fn new(settings: Settings) -> Result<Self, SampleError> {
        let value = settings.temperature;
        if !(value.is_finite() && value >= 0.0) {
            let what = "the temperature";
            return Err(SampleError::Setting { what, value, rule: "finite and not negative" });
        }
        if let Some(value) = settings.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            let rule = "above 0 and at most 1";
            return Err(SampleError::Setting { what: "top-p", value, rule });
        }
        if settings.top_k == Some(0) {
            return Err(SampleError::Setting { what: "top-k", value: 0.0, rule: "at least 1" });
        }
        Ok(Self { settings, random: Pcg64::seed_from_u64(settings.seed) })
    }

    /// The next token.
    pub fn sample(&mut self, logits: &[f32]) -> Result<usize, SampleError> {
        let Settings { temperature, top_k, top_p, .. } = self.settings;
        if temperature <= 0.0 {
            return greedy(logits);
        }
        check(logits)?;
        let mut order: Vec<usize> = (0..logits.len()).collect();
        // A stable sort: the lower token first where two are equally likely.
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.truncate(top_k.unwrap_or(usize::MAX));
        let largest = f64::from(logits[order[0]]);
        let mut likely: Vec<f64> = order
            .iter()
            .map(|&token| ((f64::from(logits[token]) - largest) / f64::from(temperature)).exp())
            .collect();
        if let Some(top_p) = top_p {
            let goal = f64::from(top_p) * likely.iter().sum::<f64>();
            let mut sum = 0.0;
            let enough = likely.iter().position(|likely| {
                sum += likely;
                sum >= goal
            });
            likely.truncate(enough.map_or(likely.len(), |last| last + 1));
        }
        // 53 random bits: a number from 0 up to, but not including, 1.
        let uniform = (self.random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let mut left = uniform * likely.iter().sum::<f64>();
        let chosen = likely.iter().position(|likely| {
            left -= likely;
            left < 0.0
        });
        Ok(order[chosen.unwrap_or(likely.len() - 1)])
    }
}

fn check(logits: &[f32]) -> Result<(), SampleError> {
    match logits.iter().position(|logit| !logit.is_finite()) {
        Some(token) => Err(SampleError::NotFinite { token, value: logits[token] }),
        None if logits.is_empty() => Err(SampleError::Empty),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{SampleError, Sampler, Settings, greedy};

    const PLAIN: Settings = Settings { temperature: 1.0, top_k: None, top_p: None, seed: 7 };

    fn counts(settings: Settings, logits: &[f32], draws: u32) -> Vec<u32> {
        let mut sampler = Sampler::new(settings).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0]), Ok(1));
        let settings = Settings { temperature: 0.0, ..PLAIN };
        assert_eq!(counts(settings, &[1.0, 3.0, 3.0], 5), [0, 5, 0]);
    }

    #[test]
    fn shares_are_those_of_the_softmax() {
        let logits = [0.0, 3.0_f32.ln(), 4.0_f32.ln()];
        let counts = counts(PLAIN, &logits, 80_000);
        for (count, share) in counts.into_iter().zip([1.0, 3.0, 4.0]) {
            // Five standard deviations of a binomial share.
            let expected = 10_000.0 * share;
            assert!((f64::from(count) - expected).abs() < 5.0 * f64::sqrt(expected));
        }
    }

    #[test]
    fn cuts_leave_only_the_likely() {
        let logits = [0.0, 3.0_f32.ln(), 4.0_f32.ln()];
        assert_eq!(counts(Settings { top_k: Some(1), ..PLAIN }, &logits, 50), [0, 0, 50]);
        assert_eq!(counts(Settings { top_p: Some(0.49), ..PLAIN }, &logits, 50), [0, 0, 50]);
        assert_eq!(counts(Settings { top_p: Some(0.51), ..PLAIN }, &logits, 500)[0], 0);
        assert_eq!(counts(PLAIN, &logits, 90), counts(PLAIN, &logits, 90));
    }

    #[test]
    fn bad_logits_and_settings_are_errors() {
        assert_eq!(greedy(&[]), Err(SampleError::Empty));
        assert!(matches!(greedy(&[0.0, f32::NAN]), Err(SampleError::NotFinite { token: 1, .. })));
        assert!(Sampler::new(Settings { temperature: f32::NAN, ..PLAIN }).is_err());
        assert!(Sampler::new(Settings { top_p: Some(0.0), ..PLAIN }).is_err());
        assert!(Sampler::new(Settings { top_k: Some(0), ..PLAIN }).is_err());
    }
}
