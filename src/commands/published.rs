//! What `pipo reproduce --output` writes: table, pictures, report and the manifest that ties them together.

use std::path::{Path, PathBuf};

use pipo_experiments::{Comparison, Outcome};
use pipo_plan::machine::catalog;
use pipo_results::chart::{Bar, BarChart, Group, Scale, bar_chart};
use pipo_results::manifest::{FileHash, Manifest};
use pipo_results::report::{Report, Section, markdown};
use pipo_results::svg::{Compared, comparison};

use crate::commands::reproduce::{COLUMNS, row};
use crate::output;

/// Writes everything about an outcome into a folder; returns the files.
pub fn write(outcome: &Outcome, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files: Vec<(String, String)> = vec![("cells.csv".into(), csv(&outcome.comparisons))];
    for (unit, cells) in by_unit(&outcome.comparisons) {
        let stem = unit.replace(|c: char| !c.is_alphanumeric(), "-");
        for (part, cells) in legible(&cells) {
            files.push((format!("figure-{stem}{part}.svg"), chart(outcome, unit, &cells)));
        }
    }
    if !outcome.timelines.is_empty() {
        let compared: Vec<Compared> = outcome
            .timelines
            .iter()
            .map(|(name, timeline)| Compared { name, note: "", timeline })
            .collect();
        files
            .push(("timelines.svg".into(), comparison(&outcome.title, &outcome.source, &compared)));
    }
    let manifest = manifest(outcome, &files).to_json();
    files.push(("report.md".into(), report(outcome, &files, &manifest)?));
    files.push(("manifest.json".into(), manifest));
    let mut paths = Vec::new();
    for (name, contents) in &files {
        let path = folder.join(name);
        output::write(&path, contents)?;
        paths.push(path);
    }
    Ok(paths)
}

/// More bars than this have no room for their labels.
const MOST_BARS: usize = 20;

/// The cells of one picture, or of two where they are many: those fitted to and those held out.
fn legible<'a>(cells: &[&'a Comparison]) -> Vec<(&'static str, Vec<&'a Comparison>)> {
    if cells.len() <= MOST_BARS {
        return vec![("", cells.to_vec())];
    }
    let of = |held_out: bool| cells.iter().copied().filter(|c| c.held_out == held_out).collect();
    vec![("-fitted", of(false)), ("-held-out", of(true))]
}

/// Cells of one unit belong to one axis.
fn by_unit(cells: &[Comparison]) -> Vec<(&'static str, Vec<&Comparison>)> {
    let mut units: Vec<(&'static str, Vec<&Comparison>)> = Vec::new();
    for cell in cells {
        match units.iter_mut().find(|(unit, _)| *unit == cell.unit) {
            Some((_, list)) => list.push(cell),
            None => units.push((cell.unit, vec![cell])),
        }
    }
    units
}

fn chart(outcome: &Outcome, unit: &str, cells: &[&Comparison]) -> String {
    let group = |c: &&Comparison| {
        let bar = |series: usize, value: Option<f64>, interval: Option<(f64, f64)>| {
            let value = value?;
            let (low, high) = interval.unwrap_or((value, value));
            Some(Bar { series, value, low, high })
        };
        let bars = [bar(0, c.paper, c.rounding), bar(1, c.simulated, None)];
        Group {
            label: c.group.clone(),
            note: c.label.clone(),
            held_out: c.held_out,
            bars: bars.into_iter().flatten().collect(),
        }
    };
    bar_chart(&BarChart {
        title: outcome.title.clone(),
        subtitle: outcome.source.clone(),
        y_label: unit.to_owned(),
        scale: Scale::Log,
        series: vec!["paper".into(), "simulated".into()],
        groups: cells.iter().map(group).collect(),
    })
}

fn csv(cells: &[Comparison]) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let number = |v: Option<f64>| v.map_or(String::new(), |v| format!("{v:.6}"));
    let mut text =
        String::from("group,cell,unit,paper,paper_low,paper_high,simulated,error,held_out,note\n");
    for c in cells {
        let (low, high) = c.rounding.unzip();
        let fields = [
            quote(&c.group),
            quote(&c.label),
            quote(c.unit),
            number(c.paper),
            number(low),
            number(high),
            number(c.simulated),
            number(c.error()),
            c.held_out.to_string(),
            quote(&c.note),
        ];
        text += &(fields.join(",") + "\n");
    }
    text
}

fn report(outcome: &Outcome, files: &[(String, String)], manifest: &str) -> anyhow::Result<String> {
    let checks = outcome.checks.iter().map(|c| {
        vec![c.name.clone(), if c.holds { "holds" } else { "fails" }.into(), c.detail.clone()]
    });
    let fitted = outcome
        .fitted
        .iter()
        .map(|f| vec![f.name.clone(), f.value.clone(), f.cells.clone(), f.meaning.clone()]);
    let cells = outcome.comparisons.iter().map(|c| {
        let mut cells = row(c);
        cells.push(c.note.clone());
        cells
    });
    let columns: Vec<&str> = COLUMNS.into_iter().chain(["note"]).collect();
    let mut sections = vec![
        Section::table("Checks", &["statement", "holds", "figures"], checks.collect()),
        Section::table("Cells", &columns, cells.collect()),
        Section::table(
            "Fitted constants",
            &["constant", "value", "fitted to", "meaning"],
            fitted.collect(),
        ),
    ];
    if !outcome.utilisation.is_empty() {
        let percent = crate::commands::report::percent;
        let rows = outcome
            .utilisation
            .iter()
            .map(|u| vec![u.group.clone(), u.label.clone(), percent(u.nvml), percent(u.kernel)]);
        let columns = ["group", "cell", "nvml", "kernel"];
        sections.push(Section::table("Utilisation, simulated", &columns, rows.collect()));
    }
    let figures = files
        .iter()
        .filter(|(name, _)| Path::new(name).extension().is_some_and(|e| e == "svg"))
        .map(|(name, _)| pipo_results::report::Figure {
            caption: name.clone(),
            path: name.clone(),
        });
    sections.push(Section {
        title: "Figures".into(),
        figures: figures.collect(),
        ..Section::default()
    });
    let notes = outcome.notes.join("\n\n");
    sections.push(Section { title: "Notes".into(), text: notes, ..Section::default() });
    let report = Report {
        title: outcome.title.clone(),
        summary: format!(
            "{}. Simulated on the machine profile `{}`.",
            outcome.source, outcome.machine
        ),
        sections,
        manifest: manifest.to_owned(),
    };
    Ok(markdown(&report)?)
}

fn manifest(outcome: &Outcome, files: &[(String, String)]) -> Manifest {
    let profile = catalog::find(&outcome.machine).map_or(String::new(), |m| m.hash());
    Manifest {
        command: format!("pipo reproduce {}", outcome.id),
        version: env!("CARGO_PKG_VERSION").into(),
        commit: option_env!("PIPO_COMMIT").map(str::to_owned),
        inputs: [(format!("machine profile {}", outcome.machine), profile)].into(),
        files: files.iter().map(|(name, text)| FileHash::of(name, text.as_bytes())).collect(),
        ..Manifest::default()
    }
}
