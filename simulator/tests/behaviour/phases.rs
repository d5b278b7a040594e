//! The bound on a request whose prefill and decode need different things.

use pipo_plan::schedule::{LaneKind, Slot, Tier};
use pipo_plan::units::{Bytes, Nanos};
use pipo_simulator::{Cost, PhaseBounds, phase_bounds};

use crate::script::{Item, RECORD, Script};

/// Three units loaded through two slots: a prefill whose arithmetic takes long, one step whose loads do.
fn request() -> Script {
    let mut script = Script::with_lanes(&[LaneKind::H2d, LaneKind::Gpu, LaneKind::D2h]);
    script.layout.window = 2;
    let ring = script.layout.ring("weights", Tier::Gpu, 2, Bytes(1));
    for (load, compute) in [(10, 100), (50, 1)] {
        let first = script.items().filter(|item| item.takes.is_some()).count();
        if first > 0 {
            script.passes.push(Vec::new());
        }
        let prices = [load, compute].map(|nanos| script.price(Cost::fixed(Nanos(nanos))));
        for unit in 0..3 {
            let index = u16::try_from((first + unit) % 2).unwrap_or(0);
            let slot = Some(Slot { ring, index });
            let load = Item { price: prices[0], takes: slot, ..Item::default() };
            let loaded = script.push(load);
            script.push(Item {
                queue: 1,
                price: prices[1],
                waits: vec![loaded],
                frees: [slot, None],
                ends_pass: unit == 2,
                ..Item::default()
            });
        }
    }
    script
}

fn bounds(script: &Script) -> PhaseBounds {
    let bounds = phase_bounds(&script.schedule(), script, &RECORD).unwrap();
    let passes = script.simulate(&RECORD).unwrap().summary.passes;
    assert!(bounds.request() <= passes[passes.len() - 1].end, "{bounds:?} {passes:?}");
    bounds
}

#[test]
fn what_binds_the_prefill_comes_before_what_binds_decode() {
    let bounds = bounds(&request());
    assert_eq!(bounds.request.lanes, [180, 303, 0].map(Nanos));
    assert_eq!(bounds.prefill.lanes, [30, 300, 0].map(Nanos));
    // The step's first load takes the slot of the prefill's second unit: it may run ahead.
    assert_eq!(bounds.decode.lanes, [100, 3, 0].map(Nanos));
    assert_eq!(bounds.request(), Nanos(400));
}

#[test]
fn what_no_token_needs_is_not_counted() {
    let mut script = request();
    let save = script.price(Cost::fixed(Nanos(5000)));
    // After the last token of the prefill and of all, for nobody.
    script.passes[0].push(Item { queue: 2, price: save, ..Item::default() });
    script.push(Item { queue: 2, price: save, ..Item::default() });
    for item in &mut script.passes[1] {
        item.waits.iter_mut().for_each(|on| *on += 1);
    }
    assert_eq!(bounds(&script).request(), Nanos(400));
    // Once it must have left before the next step's end, it counts for the request, but for no phase.
    let last = script.passes[1].len() - 2;
    script.passes[1][last].waits.push(6);
    let bounds = bounds(&script);
    assert_eq!(bounds.request.lanes, [180, 303, 5000].map(Nanos));
    assert_eq!(bounds.prefill.total() + bounds.decode.total(), Nanos(400));
}

#[test]
fn without_decode_there_is_one_phase() {
    let mut script = request();
    script.passes.pop();
    let bounds = bounds(&script);
    assert_eq!(bounds.request(), Nanos(300));
    assert_eq!(bounds.decode.total(), Nanos::ZERO);
}
