//! Which reads come from memory.

use pipo_plan::schedule::LaneKind;
use pipo_plan::units::{Bytes, Nanos};
use pipo_simulator::{Cost, Options, PageCache, Price};

use crate::script::{Item, RECORD, Script};

/// `passes` scans of extents of 10 bytes, each read in `pieces`; a miss takes 100 ns, a hit 1.
fn scans(passes: usize, extents: u32, pieces: u64) -> Script {
    let mut script = Script::with_lanes(&[LaneKind::DiskRead]);
    script.layout.extents = vec![Bytes(10); extents as usize];
    script.prices.push(Price {
        bytes: Bytes(10 / pieces),
        disk_read: Bytes(10 / pieces),
        cost: Cost::fixed(Nanos(100)),
        hit: Some(Cost::fixed(Nanos(1))),
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

/// Hits and misses of each pass, by duration.
fn hits(script: &Script, cache: PageCache) -> Vec<usize> {
    let options = Options { page_cache: cache, ..RECORD };
    let outcome = script.simulate(&options).unwrap();
    let spans = outcome.timeline.unwrap().spans;
    let hit = |pass: usize| {
        let of_pass = spans.iter().filter(|s| s.pass as usize == pass);
        of_pass.filter(|s| s.end.0 - s.start.0 == 1).count()
    };
    let hits: Vec<usize> = (0..script.passes.len()).map(hit).collect();
    let each = script.prices[0].bytes.0;
    let total = each * hits.iter().sum::<usize>() as u64;
    assert_eq!(outcome.summary.cache_hits, Bytes(total));
    assert_eq!(outcome.summary.disk_read, Bytes(each * spans.len() as u64 - total));
    hits
}

fn cache(capacity: u64, kept: f64, warm: bool) -> PageCache {
    PageCache { capacity: Bytes(capacity), kept, warm }
}

#[test]
fn a_scan_that_fits_is_all_hits_from_the_second_pass_on() {
    assert_eq!(hits(&scans(3, 8, 1), cache(80, 0.0, false)), [0, 8, 8]);
    assert_eq!(hits(&scans(3, 8, 1), cache(80, 0.0, true)), [8, 8, 8]);
}

#[test]
fn of_a_larger_scan_the_kept_share_of_the_capacity_hits() {
    // 60 bytes times 0.5 hold three extents of ten.
    assert_eq!(hits(&scans(3, 8, 1), cache(60, 0.5, false)), [0, 3, 3]);
    assert_eq!(hits(&scans(3, 8, 1), cache(60, 0.5, true)), [3, 3, 3]);
}

#[test]
fn strict_eviction_keeps_nothing_of_a_larger_scan() {
    assert_eq!(hits(&scans(3, 8, 1), cache(79, 0.0, true)), [0, 0, 0]);
    assert_eq!(hits(&scans(2, 8, 1), PageCache::NONE), [0, 0]);
    assert_eq!(hits(&scans(2, 8, 1), cache(60, f64::NAN, false)), [0, 0]);
}

#[test]
fn pieces_of_one_extent_do_not_count_as_hits_on_one_another() {
    assert_eq!(hits(&scans(2, 4, 5), cache(40, 0.0, false)), [0, 20]);
}

#[test]
fn reads_of_no_extent_are_never_cached() {
    let mut script = scans(2, 2, 1);
    script.passes.iter_mut().flatten().for_each(|item| item.extent = None);
    assert_eq!(hits(&script, cache(1000, 1.0, true)), [0, 0]);
}
