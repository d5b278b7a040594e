use pipo_plan::diagnostic::Document;

use super::*;
use fit::Effort;

#[test]
fn the_definition_has_every_bar_and_few_constants() {
    let definition = cells::definition().unwrap();
    assert_eq!(definition.id, ID);
    let cells = definition.cells(&[]);
    let bars = cells.iter().filter(|cell| cell.written.printed().is_some());
    assert_eq!((cells.len(), bars.count()), (36, 35));
    assert!(definition.constants.len() <= 10);
    let printed = cells[0].written.printed().unwrap();
    assert!((printed.rounding.0 - 5.965).abs() < 1e-9 && (printed.rounding.1 - 5.975).abs() < 1e-9);
}

#[test]
fn a_model_is_either_fitted_or_held_out() {
    let text = include_str!("../../pipo-throughput/experiment.toml");
    let text = text.replace("held_out = [", "held_out = [\"opt-13b\", ");
    let error = Definition::from_toml(&Document::new("experiment.toml", text)).unwrap_err();
    assert_eq!(error.message, "`opt-13b` must be either fitted or held out");
}

#[test]
fn the_profile_says_what_its_constants_were_fitted_to() {
    let definition = cells::definition().unwrap();
    let machine = machine(&definition).unwrap();
    let expected = fitted_to(&definition, &[]);
    let figures = machine.figures();
    let fitted = figures.iter().filter(|figure| figure.fitted_to.is_some());
    let fitted: Vec<_> = fitted.map(|figure| (figure.path, figure.fitted_to)).collect();
    let mut constants: Vec<&str> =
        definition.constants.iter().flat_map(|c| &c.figures).map(String::as_str).collect();
    constants.sort_by_key(|path| figures.iter().position(|figure| figure.path == *path));
    let wanted: Vec<_> = constants.iter().map(|&path| (path, Some(expected.as_str()))).collect();
    assert_eq!(fitted, wanted);
}

#[test]
fn held_out_models_are_never_fitted() {
    let definition = cells::definition().unwrap();
    let cells = definition.cells(&["opt-13b".into()]);
    let fitted: Vec<&str> =
        cells.iter().filter(|c| !c.held_out).map(|c| c.bar.model.as_str()).collect();
    assert!(fitted.iter().all(|model| ["opt-6.7b", "opt-30b"].contains(model)), "{fitted:?}");
}

#[test]
fn a_fit_does_not_depend_on_the_number_of_threads() {
    let options = Refit { seed: 7, hold_out: vec!["opt-13b".into(), "opt-30b".into()] };
    let fit = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| refit_with(&options, Effort { draws: 3, starts: 2, finest: 0.2 })).unwrap()
    };
    let alone = fit(1);
    assert_eq!(alone, fit(2));
    assert!(alone.iter().all(|constant| !constant.cells.contains("opt-13b")), "{alone:?}");
}

#[test]
fn the_published_constants_reproduce_the_figure() {
    let outcome = run().unwrap();
    let [fitted, held_out, speedups, out_of_memory] = &outcome.checks[..] else {
        panic!("{:?}", outcome.checks)
    };
    for check in [fitted, speedups, out_of_memory] {
        assert!(check.holds, "{check:?}");
    }
    // The bars of 66 and 70 billion weights are not explained: a note says why.
    assert!(!held_out.holds, "it holds now: say so in the notes. {held_out:?}");
    assert_eq!((outcome.comparisons.len(), outcome.utilisation.len()), (36, 35));
    assert_eq!(outcome.timelines.len(), 2);
}
