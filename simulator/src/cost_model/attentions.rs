//! Measured attentions, and what they say about shapes that were not measured.

use pipo_plan::machine::AttentionTime;
use pipo_plan::model::Precision;
use pipo_plan::schedule::Attention;

use super::kernels::stand_in;

/// A measured table.
///
/// An attention takes as long as the nearest measured one, in proportion to its operations. Near means
/// few factors apart in what decides how fast an operation is: query heads that share a key, features of
/// a head, new positions, positions attended to. Of two as near the first measured counts. Where it was
/// measured for several numbers of sequences, the time of so many together is a line between two of them:
/// something fixed, and something for each.
#[derive(Debug, Clone, Default)]
pub(super) struct Attentions {
    measured: Vec<Point>,
}

#[derive(Debug, Clone)]
struct Point {
    precision: String,
    shape: [f64; 4],
    /// Sequences together; none where that was not noted.
    sequences: Option<f64>,
    /// For one operation.
    nanos: f64,
}

impl Point {
    fn has_shape_of(&self, other: &Self) -> bool {
        self.shape.map(f64::to_bits) == other.shape.map(f64::to_bits)
    }
}

impl Attentions {
    pub(super) fn new(measured: &[AttentionTime]) -> Self {
        let point = |time: &AttentionTime| {
            let attention = Attention {
                sequences: 1,
                rows: time.rows.max(1),
                context: time.context.max(time.rows).max(1),
                window: None,
                heads: time.heads.max(1),
                kv_heads: time.kv_heads.max(1),
                head_dim: time.head_dim.max(1),
                precision: Precision::Fp16,
                fused: true,
            };
            Point {
                precision: time.precision.clone(),
                shape: shape(&attention),
                sequences: time.sequences.map(|sequences| sequences.max(1) as f64),
                nanos: time.time.as_f64() / attention.flops().max(1) as f64,
            }
        };
        Self { measured: measured.iter().map(point).collect() }
    }

    /// Nanoseconds of an attention over a cache of this precision; none without a table for it.
    ///
    /// The two 16-bit formats run at the same speed, so either stands in for the other.
    pub(super) fn time(&self, attention: &Attention, precision: Precision) -> Option<f64> {
        let wanted = shape(attention);
        let distance = |point: &&Point| -> f64 {
            point.shape.iter().zip(wanted).map(|(a, b)| (a / b).ln().abs()).sum()
        };
        let has = |name: &str| self.measured.iter().any(|point| point.precision == name);
        let name =
            if has(precision.name()) { precision.name() } else { stand_in(precision).name() };
        let known = || self.measured.iter().filter(|point| point.precision == name);
        let nearest = known().min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
        let of_shape = known().filter(|point| point.has_shape_of(nearest));
        let together = of_shape.filter_map(|point| Some((point.sequences?, point.nanos)));
        let mut together: Vec<(f64, f64)> = together.collect();
        together.sort_by(|a, b| a.0.total_cmp(&b.0));
        let each = among(&together, attention.sequences.max(1) as f64);
        Some(each.unwrap_or(nearest.nanos) * attention.flops() as f64)
    }
}

/// What one operation takes among so many sequences; none where too little was measured, or more of them
/// are as fast as any.
fn among(measured: &[(f64, f64)], sequences: f64) -> Option<f64> {
    let above = measured.iter().position(|&(count, _)| count >= sequences)?;
    let &(more, nanos) = measured.get(above)?;
    let Some(&(fewer, of_fewer)) = above.checked_sub(1).and_then(|below| measured.get(below))
    else {
        // Fewer than any that were measured take as long together.
        return Some(nanos * more / sequences);
    };
    let (first, last) = (fewer * of_fewer, more * nanos);
    let share = (sequences - fewer) / (more - fewer).max(1.0);
    Some((first + (last - first) * share) / sequences)
}

fn shape(attention: &Attention) -> [f64; 4] {
    let group = attention.heads as f64 / attention.kv_heads.max(1) as f64;
    [group, attention.head_dim as f64, attention.rows as f64, attention.context as f64]
        .map(|size| size.max(1.0))
}

#[cfg(test)]
mod tests {
    use pipo_plan::machine::Figure;
    use pipo_plan::units::Nanos;

    use super::*;

    fn measured(kv_heads: u64, rows: u64, context: u64, nanos: u64) -> AttentionTime {
        let time = Figure::new(Nanos(nanos), "measured");
        let (heads, head_dim) = (32, 64);
        let (precision, sequences) = ("fp16".into(), None);
        AttentionTime { precision, rows, context, heads, kv_heads, head_dim, sequences, time }
    }

    /// An attention of one sequence with the heads of [`measured`].
    fn one_of(kv_heads: u64, rows: u64, context: u64) -> Attention {
        let (heads, head_dim, precision) = (32, 64, Precision::Fp16);
        let (sequences, window, fused) = (1, None, true);
        Attention { sequences, rows, context, window, heads, kv_heads, head_dim, precision, fused }
    }

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-9 * want, "{got} is not {want}");
    }

    #[test]
    fn a_few_sequences_take_something_fixed_and_something_each() {
        let alone = AttentionTime { sequences: Some(1), ..measured(32, 1, 100, 1000) };
        let many = AttentionTime { sequences: Some(8), ..measured(32, 1, 100, 300) };
        let table = Attentions::new(&[many, alone]);
        let asked = |sequences| {
            let attention = Attention { sequences, ..one_of(32, 1, 100) };
            table.time(&attention, Precision::Fp16).unwrap()
        };
        close(asked(1), 1000.0);
        // Seven more take 1400 ns.
        close(asked(4), 1600.0);
        close(asked(8), 2400.0);
        close(asked(80), 24_000.0);
    }

    #[test]
    fn the_nearest_shape_counts_in_proportion_to_operations() {
        let table = Attentions::new(&[
            measured(32, 1, 100, 1000),
            measured(8, 1, 100, 400),
            measured(32, 64, 64, 9000),
        ]);
        let asked = |kv_heads, sequences, rows, context| {
            let attention = Attention { sequences, ..one_of(kv_heads, rows, context) };
            table.time(&attention, Precision::Fp16).unwrap()
        };
        // Twice the sequences and twice the context are four times the operations.
        close(asked(32, 2, 1, 200), 4000.0);
        close(asked(8, 1, 1, 100), 400.0);
        close(asked(32, 1, 64, 64), 9000.0);
        assert_eq!(table.time(&one_of(1, 1, 1), Precision::Int8), None);
    }
}
