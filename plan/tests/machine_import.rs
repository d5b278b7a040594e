//! Figures from `nvbandwidth` and `fio`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use pipo_plan::diagnostic::Document;
use pipo_plan::machine::import::{Imported, Measured, Target, fio, nvbandwidth};
use pipo_plan::machine::{Machine, catalog};
use pipo_plan::units::{Bandwidth, Bytes};
use proptest::prelude::*;

const NVBANDWIDTH: &str = include_str!("data/machine_nvbandwidth.json");
const FIO: &str = include_str!("data/machine_fio.json");

fn laptop() -> Machine {
    catalog::find(catalog::DEFAULT).unwrap()
}

fn rates(imported: &[Imported]) -> Vec<(Target, Bandwidth)> {
    let rate = |i: &Imported| match i.measured {
        Measured::Rate(rate) => (i.target, rate),
        Measured::Points(_) => panic!("a rate was expected"),
    };
    imported.iter().map(rate).collect()
}

#[test]
fn nvbandwidth_gives_both_directions_and_their_sum() {
    let imported = nvbandwidth(&Document::new("nvb.json", NVBANDWIDTH)).unwrap();
    assert_eq!(
        rates(&imported),
        [
            (Target::HostToDevice, Bandwidth(13_104_200_000)),
            (Target::DeviceToHost, Bandwidth(13_176_900_000)),
            (Target::Duplex, Bandwidth(11_250_700_000 + 11_321_000_000)),
            (Target::GpuMemory, Bandwidth(140_500_000_000)),
        ]
    );
    let old = laptop();
    let new = old.with_imported(&imported).unwrap();
    assert_eq!(new.link.h2d.best(), Bandwidth(13_104_200_000));
    // A small copy still pays its 8 us; only the rate has changed.
    let small = Bytes(4096);
    assert!(new.link.h2d.time(small).0.abs_diff(old.link.h2d.time(small).0) < 100);
    assert_eq!(
        new.sources[&new.link.h2d.source],
        "nvbandwidth -j, file nvb.json; fixed cost per transfer as in `pcie`"
    );
    assert_eq!(new.sources[&new.link.duplex.source], "nvbandwidth -j, file nvb.json");
    // A copy of 140.5 GB/s reads and writes less than the profile's 296 GB/s: it stands.
    assert_eq!(new.gpu.memory_bandwidth, old.gpu.memory_bandwidth);
    assert_ne!(new.hash(), old.hash());
}

#[test]
fn one_direction_alone_may_contradict_the_old_duplex_figure() {
    let text = r#"{"nvbandwidth": {"testcases": [{"name": "host_to_device_memcpy_ce",
        "status": "Passed", "bandwidth_matrix": [["N/A", "54.6"]]}]}}"#;
    let imported = nvbandwidth(&Document::new("nvb.json", text)).unwrap();
    assert_eq!(rates(&imported), [(Target::HostToDevice, Bandwidth(54_600_000_000))]);
    let error = laptop().with_imported(&imported).unwrap_err();
    insta::assert_snapshot!(error.message, @"link.duplex is 21GB/s, less than link.h2d reaches alone (54.6GB/s)");
}

#[test]
fn fio_gives_a_point_per_block_size() {
    let imported = fio(&Document::new("fio.json", FIO)).unwrap();
    let points = |target| {
        imported.iter().find(|i| i.target == target).map(|i| match &i.measured {
            Measured::Points(points) => points.clone(),
            Measured::Rate(_) => panic!("points were expected"),
        })
    };
    let mib = 1 << 20;
    assert_eq!(
        points(Target::DiskRead),
        Some(vec![
            (Bytes(131_072), Bandwidth(2_412_345_678)),
            // Two jobs of one group ran together.
            (Bytes(mib), Bandwidth(1_600_000_000 + 1_700_000_000)),
        ])
    );
    assert_eq!(points(Target::DiskWrite), Some(vec![(Bytes(mib), Bandwidth(1_512_000_000))]));
    assert_eq!(
        points(Target::DiskBufferedRead),
        Some(vec![(Bytes(mib), Bandwidth(1_900_000_000))])
    );

    let new = laptop().with_imported(&imported).unwrap();
    let disk = new.disk.as_ref().unwrap();
    assert_eq!(disk.read.best(), Bandwidth(3_300_000_000));
    assert_eq!(new.sources[&disk.read.source], "fio, file fio.json");
    let again = Machine::from_toml(&Document::new("new.toml", new.to_toml())).unwrap();
    assert_eq!(again, new);
}

#[test]
fn points_of_several_files_make_one_curve() {
    let one = |file: &str, size: u64, rate| Imported {
        target: Target::DiskRead,
        measured: Measured::Points(vec![(Bytes(size), Bandwidth(rate))]),
        source: format!("fio, file {file}"),
    };
    let files = [one("b", 8192, 900_000), one("a", 4096, 500_000), one("c", 4096, 600_000)];
    let machine = laptop().with_imported(&files).unwrap();
    let read = &machine.disk.as_ref().unwrap().read;
    let expected = [(Bytes(4096), Bandwidth(600_000)), (Bytes(8192), Bandwidth(900_000))];
    assert_eq!(read.points(), expected);
    assert_eq!(machine.sources[&read.source], "fio, file b; fio, file a; fio, file c");

    let error = laptop().with_imported(&[one("a", 4096, 1000), one("b", 8192, 90_000)]);
    insta::assert_snapshot!(error.unwrap_err().message, @"4KiB at 1.00 kB/s takes 4.10 s, but 8KiB at 90.0 kB/s takes only 91.0 ms; more bytes cannot take less time, so measure the two again");

    let mut diskless = laptop();
    diskless.disk = None;
    insta::assert_snapshot!(diskless.with_imported(&files[..1]).unwrap_err().message, @"fio, file b measured a disk, but the machine `rtx3060-laptop` has none");
}

#[test]
fn block_sizes_are_read_as_fio_reads_them() {
    let block = |options: &str| {
        let text = format!(
            r#"{{"global options": {{"direct": "1", {options}}}, "jobs": [{{"jobname": "j",
            "read": {{"bw_bytes": 1000}}}}]}}"#
        );
        fio(&Document::new("fio.json", text)).map(|imported| match &imported[0].measured {
            Measured::Points(points) => points[0].0.0,
            Measured::Rate(_) => 0,
        })
    };
    for (typed, bytes) in
        [("4k", 4096), ("4KB", 4096), ("4ki", 4000), ("1M", 1 << 20), ("512", 512), ("512B", 512)]
    {
        assert_eq!(block(&format!(r#""bs": "{typed}""#)), Ok(bytes), "{typed}");
    }
    assert_eq!(block(r#""bs": "4k", "kb_base": "1000""#), Ok(4000));
    assert_eq!(block(r#""bs": "4KiB", "kb_base": "1000""#), Ok(4096));
    assert_eq!(block(r#""iodepth": "8""#), Ok(4096), "fio's default");
    for typed in ["4k,16k", "4k-16k", "", "k", "99999999999999999999", "9999999999g", "0", "4i"] {
        assert!(block(&format!(r#""bs": "{typed}""#)).is_err(), "{typed}");
    }
}

#[test]
fn files_without_figures_say_what_to_run() {
    let nvb = |text: &str| nvbandwidth(&Document::new("nvb.json", text)).unwrap_err().to_string();
    insta::assert_snapshot!(nvb(r#"{"nvbandwidth": {"error": "CUDA_ERROR_NO_DEVICE"}}"#), @r#"
    error: nvbandwidth failed: CUDA_ERROR_NO_DEVICE
     --> nvb.json:1:27
      |
    1 | {"nvbandwidth": {"error": "CUDA_ERROR_NO_DEVICE"}}
      |                           ^^^^^^^^^^^^^^^^^^^^^^
      |
      = help: run it again until it passes; a file with an error holds no figures to trust
    "#);
    insta::assert_snapshot!(nvb(r#"{"nvbandwidth": {"testcases": []}}"#), @r#"
    error: no test of host and device copies passed in this file
     --> nvb.json:1:31
      |
    1 | {"nvbandwidth": {"testcases": []}}
      |                               ^^
      |
      = help: run `nvbandwidth -j` with all tests, or with -t host_to_device_memcpy_ce and its kin
    "#);
    insta::assert_snapshot!(nvb(&NVBANDWIDTH.replace("\"13.1042\"", "\"fast\"")), @"
    error: host_to_device_memcpy_ce has the bandwidth `fast`, a number of GB/s above zero is expected
      --> nvb.json:12:3
       |
    12 |         [
       |         ^
       |
       = help: run nvbandwidth again; the file may have been edited or cut
    ");
    insta::assert_snapshot!(nvb(&NVBANDWIDTH[..500]), @r#"
    error: EOF while parsing a string
      --> nvb.json:26:15
       |
    26 |                 "bandwidth_
       |                           ^
    "#);

    let disk = |text: &str| fio(&Document::new("fio.json", text)).unwrap_err().to_string();
    insta::assert_snapshot!(disk("fio: io_uring not there\n{}"), @"
    error: this is not JSON alone: it does not start with `{`
    --> fio.json
     = help: run fio with --output=FILE --output-format=json, so that warnings stay out of it
    ");
    insta::assert_snapshot!(disk(r#"{"jobs": []}"#), @r#"
    error: no job in this file read anything, or wrote with direct=1
     --> fio.json:1:10
      |
    1 | {"jobs": []}
      |          ^^
      |
      = help: run fio with --direct=1 --rw=read and one job per block size
    "#);
    insta::assert_snapshot!(disk(&FIO.replace("\"error\": 0", "\"error\": 5")), @r#"
    error: the job `read-128k` failed with error 5
      --> fio.json:14:11
       |
    14 |   "jobs": [
       |           ^
       |
       = help: run it again until it passes
    "#);
    insta::assert_snapshot!(disk(&FIO.replace("\"groupid\": 1", "\"groupid\": 0")), @r#"
    error: the job `read-1m` ran together with a job of another direction or block size
      --> fio.json:14:11
       |
    14 |   "jobs": [
       |           ^
       |
       = help: put `stonewall` between jobs that should run alone
    "#);
    insta::assert_snapshot!(disk(&FIO[..700]), @r#"
    error: EOF while parsing a string
      --> fio.json:27:7
       |
    27 |       "
       |       ^
    "#);
}

fn mutated(text: &'static str) -> impl Strategy<Value = String> {
    let edits = prop::collection::vec((0..text.len(), any::<u8>()), 0..8);
    (edits, 0..=2 * text.len()).prop_map(move |(edits, cut)| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        bytes.truncate(cut);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

proptest! {
    #[test]
    fn no_nvbandwidth_file_panics(text in mutated(NVBANDWIDTH)) {
        if let Ok(imported) = nvbandwidth(&Document::new("nvb.json", text)) {
            let _ = laptop().with_imported(&imported);
        }
    }

    #[test]
    fn no_fio_file_panics(text in mutated(FIO)) {
        if let Ok(imported) = fio(&Document::new("fio.json", text)) {
            let _ = laptop().with_imported(&imported);
        }
    }
}
