//! The profiles that ship with the program, and the text that profiles are written as.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use pipo_plan::diagnostic::Document;
use pipo_plan::machine::{AttentionTime, Curve, Figure};
use pipo_plan::machine::{KernelTime, Machine, catalog};
use pipo_plan::units::{Bandwidth, Bytes, Nanos};

fn read(name: &str) -> Machine {
    Machine::from_toml(&catalog::document(name).unwrap()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_profile_reads_and_survives_a_round_trip() {
    for name in catalog::names() {
        let machine = read(name);
        assert_eq!(machine.name, name);
        assert_eq!(catalog::find(name).as_ref(), Some(&machine));
        let again = Machine::from_toml(&Document::new(name, machine.to_toml()));
        assert_eq!(again.unwrap_or_else(|e| panic!("{e}")), machine);
        assert!(catalog::document(name).unwrap().text.is_ascii(), "{name}");
    }
}

#[test]
fn every_source_is_cited_and_no_figure_is_listed_twice() {
    for name in catalog::names() {
        let machine = read(name);
        let figures = machine.figures();
        for key in machine.sources.keys() {
            assert!(figures.iter().any(|f| f.source == key), "{name} never cites {key}");
        }
        let mut paths: Vec<_> = figures.iter().map(|f| f.path).collect();
        paths.dedup();
        assert_eq!(paths.len(), figures.len());
    }
}

#[test]
fn a_table_of_kernels_and_odd_texts_survive_a_round_trip() {
    let mut machine = read("h200");
    machine.description = "quotes \" and ' and \\ and\na second line, ä, \u{1}".into();
    machine.sources.insert("a.b".into(), "dotted \"\"\" key '''".into());
    machine.link.pageable_d2h.fitted_to = Some("cells = [1, 2] # of 'table 3'".into());
    for rows in [1, 512] {
        machine.gpu.kernels.push(KernelTime {
            precision: "int4".into(),
            rows,
            outputs: 4096,
            inputs: 14336,
            time: Figure::new(Nanos(12_345 * rows), "a.b"),
        });
    }
    for sequences in [None, Some(1), Some(8)] {
        let attention = AttentionTime {
            precision: "fp16".into(),
            rows: 1,
            context: 512,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            sequences,
            time: Figure::new(Nanos(1234), "a.b"),
        };
        machine.host.attentions.push(AttentionTime { head_dim: 64, ..attention.clone() });
        machine.gpu.attentions.push(attention);
    }
    let rate = |rate| Some(Figure::new(Bandwidth(rate), "a.b"));
    let disk = machine.disk.as_mut().unwrap();
    (disk.read_total, disk.buffered_total, disk.page_fault_total) = (rate(3), rate(2), rate(4));
    disk.buffered_pair = rate(5);
    disk.buffered_jump = Some(Figure::new(Nanos(10), "a.b"));
    let figure = |nanos| Some(Figure::new(Nanos(nanos), "a.b"));
    let gpu = &mut machine.gpu;
    (gpu.gap, gpu.mark, gpu.change) = (figure(1), figure(6), figure(7));
    gpu.page_tables = Some(Figure::new(0.25, "a.b"));
    let software = &mut machine.software;
    (software.handover, software.notice) = (figure(2), figure(3));
    (software.submit, software.lookup) = (figure(4), figure(5));
    (software.follow, software.issue) = (figure(9), figure(8));
    let document = Document::new("odd.toml", machine.to_toml());
    assert_eq!(Machine::from_toml(&document).unwrap_or_else(|e| panic!("{e}")), machine);
}

#[test]
fn the_hash_is_stable_and_sees_every_change() {
    let machine = read("t4-flexgen");
    assert_eq!(machine.hash().len(), 16);
    assert_eq!(machine.hash(), read("t4-flexgen").hash());
    let mut changed = machine.clone();
    changed.gpu.sms.value += 1;
    assert_ne!(changed.hash(), machine.hash());
    let mut changed = machine.clone();
    changed.sources.insert("note".into(), "not cited".into());
    assert_ne!(changed.hash(), machine.hash());
}

#[test]
fn a_slip_of_the_keyboard_finds_the_name_that_was_meant() {
    assert_eq!(catalog::nearest("rtx3060"), Some("rtx3060-laptop"));
    assert_eq!(catalog::nearest("A100-80GB"), Some("a100-80g"));
    assert_eq!(catalog::nearest("h100"), Some("h200"));
    assert_eq!(catalog::nearest("raspberry-pi"), None);
    assert_eq!(catalog::nearest(&"x".repeat(100_000)), None);
    assert_eq!(catalog::find("rtx3060"), None);
    assert_eq!(catalog::names().next(), Some(catalog::DEFAULT));
}

#[test]
fn the_published_figures_are_what_they_should_be() {
    let h200 = read("h200");
    // One copy of 4 KiB takes 8 us and one of 1 MiB takes 28 us, as measured.
    assert_eq!(h200.link.h2d.time(Bytes(4096)), Nanos(8000));
    assert!(h200.link.h2d.time(Bytes(1 << 20)).0.abs_diff(28_000) < 100);
    assert_eq!(read("rtx3060-laptop").gpu.available(), Bytes((6 * 1024 - 320) << 20));
    let t4 = read("t4-flexgen");
    assert_eq!(t4.link.h2d.best(), Bandwidth(13_840_532_111)); // 12.89 times 2^30
    assert_eq!(t4.link.h2d.value, Curve::flat(t4.link.h2d.best()));
}
