//! Every kernel on a GPU against its reference, but products, which `cuda_linear.rs` has. Skipped, with the reason,
//! where there is no GPU.

#![allow(unsafe_code, reason = "the driver is a C interface")]
#![allow(clippy::unwrap_used, reason = "a test whose data cannot be made has failed")]

mod device;

use device::values::{Random, error, near, vector};
use device::{Buffer, Device, floats, halves, read, read_floats, read_halves};
use half::f16;
use pipo_kernels::attention::{self, Heads};
use pipo_kernels::cuda::{
    Activation, Append, Attention, DeviceCache, DeviceMatrix, DeviceVector, Kernels, Linear, Out,
    Region, Then, Turn, Unit,
};
use pipo_kernels::format::{Layout, dequantise_row, quantise, quantise_rows};
use pipo_kernels::rotary::{Rotary, Scaling};
use pipo_kernels::{Cpu, Format, Matrix, activation, embedding, norm, router};

#[test]
fn decoded_matrices() {
    device::with(|gpu| {
        let mut random = Random(2);
        for format in Unit::FORMATS {
            for (outputs, inputs) in [(3, 64), (5, 20), (16, 200), (7, 1024), (9, 96)] {
                let values = random.numbers(outputs * inputs, 1.0);
                let stored = quantise(format, &values, outputs, inputs).unwrap().0;
                let matrix = Matrix::new(format, outputs, inputs, &stored).unwrap();
                let mut expected = vec![0.0; outputs * inputs];
                for (row, out) in expected.chunks_mut(inputs).enumerate() {
                    dequantise_row(&matrix, row, out).unwrap();
                }
                for offset in [0, 1] {
                    let (_buffer, region) = Buffer::at(&stored, offset);
                    let matrix = DeviceMatrix::new(format, outputs, inputs, region).unwrap();
                    let out = Buffer::new(2 * outputs * inputs);
                    gpu.kernels.dequantise(gpu.stream, &matrix, out.region()).unwrap();
                    assert_eq!(
                        read(out.region()),
                        halves(&expected),
                        "{format} {outputs} x {inputs}"
                    );
                }
            }
        }
    });
}

#[test]
fn norms() {
    device::with(|gpu| {
        let (cpu, mut random) = (Cpu::new(1), Random(3));
        for width in [1, 8, 20, 64, 128, 512, 513, 1024, 4096, 5000, 12288] {
            for rows in [1, 7, 33] {
                let x = random.numbers(rows * width, 2.0);
                let format = random.pick(&[Format::Fp16, Format::Bf16]);
                let (_w, weight, w) = vector(&random.numbers(width, 1.0), format, 2);
                let (_b, bias, b) = vector(&random.numbers(width, 1.0), format, 0);
                let (mut rms, mut layer) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                norm::rms_norm(&cpu, &x, &w, 1e-5, &mut rms).unwrap();
                norm::layer_norm(&cpu, &x, &w, &b, 1e-5, &mut layer).unwrap();
                let mut bits = Vec::new();
                for (offset, in_place) in [(0, false), (0, true), (2, false), (16, true)] {
                    let (_x, from) = Buffer::at(&halves(&x), offset);
                    let other = Buffer::new(2 * x.len());
                    let out = if in_place { from } else { other.region() };
                    gpu.kernels.rms_norm(gpu.stream, from, rows, &weight, 1e-5, out).unwrap();
                    near(&read_halves(out), &rms, &format!("rms norm of {width}"));
                    let first = read(out);
                    let (_x, from) = Buffer::at(&halves(&x), offset);
                    let out = if in_place { from } else { other.region() };
                    gpu.kernels
                        .layer_norm(gpu.stream, from, rows, &weight, &bias, 1e-5, out)
                        .unwrap();
                    near(&read_halves(out), &layer, &format!("layer norm of {width}"));
                    bits.push((first, read(out)));
                }
                assert!(bits.iter().all(|b| *b == bits[0]), "{width}: other bits elsewhere");
            }
        }
    });
}

#[test]
fn turned_heads() {
    device::with(|gpu| {
        let mut random = Random(4);
        for (dim, query, kv, sequences, positions, first) in [
            (8, 1, 1, 1, 1, 0),
            (64, 3, 1, 2, 5, 1000),
            (128, 32, 8, 1, 9, 0),
            (20, 2, 2, 3, 2, 7),
            (128, 40, 8, 2, 3, 131_000),
            (256, 5, 5, 1, 2, 40),
        ] {
            let heads = Heads { query, kv, dim, window: None, scale: 1.0 };
            let rotary = Rotary::new(dim, 500_000.0, Scaling::None).unwrap();
            for (normed, rotated) in [(false, true), (true, true), (true, false)] {
                let mut side = |heads: usize| {
                    let x = random.numbers(sequences * positions * heads * dim, 1.0);
                    let format = random.pick(&[Format::Fp16, Format::Bf16]);
                    let (buffer, weight, numbers) = vector(&random.numbers(dim, 1.0), format, 2);
                    let mut expected = x.clone();
                    if normed {
                        norm::rms_norm(&Cpu::new(1), &x, &numbers, 1e-5, &mut expected).unwrap();
                    }
                    if rotated {
                        for sequence in expected.chunks_mut(positions * heads * dim) {
                            rotary.apply(sequence, heads, first).unwrap();
                        }
                    }
                    (Buffer::of(&halves(&x)), expected, buffer, weight)
                };
                let (q, k) = (side(query), side(kv));
                let frequencies = Buffer::of(&floats(rotary.frequencies()));
                let turn = Turn {
                    q: q.0.region(),
                    k: k.0.region(),
                    sequences,
                    positions,
                    first_position: first,
                    heads: &heads,
                    q_norm: normed.then_some(&q.3),
                    k_norm: normed.then_some(&k.3),
                    epsilon: 1e-5,
                    frequencies: rotated.then_some(frequencies.region()),
                };
                gpu.kernels.turn(gpu.stream, &turn).unwrap();
                for (on, expected, ..) in [q, k] {
                    near(
                        &read_halves(on.region()),
                        &expected,
                        &format!("turn of {dim} from {first}"),
                    );
                }
            }
        }
    });
}

#[test]
fn numbers_alone() {
    device::with(|gpu| {
        let mut random = Random(5);
        for count in [1, 7, 8, 2048, 10_001] {
            for offset in [0, 2] {
                let x = random.numbers(count, 3.0);
                let y = random.numbers(count, 1.0);
                let (_y, up) = Buffer::at(&halves(&y), offset);
                let mut expected = [x.clone(), x.clone(), x.clone(), x.clone()];
                activation::relu(&mut expected[0]);
                activation::gelu_tanh(&mut expected[1]);
                activation::silu_gated(&mut expected[2], &y).unwrap();
                expected[3].iter_mut().zip(&y).for_each(|(x, y)| *x += y);
                for (index, expected) in expected.iter().enumerate() {
                    let (_x, on) = Buffer::at(&halves(&x), offset);
                    let (kernels, stream) = (&gpu.kernels, gpu.stream);
                    match index {
                        0 => kernels.activate(stream, Activation::Relu, on, count),
                        1 => kernels.activate(stream, Activation::GeluTanh, on, count),
                        2 => kernels.gated_silu(stream, on, up, count),
                        _ => kernels.add(stream, on, up, count),
                    }
                    .unwrap();
                    near(&read_halves(on), expected, &format!("function {index} of {count}"));
                }
            }
        }
    });
}

#[test]
fn copies() {
    device::with(|gpu| {
        let mut random = Random(8);
        for bytes in [1, 15, 16, 4096, 70_003] {
            let sent: Vec<u8> = (0..bytes).map(|_| random.next().to_le_bytes()[0]).collect();
            for [from, to] in [[0, 0], [16, 32], [2, 0], [0, 3]] {
                let (_from, region) = Buffer::at(&sent, from);
                // Bytes behind it stay as they are.
                let on = Buffer::new(to + bytes + 1);
                let place = on.region().slice(to as u64, bytes as u64 + 1).unwrap();
                gpu.kernels.copy(gpu.stream, region, place).unwrap();
                let found = read(place);
                assert_eq!(found[..bytes], sent, "{bytes} bytes from {from} to {to}");
                assert_eq!(found[bytes], 0xff, "behind {bytes} bytes from {from} to {to}");
            }
        }
        let (short, long) = (Buffer::new(15), Buffer::new(16));
        assert!(gpu.kernels.copy(gpu.stream, long.region(), short.region()).is_err());
        gpu.kernels.copy(gpu.stream, Region::EMPTY, short.region()).unwrap();
    });
}

#[test]
fn embeddings() {
    device::with(|gpu| {
        let mut random = Random(6);
        for format in Unit::FORMATS {
            for (vocabulary, width) in [(50, 64), (33, 20), (300, 520)] {
                let values = random.numbers(vocabulary * width, 1.0);
                let stored = quantise(format, &values, vocabulary, width).unwrap().0;
                let cpu_table = Matrix::new(format, vocabulary, width, &stored).unwrap();
                let (_t, region) = Buffer::at(&stored, random.below(3));
                let table = DeviceMatrix::new(format, vocabulary, width, region).unwrap();
                let limit = u32::try_from(vocabulary).unwrap();
                let (sequences, positions, first) = (3, 4, 5);
                let mut tokens: Vec<u32> =
                    (0..12).map(|_| u32::try_from(random.next()).unwrap() % limit).collect();
                let mut expected = vec![0.0; tokens.len() * width];
                embedding::lookup(&cpu_table, &tokens, &mut expected).unwrap();
                // One that the table does not have, and the mark of logits that are not finite.
                tokens.extend([limit, Kernels::NOT_FINITE]);
                let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
                let (on, count) = (Buffer::of(&bytes), tokens.len());
                let out = Buffer::new(2 * count * width);
                gpu.kernels.embed(gpu.stream, on.region(), count, &table, out.region()).unwrap();
                let found = read_halves(out.region());
                near(&found[..expected.len()], &expected, &format!("embedding in {format}"));
                assert!(found[expected.len()..].iter().all(|x| x.is_nan()));
                for rows in expected.chunks_mut(positions * width) {
                    embedding::add_positions(&cpu_table, first, 2, rows).unwrap();
                }
                gpu.kernels
                    .add_positions(gpu.stream, &table, first, 2, sequences, positions, out.region())
                    .unwrap();
                let found = read_halves(out.region());
                near(&found[..expected.len()], &expected, &format!("positions in {format}"));
                let beyond = vocabulary - 2 - 3;
                let result =
                    gpu.kernels.add_positions(gpu.stream, &table, beyond, 2, 1, 4, out.region());
                assert!(result.is_err());
            }
        }
    });
}

#[test]
fn the_cache_is_stored_bit_by_bit() {
    device::with(|gpu| {
        let mut random = Random(7);
        for format in Unit::FORMATS {
            for dim in [8, 20, 64, 80, 128, 256] {
                let (sequences, kv_heads, capacity, first, positions) = (2, 3, 11, 4, 5);
                let rows = sequences * positions * kv_heads;
                let mut x = random.numbers(rows * dim, 1.0);
                // Rows that are zero, constant, very small, very large, infinite, and not numbers.
                x[..dim].fill(0.0);
                x[dim..2 * dim].fill(-3.5);
                x[2 * dim..3 * dim].iter_mut().for_each(|x| *x *= 1e-6);
                x[3 * dim..4 * dim].iter_mut().for_each(|x| *x *= 20000.0);
                x[4 * dim] = f32::INFINITY;
                x[4 * dim + 1] = f32::NEG_INFINITY;
                x[5 * dim + 2] = f32::NAN;
                x[6 * dim..7 * dim].fill(f32::NAN);
                x[7 * dim..8 * dim].fill(f32::INFINITY);
                let x: Vec<f32> = x.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
                let other: Vec<f32> = x.iter().rev().copied().collect();
                let plane = Layout::new(format, capacity * kv_heads, dim).unwrap();
                let mut expected = vec![0xff; sequences * 2 * plane.bytes()];
                let each = positions * kv_heads * dim;
                let rows = x.chunks(each).zip(other.chunks(each)).flat_map(|(k, v)| [k, v]);
                for (x, cache) in rows.zip(expected.chunks_mut(plane.bytes())) {
                    let range = first * kv_heads..(first + positions) * kv_heads;
                    let (weights, scales) = cache.split_at_mut(plane.scales(0..0).start);
                    let scales_at = plane.scales(range.clone());
                    let at = scales_at.start - weights.len()..scales_at.end - weights.len();
                    let weights = &mut weights[plane.weights(range)];
                    quantise_rows(&plane, x, weights, &mut scales[at]).unwrap();
                }
                let buffer = Buffer::new(expected.len());
                let region = buffer.region();
                let cache =
                    DeviceCache::new(format, sequences, capacity, kv_heads, dim, region).unwrap();
                let (keys, values) = (Buffer::of(&halves(&x)), Buffer::of(&halves(&other)));
                let append = Append {
                    keys: keys.region(),
                    values: values.region(),
                    cache: &cache,
                    first_position: first,
                    positions,
                };
                gpu.kernels.append_cache(gpu.stream, &append).unwrap();
                let found = read(region);
                let off = found.iter().zip(&expected).position(|(f, e)| f != e);
                let around = off.map(|at| at / 16 * 16..(at / 16 * 16 + 16).min(found.len()));
                let bytes = around.map(|range| (&found[range.clone()], &expected[range]));
                assert_eq!(off, None, "{format} {dim}: {bytes:x?}");
            }
        }
    });
}

#[derive(Debug, Clone, Copy)]
struct Attended {
    format: Format,
    heads: Heads,
    sequences: usize,
    first: usize,
    positions: usize,
    room: usize,
}

impl Attended {
    fn run(&self, gpu: &Device, offset: usize, in_place: bool, seed: u64) -> (Vec<u8>, f64) {
        let Self { format, heads, sequences, first, positions, room, .. } = *self;
        let mut random = Random(seed);
        let capacity = first + positions + room;
        let rows = capacity * heads.kv;
        let mut cache = Vec::new();
        for _ in 0..2 * sequences {
            let values = random.numbers(rows * heads.dim, 1.0);
            cache.extend(quantise(format, &values, rows, heads.dim).unwrap().0);
        }
        let row = heads.query * heads.dim;
        let q = random.numbers(sequences * positions * row, 1.0);
        let mut expected = vec![0.0; q.len()];
        let plane = cache.len() / (2 * sequences);
        for sequence in 0..sequences {
            let (keys, values) =
                cache[2 * sequence * plane..2 * (sequence + 1) * plane].split_at(plane);
            let keys = Matrix::new(format, rows, heads.dim, keys).unwrap();
            let values = Matrix::new(format, rows, heads.dim, values).unwrap();
            let range = sequence * positions * row..(sequence + 1) * positions * row;
            attention::reference(
                &heads,
                &q[range.clone()],
                first,
                &keys,
                &values,
                &mut expected[range],
            )
            .unwrap();
        }
        // What lies beyond the last position must not matter.
        for plane in cache.chunks_mut(plane) {
            let layout = Layout::new(format, rows, heads.dim).unwrap();
            let beyond = (first + positions) * heads.kv..rows;
            plane[layout.weights(beyond.clone())].fill(0xff);
            plane[layout.scales(beyond)].fill(0xff);
        }
        let (_c, region) = Buffer::at(&cache, offset);
        let device_cache =
            DeviceCache::new(format, sequences, capacity, heads.kv, heads.dim, region).unwrap();
        let (_q, q_region) = Buffer::at(&halves(&q), 2 * offset);
        let (_o, o_region) = Buffer::at(&vec![0xff; 2 * q.len()], 2 * offset);
        let out = if in_place { q_region } else { o_region };
        let spare = Kernels::attention_spare(format, &heads, sequences, first, positions);
        let spare = Buffer::new(usize::try_from(spare).unwrap());
        let attention = Attention {
            q: q_region,
            out,
            cache: &device_cache,
            heads: &heads,
            first_position: first,
            positions,
            spare: spare.region(),
        };
        gpu.kernels.attention(gpu.stream, &attention).unwrap();
        gpu.wait();
        (read(out), error(&read_halves(out), &expected))
    }
}

#[test]
fn attentions() {
    device::with(|gpu| {
        let mut random = Random(8);
        let mut worst = 0.0_f64;
        for index in 0..260 {
            let dim = random.pick(&[8, 20, 32, 48, 64, 64, 80, 96, 128, 128, 192, 256, 250]);
            let (kv, group) =
                random.pick(&[(1, 1), (2, 4), (1, 8), (3, 2), (2, 1), (1, 20), (4, 7)]);
            let (first, positions) = random.pick(&[
                (0, 1),
                (0, 5),
                (37, 1),
                (511, 1),
                (512, 1),
                (600, 1),
                (1500, 3),
                (0, 100),
                (500, 70),
                (15, 17),
                (1040, 2),
            ]);
            let scale = 1.0 / (dim as f32).sqrt();
            let window = random.pick(&[None, None, Some(1), Some(17), Some(64), Some(530)]);
            let case = Attended {
                format: Unit::FORMATS[index % 4],
                heads: Heads { query: kv * group, kv, dim, window, scale },
                // The contexts of many heads and sequences are cut into longer parts.
                sequences: if index % 130 == 64 {
                    128_usize.div_ceil(kv)
                } else {
                    random.pick(&[1, 1, 2, 3])
                },
                first,
                positions,
                room: random.pick(&[0, 1, 40]),
            };
            let seed = random.next();
            let (bits, error) = case.run(gpu, 0, dim <= 128, seed);
            worst = worst.max(error);
            assert!(error <= 1.5e-3, "{case:?}: off by {error}");
            for offset in [0, 16, 1] {
                assert!(
                    bits == case.run(gpu, offset, false, seed).0,
                    "{case:?}: other bits at {offset}"
                );
            }
        }
        println!("attention: worst error {worst}");
    });
}

#[test]
fn most_likely_tokens() {
    device::with(|gpu| {
        let mut random = Random(9);
        for vocabulary in [1, 5, 1000, 50_272] {
            let rows = 6;
            let mut logits = random.numbers(rows * vocabulary, 4.0);
            let last = vocabulary - 1;
            // Equal ones: the lowest counts. All equal: the first.
            logits[0] = 100.0;
            logits[last] = 100.0;
            logits[vocabulary..2 * vocabulary].fill(-7.0);
            logits[2 * vocabulary + last] = f32::NAN;
            logits[3 * vocabulary] = f32::NEG_INFINITY;
            logits[4 * vocabulary + last] = 1000.0;
            let on = Buffer::of(&floats(&logits));
            let out = Buffer::new(4 * rows);
            gpu.kernels.argmax(gpu.stream, on.region(), rows, vocabulary, out.region()).unwrap();
            let found = read(out.region());
            for (logits, found) in logits.chunks(vocabulary).zip(found.as_chunks::<4>().0) {
                let expected = pipo_kernels::sample::greedy(logits);
                let expected = expected.map_or(Kernels::NOT_FINITE, |t| u32::try_from(t).unwrap());
                assert_eq!(u32::from_le_bytes(*found), expected);
            }
        }
    });
}

#[test]
fn experts() {
    device::with(|gpu| {
        let mut random = Random(10);
        for (experts, top, renormalise) in
            [(8, 2, true), (60, 4, false), (128, 8, true), (3, 3, false)]
        {
            let (rows, width) = (13, 72);
            let mut logits = random.numbers(rows * experts, 3.0);
            logits[1] = logits[0];
            logits[experts] = f32::NAN;
            let choices = router::route(&logits, experts, top, renormalise).unwrap();
            let mut expected = vec![0.0; rows * experts];
            for (index, choice) in choices.iter().enumerate() {
                expected[index / top * experts + choice.expert] = choice.weight;
            }
            let on = Buffer::of(&floats(&logits));
            let weights = Buffer::new(4 * rows * experts);
            let w = weights.region();
            gpu.kernels.route(gpu.stream, on.region(), rows, experts, top, renormalise, w).unwrap();
            let found = read_floats(w);
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-6, "{found} for {expected}");
            }
            let out = Buffer::new(2 * rows * width);
            let mut sum = vec![0.0; rows * width];
            for expert in 0..experts {
                let x = random.numbers(rows * width, 1.0);
                for (i, (sum, x)) in sum.iter_mut().zip(&x).enumerate() {
                    *sum += expected[i / width * experts + expert] * x;
                }
                let on = Buffer::of(&halves(&x));
                let first = expert == 0;
                gpu.kernels
                    .add_expert(
                        gpu.stream,
                        w,
                        experts,
                        expert,
                        on.region(),
                        rows,
                        width,
                        first,
                        out.region(),
                    )
                    .unwrap();
            }
            near(&read_halves(out.region()), &sum, "experts");
        }
    });
}

#[test]
fn small_regions_are_refused() {
    device::with(|gpu| {
        let buffer = Buffer::new(64);
        let (small, kernels, s) = (buffer.region(), &gpu.kernels, gpu.stream);
        let matrix = DeviceMatrix::new(Format::Fp16, 4, 8, small).unwrap();
        let weight = DeviceVector::new(Format::Fp16, 32, small).unwrap();
        assert!(kernels.embed(s, small, 17, &matrix, small).is_err());
        assert!(kernels.rms_norm(s, small, 2, &weight, 1e-5, small).is_err());
        assert!(kernels.rms_norm(s, small, usize::MAX, &weight, 1e-5, small).is_err());
        assert!(kernels.activate(s, Activation::Relu, small, 33).is_err());
        assert!(kernels.argmax(s, small, 1, 17, small).is_err());
        let linear = Linear {
            x: small,
            rows: 5,
            matrix: &matrix,
            bias: None,
            then: Then::Store,
            out: small,
            out_type: Out::Fp16,
            spare: Region::EMPTY,
        };
        assert!(kernels.linear(s, &linear).is_err());
        assert!(kernels.linear(s, &Linear { bias: Some(&weight), rows: 1, ..linear }).is_err());
        let logits = Linear { out_type: Out::Fp32, rows: 1, ..linear };
        assert!(kernels.linear(s, &logits).is_ok());
        let then = Then::Activate(Activation::Relu);
        assert!(kernels.linear(s, &Linear { then, ..logits }).is_err());
    });
}
