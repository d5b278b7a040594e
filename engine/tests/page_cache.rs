//! What the system keeps of a file that may have no more than so much of the page cache.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "what is in memory of a file, the system tells of a memory map")]
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]
#![allow(clippy::print_stdout, reason = "what is skipped is said")]

use std::fs::File;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::AtomicBool;

use pipo_engine::disk::{BlockReader, Buffered, PAGE};
use pipo_engine::run::{Request, run};
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::strategy::accelerate::Accelerate;
use pipo_plan::strategy::pipo::{FileReads, Pipo};
use pipo_plan::strategy::{Strategy, lower};
use pipo_plan::units::Bytes;
use rustix::fs::{Advice, fadvise};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

#[path = "fixture/streamed.rs"]
mod streamed;

const MIB: usize = 1 << 20;

/// What a thread may have had read ahead and left: the system's own business, 8 MiB where most was seen.
const READ_AHEAD: usize = 16 * MIB;

/// Bytes of a file that are in the page cache, in whole pages.
fn resident(path: &Path) -> usize {
    let file = File::open(path).unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let mut pages = vec![0_u8; length.div_ceil(PAGE)];
    // SAFETY: a new mapping of all of a file, which is not touched and only asked about; there is a byte for
    // each of its pages.
    let asked = unsafe {
        let map = mmap(null_mut(), length, ProtFlags::READ, MapFlags::SHARED, &file, 0).unwrap();
        let asked = libc::mincore(map, length, pages.as_mut_ptr());
        munmap(map, length).unwrap();
        asked
    };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&&page| page & 1 == 1).count() * PAGE
}

/// Drops a file from the page cache. Where that does not work there is nothing to test, which is said.
fn dropped(path: &Path) -> bool {
    let file = File::open(path).unwrap();
    // What is not written yet cannot be dropped.
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    let dropped = resident(path) == 0;
    if !dropped {
        println!("skipped: this file system keeps files in memory whatever is asked of it");
    }
    dropped
}

/// Reads a file from its third page on, in stretches by several threads in turn.
fn read_through(reader: &Buffered, bytes: &[u8], (threads, stretch): (usize, usize)) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut into = vec![0; stretch];
                for at in (2 * PAGE + thread * stretch..bytes.len()).step_by(threads * stretch) {
                    let into = &mut into[..stretch.min(bytes.len() - at)];
                    reader.read(at as u64, into).unwrap();
                    assert!(*into == bytes[at..at + into.len()]);
                }
            });
        }
    });
}

/// Whatever the size of a request and of a read, and whether pieces of the page cache reach from one read into
/// the next, as large ones do.
#[test]
fn a_file_that_is_read_again_and_again_is_held_to_a_capacity() {
    const FILE: usize = 96 * MIB;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("weights.bin");
    let bytes: Vec<u8> = (0..FILE).map(|at| (at % 251).to_le_bytes()[0]).collect();
    std::fs::write(&path, &bytes).unwrap();
    for (request, stretch) in [(128 << 10, 1_000_000), (MIB, MIB), (4 * MIB, 4 * MIB)] {
        for (capacity, threads) in [(24 * MIB, 1), (24 * MIB, 2), (0, 1), (FILE, 1)] {
            if !dropped(&path) {
                return;
            }
            let reader = Buffered::open(&path, request).unwrap();
            let reader = reader.holding(Bytes(capacity as u64));
            for _ in 0..3 {
                read_through(&reader, &bytes, (threads, stretch));
                let kept = resident(&path);
                let case = format!("{kept} of {capacity}: {threads} threads, {request}, {stretch}");
                assert!(kept <= capacity + threads * READ_AHEAD, "{case}");
                // So much was read last, and the system has no reason to drop it by itself.
                assert!(kept >= capacity / 2, "{case}");
            }
        }
    }
}

#[test]
fn a_run_holds_the_page_cache_to_what_its_plan_leaves_of_the_budget() {
    // Three layers of OPT, 76 MB, beside the build: temporary folders are often in memory.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = streamed::store(&folder, 3, 4096);
    let mapped = Accelerate { gpu_weights: Bytes::ZERO, host_weights: Bytes::ZERO };
    let buffered =
        Pipo { reads: FileReads::Buffered, host_weights: Bytes::ZERO, ..Pipo::default() };
    let in_turn = Pipo { disk_threads: 4, ..buffered.clone() };
    let strategies =
        [Strategy::Accelerate(mapped), Strategy::Pipo(buffered), Strategy::Pipo(in_turn)];
    for strategy in strategies {
        let mut plan = streamed::plan(&store, strategy);
        let layout = lower(&plan).unwrap().layout;
        let taken = MemoryTable::new(&layout, Overheads::default()).host();
        let scan = layout.extents.iter().map(|bytes| bytes.0).sum::<u64>();
        let scan = usize::try_from(scan).unwrap();
        assert!(scan > 70 * MIB, "{scan}");
        // What is left beside the plan, and what of that others have.
        for (left, reserved) in [(200, 0), (16, 0), (32, 16), (16, 16), (200, 300)] {
            if !dropped(store.data_path()) {
                return;
            }
            plan.budget.host = taken + Bytes(left << 20);
            let prompts = [vec![1, 2]];
            let host_reserved = Bytes(reserved << 20);
            let request =
                Request { threads: 1, host_reserved, ..Request::new(&plan, &store, &prompts) };
            run(&request, &AtomicBool::new(false)).unwrap();
            let capacity = usize::try_from(left.saturating_sub(reserved)).unwrap() * MIB;
            let kept = resident(store.data_path());
            let case = format!("{kept} of {capacity}, {scan} are read: {}", plan.strategy.name());
            assert!(kept <= capacity + 2 * READ_AHEAD, "{case}");
            assert!(kept >= capacity.min(scan) / 2, "{case}");
        }
    }
}
