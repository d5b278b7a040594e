//! Fitting the constants to the bars that may be fitted: seeded, and the same on any number of threads.

use pipo_plan::machine::{Curve, Machine};
use pipo_plan::units::{Bandwidth, Bytes, FlopRate};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::cells::Constant;
use crate::{Failure, Fitted};

/// How long the search may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Effort {
    /// Random points.
    pub(super) draws: usize,
    /// How many of the best of them are refined: the loss has more than one valley.
    pub(super) starts: usize,
    /// The refinement ends when its steps are this share of a constant's range.
    pub(super) finest: f64,
}

/// What the published constants were found with.
pub(super) const PUBLISHED: Effort = Effort { draws: 60, starts: 4, finest: 0.005 };

/// First step of the refinement, as a share of a constant's range.
const FIRST_STEP: f64 = 0.5;

/// Errors much smaller than this count as their square, much larger ones as they are (pseudo-Huber): a
/// bar that no constant can explain shall not bend all others, yet the way out of a bad start shows.
const SCALE: f64 = 0.05;

/// The loss of one cell.
pub(super) fn loss(simulated: f64, paper: f64) -> f64 {
    ((simulated / paper).ln() / SCALE).hypot(1.0) - 1.0
}

/// A position in each constant's plausible range, on a logarithmic scale, and the loss there.
type Point = (f64, Vec<f64>);

/// Finds the constants with the least loss: the best of some random points, refined.
pub(super) fn search(
    constants: &[Constant],
    seed: u64,
    effort: Effort,
    mut loss: impl FnMut(&[f64]) -> Result<f64, Failure>,
) -> Result<Vec<f64>, Failure> {
    let mut random = Pcg64::seed_from_u64(seed);
    let mut drawn: Vec<Point> = Vec::new();
    for _ in 0..effort.draws {
        let point: Vec<f64> = constants.iter().map(|_| random.random_range(0.0..1.0)).collect();
        drawn.push((loss(&point)?, point));
    }
    drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
    drawn.truncate(effort.starts);
    let mut best = (f64::INFINITY, vec![0.5; constants.len()]);
    for start in drawn {
        let end = refine(start, effort.finest, &mut loss)?;
        if end.0 < best.0 {
            best = end;
        }
    }
    Ok(best.1)
}

/// Improves a point one constant at a time, in steps that are halved when none improves.
fn refine(
    mut best: Point,
    finest: f64,
    loss: &mut impl FnMut(&[f64]) -> Result<f64, Failure>,
) -> Result<Point, Failure> {
    let mut step = FIRST_STEP;
    while step > finest {
        let before = best.0;
        for constant in 0..best.1.len() {
            for step in [step, -step] {
                let mut point = best.1.clone();
                point[constant] = (point[constant] + step).clamp(0.0, 1.0);
                let at = loss(&point)?;
                if at < best.0 {
                    best = (at, point);
                    break;
                }
            }
        }
        if best.0 >= before {
            step /= 2.0;
        }
    }
    Ok(best)
}

/// Sets every constant of a profile to its value at a point.
pub(super) fn apply(
    machine: &mut Machine,
    constants: &[Constant],
    point: &[f64],
) -> Result<(), Failure> {
    for (constant, &at) in constants.iter().zip(point) {
        let value = rounded(constant.low * (constant.high / constant.low).powf(at));
        for figure in &constant.figures {
            set(machine, figure, value)?;
        }
    }
    Ok(())
}

/// The constants as a profile has them.
pub(super) fn fitted(
    machine: &Machine,
    constants: &[Constant],
    cells: &str,
) -> Result<Vec<Fitted>, Failure> {
    let figures = machine.figures();
    let named = constants.iter().flat_map(|c| c.figures.iter().map(move |figure| (c, figure)));
    let fitted = named.map(|(constant, figure)| {
        let entry = figures.iter().find(|entry| entry.path == figure);
        let entry = entry.ok_or_else(|| format!("the profile has no figure {figure}"))?;
        Ok(Fitted {
            name: figure.clone(),
            value: entry.value.split_whitespace().collect::<Vec<_>>().join(" "),
            meaning: format!("{}; plausible: {}", constant.meaning, constant.plausible),
            cells: cells.to_owned(),
        })
    });
    fitted.collect()
}

/// Sets one figure.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ranges are positive and far below 2^53"
)]
fn set(machine: &mut Machine, figure: &str, value: f64) -> Result<(), Failure> {
    let Machine { gpu, disk, host, .. } = machine;
    let disk = disk.as_mut().ok_or("the profile has no disk")?;
    let rate = Bandwidth(value as u64);
    match figure {
        "gpu.matmul" => gpu.matmul.value = FlopRate(value as u64),
        "gpu.dequantise" => gpu.dequantise.value = rate,
        // The time of a request beyond its bytes stays what it is.
        "disk.read" => disk.read.value = legible(&disk.read.value.with_rate(rate))?,
        "disk.buffered_read" => disk.buffered_read.value = Curve::flat(rate),
        "disk.page_fault_read" => disk.page_fault_read.value = Curve::flat(rate),
        "disk.page_fault_hit" => {
            disk.page_fault_hit.as_mut().ok_or("the profile has no disk.page_fault_hit")?.value =
                rate;
        }
        "host.copy" => host.copy.value = rate,
        "host.reserved" => host.reserved.value = Bytes(value as u64),
        _ => return Err(format!("{figure} is not a figure that can be fitted").into()),
    }
    Ok(())
}

/// A curve with rates of three digits.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are positive and far below 2^53"
)]
fn legible(curve: &Curve) -> Result<Curve, Failure> {
    let points = curve.points().iter();
    let round = |&(size, rate): &(_, Bandwidth)| (size, Bandwidth(rounded(rate.as_f64()) as u64));
    Ok(Curve::new(points.map(round).collect())?)
}

/// To three significant digits: more would claim what a figure with two decimals cannot tell.
fn rounded(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap_or(value)
}
