//! Fitting one constant at a time.

/// A definition that does not parse, a plan that cannot be lowered, a simulation without an outcome.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The `x` between `low` and `high` at which `error` is least, to a relative precision of 1e-4.
///
/// Golden-section search on a logarithmic scale: deterministic, without derivatives, and exact where
/// the error has one minimum, as the errors here do (times fall steadily as a rate rises).
pub(crate) fn minimise(
    low: f64,
    high: f64,
    mut error: impl FnMut(f64) -> Result<f64>,
) -> Result<f64> {
    let ratio = (5.0_f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (low.ln(), high.ln());
    let (mut left, mut right) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut at_left, mut at_right) = (error(left.exp())?, error(right.exp())?);
    while high - low > 1e-4 {
        if at_left <= at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - ratio * (high - low);
            at_left = error(left.exp())?;
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + ratio * (high - low);
            at_right = error(right.exp())?;
        }
    }
    Ok(f64::midpoint(low, high).exp())
}

/// How wrong a time is, on a scale on which twice and half are equally wrong.
pub(crate) fn deviation(simulated: f64, paper: f64) -> f64 {
    (simulated / paper).ln().abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_deviation_is_found() {
        let found = minimise(1.0, 1e6, |x| Ok(deviation(x, 1234.5))).unwrap();
        assert!((found / 1234.5 - 1.0).abs() < 1e-4, "{found}");
        let edge = minimise(1.0, 10.0, Ok).unwrap();
        assert!(edge < 1.001);
    }
}
