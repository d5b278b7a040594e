//! Reads of several pieces, which are checked while the next piece is read: what fails in one is found in
//! the pass it fails in, and named.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pipo_engine::disk::{BlockReader, Buffered, Cause, ReadError};
use pipo_engine::run::{Outcome, Request, RunError, run};
use pipo_engine::store::{BLOCK, Place, Store};
use pipo_plan::model::Part;
use pipo_plan::plan::Plan;
use pipo_plan::strategy::Strategy;
use pipo_plan::strategy::pipo::Pipo;
use pipo_plan::units::Bytes;

#[path = "fixture/streamed.rs"]
mod streamed;

const MLP: Place = Place { part: Part::Mlp, layer: 0 };

/// One layer of OPT whose MLP is five blocks long, the last of them short.
fn store() -> &'static Store {
    static STORE: OnceLock<(tempfile::TempDir, Store)> = OnceLock::new();
    let make = || {
        let scratch = tempfile::tempdir().unwrap();
        let store = streamed::store(&scratch, 1, 4100);
        (scratch, store)
    };
    &STORE.get_or_init(make).1
}

/// Everything from disk, each part in one read of requests of so many bytes.
fn plan(request: u64) -> Plan {
    let knobs = Pipo { block: Bytes(64 << 20), read_block: Bytes(request), ..Pipo::default() };
    streamed::plan(store(), Strategy::Pipo(knobs))
}

fn run_from(request: u64, reader: Option<&dyn BlockReader>) -> Result<Outcome, RunError> {
    let plan = plan(request);
    let prompts = [vec![1, 2]];
    let request = Request { threads: 1, reader, ..Request::new(&plan, store(), &prompts) };
    run(&request, &AtomicBool::new(false))
}

/// What goes wrong when a byte of the file is read for the nth time.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Flip,
    Fail,
}

#[derive(Debug)]
struct Faults {
    inner: Buffered,
    /// The byte, how often it is read well before, and what then happens.
    faults: Vec<(u64, AtomicU64, Fault)>,
}

impl Faults {
    /// Bytes of the MLP.
    fn new(faults: &[(u64, u64, Fault)]) -> Self {
        let start = store().layout().range(MLP).unwrap().start;
        let inner = Buffered::open(store().data_path(), 1 << 20).unwrap();
        let fault = |&(byte, reads, fault)| (start + byte, AtomicU64::new(reads), fault);
        Self { inner, faults: faults.iter().map(fault).collect() }
    }
}

impl BlockReader for Faults {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        self.inner.read(offset, into)?;
        let length = into.len() as u64;
        for (byte, reads, fault) in &self.faults {
            if !(offset..offset + length).contains(byte)
                || reads.fetch_sub(1, Ordering::Relaxed) != 0
            {
                continue;
            }
            match fault {
                Fault::Flip => into[usize::try_from(byte - offset).unwrap()] ^= 16,
                Fault::Fail => {
                    let cause = Cause::Io(std::io::Error::other("input/output error"));
                    return Err(ReadError { file: "disk".into(), offset, length, cause });
                }
            }
        }
        Ok(())
    }
}

fn error(request: u64, faults: &[(u64, u64, Fault)]) -> String {
    run_from(request, Some(&Faults::new(faults))).unwrap_err().to_string()
}

/// Pieces of one block, of several, and of parts of two.
const REQUESTS: [u64; 3] = [1 << 20, 8 << 20, 3_000_000];

#[test]
fn a_flipped_bit_is_found_in_the_pass_it_is_in_and_its_block_named() {
    let length = store().length(MLP).unwrap();
    assert_eq!(length.div_ceil(BLOCK), 5);
    for request in REQUESTS {
        for byte in [0, BLOCK - 1, BLOCK, 2 * BLOCK + 77, 3 * BLOCK + 5, length - 1] {
            for pass in 0..3 {
                let error = error(request, &[(byte, pass, Fault::Flip)]);
                let block = byte / BLOCK;
                assert!(error.contains(&format!("weights.bin: block {block} of")), "{error}");
                assert!(error.contains("`layer 0 mlp` has the checksum"), "{error}");
                assert!(error.contains(&format!("pass {pass}:")), "{error}");
            }
        }
    }
}

/// Whichever thread comes first.
#[test]
fn of_two_faults_in_one_read_the_earlier_in_the_file_is_named() {
    let (early, late) = (BLOCK + 9, 4 * BLOCK + 9);
    for request in REQUESTS {
        for _ in 0..5 {
            let damaged = error(request, &[(early, 0, Fault::Flip), (late, 0, Fault::Fail)]);
            assert!(damaged.contains("block 1 of the run"), "{damaged}");
            let failed = error(request, &[(early, 0, Fault::Fail), (late, 0, Fault::Flip)]);
            assert!(failed.contains("input/output error"), "{failed}");
            let both = error(request, &[(late, 0, Fault::Flip), (early, 0, Fault::Flip)]);
            assert!(both.contains("block 1 of the run"), "{both}");
        }
    }
}

#[test]
fn the_size_of_requests_changes_nothing() {
    let tokens = REQUESTS.map(|request| {
        let outcome = run_from(request, None).unwrap();
        outcome.logits.iter().flatten().map(|x| x.to_bits()).collect::<Vec<u32>>()
    });
    assert_eq!(tokens[0], tokens[1]);
    assert_eq!(tokens[0], tokens[2]);
}
