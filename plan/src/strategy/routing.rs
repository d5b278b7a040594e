//! Which experts a pass needs, known only at run time; here drawn from a seed.
//!
//! Each token of a layer picks `active` distinct experts uniformly. Real routers reuse experts a little
//! more than that (HOBBIT, arXiv 2411.01433), so a uniform draw errs towards more bytes.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use crate::model::Experts;

/// Above this many draws for each expert, every expert is hit: the chance that one is missed is below
/// `e^-32`.
const CERTAIN: u64 = 32;

/// For each expert of one layer, whether any of `tokens` tokens is routed to it in this pass.
pub fn routed(experts: Experts, tokens: u64, seed: u64, pass: u32, layer: u32) -> Vec<bool> {
    let count = u64::from(experts.count);
    if tokens.saturating_mul(u64::from(experts.active)) >= CERTAIN * count {
        return vec![true; experts.count as usize];
    }
    // One stream for each pass and layer, so that no draw depends on the order of lowering.
    let stream = (u128::from(pass) << 32) | u128::from(layer);
    let mut random = Pcg64::new(u128::from(seed), stream);
    let mut hit = vec![false; experts.count as usize];
    let mut order: Vec<usize> = (0..experts.count as usize).collect();
    for _ in 0..tokens {
        for pick in 0..(experts.active as usize).min(order.len()) {
            let other = random.random_range(pick..order.len());
            order.swap(pick, other);
            hit[order[pick]] = true;
        }
    }
    hit
}

/// The generator for anything else that a seed decides.
pub fn generator(seed: u64) -> Pcg64 {
    Pcg64::seed_from_u64(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXTRAL: Experts = Experts { count: 8, active: 2 };

    #[test]
    fn one_token_hits_exactly_its_active_experts() {
        for layer in 0..32 {
            let hit = routed(MIXTRAL, 1, 7, 3, layer);
            assert_eq!(hit.iter().filter(|&&h| h).count(), 2);
        }
    }

    #[test]
    fn the_mean_number_hit_is_the_closed_form() {
        // n tokens of 2 of 8: 8 * (1 - (6/8)^n).
        let mean = |tokens| {
            let hits =
                (0..2000).map(|l| routed(MIXTRAL, tokens, 1, 0, l).iter().filter(|&&h| h).count());
            hits.sum::<usize>() as f64 / 2000.0
        };
        assert!((mean(2) - 3.5).abs() < 0.05);
        assert!((mean(4) - 5.469).abs() < 0.05);
    }

    #[test]
    fn a_long_prompt_hits_all_and_a_seed_repeats() {
        assert!(routed(MIXTRAL, 512, 1, 0, 0).iter().all(|&h| h));
        assert_eq!(routed(MIXTRAL, 3, 9, 1, 2), routed(MIXTRAL, 3, 9, 1, 2));
    }
}
