//! Random schedules that are well formed: whatever the order, no promise may be broken.

use pipo_plan::schedule::{LaneId, LaneKind, RingId, Slot, Tier};
use pipo_plan::units::{Bytes, Nanos};
use pipo_simulator::{Capacities, Cost, Resource};
use proptest::prelude::*;

use crate::script::{Item, Script};

/// The random choices behind one operation.
#[derive(Debug, Clone, Copy)]
struct Gene {
    queue: u8,
    price: usize,
    back: [u32; 3],
    takes: Option<u8>,
    frees: u8,
    new_pass: bool,
    ends_pass: bool,
}

prop_compose! {
    fn gene()(
        queue: u8,
        price: usize,
        back in [0..40_u32, 0..40_u32, 0..200_u32],
        takes in prop::option::of(any::<u8>()),
        frees: u8,
        new_pass in prop::bool::weighted(0.05),
        ends_pass in prop::bool::weighted(0.1),
    ) -> Gene {
        Gene { queue, price, back, takes, frees, new_pass, ends_pass }
    }
}

prop_compose! {
    /// A cost that may be zero, may draw on several resources and may draw more than there is.
    fn cost()(
        nanos in prop_oneof![Just(0), 1..50_u64, 1..5000_u64],
        bytes in 1..100_000_u64,
        draw in [0..3_u8, 0..3_u8, 0..3_u8, 0..3_u8],
        permille in 0..=1000_u16,
    ) -> Cost {
        let all = Resource::ALL.into_iter().zip(draw);
        all.fold(Cost::moving(Bytes(bytes), Nanos(nanos)), |cost, (resource, each)| {
            cost.drawing(resource, f64::from(each))
        })
        .busy(permille)
    }
}

prop_compose! {
    /// A well-formed script of up to 300 operations.
    pub(crate) fn script()(
        lanes in prop::collection::vec(0..LaneKind::ALL.len(), 1..6),
        queues in prop::collection::vec(any::<u8>(), 0..5),
        rings in prop::collection::vec(1..4_u32, 1..4),
        costs in prop::collection::vec(cost(), 1..8),
        genes in prop::collection::vec(gene(), 0..300),
        capacities in [1.0..200.0_f64, 1.0..200.0, 1.0..200.0, 1.0..200.0],
        window in 1..4_u32,
        crossings in prop_oneof![Just([0, 0]), [0..3000_u64, 0..3000_u64]],
    ) -> Script {
        let kinds: Vec<LaneKind> = lanes.iter().map(|&k| LaneKind::ALL[k]).collect();
        let mut script = Script::with_lanes(&kinds);
        script.crossings = crossings.map(Nanos);
        for queue in queues {
            script.layout.queue(LaneId(queue % u8::try_from(kinds.len()).unwrap_or(1)));
        }
        for &slots in &rings {
            script.layout.ring("ring", Tier::Gpu, slots, Bytes(1));
        }
        for cost in costs {
            script.prices.push(pipo_simulator::Price {
                bytes: Bytes(cost.nanos.0 + 1),
                cost,
                ..pipo_simulator::Price::default()
            });
        }
        let limits = Resource::ALL.into_iter().zip(capacities);
        script.capacities =
            Some(limits.fold(Capacities::UNLIMITED, |c, (resource, rate)| c.with(resource, rate)));
        script.layout.window = window;
        write(&mut script, &genes);
        script
    }
}

/// A slot that has been taken and not yet been named by a freeing operation.
struct Outstanding {
    slot: Slot,
    taker: u32,
}

/// Turns genes into operations. A slot is taken again only after an operation that frees it has been
/// written, and that operation waits for the taker: so the script never gets stuck.
fn write(script: &mut Script, genes: &[Gene]) {
    let rings = script.layout.rings.clone();
    let queues = u8::try_from(script.layout.queues.len()).unwrap_or(1);
    let mut next = vec![0_u16; rings.len()];
    let mut outstanding: Vec<Vec<Outstanding>> = rings.iter().map(|_| Vec::new()).collect();
    for (id, gene) in (0..).zip(genes) {
        if gene.new_pass {
            script.passes.push(Vec::new());
        }
        let mut item = Item {
            queue: gene.queue % queues,
            price: gene.price % script.prices.len(),
            ends_pass: gene.ends_pass,
            ..Item::default()
        };
        item.waits.extend(gene.back.iter().filter_map(|&back| u32::checked_sub(id, back + 1)));
        let free = usize::from(gene.frees) % rings.len();
        if !outstanding[free].is_empty() {
            let freed = outstanding[free].remove(0);
            item.waits.push(freed.taker);
            item.frees[0] = Some(freed.slot);
        }
        let take = gene.takes.map(|t| usize::from(t) % rings.len());
        // Of the ring that it frees from it may not take: it would wait for itself.
        if let Some(ring) =
            take.filter(|&r| r != free && outstanding[r].len() < usize::from(rings[r].slots))
        {
            let slot = Slot { ring: RingId(u8::try_from(ring).unwrap_or(0)), index: next[ring] };
            next[ring] = (next[ring] + 1) % rings[ring].slots;
            outstanding[ring].push(Outstanding { slot, taker: id });
            item.takes = Some(slot);
        }
        script.push(item);
    }
}
