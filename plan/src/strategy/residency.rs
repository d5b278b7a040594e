//! Which weights stay where: the GPU keeps some units, the host some of the rest, the disk holds the remainder.

use serde::{Deserialize, Serialize};

use super::units::Unit;
use crate::units::Bytes;

/// Which units are chosen first to stay.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Evenly over the model, so that what must be streamed comes in even intervals.
    #[default]
    Spread,
    /// From the first unit on.
    First,
    /// The head first, then evenly. A GPU slot is as large as the largest streamed unit, and with a large
    /// vocabulary that is the head: keeping it makes every slot smaller.
    Head,
}

/// Where the bytes of one unit live. A unit's stored run is cut in this order: GPU, host, disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Home {
    /// Resident on the GPU.
    pub gpu: Bytes,
    /// Resident in host memory.
    pub host: Bytes,
    /// On disk.
    pub disk: Bytes,
}

impl Home {
    /// All of it, wherever it lives.
    pub fn total(&self) -> Bytes {
        self.gpu + self.host + self.disk
    }

    /// Bytes that must reach the GPU each time the unit is used there.
    pub fn streamed(&self) -> Bytes {
        self.host + self.disk
    }
}

/// Where a unit lives, cut into the segments that may be needed apart: one for an ordinary unit; the
/// dense part and each expert for a unit whose experts are loaded as the router asks for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The segments, in store order.
    pub segments: Vec<Home>,
}

impl Placed {
    /// A unit that is always needed whole.
    pub fn whole(home: Home) -> Self {
        Self { segments: vec![home] }
    }

    /// A unit of which the first segment is always needed, and of the `experts` others only those that
    /// are routed to. Whole units live at one tier, so each segment does.
    pub fn experts(home: Home, expert_bytes: Bytes, experts: u32) -> Self {
        let one = Bytes(expert_bytes.0 / u64::from(experts.max(1)));
        let dense = home.gpu + home.host + home.disk - expert_bytes;
        let at = |bytes: Bytes| match home {
            Home { gpu, .. } if gpu > Bytes::ZERO => Home { gpu: bytes, ..Home::default() },
            Home { host, .. } if host > Bytes::ZERO => Home { host: bytes, ..Home::default() },
            _ => Home { disk: bytes, ..Home::default() },
        };
        let segments = std::iter::once(dense).chain(std::iter::repeat_n(one, experts as usize));
        Self { segments: segments.map(at).collect() }
    }

    /// The sum of all segments.
    pub fn total(&self) -> Home {
        self.segments.iter().fold(Home::default(), |sum, s| Home {
            gpu: sum.gpu + s.gpu,
            host: sum.host + s.host,
            disk: sum.disk + s.disk,
        })
    }

    /// Bytes that must reach the GPU if every segment is needed.
    pub fn streamed(&self) -> Bytes {
        self.total().streamed()
    }
}

/// Gives whole units to the GPU up to `gpu` bytes, then to the host up to `host` bytes, the rest to disk.
pub fn assign(units: &[Unit], gpu: Bytes, host: Bytes, order: Order) -> Vec<Home> {
    let sizes: Vec<Bytes> = units.iter().map(|u| u.bytes).collect();
    let on_gpu = choose(&sizes, gpu, order);
    let rest: Vec<Bytes> =
        sizes.iter().zip(&on_gpu).map(|(&s, &g)| if g { Bytes::ZERO } else { s }).collect();
    let on_host = choose(&rest, host, order);
    let home = |i: usize| match (on_gpu[i], on_host[i]) {
        (true, _) => Home { gpu: sizes[i], ..Home::default() },
        (false, true) => Home { host: sizes[i], ..Home::default() },
        (false, false) => Home { disk: sizes[i], ..Home::default() },
    };
    (0..units.len()).map(home).collect()
}

/// Chooses items up to `budget` bytes in all.
///
/// Spread works by error diffusion: each item earns credit in proportion to its size, and is taken once
/// the credit covers it. What the rounding leaves is then filled greedily from the front.
fn choose(sizes: &[Bytes], budget: Bytes, order: Order) -> Vec<bool> {
    let total: u128 = sizes.iter().map(|s| u128::from(s.0)).sum();
    let mut chosen = vec![false; sizes.len()];
    let mut used = Bytes::ZERO;
    if let (Order::Head, Some(&head)) = (order, sizes.last())
        && head <= budget
        && head.0 > 0
    {
        used = head;
        chosen[sizes.len() - 1] = true;
    }
    if order != Order::First && total > 0 {
        let total = total - u128::from(used.0);
        let share = u128::from((budget - used).0).min(total);
        let mut credit: u128 = 0;
        for (i, size) in sizes.iter().enumerate() {
            if chosen[i] {
                continue;
            }
            // Credit is kept in units of byte * total, so that no fraction is lost.
            credit += u128::from(size.0) * share;
            let price = u128::from(size.0) * total;
            if size.0 > 0 && credit >= price && used + *size <= budget {
                credit -= price;
                used += *size;
                chosen[i] = true;
            }
        }
    }
    for (i, &size) in sizes.iter().enumerate() {
        if size.0 > 0 && !chosen[i] && used + size <= budget {
            used += size;
            chosen[i] = true;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(sizes: &[u64]) -> Vec<Bytes> {
        sizes.iter().map(|&s| Bytes(s)).collect()
    }

    #[test]
    fn spread_leaves_even_gaps() {
        let chosen = choose(&bytes(&[10; 8]), Bytes(20), Order::Spread);
        assert_eq!(chosen, [false, false, false, true, false, false, false, true]);
    }

    #[test]
    fn first_fills_from_the_front_and_skips_what_does_not_fit() {
        let chosen = choose(&bytes(&[10, 30, 10, 10]), Bytes(25), Order::First);
        assert_eq!(chosen, [true, false, true, false]);
    }

    #[test]
    fn the_head_stays_first_where_that_is_asked_for() {
        let sizes = bytes(&[10, 10, 10, 10, 25]);
        assert_eq!(choose(&sizes, Bytes(45), Order::Head), [false, true, false, true, true]);
        assert_eq!(choose(&sizes, Bytes(20), Order::Head), [true, false, false, true, false]);
    }

    #[test]
    fn a_budget_for_everything_takes_everything() {
        for order in [Order::Spread, Order::First, Order::Head] {
            assert!(choose(&bytes(&[7, 11, 13]), Bytes(31), order).iter().all(|&c| c));
        }
    }
}
