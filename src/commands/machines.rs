//! `pipo machines`: the catalogue, one profile with its sources, or measurements imported into one.

use pipo_plan::machine::{Machine, catalog, import};
use serde_json::json;

use crate::cli::Machines;
use crate::input;
use crate::output::{self, Printer};

/// Runs the command.
pub fn run(args: &Machines, printer: &Printer) -> anyhow::Result<()> {
    let Some(name) = &args.machine else { return list(printer) };
    let mut machine = input::machine(name)?;
    let mut imported = Vec::new();
    if let Some(path) = &args.nvbandwidth {
        imported.extend(import::nvbandwidth(&input::document(path)?)?);
    }
    for path in &args.fio {
        imported.extend(import::fio(&input::document(path)?)?);
    }
    if !imported.is_empty() {
        machine = machine.with_imported(&imported)?;
    }
    match &args.output {
        Some(path) => {
            output::write(path, &machine.to_toml())?;
            printer.line(format!("wrote {}", path.display()));
            printer.document(&json!({ "wrote": path, "profile": machine.hash() }))
        }
        None => show(&machine, printer),
    }
}

fn list(printer: &Printer) -> anyhow::Result<()> {
    let machines: Vec<Machine> = catalog::names().filter_map(catalog::find).collect();
    let row = |m: &Machine| {
        let disk = m.disk.as_ref().map_or("none".into(), |d| d.read.best().to_string());
        vec![
            m.name.clone(),
            m.gpu.name.clone(),
            m.gpu.memory.to_string(),
            m.link.h2d.best().to_string(),
            disk,
            m.host.memory.to_string(),
            m.figures().iter().filter(|f| f.fitted_to.is_some()).count().to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = machines.iter().map(row).collect();
    let header = ["machine", "GPU", "memory", "H2D", "disk read", "host memory", "fitted figures"];
    printer.table(&header, &rows);
    let names: Vec<&str> = machines.iter().map(|m| m.name.as_str()).collect();
    printer.document(&names)
}

fn show(machine: &Machine, printer: &Printer) -> anyhow::Result<()> {
    printer.line(format!("{}: {}", machine.name, machine.description));
    printer.line(format!("profile {}\n", machine.hash()));
    let figures = machine.figures();
    let source = |f: &pipo_plan::machine::Entry<'_>| {
        let fitted = f.fitted_to.as_ref().map(|to| format!(", FITTED to {to}"));
        format!("{}{}", f.source, fitted.unwrap_or_default())
    };
    let rows: Vec<Vec<String>> =
        figures.iter().map(|f| vec![f.path.to_owned(), f.value.clone(), source(f)]).collect();
    printer.table(&["figure", "value", "source"], &rows);
    printer.section("sources");
    for (key, text) in &machine.sources {
        printer.line(format!("  {key}: {text}"));
    }
    printer.document(&json!({ "profile": machine.hash(), "toml": machine.to_toml() }))
}
