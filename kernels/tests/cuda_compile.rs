//! Every kernel compiles for every architecture, and keeps everything in registers.
//!
//! Needs NVRTC but no GPU: `PIPO_NVRTC_DIR` is the folder of `libnvrtc.so.13` and its builtins, for example
//! of the wheel nvidia-cuda-nvrtc. Skipped where it is not set.

#![allow(unsafe_code, reason = "loading a library runs its code")]

mod nvrtc;

use pipo_kernels::cuda::{Architecture, Unit, compile};

#[test]
fn every_kernel_compiles_and_spills_nothing() {
    if let Err(reason) = nvrtc::preload() {
        println!("skipped: {reason}");
        return;
    }
    let wanted = std::env::var("PIPO_ARCHITECTURES").ok();
    let mut faults = Vec::new();
    for architecture in Architecture::ALL {
        if wanted.as_ref().is_some_and(|w| !w.contains(&architecture.to_string())) {
            continue;
        }
        for unit in Unit::all() {
            match compile(unit, architecture) {
                Err(error) => faults.push(error.to_string()),
                Ok(compiled) => check(&compiled.log, unit, architecture, &mut faults),
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
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
