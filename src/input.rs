//! Reading what the user named: files, models, machines.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use pipo_plan::diagnostic::Document;
use pipo_plan::machine::{self, Machine};
use pipo_plan::model::{self, Model};

/// No configuration, plan or profile is larger; timelines of long runs are.
const LARGEST: u64 = 1 << 30;

/// Reads a text file.
pub fn document(path: &Path) -> anyhow::Result<Document> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let mut text = String::new();
    let read = file.take(LARGEST + 1).read_to_string(&mut text);
    let read = read.with_context(|| format!("cannot read {name} as text"))?;
    if read as u64 > LARGEST {
        bail!("{name} is larger than 1 GiB; is it the right file?");
    }
    Ok(Document::new(name, text))
}

/// A model by catalogue name, by the path of a config.json, or by the directory that holds one.
pub fn model(name: &str) -> anyhow::Result<Model> {
    if let Some(model) = model::catalog::find(name) {
        return Ok(model);
    }
    let path = Path::new(name);
    if path.is_dir() {
        let config = path.join("config.json");
        if !config.is_file() {
            bail!("{name} has no config.json; name the folder of a Hugging Face model");
        }
        return Ok(Model::from_config(&document(&config)?)?);
    }
    if path.is_file() {
        return Ok(Model::from_config(&document(path)?)?);
    }
    let hint = did_you_mean(model::catalog::nearest(name));
    Err(anyhow!(
        "`{name}` is neither a file, a directory nor a model of the catalogue{hint} `pipo models` lists them"
    ))
}

/// What stands between a name that the catalogue does not have and how to list it.
fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or(";".into(), |nearest| format!("; did you mean `{nearest}`?"))
}

/// A machine by catalogue name or profile file.
pub fn machine(name: &str) -> anyhow::Result<Machine> {
    if let Some(machine) = machine::catalog::find(name) {
        return Ok(machine);
    }
    let path = Path::new(name);
    if path.is_file() {
        return Ok(Machine::from_toml(&document(path)?)?);
    }
    let hint = did_you_mean(machine::catalog::nearest(name));
    Err(anyhow!(
        "`{name}` is neither a file nor a machine of the catalogue{hint} `pipo machines` lists them"
    ))
}

/// What `auto` stands for, and why.
pub fn automatic_machine() -> anyhow::Result<(Machine, String)> {
    // A GPU that is here changes nothing: what it does is known from a profile of it alone.
    let machine = machine(machine::catalog::DEFAULT)?;
    let why = format!(
        "no profile of this machine was given, so the catalogue's {} stands in; name another with --machine",
        machine::catalog::DEFAULT
    );
    Ok((machine, why))
}
