//! Endor must agree with its paper: every time and speed-up of OPT-66B within 8 %.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use pipo_experiments::{Outcome, endor};
use pipo_plan::machine::catalog;

/// Paper and simulation side by side, three figures each.
fn table(outcome: &Outcome) -> String {
    let line = |c: &pipo_experiments::Comparison| {
        let (paper, simulated) = (c.paper.unwrap(), c.simulated.unwrap());
        let held_out = if c.held_out { "" } else { " fitted" };
        let (group, label, unit) = (&c.group, &c.label, c.unit);
        let error = 100.0 * c.error().unwrap();
        format!("{group:12} {label:28} {paper:6} {simulated:6.2} {unit:3} {error:+5.1} %{held_out}")
    };
    outcome.comparisons.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_figure_is_within_its_tolerance() {
    let outcome = endor::run().unwrap();
    for check in &outcome.checks {
        assert!(check.holds, "{}: {}", check.name, check.detail);
    }
    assert_eq!(outcome.fitted.len(), 4);
    insta::assert_snapshot!(table(&outcome));
}

#[test]
fn the_profile_holds_what_the_fit_finds() {
    let fitted = endor::refit().unwrap();
    let machine = catalog::find("rtx4080-endor").unwrap();
    let near = |written: f64, found: f64| assert!((written / found - 1.0).abs() < 1e-3, "{found}");
    let disk = machine.disk.unwrap();
    near(disk.page_fault_read.best().as_f64(), fitted.disk.as_f64());
    near(machine.link.pageable_h2d.best().as_f64(), fitted.link.as_f64());
    near(machine.gpu.decompress.unwrap().as_f64(), fitted.decompress.as_f64());
    near(disk.direct_to_gpu.unwrap().as_f64(), fitted.direct.as_f64());
}
