//! Checking what has arrived while the rest is still read.

use std::panic::resume_unwind;
use std::sync::mpsc::channel;
use std::thread::{Builder, scope};

use crate::store::in_memory;

/// Reads `into` from byte `offset` on in pieces, each of which ends where `end` says of its begin, and
/// checks each piece while the next one is read. Both closures are told where a piece begins.
///
/// Of several errors the earliest in the file counts, whatever the threads did: a piece is checked only
/// where all before it were read and were right, so an error of a check stands before one of a read.
/// A single piece needs no second thread; where the system has none to give, checks wait their turn.
pub(crate) fn overlapped<E: Send>(
    offset: u64,
    into: &mut [u8],
    end: impl Fn(u64) -> u64,
    read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    check: impl Fn(u64, &[u8]) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let in_turn = |at, piece: &[u8]| check(at, piece).map(|()| true);
    if end(offset).saturating_sub(offset) >= into.len() as u64 {
        return pieces(offset, into, end, read, in_turn);
    }
    scope(|scope| {
        let (sender, arrived) = channel();
        let checks = || arrived.into_iter().try_for_each(|(at, piece)| check(at, piece));
        let Ok(checking) = Builder::new().spawn_scoped(scope, checks) else {
            return pieces(offset, into, end, read, in_turn);
        };
        // Nobody receives any more where a check failed: there is nothing to read on for.
        let read =
            pieces(offset, into, end, read, |at, piece| Ok(sender.send((at, piece)).is_ok()));
        drop(sender);
        checking.join().unwrap_or_else(|panic| resume_unwind(panic)).and(read)
    })
}

/// Reads piece after piece and hands each on, for as long as `arrived` says so.
fn pieces<'b, E>(
    offset: u64,
    into: &'b mut [u8],
    end: impl Fn(u64) -> u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    mut arrived: impl FnMut(u64, &'b [u8]) -> Result<bool, E>,
) -> Result<(), E> {
    let (mut at, mut rest) = (offset, into);
    while !rest.is_empty() {
        let length = in_memory(end(at).saturating_sub(at)).clamp(1, rest.len());
        let (now, later) = rest.split_at_mut(length);
        read(at, now)?;
        if !arrived(at, now)? {
            break;
        }
        (at, rest) = (at.saturating_add(length as u64), later);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A file in which byte `i` is `i`.
    fn fill(at: u64, into: &mut [u8]) {
        for (byte, value) in into.iter_mut().zip(at..) {
            *byte = value.to_le_bytes()[0];
        }
    }

    proptest! {
        /// Whatever fails, the outcome is that of reading and checking piece by piece.
        #[test]
        fn the_earliest_error_counts(
            offset in 0..300_u64,
            length in 0..200_usize,
            step in 1..80_u64,
            bad_read in prop::option::of(0..500_u64),
            bad_byte in prop::option::of(0..500_u64),
        ) {
            let within = |place: Option<u64>, at: u64, piece: &[u8]| {
                place.is_some_and(|place| (at..at + piece.len() as u64).contains(&place))
            };
            let read = |at: u64, into: &mut [u8]| {
                fill(at, into);
                if within(bad_read, at, into) { Err(("read", at)) } else { Ok(()) }
            };
            let checked = Mutex::new(Vec::new());
            let check = |at: u64, piece: &[u8]| {
                checked.lock().unwrap().push((at, piece.to_vec()));
                if within(bad_byte, at, piece) { Err(("check", at)) } else { Ok(()) }
            };
            // Pieces end at multiples of the step.
            let end = |at: u64| (at / step + 1) * step;
            let mut memory = vec![0; length];
            let found = overlapped(offset, &mut memory, end, read, check);

            let mut expected = Ok(());
            let (mut at, mut pieces) = (offset, Vec::new());
            while at < offset + length as u64 && expected.is_ok() {
                let next = end(at).min(offset + length as u64);
                let mut piece = vec![0; usize::try_from(next - at).unwrap()];
                expected = read(at, &mut piece);
                if expected.is_ok() {
                    expected = if within(bad_byte, at, &piece) { Err(("check", at)) } else { Ok(()) };
                    pieces.push((at, piece));
                }
                at = next;
            }
            prop_assert_eq!(found, expected);
            prop_assert_eq!(checked.into_inner().unwrap(), pieces);
        }
    }

    /// The second read does not return before the first piece's check has begun.
    #[test]
    fn a_piece_is_checked_while_the_next_is_read() {
        let (begun, check_began) = sync_channel(1);
        let read = |at: u64, into: &mut [u8]| {
            fill(at, into);
            let patience = Duration::from_secs(20);
            if at == 10 {
                check_began.recv_timeout(patience).map_err(|_| "no check")
            } else {
                Ok(())
            }
        };
        let check = |at: u64, _: &[u8]| {
            if at == 0 { begun.send(()).map_err(|_| "nobody waits") } else { Ok(()) }
        };
        overlapped(0, &mut [0; 20], |at| at + 10, read, check).unwrap();
    }
}
