//! The choice of experts of a mixture.

use crate::error::{self, ShapeError};

/// An expert that a row is sent to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Which expert.
    pub expert: usize,
    /// What its output is multiplied by.
    pub weight: f32,
}

/// The `top` most likely experts of each row, most likely first, the lower index first where two are
/// equal; `logits` is rows x experts, the result rows x top.
///
/// The softmax is over all experts. With `renormalise` (Mixtral) the weights of a row are then divided by
/// their sum. A logit that is not a number counts as less than all others.
pub fn route(
    logits: &[f32],
    experts: usize,
    top: usize,
    renormalise: bool,
) -> Result<Vec<Choice>, ShapeError> {
    if top == 0 || top > experts {
        let what = "the number of experts a row is sent to";
        return Err(ShapeError::Rule { what, found: top, rule: "from 1 to all experts" });
    }
    let rows = logits.len() / experts;
    error::length("logits", logits.len(), rows * experts)?;
    let mut choices = Vec::with_capacity(rows * top);
    let mut order = Vec::with_capacity(experts);
    for logits in logits.chunks_exact(experts) {
        let value = |expert: usize| if logits[expert].is_nan() { f32::MIN } else { logits[expert] };
        order.clear();
        order.extend(0..experts);
        // A stable sort keeps the lower index first.
        order.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
        let largest = value(order[0]);
        // Two infinities have no difference, but are equally likely.
        let likely = |expert: usize| {
            let value = value(expert);
            if value >= largest { 1.0 } else { (value - largest).exp() }
        };
        let over = if renormalise { &order[..top] } else { &order[..] };
        let sum: f32 = over.iter().map(|&expert| likely(expert)).sum();
        choices.extend(
            order[..top].iter().map(|&expert| Choice { expert, weight: likely(expert) / sum }),
        );
    }
    Ok(choices)
}

#[cfg(test)]
mod tests {
    use super::route;

    #[test]
    fn the_most_likely_first_and_the_lower_index_on_ties() {
        let choices = route(&[1.0, 3.0, 3.0, 0.0, 0.0, 0.0, 0.0, 5.0], 4, 2, true).unwrap();
        let experts: Vec<_> = choices.iter().map(|choice| choice.expert).collect();
        assert_eq!(experts, [1, 2, 3, 0]);
        assert!((choices[0].weight - 0.5).abs() < 1e-7);
        let likely = 1.0 / (1.0 + (-5.0_f32).exp());
        assert!((choices[2].weight - likely).abs() < 1e-6);
    }

    #[test]
    fn without_renormalising_the_softmax_is_over_all() {
        let choices = route(&[0.0; 4], 4, 2, false).unwrap();
        assert!(choices.iter().all(|choice| (choice.weight - 0.25).abs() < 1e-7));
    }

    #[test]
    fn no_logits_panic() {
        for logit in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for choice in route(&[logit; 3], 3, 3, true).unwrap() {
                assert!((choice.weight - 1.0 / 3.0).abs() < 1e-6);
            }
        }
        assert!(route(&[0.0; 3], 2, 1, true).is_err());
        assert!(route(&[0.0; 3], 3, 0, true).is_err());
        assert!(route(&[], 0, 1, true).is_err());
    }
}
