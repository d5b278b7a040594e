//! Readers: the same bytes whatever the way, and errors that say what is missing.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made must stop the test")]
#![allow(clippy::print_stdout, reason = "what is skipped is said")]

use std::path::{Path, PathBuf};

use pipo_engine::disk::{
    AlignedBuf, BlockReader, Buffered, Cause, Direct, Faulty, NotDirect, Trouble,
};
use pipo_plan::units::Bytes;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

const LENGTH: usize = 70_001;

/// A file of random bytes, beside the build: temporary folders are often in memory, where nothing is direct.
fn file() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("weights.bin");
    let mut bytes = vec![0; LENGTH];
    Pcg64::seed_from_u64(1).fill_bytes(&mut bytes);
    std::fs::write(&path, &bytes).unwrap();
    (folder, path, bytes)
}

/// A direct reader, or none with the reason printed: where the build lies decides whether there is one.
fn direct(path: &Path, request: usize) -> Option<Direct> {
    match Direct::open(path, request) {
        Ok(reader) => Some(reader),
        Err(why) => {
            println!("skipped for direct reads: {why}");
            None
        }
    }
}

/// Whether a byte of a file can be read without the disk; none where the system cannot say.
#[cfg(target_os = "linux")]
fn is_cached(path: &Path, at: u64) -> Option<bool> {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    let mut byte = [0];
    let mut into = [std::io::IoSliceMut::new(&mut byte)];
    match preadv2(std::fs::File::open(path).unwrap(), &mut into, at, ReadWriteFlags::NOWAIT) {
        Ok(_) => Some(true),
        Err(Errno::AGAIN) => Some(false),
        Err(_) => None,
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_forgotten_comes_from_the_disk_again() {
    let (_folder, path, bytes) = file();
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let mut into = vec![0; LENGTH];
    Buffered::open(&path, 4096).unwrap().read(0, &mut into).unwrap();
    let kept = is_cached(&path, 40_000);
    for _ in 0..2 {
        into.fill(0);
        Buffered::open(&path, 4096).unwrap().holding(Bytes::ZERO).read(0, &mut into).unwrap();
        assert!(into == bytes);
        if kept == Some(true) && direct(&path, 4096).is_some() {
            assert_eq!(is_cached(&path, 40_000), Some(false));
        } else {
            println!("skipped: this file system has no page cache to forget");
        }
    }
}

#[test]
fn both_ways_read_the_same_bytes_from_anywhere() {
    let (_folder, path, bytes) = file();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let places = (0..LENGTH, 0..LENGTH, 1..20_000_usize, 0..5000_usize, 0..4);
    runner
        .run(&places, |(offset, length, request, skew, how)| {
            // Anywhere, on pages, with page boundaries in memory where the file has them, or where the file's are
            // blocks of a device in memory.
            let (offset, skew) = match how {
                0 => (offset, skew),
                1 => (offset / 4096 * 4096, 0),
                2 => (offset, offset % 4096),
                _ => (offset, offset % 512 + skew / 512 * 512),
            };
            let length = length.min(LENGTH - offset);
            let expected = &bytes[offset..offset + length];
            let mut memory = AlignedBuf::zeroed(skew + length).unwrap();
            let reader = Buffered::open(&path, request).unwrap();
            for reader in [reader.with_request(length / 2 + 1).unwrap(), reader] {
                memory.fill(0xAA);
                reader.read(offset as u64, &mut memory[skew..]).unwrap();
                prop_assert_eq!(&memory[skew..], expected);
            }
            // In two pieces of one stretch, which has a file of its own.
            let apart = Buffered::open(&path, request).unwrap().holding(Bytes(5000)).apart();
            let stretch = apart.of_a_stretch().unwrap().unwrap();
            let (first, second) = memory[skew..].split_at_mut(length / 3);
            first.fill(0xAA);
            second.fill(0xAA);
            stretch.read(offset as u64, first).unwrap();
            stretch.read((offset + length / 3) as u64, second).unwrap();
            prop_assert_eq!(&memory[skew..], expected);
            if let Some(reader) = direct(&path, request) {
                memory.fill(0xAA);
                reader.read(offset as u64, &mut memory[skew..]).unwrap();
                prop_assert_eq!(&memory[skew..], expected);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_end_of_the_file_is_an_error_that_says_where() {
    let (_folder, path, _) = file();
    let mut readers: Vec<Box<dyn BlockReader>> =
        vec![Box::new(Buffered::open(&path, 8192).unwrap())];
    readers.extend(direct(&path, 8192).map(|reader| Box::new(reader) as Box<dyn BlockReader>));
    for reader in readers {
        for (offset, there) in [(65_536, 4465), (70_000, 1), (65_537, 4464), (81_920, 0)] {
            let mut memory = AlignedBuf::zeroed(30_000).unwrap();
            let error = reader.read(offset, &mut memory).unwrap_err();
            let Cause::Short(read) = error.cause else { panic!("{error}") };
            assert_eq!((read, error.offset, error.length), (there, offset, 30_000));
            assert!(error.to_string().contains("weights.bin: 30000 bytes from byte"), "{error}");
        }
    }
}

#[test]
fn a_file_in_memory_is_not_taken_for_a_disk() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        return println!("skipped: there is no file system in memory at /dev/shm");
    };
    let path = folder.path().join("weights.bin");
    std::fs::write(&path, vec![1; 8192]).unwrap();
    let why = Direct::open(&path, 4096).unwrap_err();
    assert!(matches!(why, NotDirect::Ignored | NotDirect::Refused(_)), "{why}");
}

#[test]
fn a_missing_file_names_itself() {
    let error = Buffered::open(Path::new("/nowhere/weights.bin"), 1).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/weights.bin: "), "{error}");
    assert!(matches!(
        Direct::open(Path::new("/nowhere/weights.bin"), 1),
        Err(NotDirect::Refused(_))
    ));
}

#[test]
fn faults_come_where_they_were_asked_for() {
    let (_folder, path, bytes) = file();
    let read = |trouble, number: usize| {
        let reader = Faulty::new(Buffered::open(&path, 4096).unwrap(), trouble, 1);
        let mut results = (0..3).map(|_| {
            let mut memory = vec![0; 100];
            reader.read(50, &mut memory).map(|()| memory)
        });
        results.nth(number).unwrap()
    };
    for trouble in [Trouble::Fails, Trouble::Shortens, Trouble::Corrupts] {
        assert_eq!(read(trouble, 0).unwrap(), bytes[50..150]);
        assert_eq!(read(trouble, 2).unwrap(), bytes[50..150]);
    }
    assert!(matches!(read(Trouble::Fails, 1).unwrap_err().cause, Cause::Io(_)));
    assert!(matches!(read(Trouble::Shortens, 1).unwrap_err().cause, Cause::Short(50)));
    let corrupt = read(Trouble::Corrupts, 1).unwrap();
    assert_eq!((&corrupt[..99], corrupt[99]), (&bytes[50..149], bytes[149] ^ 1));
    assert_eq!(
        read(Trouble::Delays(std::time::Duration::from_millis(1)), 1).unwrap(),
        bytes[50..150]
    );
}
