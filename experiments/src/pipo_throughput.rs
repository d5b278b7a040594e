//! explore
pub mod cells;
pub mod fit;
pub mod policy;
use cells::*;
use pipo_plan::machine::Machine;
use pipo_plan::units::*;
use pipo_simulator::{Options, PageCache, simulate};
use policy::env;

use rayon::prelude::*;
fn seconds(
    d: &Definition,
    cell: &Cell,
    m: &Machine,
) -> Option<(policy::Prepared, pipo_simulator::Summary)> {
    let p = policy::prepare(d, cell, m).ok()?;
    let o = simulate(
        &p.schedule,
        m,
        &Options {
            record: false,
            page_cache: PageCache::beside(&p.schedule.layout, m, env("WARM", 0.0) > 0.0),
        },
    )
    .ok()?;
    Some((p, o.summary))
}
/// explore
pub fn explore() {
    let d = definition().unwrap();
    let base: Machine = pipo_plan::machine::catalog::find("rtx3060-laptop").unwrap();
    let want = std::env::var("SYS").unwrap_or_default();
    let mut constants = vec![];
    for c in std::env::var("FIT").unwrap_or_default().split_whitespace() {
        let v: Vec<&str> = c.split(':').collect();
        constants.push(Constant {
            path: v[0].into(),
            meaning: String::new(),
            low: v[1].parse().unwrap(),
            high: v[2].parse().unwrap(),
        });
    }
    let mut fixed = base.clone();
    fit::set(&mut fixed, "disk.write", 0.0);
    fixed.disk.as_mut().unwrap().write.value =
        pipo_plan::machine::Curve::flat(Bandwidth(400_000_000));
    for c in std::env::var("SET").unwrap_or_default().split_whitespace() {
        let (a, b) = c.split_once('=').unwrap();
        assert!(fit::set(&mut fixed, a, b.parse().unwrap()));
    }
    let cells: Vec<Cell> = d
        .cells(&[])
        .into_iter()
        .filter(|c| want.is_empty() || format!("{}", c.system) == want)
        .collect();
    let scale = env("SCALE", 0.1);
    let loss = |p: &[f64]| {
        let mut m = fixed.clone();
        fit::apply(&mut m, &constants, p);
        let errors: Vec<f64> = cells
            .par_iter()
            .filter(|c| !c.held_out)
            .map(|c| {
                let paper = c.printed.value().unwrap();
                match seconds(&d, c, &m) {
                    Some((_, s)) => ((c.bar.batch as f64 * 32.0 / s.end.seconds()) / paper).ln(),
                    None => 3.0,
                }
            })
            .collect();
        errors.iter().map(|e| (1.0 + (e / scale).powi(2)).ln()).sum::<f64>() / errors.len() as f64
    };
    let mut m = fixed.clone();
    if !constants.is_empty() {
        let (l, p) = fit::search(
            constants.len(),
            loss,
            env("DRAWS", 100.0) as usize,
            env("STARTS", 2.0) as usize,
            0.5,
            0.01,
        );
        fit::apply(&mut m, &constants, &p);
        println!("loss {l:.4}");
        for (c, x) in constants.iter().zip(&p) {
            println!(
                "  {} at {x:.3}: {}",
                c.path,
                m.figures().iter().find(|f| f.path == c.path).unwrap().value.replace('\n', "")
            );
        }
    }
    let rows: Vec<_> = cells.par_iter().map(|c| seconds(&d, c, &m)).collect();
    let mut ratio = 0.0;
    for (cell, row) in cells.iter().zip(rows) {
        let Some((p, s)) = row else {
            println!(
                "{:14} {:28} OOM",
                cell.bar.model,
                format!("{} b{}", cell.system, cell.bar.batch)
            );
            continue;
        };
        let t = s.end.seconds();
        let thr = cell.bar.batch as f64 * 32.0 / t;
        let paper = cell.printed.value().unwrap_or(f64::NAN);
        println!(
            "{:14} {:12} {:4} paper {:6} sim {:6.3} err {:+6.1}%  T {:7.1} ({:6.1}) prefill {:6.1} step {:6.3} hits {:.2} nvml {:.2} k {:.2} gpu {:.2} host {:.2} ops {} speedup {:.2}",
            cell.bar.model,
            format!("{} b{}", cell.system, cell.bar.batch),
            if cell.bar.weights == Storage::Host { "CPU" } else { "Disk" },
            paper,
            thr,
            (thr / paper - 1.0) * 100.0,
            t,
            cell.bar.batch as f64 * 32.0 / paper,
            s.prefill().seconds(),
            s.decode().seconds() / 31.0,
            s.cache_hits.as_f64() / (s.cache_hits + s.disk_read).as_f64(),
            s.nvml_busy.as_f64() / s.end.as_f64(),
            s.kernel_busy.as_f64() / s.end.as_f64(),
            p.memory.gpu().as_f64() / 1e9,
            p.memory.host().as_f64() / 1e9,
            s.ops,
            thr / ratio
        );
        ratio = thr;
    }
}
