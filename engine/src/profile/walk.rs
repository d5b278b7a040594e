//! Walks through memory, so that no sample finds what the one before left in a cache.

use std::fs;

/// Bytes of host memory that are walked through where cores read it: four times the largest cache of the
/// processor, within half a gigabyte and two. Of what was read so long ago a cache keeps nothing.
pub(super) fn beyond_caches() -> usize {
    let size = |index| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        cache_size(&fs::read_to_string(path).ok()?)
    };
    beyond((0..8).filter_map(size).max().unwrap_or(0))
}

fn beyond(cache: usize) -> usize {
    cache.saturating_mul(4).clamp(512 << 20, 2 << 30).next_multiple_of(64 << 20)
}

/// Linux writes kibibytes.
fn cache_size(text: &str) -> Option<usize> {
    text.trim().strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1024)
}

/// Where the next piece begins: on through all of the memory, whatever the sizes, and then from the start.
#[derive(Debug)]
pub(super) struct Walk {
    all: usize,
    at: usize,
}

impl Walk {
    /// Through `all` bytes.
    pub(super) fn through(all: usize) -> Self {
        Self { all, at: 0 }
    }

    /// Where the next `size` bytes begin, of which there are no more than all.
    pub(super) fn next(&mut self, size: usize) -> usize {
        let place = if self.at + size > self.all { 0 } else { self.at };
        self.at = place + size;
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_walked_through_beyond_every_cache_and_not_without_end() {
        assert_eq!(cache_size("107520K\n"), Some(105 << 20));
        assert_eq!(cache_size("a lot"), None);
        assert_eq!(beyond(0), 512 << 20);
        assert_eq!(beyond(300 << 20), 1216 << 20);
        assert_eq!(beyond(usize::MAX), 2 << 30);
    }

    #[test]
    fn a_piece_comes_back_to_a_place_only_after_almost_all_others() {
        const ALL: usize = 512 << 20;
        let mut walk = Walk::through(ALL);
        let mut visits = Vec::new();
        for size in [4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20] {
            // The samples of one size: as many pieces as there are at least, and then more.
            let pieces = (ALL / size).min(1000) + 3;
            visits.extend((0..pieces).map(|_| (walk.next(size), size)));
        }
        let (mut total, mut last) = (0, 0);
        for &(place, size) in &visits {
            assert!(place + size <= ALL, "{size} bytes at {place} lie outside");
            let between = total - last;
            if place == 0 {
                // What is left out at the end is less than one piece.
                assert!(total == 0 || between + size > ALL, "{between} bytes, and from the start");
                last = total;
            } else {
                assert_eq!(place, between, "one piece begins where the one before it ended");
            }
            total += size;
        }
        assert!(last > 0, "the walk never came back");
    }
}
