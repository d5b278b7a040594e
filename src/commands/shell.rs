//! `pipo completions` and `pipo man`: both from the one definition of the command line.

use clap::CommandFactory;

use crate::cli::Cli;
use crate::output::Printer;

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell, printer: &Printer) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pipo", &mut script);
    printer.raw(&String::from_utf8(script)?);
    Ok(())
}

/// Prints the manual page.
pub fn man(printer: &Printer) -> anyhow::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    printer.raw(&String::from_utf8(page)?);
    Ok(())
}
