//! Times of the GPU's kernels beside what the GPU can do at most.
//!
//! The ceilings are measured: a copy within the device, bytes read and written, and an fp16 product of
//! 8192 x 8192 x 8192 by cuBLAS. A kernel's floor is the larger of its bytes and its operations at those
//! rates. Operands rotate through more memory than a cache holds. Times are medians of several series of
//! launches, each between two events; `--out FILE` writes all as CSV, `--only TEXT` chooses by name.

#![allow(unsafe_code, reason = "the driver is a C interface")]
#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made has failed")]
#![allow(clippy::print_stdout, reason = "the table is what it is for")]

#[path = "../tests/device/mod.rs"]
mod device;

use std::fmt::Write;

use cudarc::driver::sys;
use device::{Buffer, Device, floats, ok};
use pipo_kernels::Format;
use pipo_kernels::attention::Heads;
use pipo_kernels::cuda::{
    Activation, Append, Attention, DeviceCache, DeviceMatrix, DeviceVector, Kernels, Linear, Out,
    Region, Then, Turn, Unit,
};
use pipo_kernels::format::matrix_bytes;

/// Bytes through which operands rotate: several times the largest cache of a GPU.
const ROTATION: usize = 512 << 20;

/// Series of which the median is taken.
const SERIES: usize = 9;

struct Bench<'a> {
    gpu: &'a Device,
    only: Option<String>,
    /// Bytes a second.
    bandwidth: f64,
    /// Operations a second.
    rate: f64,
    csv: String,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    device::with(|gpu| {
        let mut bench = Bench {
            gpu,
            only: after("--only"),
            bandwidth: 1.0,
            rate: 1.0,
            csv: "name,microseconds,bytes,operations,percent_of_ceiling\n".into(),
        };
        bench.ceilings();
        bench.linear();
        bench.attention();
        bench.rest();
        if let Some(out) = after("--out") {
            std::fs::write(out, &bench.csv).unwrap();
        }
    });
}

/// Numbers below 1 in every format: no exponent is large, whichever bytes are halves.
fn filled(bytes: usize) -> Buffer {
    let buffer = Buffer::new(bytes);
    let mut state = 1_u32;
    let block: Vec<u8> = (0..bytes.min(8 << 20))
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24).to_le_bytes()[0] & 0xbb
        })
        .collect();
    for start in (0..bytes).step_by(block.len().max(1)) {
        buffer.write(start, &block[..block.len().min(bytes - start)]);
    }
    buffer
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

impl Bench<'_> {
    /// Seconds of one launch: the median of series of them.
    fn time(&self, mut launch: impl FnMut(usize)) -> f64 {
        let (mut start, mut end) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the driver writes the handles where it may.
        unsafe {
            ok(sys::cuEventCreate(&raw mut start, 0));
            ok(sys::cuEventCreate(&raw mut end, 0));
        }
        let mut index = 0;
        let mut series = |count: usize| {
            let mut milliseconds = 0.0_f32;
            // SAFETY: events and stream are alive, and the time is written where it may be.
            unsafe {
                ok(sys::cuEventRecord(start, self.gpu.stream));
                for _ in 0..count {
                    launch(index);
                    index += 1;
                }
                ok(sys::cuEventRecord(end, self.gpu.stream));
                ok(sys::cuEventSynchronize(end));
                ok(sys::cuEventElapsedTime_v2(&raw mut milliseconds, start, end));
            }
            f64::from(milliseconds) / 1e3 / count as f64
        };
        // Long enough that the clock's steps and the first launch do not matter: 3 ms a series.
        series(3);
        let once = series(3).max(1e-6);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
        let count = (3e-3 / once).clamp(2.0, 500.0) as usize;
        let mut times: Vec<f64> = (0..SERIES).map(|_| series(count)).collect();
        // SAFETY: nothing uses them any more.
        unsafe {
            ok(sys::cuEventDestroy_v2(start));
            ok(sys::cuEventDestroy_v2(end));
        }
        times.sort_by(f64::total_cmp);
        times[SERIES / 2]
    }

    fn wanted(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    fn report(&mut self, name: &str, seconds: f64, bytes: f64, operations: f64) {
        let floor = (bytes / self.bandwidth).max(operations / self.rate);
        let percent = 100.0 * floor / seconds;
        println!(
            "{name:<44} {:>9.1} us {:>7.2} TB/s {:>7.1} TFLOP/s {percent:>6.1} %",
            seconds * 1e6,
            bytes / seconds / 1e12,
            operations / seconds / 1e12,
        );
        writeln!(self.csv, "{name},{:.3},{bytes},{operations},{percent:.1}", seconds * 1e6)
            .unwrap();
    }

    fn ceilings(&mut self) {
        println!("{}", self.gpu.name);
        let bytes = 2 << 30;
        let (from, to) = (filled(bytes), Buffer::new(bytes));
        let seconds = self.time(|_| {
            let (from, to) = (from.region().address(), to.region().address());
            // SAFETY: both are as long as that.
            ok(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.gpu.stream) });
        });
        self.bandwidth = 2.0 * bytes as f64 / seconds;
        self.report("ceiling: copy within the device", seconds, 2.0 * bytes as f64, 0.0);
        drop((from, to));
        let (seconds, bytes, operations) =
            self.product(Format::Fp16, 8192, &[8192], 8192, 0, Out::Fp16);
        self.rate = operations / seconds;
        self.report("ceiling: fp16 product of 8192 ^ 3", seconds, bytes, operations);
    }

    /// Time, bytes and operations of products of the same rows, with no more spare memory than that.
    fn product(
        &self,
        format: Format,
        rows: usize,
        outputs: &[usize],
        inputs: usize,
        spare: u64,
        out_type: Out,
    ) -> (f64, f64, f64) {
        let each: Vec<u64> = outputs
            .iter()
            .map(|&outputs| matrix_bytes(format, outputs as u64, inputs as u64).unwrap())
            .collect();
        let start = |i: usize| each[..i].iter().map(|n| n.next_multiple_of(256)).sum::<u64>();
        let bytes = start(each.len());
        let copies = (ROTATION / size(bytes)).max(1);
        let weights = filled(size(bytes) * copies);
        let x = filled(2 * rows * inputs);
        let width = if out_type == Out::Fp32 { 4 } else { 2 };
        let outs: Vec<_> = outputs.iter().map(|n| Buffer::new(width * rows * n)).collect();
        let wanted = outputs.iter().map(|&n| Kernels::linear_spare(rows, format, n, inputs));
        let spare = Buffer::new(size(wanted.max().unwrap_or(0).min(spare)));
        let seconds = self.time(|index| {
            let first = (index % copies) as u64 * bytes;
            let matrix = |i: usize| {
                let region = weights.region().slice(first + start(i), each[i]).unwrap();
                DeviceMatrix::new(format, outputs[i], inputs, region).unwrap()
            };
            let matrices: Vec<_> = (0..outputs.len()).map(matrix).collect();
            let linear = |(matrix, out): (_, &Buffer)| Linear {
                x: x.region(),
                rows,
                matrix,
                bias: None,
                then: Then::Store,
                out: out.region(),
                out_type,
                spare: spare.region(),
            };
            let linears: Vec<_> = matrices.iter().zip(&outs).map(linear).collect();
            self.gpu.kernels.linears(self.gpu.stream, &linears).unwrap();
        });
        let all: usize = outputs.iter().sum();
        let bytes =
            each.iter().sum::<u64>() as f64 + (2 * rows * inputs + width * rows * all) as f64;
        (seconds, bytes, 2.0 * (rows * all * inputs) as f64)
    }

    fn linear(&mut self) {
        let (tile, all) = (16 << 20, u64::MAX);
        let shapes = [
            (8192, 8192),
            (28672, 8192),
            (8192, 28672),
            (4096, 4096),
            (16384, 4096),
            (4096, 16384),
            (14336, 4096),
            (4096, 14336),
        ];
        for format in Unit::FORMATS {
            for (outputs, inputs) in shapes {
                for rows in [1, 4, 8, 16, 32, 64, 96, 128] {
                    let square = outputs == 8192 && inputs == 8192;
                    if square || matches!(rows, 1 | 4 | 16) {
                        self.multiply("", format, rows, &[outputs], inputs, all);
                    }
                }
            }
            for rows in [1, 4, 16] {
                self.multiply(" together", format, rows, &[4096; 3], 4096, all);
            }
            for rows in [512, 2048, 4096] {
                self.multiply("", format, rows, &[8192], 8192, all);
            }
            self.multiply(" in tiles of 512", format, 2048, &[4096], 16384, tile);
            self.multiply(" in tiles of 1024", format, 512, &[8192], 8192, tile);
            self.multiply(" without spare memory", format, 2048, &[8192], 8192, 0);
        }
        let name = "linear fp16 16 x 128256 x 4096 logits";
        if self.wanted(name) {
            let (seconds, bytes, operations) =
                self.product(Format::Fp16, 16, &[128_256], 4096, all, Out::Fp32);
            self.report(name, seconds, bytes, operations);
        }
    }

    fn multiply(
        &mut self,
        kind: &str,
        format: Format,
        rows: usize,
        outputs: &[usize],
        inputs: usize,
        spare: u64,
    ) {
        let count = if outputs.len() > 1 { format!("{} x ", outputs.len()) } else { String::new() };
        let name = format!("linear {format} {rows} x {count}{} x {inputs}{kind}", outputs[0]);
        if self.wanted(&name) {
            let (seconds, bytes, operations) =
                self.product(format, rows, outputs, inputs, spare, Out::Fp16);
            self.report(&name, seconds, bytes, operations);
        }
    }

    fn attention(&mut self) {
        let decode = [
            (16, 32, 8, 8192),
            (16, 32, 32, 8192),
            (1, 32, 8, 8192),
            (16, 64, 8, 2048),
            (16, 32, 32, 544),
        ];
        for format in [Format::Fp16, Format::Int8, Format::Int4] {
            for (sequences, query, kv, context) in decode {
                self.attend(format, sequences, [query, kv], context - 1, 1);
            }
            for (sequences, positions) in [(1, 2048), (1, 8192), (16, 512)] {
                self.attend(format, sequences, [32, 8], 0, positions);
            }
        }
        self.attend(Format::Fp16, 1, [32, 32], 0, 4096);
    }

    fn attend(
        &mut self,
        format: Format,
        sequences: usize,
        [query, kv]: [usize; 2],
        first: usize,
        positions: usize,
    ) {
        let kind = if positions == 1 { "decode" } else { "prefill" };
        let context = first + positions;
        let name =
            format!("{kind} {format} {sequences} x {context} with {query}/{kv} heads of 128");
        if !self.wanted(&name) {
            return;
        }
        let heads = Heads { query, kv, dim: 128, window: None, scale: 0.088 };
        let plane = matrix_bytes(format, (context * kv) as u64, 128).unwrap();
        let bytes = size(2 * plane) * sequences;
        let copies = if positions == 1 { (ROTATION / bytes).max(1) } else { 1 };
        let cache = filled(bytes * copies);
        let q = filled(2 * sequences * positions * query * 128);
        let out = Buffer::new(2 * sequences * positions * query * 128);
        let spare = Buffer::new(size(Kernels::attention_spare(
            format, &heads, sequences, first, positions,
        )));
        let seconds = self.time(|index| {
            let offset = (index % copies * bytes) as u64;
            let region = cache.region().slice(offset, bytes as u64).unwrap();
            let cache = DeviceCache::new(format, sequences, context, kv, 128, region).unwrap();
            let attention = Attention {
                q: q.region(),
                out: out.region(),
                cache: &cache,
                heads: &heads,
                first_position: first,
                positions,
                spare: spare.region(),
            };
            self.gpu.kernels.attention(self.gpu.stream, &attention).unwrap();
        });
        let pairs = (positions * (2 * first + positions + 1)) as f64 / 2.0;
        let operations = 4.0 * pairs * (sequences * query * 128) as f64;
        let moved = bytes + 4 * sequences * positions * query * 128;
        self.report(&name, seconds, moved as f64, operations);
    }

    fn rest(&mut self) {
        let (rows, width) = (2048, 8192);
        let numbers = rows * width;
        let copies = ROTATION / (2 * numbers);
        let x = filled(2 * numbers * copies);
        let at = |index: usize| {
            x.region().slice((index % copies * 2 * numbers) as u64, 2 * numbers as u64).unwrap()
        };
        let out = Buffer::new(2 * numbers);
        let gpu = self.gpu;
        let (kernels, s) = (&gpu.kernels, gpu.stream);
        let of = filled(2 * width);
        let weight = DeviceVector::new(Format::Fp16, width, of.region()).unwrap();
        let of_head = filled(256);
        let head = DeviceVector::new(Format::Fp16, 128, of_head.region()).unwrap();
        let heads = Heads { query: 48, kv: 16, dim: 128, window: None, scale: 1.0 };
        let frequencies = Buffer::of(&floats(&[0.01; 64]));
        let (both, bytes) = (4.0 * numbers as f64, |index| (at(index), out.region()));
        let region = out.region().slice(0, 2 * numbers as u64).unwrap();
        let mut run = |name: &str, moved: f64, launch: &mut dyn FnMut(usize)| {
            if self.wanted(name) {
                let seconds = self.time(launch);
                self.report(name, seconds, moved, 0.0);
            }
        };
        run("rms norm 2048 x 8192", both, &mut |i| {
            kernels.rms_norm(s, bytes(i).0, rows, &weight, 1e-5, region).unwrap();
        });
        run("rms norm 16 x 8192", 4.0 * 16.0 * 8192.0, &mut |i| {
            kernels.rms_norm(s, at(i), 16, &weight, 1e-5, region).unwrap();
        });
        run("layer norm 2048 x 8192", both, &mut |i| {
            kernels.layer_norm(s, at(i), rows, &weight, &weight, 1e-5, region).unwrap();
        });
        run("rms norm of heads 131072 x 128", both, &mut |i| {
            kernels.rms_norm(s, at(i), numbers / 128, &head, 1e-5, region).unwrap();
        });
        for (name, norm) in [("turn", None), ("norm and turn", Some(&head))] {
            run(&format!("{name} 2048 x (48 + 16) x 128"), both, &mut |i| {
                let (q, k) =
                    (at(i).slice(0, 24 << 20).unwrap(), at(i).slice(24 << 20, 8 << 20).unwrap());
                let turn = Turn {
                    q,
                    k,
                    sequences: 1,
                    positions: rows,
                    first_position: 0,
                    heads: &heads,
                    q_norm: norm,
                    k_norm: norm,
                    epsilon: 1e-5,
                    frequencies: Some(frequencies.region()),
                };
                kernels.turn(s, &turn).unwrap();
            });
        }
        run("gelu 2048 x 8192", both, &mut |i| {
            kernels.activate(s, Activation::GeluTanh, at(i), numbers).unwrap();
        });
        run("gated silu 2048 x 8192", 1.5 * both, &mut |i| {
            kernels.gated_silu(s, at(i), at(i + 1), numbers).unwrap();
        });
        run("add 2048 x 8192", 1.5 * both, &mut |i| {
            kernels.add(s, at(i), at(i + 1), numbers).unwrap();
        });
        for format in Unit::FORMATS {
            let stored = matrix_bytes(format, (numbers / 128) as u64, 128).unwrap();
            let place = Buffer::new(2 * size(stored));
            let cache = DeviceCache::new(format, 1, rows, 64, 128, place.region()).unwrap();
            let moved = both + 2.0 * stored as f64;
            run(&format!("append {format} 2 x 2048 x 64 x 128"), moved, &mut |i| {
                let append = Append {
                    keys: at(i),
                    values: at(i + 1),
                    cache: &cache,
                    first_position: 0,
                    positions: rows,
                };
                kernels.append_cache(s, &append).unwrap();
            });
            let stored = matrix_bytes(format, rows as u64, width as u64).unwrap();
            let moved = both / 2.0 + stored as f64;
            run(&format!("dequantise {format} 2048 x 8192"), moved, &mut |i| {
                let from: Region = at(i).slice(0, stored).unwrap();
                let matrix = DeviceMatrix::new(format, rows, width, from).unwrap();
                kernels.dequantise(s, &matrix, region).unwrap();
            });
        }
        let moved = 16.0 * 128_256.0 * 4.0;
        let tokens = Buffer::new(64);
        run("argmax 16 x 128256", moved, &mut |i| {
            kernels.argmax(s, at(i), 16, 128_256, tokens.region()).unwrap();
        });
    }
}
