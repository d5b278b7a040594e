//! Measured matrix products, and what they say about shapes that were not measured.

use std::collections::BTreeMap;

use pipo_plan::machine::KernelTime;
use pipo_plan::model::Precision;
use pipo_plan::schedule::Linear;

/// Outputs and inputs.
type Matrix = (u64, u64);

/// Rows, and nanoseconds.
type Point = (f64, f64);

/// A measured table.
///
/// The time of a product is looked up at the nearest measured matrix and scaled by the ratio of weights.
/// How fast a product is depends on the length of its sums first, and on their number less: near means few
/// factors apart in inputs, a factor in outputs counting half (of two as near, the smaller). Between two
/// measured row counts the logarithm of the time is linear in the logarithm of the rows, which is exact
/// where weights bind (a constant) and where arithmetic binds (a proportion). Fewer rows than any measured
/// take as long as the fewest, because the weights are read all the same; more rows than any take in
/// proportion.
#[derive(Debug, Clone, Default)]
pub(super) struct Kernels {
    /// By precision, then by outputs and inputs; each with its rows and times, by rising rows.
    tables: BTreeMap<String, BTreeMap<Matrix, Vec<Point>>>,
}

impl Kernels {
    pub(super) fn new(measured: &[KernelTime]) -> Self {
        let mut kernels = Self::default();
        for kernel in measured {
            let matrix = (kernel.outputs.max(1), kernel.inputs.max(1));
            let point = (kernel.rows.max(1) as f64, kernel.time.as_f64().max(1.0));
            let table = kernels.tables.entry(kernel.precision.clone()).or_default();
            table.entry(matrix).or_default().push(point);
        }
        for points in kernels.tables.values_mut().flat_map(BTreeMap::values_mut) {
            points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        }
        kernels
    }

    /// Nanoseconds of one copy of a product with weights of this precision; none without a table.
    ///
    /// The two 16-bit formats run at the same speed, so either stands in for the other.
    pub(super) fn time(&self, linear: &Linear, precision: Precision) -> Option<f64> {
        let of = |precision: Precision| self.tables.get(precision.name());
        let table = of(precision).or_else(|| of(stand_in(precision)))?;
        let apart =
            |wanted: u64, measured: u64| (wanted.max(1) as f64 / measured as f64).ln().abs();
        let distance = |&(outputs, inputs): &Matrix| {
            apart(linear.inputs, inputs) + apart(linear.outputs, outputs) / 2.0
        };
        let (&(outputs, inputs), points) =
            table.iter().min_by(|a, b| distance(a.0).total_cmp(&distance(b.0)))?;
        let weights = linear.outputs as f64 * linear.inputs as f64;
        Some(at_rows(points, linear.rows as f64) * weights / (outputs as f64 * inputs as f64))
    }
}

/// What is as fast: the other 16-bit format.
pub(super) fn stand_in(precision: Precision) -> Precision {
    match precision {
        Precision::Fp16 => Precision::Bf16,
        Precision::Bf16 => Precision::Fp16,
        other => other,
    }
}

fn at_rows(points: &[Point], rows: f64) -> f64 {
    let above = points.partition_point(|&(measured, _)| measured < rows);
    match (above.checked_sub(1).map(|below| points[below]), points.get(above)) {
        (Some((r0, t0)), Some(&(r1, t1))) => {
            let share = (rows / r0).ln() / (r1 / r0).ln();
            t0 * (t1 / t0).powf(share)
        }
        (None, Some(&(_, time))) => time,
        (Some((last, time)), None) => time * rows / last,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-9 * want, "{got} is not {want}");
    }

    #[test]
    fn rows_are_interpolated_as_a_power() {
        let points = [(1.0, 100.0), (16.0, 100.0), (64.0, 400.0)];
        close(at_rows(&points, 0.0), 100.0);
        close(at_rows(&points, 4.0), 100.0);
        close(at_rows(&points, 16.0), 100.0);
        close(at_rows(&points, 32.0), 200.0);
        close(at_rows(&points, 64.0), 400.0);
        close(at_rows(&points, 128.0), 800.0);
    }
}
