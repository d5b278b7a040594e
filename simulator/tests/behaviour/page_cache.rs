//! Which reads come from memory.

use pipo_plan::schedule::LaneKind;
use pipo_plan::units::{Bytes, Nanos};
use pipo_simulator::{Cost, Options, PageCache, Price};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use crate::script::{Item, RECORD, Script};

/// `passes` scans of extents of 10 bytes, each read in `pieces`; a miss takes 1000 ns, a hit none.
fn scans(passes: usize, extents: u32, pieces: u64) -> Script {
    let mut script = Script::with_lanes(&[LaneKind::DiskRead]);
    script.layout.extents = vec![Bytes(10); extents as usize];
    script.prices.push(Price {
        bytes: Bytes(10 / pieces),
        disk_read: Bytes(10 / pieces),
        cost: Cost::fixed(Nanos(1000)),
        hit: Some(Cost::fixed(Nanos(0))),
    });
    script.passes.clear();
    for _ in 0..passes {
        script.passes.push(Vec::new());
        for extent in 0..extents {
            for _ in 0..pieces {
                script.push(Item { extent: Some(extent), ..Item::default() });
            }
        }
    }
    script
}

/// Nanoseconds that each read of each pass took; all of one pass are alike.
fn times(script: &Script, cache: PageCache) -> Vec<u64> {
    let options = Options { page_cache: cache, ..RECORD };
    let outcome = script.simulate(&options).unwrap();
    let spans = outcome.timeline.unwrap().spans;
    let pass = |pass: usize| {
        let mut of_pass = spans.iter().filter(|s| s.pass as usize == pass);
        let first = of_pass.next().map(|s| s.end.0 - s.start.0).unwrap();
        assert!(of_pass.all(|s| s.end.0 - s.start.0 == first));
        first
    };
    let summary = &outcome.summary;
    let all = script.prices[0].bytes.0 * spans.len() as u64;
    assert_eq!(summary.cache_hits + summary.disk_read, Bytes(all));
    (0..script.passes.len()).map(pass).collect()
}

fn cache(capacity: u64, warm: bool) -> PageCache {
    PageCache { capacity: Bytes(capacity), warm }
}

#[test]
fn a_scan_that_fits_is_all_hits_from_the_second_pass_on() {
    assert_eq!(times(&scans(3, 8, 1), cache(80, false)), [1000, 0, 0]);
    assert_eq!(times(&scans(3, 8, 1), cache(80, true)), [0, 0, 0]);
}

#[test]
fn of_a_larger_scan_every_read_hits_the_same_share() {
    // Half of the scan fits: h = exp(-2 (1 - h)) has the root 0.2032 below one.
    assert_eq!(times(&scans(3, 8, 1), cache(40, false)), [1000, 797, 797]);
    assert_eq!(times(&scans(3, 8, 1), cache(40, true)), [797, 797, 797]);
    assert_eq!(times(&scans(2, 8, 1), PageCache::NONE), [1000, 1000]);
}

#[test]
fn pieces_of_one_extent_do_not_count_as_hits_on_one_another() {
    assert_eq!(times(&scans(2, 4, 5), cache(40, false)), [1000, 0]);
}

#[test]
fn reads_of_no_extent_are_never_cached() {
    let mut script = scans(2, 2, 1);
    script.passes.iter_mut().flatten().for_each(|item| item.extent = None);
    assert_eq!(times(&script, cache(1000, true)), [1000, 1000]);
}

/// Random eviction as it happens: a cyclic scan of `pages` through `capacity` frames, whose victims a
/// generator picks. Returns the share of hits after some rounds.
fn evicting_at_random(pages: usize, capacity: usize) -> f64 {
    let mut random = Pcg64::seed_from_u64(1);
    let mut frame_of = vec![None; pages];
    let mut frames: Vec<usize> = Vec::new();
    let (mut hits, mut counted) = (0_u32, 0_u32);
    for round in 0..40 {
        for page in 0..pages {
            counted += u32::from(round >= 20);
            if frame_of[page].is_some() {
                hits += u32::from(round >= 20);
                continue;
            }
            if frames.len() < capacity {
                frame_of[page] = Some(frames.len());
                frames.push(page);
            } else {
                let frame = random.random_range(0..capacity);
                frame_of[frames[frame]] = None;
                frames[frame] = page;
                frame_of[page] = Some(frame);
            }
        }
    }
    f64::from(hits) / f64::from(counted)
}

#[test]
fn the_share_is_that_of_random_eviction() {
    for capacity in [500, 1000, 2000, 3000, 3500, 3900] {
        let expected = evicting_at_random(4000, capacity);
        let share = cache(capacity as u64, false).hits(Bytes(4000)).of(Bytes(1_000_000)).0;
        let share = share as f64 / 1e6;
        assert!((share - expected).abs() < 0.01, "{capacity}: {share} for {expected}");
    }
}

proptest! {
    /// More memory never hits less, a longer scan never more, and no more hits than there is memory.
    #[test]
    fn shares_are_monotone(capacity in 0_u64..1 << 45, more in 0_u64..1 << 44, scan in 0_u64..1 << 46) {
        let hits = |capacity, scan| cache(capacity, false).hits(Bytes(scan));
        let share = hits(capacity, scan);
        prop_assert!(share <= hits(capacity + more, scan));
        prop_assert!(share >= hits(capacity, scan + more));
        prop_assert!(share.of(Bytes(scan)) <= Bytes(capacity));
    }
}
