//! What a person reads when a profile is wrong: the place, both values, the next step.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use pipo_plan::diagnostic::Document;
use pipo_plan::machine::import::{fio, nvbandwidth};
use pipo_plan::machine::{Machine, catalog};
use proptest::prelude::*;

fn laptop() -> String {
    catalog::document(catalog::DEFAULT).unwrap().text
}

/// The message for the laptop's profile with one piece of text replaced.
fn message(from: &str, to: &str) -> String {
    let text = laptop();
    assert!(text.contains(from), "the profile no longer says {from}");
    let document = Document::new("laptop.toml", text.replacen(from, to, 1));
    Machine::from_toml(&document).unwrap_err().to_string()
}

#[test]
fn an_unknown_key() {
    insta::assert_snapshot!(message("sms = { value = 30", "smms = { value = 30"), @r#"
    error: unknown field `smms`, expected one of `name`, `architecture`, `memory`, `context`, `sms`, `memory_bandwidth`, `matmul`, `attention`, `elementwise`, `dequantise`, `decompress`, `launch`, `gap`, `mark`, `change`, `sync`, `page_tables`, `kernels`, `attentions`
      --> laptop.toml:25:1
       |
    25 | smms = { value = 30, source = "nvidia" }
       | ^^^^
    "#);
    insta::assert_snapshot!(message("value = 30,", "value = 30, fited_to = \"x\","), @r#"
    error: unknown field `fited_to`, expected one of `value`, `source`, `fitted_to`, `spread`
      --> laptop.toml:25:21
       |
    25 | sms = { value = 30, fited_to = "x", source = "nvidia" }
       |                     ^^^^^^^^
    "#);
}

#[test]
fn a_unit_that_could_mean_two_things() {
    insta::assert_snapshot!(message("\"6GiB\"", "\"6g\""), @r#"
    error: `6g` has the unit `g`; use one of `B`, `kB`, `MB`, `GB`, `TB`, `KiB`, `MiB`, `GiB`, `TiB` (GB is 10^9, GiB is 2^30)
      --> laptop.toml:23:20
       |
    23 | memory = { value = "6g", source = "nvidia" }
       |                    ^^^^
    "#);
}

#[test]
fn a_bare_value_without_its_source() {
    insta::assert_snapshot!(message("{ value = 30, source = \"nvidia\" }", "30"), @r#"
    error: invalid type: integer `30`, expected a figure with its source, such as { value = "6GiB", source = "datasheet" }
      --> laptop.toml:25:7
       |
    25 | sms = 30
       |       ^^
    "#);
}

#[test]
fn a_source_that_nobody_wrote_down() {
    insta::assert_snapshot!(message("value = 30, source = \"nvidia\"", "value = 30, source = \"nvidea\""), @r#"
    error: gpu.sms has the source `nvidea`, which [sources] does not have
      --> laptop.toml:25:30
       |
    25 | sms = { value = 30, source = "nvidea" }
       |                              ^^^^^^^^
       |
       = help: use one of `dfloat11`, `estimate`, `intel`, `launch`, `nvidia`, `pcie`, `pipo`, `pipo-figure`, `ssd`, `tensor-share`, `vram-share`, or add it to [sources]
    "#);
}

#[test]
fn a_bandwidth_of_zero() {
    insta::assert_snapshot!(message("\"296GB/s\"", "\"0GB/s\""), @r#"
    error: gpu.memory_bandwidth is "0B/s": a rate of zero never ends
      --> laptop.toml:26:30
       |
    26 | memory_bandwidth = { value = "0GB/s", source = "vram-share" }
       |                              ^^^^^^^
       |
       = help: give what was measured, or leave the figure out if it is optional
    "#);
    insta::assert_snapshot!(message("\"6GB/s\"", "\"0GB/s\""), @r#"
    error: a rate of zero never ends; give what was measured
      --> laptop.toml:54:26
       |
    54 | pageable_h2d = { value = "0GB/s", source = "estimate" }
       |                          ^^^^^^^
    "#);
}

#[test]
fn a_curve_on_which_more_bytes_take_less_time() {
    insta::assert_snapshot!(message("[\"1MiB\", \"10.99GB/s\"]", "[\"1MiB\", \"99GB/s\"]"), @r#"
    error: 256KiB at 8.78 GB/s takes 29.9 us, but 1MiB at 99.0 GB/s takes only 10.6 us; more bytes cannot take less time, so measure the two again
      --> laptop.toml:35:17
       |
    35 |   h2d = { value = [
       |  _________________^
    36 | |     ["4KiB", "491MB/s"],
    37 | |     ["64KiB", "4.87GB/s"],
    38 | |     ["256KiB", "8.78GB/s"],
    ...  |
    42 | |     ["256MiB", "12GB/s"],
    43 | | ], source = "pcie" }
       | |_^
    "#);
}

#[test]
fn figures_that_contradict_each_other() {
    insta::assert_snapshot!(message("\"21GB/s\"", "\"11GB/s\""), @r#"
    error: link.duplex is 11GB/s, less than link.h2d reaches alone (12GB/s)
      --> laptop.toml:53:20
       |
    53 | duplex = { value = "11GB/s", source = "pcie" }
       |                    ^^^^^^^^
       |
       = help: duplex is the sum of both directions at once; measure copies both ways
    "#);
    insta::assert_snapshot!(message("reserved = { value = \"1.19GB\"", "reserved = { value = \"40GiB\""), @r#"
    error: host.reserved is 42.9 GB (40.0 GiB), but host.memory is only 17.2 GB (16.0 GiB)
      --> laptop.toml:77:22
       |
    77 | reserved = { value = "40GiB", source = "pipo-figure", fitted_to = "throughput figure of PIPO: both systems' bars of opt-6.7b, opt-13...
       |                      ^^^^^^^
       |
       = help: nothing would be left; check the units, and make host.reserved the smaller
    "#);
    insta::assert_snapshot!(message("copy = { value = \"1.55GB/s\"", "copy = { value = \"30GB/s\""), @r#"
    error: host.copy is 30GB/s, which draws 60GB/s on a host.memory_bandwidth of 40GB/s
      --> laptop.toml:79:18
       |
    79 | copy = { value = "30GB/s", source = "pipo-figure", fitted_to = "throughput figure of PIPO: both systems' bars of opt-6.7b, opt-13b, ...
       |                  ^^^^^^^^
       |
       = help: host.memory_bandwidth counts reads and writes together; measure it with all cores
    "#);
    insta::assert_snapshot!(message("value = 1.0", "value = 30.0"), @r#"
    error: host.page_cache_kept is 30.0: a share must be from 0 to 1
      --> laptop.toml:84:29
       |
    84 | page_cache_kept = { value = 30.0, source = "estimate" }
       |                             ^^^^
       |
       = help: give what was measured, or leave the figure out if it is optional
    "#);
    insta::assert_snapshot!(message("\"sm_86\"", "\"8.6\""), @r#"
    error: gpu.architecture is `8.6`
      --> laptop.toml:22:16
       |
    22 | architecture = "8.6"
       |                ^^^^^
       |
       = help: write the compute capability as a target, such as `sm_86` for 8.6, or `cpu`
    "#);
}

#[test]
fn a_file_that_was_cut() {
    let text = laptop();
    let cut = text.find("[host]").unwrap();
    let document = Document::new("laptop.toml", &text[..cut]);
    insta::assert_snapshot!(Machine::from_toml(&document).unwrap_err(), @"
    error: missing field `host`
     --> laptop.toml:1:1
      |
    1 | # The laptop of the PIPO paper's throughput figure, and the default where there is no GPU. Its maker's
      | ^
    ");
    let document = Document::new("laptop.toml", &text[..cut - 20]);
    insta::assert_snapshot!(Machine::from_toml(&document).unwrap_err(), @r#"
    error: unclosed inline table, expected `}`
      --> laptop.toml:73:28
       |
    73 | capacity = { value = "1TB",
       |                            ^
    "#);
}

#[test]
fn a_table_of_kernels_that_cannot_be() {
    let row = "\n[[gpu.kernels]]\nprecision = \"int4\"\nrows = 1\noutputs = 4096\ninputs = 4096\n\
               time = { value = \"12us\", source = \"estimate\" }\n";
    let kernels = |rows: String| {
        let text = laptop().replacen("\n[link]", &format!("{rows}\n[link]"), 1);
        let read = Machine::from_toml(&Document::new("laptop.toml", text));
        read.map(|m| m.gpu.kernels.len()).map_err(|e| e.message)
    };
    assert_eq!(kernels(row.to_owned()), Ok(1));
    insta::assert_snapshot!(kernels(row.repeat(2)).unwrap_err(), @"row 2 of gpu.kernels times int4 at 1 x 4096 x 4096 again");
    insta::assert_snapshot!(kernels(row.replace("rows = 1", "rows = 0")).unwrap_err(), @"row 1 of gpu.kernels has the shape 0 x 4096 x 4096");
    insta::assert_snapshot!(kernels(row.replace("12us", "0us")).unwrap_err(), @"row 1 of gpu.kernels (1 x 4096 x 4096) has no time or no precision");
    insta::assert_snapshot!(kernels(row.replace("estimate", "guess")).unwrap_err(), @"gpu.kernels.time has the source `guess`, which [sources] does not have");
    insta::assert_snapshot!(kernels(row.replace("= 1\n", "= -1\n")).unwrap_err(), @"invalid value: integer `-1`, expected u64");
}

#[test]
fn a_table_of_attentions_is_checked_wherever_it_stands() {
    for table in ["gpu.attentions", "host.attentions"] {
        let read = |from: &str, to: &str| {
            let row = format!(
                "\n[[{table}]]\nprecision = \"fp16\"\nrows = 1\ncontext = 512\nheads = 32\n\
                 kv_heads = 8\nhead_dim = 64\ntime = {{ value = \"12us\", source = \"estimate\" }}\n"
            );
            let text = laptop() + &row.replace(from, to);
            Machine::from_toml(&Document::new("attentions.toml", text)).map_err(|e| e.message)
        };
        assert!(read("", "").is_ok());
        let error = read("rows = 1\n", "rows = 513\n").unwrap_err();
        let begins = format!("row 1 of {table} is no attention: 513 rows of 512 positions, ");
        assert!(error.starts_with(&begins), "{error}");
        let error = read("12us", "0us").unwrap_err();
        assert!(error.starts_with(&format!("row 1 of {table} is no attention")), "{error}");
        let error = read("estimate", "guess").unwrap_err();
        assert!(error.starts_with(&format!("{table}.time has the source `guess`")), "{error}");
    }
}

#[test]
fn nesting_without_end_is_an_error_like_any_other() {
    for open in ["[", "{a=", "[[", "{\"a\":["] {
        let text = laptop().replacen("\"12GB/s\"", &open.repeat(200_000), 1);
        assert!(Machine::from_toml(&Document::new("deep.toml", text)).is_err());
        let json = format!("{{\"jobs\": {}", open.repeat(200_000));
        assert!(fio(&Document::new("deep.json", json)).is_err());
        let json = format!("{{\"x\": {}", open.repeat(200_000));
        assert!(nvbandwidth(&Document::new("deep.json", json)).is_err());
    }
}

/// A text with a few bytes replaced, and perhaps cut.
fn mutated(text: String) -> impl Strategy<Value = String> {
    let length = text.len();
    let edits = prop::collection::vec((0..length, any::<u8>()), 0..8);
    (edits, 0..=2 * length).prop_map(move |(edits, cut)| {
        let mut bytes = text.clone().into_bytes();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        bytes.truncate(cut);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

proptest! {
    #[test]
    fn no_profile_panics(text in mutated(laptop())) {
        if let Ok(machine) = Machine::from_toml(&Document::new("mutated.toml", text)) {
            let again = Machine::from_toml(&Document::new("again.toml", machine.to_toml()));
            prop_assert_eq!(again.unwrap(), machine);
        }
    }

    /// Digits for digits: numbers stay numbers, so the checks behind the parser are reached.
    #[test]
    fn no_number_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 1..40)) {
        let mut bytes = laptop().into_bytes();
        let digits: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
        for (at, digit) in edits {
            bytes[digits[at.index(digits.len())]] = digit;
        }
        let document = Document::new("mutated.toml", String::from_utf8(bytes).unwrap());
        let _ = Machine::from_toml(&document);
    }
}
