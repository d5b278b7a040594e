//! `pipo import`: weights into a store, with what the rounding did to them.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use pipo_engine::import::{
    Import as Request, Progress, Report, Source, TensorError, import_through,
};
use pipo_plan::model::Part;
use pipo_plan::units::Bytes;
use serde_json::json;

use crate::cli::Import;
use crate::input;
use crate::interrupt::{self, Interrupted};
use crate::output::Printer;

/// Tensors named as the worst.
const WORST: usize = 5;

/// Runs the command.
pub fn run(args: &Import, printer: &Printer) -> anyhow::Result<()> {
    let (source, what) = match (&args.folder, &args.random) {
        (_, Some(name)) => {
            let model = input::model(name)?;
            let what = format!("random weights of {}, seed {}", model.name, args.seed);
            (Source::Random { model, seed: args.seed }, what)
        }
        (folder, None) => {
            // Without a model to draw, the parser has made sure that there is a folder.
            let folder = folder.as_deref().unwrap_or(std::path::Path::new("."));
            (Source::Checkpoint(folder), folder.display().to_string())
        }
    };
    let request = Request { source, precision: args.weights.into(), target: &args.output };
    let bar = printer.progress("importing, MB");
    let mut show = |progress: Progress| {
        bar.set_length(progress.total / 1_000_000);
        bar.set_position(progress.done / 1_000_000);
    };
    let cancelled = interrupt::flag()?;
    let through = |file| -> Box<dyn Write> { Box::new(Stoppable { file, cancelled }) };
    let report = import_through(&request, &mut show, through);
    bar.finish_and_clear();
    let report = report.map_err(|error| {
        if cancelled.load(Ordering::Relaxed) {
            Interrupted.into()
        } else {
            anyhow::Error::new(error)
        }
    })?;

    printer.line(format!("source   {what}"));
    printer.line(format!(
        "store    {}: {} in {}",
        args.output.display(),
        Bytes(report.bytes).both(),
        request.precision
    ));
    printer.line(format!(
        "error    {} of the weights' length: ||w - stored|| / ||w||",
        error(report.relative)
    ));
    printer.line(if report.tokenizer {
        "text     the store has the model's tokenizer"
    } else {
        "text     no tokenizer.json: `pipo run` takes token ids alone"
    });
    if !report.unused.is_empty() {
        printer.line(format!(
            "unused   {} tensors, such as {}",
            report.unused.len(),
            report.unused.first().map_or("", String::as_str)
        ));
    }
    tables(&report, printer);
    printer.document(&json!({
        "source": what,
        "store": args.output,
        "bytes": report.bytes,
        "weights": request.precision,
        "relative_error": report.relative,
        "worst": report.worst(WORST).iter().map(entry).collect::<Vec<_>>(),
        "tensors": report.tensors.iter().map(entry).collect::<Vec<_>>(),
        "unused": report.unused,
        "tokenizer": report.tokenizer,
    }))
}

/// Weights on their way to the disk, until Ctrl-C: the write that fails ends the import, which then
/// removes what it has made.
struct Stoppable {
    file: File,
    cancelled: &'static AtomicBool,
}

impl Write for Stoppable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("interrupted"));
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn tables(report: &Report, printer: &Printer) {
    printer.section("Relative error by tensor");
    let row = |kind: &pipo_engine::import::KindError| {
        let worst = &kind.worst;
        vec![
            format!("{} {}", worst.place.part, worst.name),
            worst.precision.to_string(),
            kind.tensors.to_string(),
            error(kind.relative),
            error(worst.relative),
            layer(worst),
        ]
    };
    let rows: Vec<Vec<String>> = report.kinds.iter().map(row).collect();
    printer.table(&["tensor", "stored as", "layers", "error", "worst", "in"], &rows);
    printer.section("Worst tensors");
    let row = |worst: &TensorError| {
        vec![
            format!("{} {}", worst.place, worst.name),
            worst.precision.to_string(),
            error(worst.relative),
        ]
    };
    let rows: Vec<Vec<String>> = report.worst(WORST).iter().map(row).collect();
    printer.table(&["tensor", "stored as", "error"], &rows);
}

fn layer(tensor: &TensorError) -> String {
    match tensor.place.part {
        Part::Attention | Part::Mlp => format!("layer {}", tensor.place.layer),
        Part::Embedding | Part::Head => tensor.place.part.to_string(),
    }
}

fn entry(tensor: &TensorError) -> serde_json::Value {
    json!({
        "part": tensor.place.part,
        "layer": tensor.place.layer,
        "tensor": tensor.name,
        "stored_as": tensor.precision,
        "parameters": tensor.parameters,
        "relative_error": tensor.relative,
    })
}

/// Errors span orders of magnitude, from rounding in 16 bits to 4.
fn error(relative: f64) -> String {
    if relative == 0.0 { "0".into() } else { format!("{:.3} %", 100.0 * relative) }
}
