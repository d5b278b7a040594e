//! HeadInfer must agree with its paper: memory within 1 %, times within 10 % in the median.

use pipo_experiments::{Outcome, headinfer};
use pipo_plan::machine::catalog;

/// Paper and simulation side by side, three figures each.
fn table(outcome: &Outcome) -> String {
    let line = |c: &pipo_experiments::Comparison| {
        let (paper, simulated) = (c.paper.unwrap(), c.simulated.unwrap());
        let held_out = if c.held_out { "" } else { " fitted" };
        let (group, label, unit) = (&c.group, &c.label, c.unit);
        let error = 100.0 * c.error().unwrap();
        format!("{group:25} {label:30} {paper:8} {simulated:8.2} {unit:3} {error:+5.1} %{held_out}")
    };
    outcome.comparisons.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_figure_is_within_its_tolerance() {
    let outcome = headinfer::run().unwrap();
    for check in &outcome.checks {
        assert!(check.holds, "{}: {}", check.name, check.detail);
    }
    assert_eq!(outcome.fitted.len(), 2);
    insta::assert_snapshot!(table(&outcome));
}

#[test]
fn the_profile_holds_what_the_fit_finds() {
    let fitted = headinfer::refit().unwrap();
    let machine = catalog::find("rtx4090-headinfer").unwrap();
    let near = |written: f64, found: f64| assert!((written / found - 1.0).abs() < 1e-3, "{found}");
    near(machine.gpu.matmul.as_f64(), fitted.arithmetic.as_f64());
    near(machine.gpu.attention.as_f64(), fitted.arithmetic.as_f64());
    near(machine.link.h2d.best().as_f64(), fitted.link.as_f64());
}

#[test]
fn the_same_outcome_every_time() {
    assert_eq!(headinfer::run().unwrap(), headinfer::run().unwrap());
}
