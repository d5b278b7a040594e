//! The command line: reads arguments and files, calls the libraries, prints and writes what they return.
//!
//! One file for each subcommand under `commands/`; none of them computes anything of its own.

#![allow(unreachable_pub, reason = "a binary has no outside: `pub` is for its other modules")]

mod cli;
mod commands;
mod input;
mod interrupt;
mod output;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use interrupt::Interrupted;
use output::Printer;

/// A failure with a special exit code: no plan fits the budget, or none reaches the goal.
#[derive(Debug)]
struct OutOfReach(String);

impl std::fmt::Display for OutOfReach {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OutOfReach {}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(threads) = cli.threads {
        // Fails only where the pool exists already, which nothing before this line can cause.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    let printer = Printer::new(cli.json);
    match run(cli.command, cli.threads, &printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            printer.error(&error);
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<OutOfReach>() {
        3
    } else if error.is::<Interrupted>() {
        interrupt::EXIT_CODE
    } else {
        1
    }
}

fn run(command: Command, threads: Option<usize>, printer: &Printer) -> anyhow::Result<()> {
    match command {
        Command::Tune(args) => commands::tune::run(&args, printer),
        Command::Explain(args) => commands::explain::run(&args, printer),
        Command::Simulate(args) => commands::simulate::run(&args, printer),
        Command::Run(args) => commands::run::run(&args, threads, printer),
        Command::Bench(args) => commands::bench::run(&args, threads, printer),
        Command::Plot(args) => commands::plot::run(&args, printer),
        Command::Reproduce(args) => commands::reproduce::run(&args, printer),
        Command::Emit(args) => commands::emit::run(&args, printer),
        Command::Import(args) => commands::import::run(&args, printer),
        Command::Profile(args) => commands::profile::run(&args, threads, printer),
        Command::Verify(args) => commands::verify::run_command(&args, threads, printer),
        Command::Models(args) => commands::models::run(&args, printer),
        Command::Machines(args) => commands::machines::run(&args, printer),
        Command::Doctor => commands::doctor::run(printer),
        Command::Completions { shell } => commands::shell::completions(shell, printer),
        Command::Man => commands::shell::man(printer),
    }
}
