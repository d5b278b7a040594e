//! Every kernel compiles for every architecture, and keeps everything in registers.
//!
//! Needs NVRTC but no GPU: `PIPO_NVRTC_DIR` is the folder of `libnvrtc.so.13` and its builtins, for example
//! of the wheel nvidia-cuda-nvrtc. Skipped where it is not set.

#![allow(unsafe_code, reason = "loading a library runs its code")]
#![allow(clippy::print_stdout, reason = "registers are for who writes a kernel")]

mod nvrtc;

use pipo_kernels::cuda::{Architecture, Unit, compile};

#[test]
fn every_kernel_compiles_and_spills_nothing() {
    if let Err(reason) = nvrtc::preload() {
        println!("skipped: {reason}");
        return;
    }
    // Others where they are named, such as "sm_75 sm_90" or "all".
    let named = std::env::var("PIPO_ARCHITECTURES")
        .unwrap_or_else(|_| "sm_75 sm_80 sm_86 sm_89 sm_90 sm_120".into());
    let wanted = |a: &Architecture| named == "all" || named.contains(&a.to_string());
    let faults = std::thread::scope(|scope| {
        let run = |architecture| scope.spawn(move || all(architecture));
        let threads: Vec<_> = Architecture::ALL.into_iter().filter(wanted).map(run).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn all(architecture: Architecture) -> Vec<String> {
    let mut faults = Vec::new();
    for unit in Unit::all() {
        match compile(unit, architecture) {
            Err(error) => faults.push(error.to_string()),
            Ok(compiled) => check(&compiled.log, unit, architecture, &mut faults),
        }
    }
    faults
}

/// Reads the assembler's report: a kernel's name, its local memory, its registers.
fn check(log: &str, unit: Unit, architecture: Architecture, faults: &mut Vec<String>) {
    let mut kernel = "?";
    let mut kernels = 0;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or("?");
        }
        if line.contains("bytes stack frame") {
            kernels += 1;
            if !line.contains("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") {
                faults.push(format!("{unit} {kernel} {architecture}: {}", line.trim()));
            }
        }
        if let Some((_, rest)) = line.split_once("Used ") {
            println!("{architecture} {unit} {kernel}: {rest}");
        }
    }
    if kernels == 0 {
        faults.push(format!("{unit} {architecture}: the assembler reported no kernel:\n{log}"));
    }
}
