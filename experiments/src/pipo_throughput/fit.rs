//! Fitting the constants: seeded, deterministic on any number of threads.

use pipo_plan::machine::{Curve, Machine};
use pipo_plan::units::{Bandwidth, Bytes, FlopRate, Nanos};

use super::cells::Constant;

/// Sets a figure of the profile.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) fn set(machine: &mut Machine, path: &str, value: f64) -> bool {
    let Machine { gpu, link, disk, host, software, .. } = machine;
    let Some(disk) = disk else { return false };
    let whole = value as u64;
    let scaled = |curve: &Curve| {
        let rated = curve.with_rate(Bandwidth(whole));
        let points =
            rated.points().iter().map(|&(s, r)| (s, Bandwidth(rounded(r.as_f64()) as u64)));
        Curve::new(points.collect()).unwrap_or(rated)
    };
    match path {
        "gpu.matmul" => gpu.matmul.value = FlopRate(whole),
        "gpu.attention" => gpu.attention.value = FlopRate(whole),
        "gpu.dequantise" => gpu.dequantise.value = Bandwidth(whole),
        "link.pageable_h2d" => link.pageable_h2d.value = Curve::flat(Bandwidth(whole)),
        "link.h2d" => link.h2d.value = scaled(&link.h2d.value),
        "disk.read" => disk.read.value = scaled(&disk.read.value),
        "disk.buffered_read" => disk.buffered_read.value = Curve::flat(Bandwidth(whole)),
        "disk.page_fault_read" => disk.page_fault_read.value = Bandwidth(whole),
        "host.copy" => host.copy.value = Bandwidth(whole),
        "host.reserved" => host.reserved.value = Bytes(whole),
        "host.page_cache_kept" => host.page_cache_kept.value = value,
        "software.barrier" => software.barrier.value = Nanos(whole),
        "software.host_op" => software.host_op.value = Nanos(whole),
        _ => return false,
    }
    true
}

/// To three significant digits.
pub(super) fn rounded(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap_or(value)
}

/// A point in the unit cube.
type Point = Vec<f64>;

fn value(constant: &Constant, at: f64) -> f64 {
    rounded(constant.low * (constant.high / constant.low).powf(at))
}

pub(super) fn apply(machine: &mut Machine, constants: &[Constant], point: &[f64]) {
    for (c, &at) in constants.iter().zip(point) {
        assert!(set(machine, &c.path, value(c, at)), "{}", c.path);
    }
}

pub(super) fn search(
    n: usize,
    loss: impl Fn(&[f64]) -> f64,
    draws: usize,
    starts: usize,
    shrink: f64,
    until: f64,
) -> (f64, Point) {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_pcg::Pcg64::seed_from_u64(1);
    let mut drawn: Vec<(f64, Point)> = (0..draws)
        .map(|_| {
            let p: Point = (0..n).map(|_| rng.random_range(0.0..1.0)).collect();
            (loss(&p), p)
        })
        .collect();
    drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
    drawn.truncate(starts);
    let mut best = drawn[0].clone();
    for mut at in drawn {
        let mut step = 0.15;
        while step > until {
            let before = at.0;
            for i in 0..n {
                for sign in [1.0, -1.0] {
                    let mut p = at.1.clone();
                    p[i] = (p[i] + sign * step).clamp(0.0, 1.0);
                    let l = loss(&p);
                    if l < at.0 {
                        at = (l, p);
                        break;
                    }
                }
            }
            if at.0 >= before - 1e-9 {
                step *= shrink;
            }
        }
        if at.0 < best.0 {
            best = at;
        }
    }
    best
}
