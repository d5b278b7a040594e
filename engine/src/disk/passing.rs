//! What passes through the page cache on its way, and does not stay there.

#![allow(unsafe_code, reason = "no safe interface has sync_file_range")]

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;

use rustix::fs::{Advice, fadvise};

use super::{PAGE, page_behind};

/// What the system reads ahead by itself, in larger pages and faster: 1.5 to 2.1 GB/s where it read 1.2 on advice.
const LONG: u64 = 1 << 20;

/// Has the system begin to read some places, which are wanted next: short ones all at once, for one would wait for
/// the other.
pub(crate) fn fetch(file: &File, places: impl Iterator<Item = Range<u64>>) {
    for place in places.filter(|place| place.end - place.start < LONG) {
        advise(file, &place, Advice::WillNeed);
    }
}

/// Waits until what was written within a stretch is on the disk, and has the system keep none of it. Pages at both
/// ends are whole: what others have there and have not written yet stays.
pub(crate) fn put(file: &File, stretch: &Range<u64>) -> io::Result<()> {
    write_back(file, stretch)?;
    forget(file, stretch);
    Ok(())
}

/// Has the system keep nothing of a stretch that is on the disk.
pub(crate) fn forget(file: &File, stretch: &Range<u64>) {
    let page = PAGE as u64;
    advise(file, &(stretch.start / page * page..page_behind(stretch.end)), Advice::DontNeed);
}

/// Where the system does not take it, reads are as right and only differently fast.
pub(super) fn advise(file: &File, place: &Range<u64>, advice: Advice) {
    // No length would stand for all of the rest.
    if let Some(length) = NonZeroU64::new(place.end.saturating_sub(place.start)) {
        let _ = fadvise(file, place.start, Some(length), advice);
    }
}

/// Without what a power cut would take: the file is a scratch file.
#[cfg(target_os = "linux")]
fn write_back(file: &File, stretch: &Range<u64>) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let place = |at| libc::off64_t::try_from(at).unwrap_or(libc::off64_t::MAX);
    let (start, length) = (place(stretch.start), place(stretch.end - stretch.start));
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: it touches no memory of ours, and the descriptor is open for as long as `file` lives.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, all) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // A file system, or a sandbox, that has no such thing.
        Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE | libc::EPERM) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn write_back(_: &File, _: &Range<u64>) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_was_put_is_read_again_from_wherever_it_is() {
        // Beside the build: temporary folders are often in memory.
        let folder = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, Into::into);
        let file = tempfile::tempfile_in(folder).unwrap();
        let rows: Vec<u8> = (0..=255).cycle().take(30_000).collect();
        for (at, rows) in [(0, &rows[..]), (41_000, &rows[..1]), (77_777, &rows[..5000])] {
            file.write_all_at(rows, at).unwrap();
            let place = at..at + rows.len() as u64;
            put(&file, &place).unwrap();
            for places in [vec![place.clone()], vec![place.start..place.start, place.clone()]] {
                fetch(&file, places.into_iter());
                let mut found = vec![0; rows.len()];
                file.read_exact_at(&mut found, at).unwrap();
                assert!(found == rows);
                forget(&file, &place);
            }
        }
        // What nobody wrote is no error either, wherever it would end.
        put(&file, &(1 << 40..(1 << 40) + 1)).unwrap();
        forget(&file, &(0..u64::MAX));
    }
}
