//! Mutated files: never a panic, never a belief that was not earned, never an allocation that the
//! file's own length does not justify.

use std::fs;
use std::sync::LazyLock;

use pipo_engine::import::{LONGEST_HEADER, read_header};
use pipo_engine::store::{DATA, Store, TABLE};
use pipo_plan::model::Precision;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::checkpoint::{safetensors, small};
use crate::support::{resealed, run, target, written};

/// One change of a text: bytes replaced, removed, repeated, or a number made another.
#[derive(Debug, Clone)]
enum Mutation {
    Replace(prop::sample::Index, u8),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    Cut(prop::sample::Index),
    Number(prop::sample::Index, u64),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    let number = prop_oneof![
        any::<u64>(),
        0..200_u64,
        Just(1 << 60),
        Just(u64::MAX),
        Just(1 << 32),
        Just(0),
    ];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Replace(at, byte)),
        (at(), 1..40_usize).prop_map(|(at, count)| Mutation::Remove(at, count)),
        (at(), 1..40_usize).prop_map(|(at, count)| Mutation::Repeat(at, count)),
        at().prop_map(Mutation::Cut),
        (at(), number).prop_map(|(at, number)| Mutation::Number(at, number)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    if bytes.is_empty() {
        return;
    }
    match mutation {
        Mutation::Replace(at, byte) => *at.get_mut(bytes) = *byte,
        Mutation::Remove(at, count) => {
            let at = at.index(bytes.len());
            bytes.drain(at..bytes.len().min(at + count));
        }
        Mutation::Repeat(at, count) => {
            let at = at.index(bytes.len());
            let piece = bytes[at..bytes.len().min(at + count)].to_vec();
            bytes.splice(at..at, piece);
        }
        Mutation::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Mutation::Number(at, number) => {
            let at = at.index(bytes.len());
            let from = bytes[at..].iter().position(u8::is_ascii_digit).map_or(at, |n| at + n);
            let digits = bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
            bytes.splice(from..from + digits, number.to_string().into_bytes());
        }
    }
}

fn mutate_all(bytes: &mut Vec<u8>, mutations: &[Mutation]) {
    for mutation in mutations {
        mutate(bytes, mutation);
    }
}

static SAFETENSORS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let checkpoint = small("qwen3", "F16", false);
    safetensors(&checkpoint.tensors.iter().collect::<Vec<_>>(), "F16")
});

/// A store on disk and its table.
static STORE: LazyLock<(TempDir, Vec<u8>)> = LazyLock::new(|| {
    let folder = written(&small("mixtral", "F32", false), 1);
    run(&folder, Precision::Int8).unwrap();
    let table = fs::read(target(&folder).join(TABLE)).unwrap();
    (folder, table)
});

proptest! {
    #[test]
    fn a_mutated_header_is_refused_or_describes_the_file(
        mutations in prop::collection::vec(mutation(), 1..4),
        keep_length in any::<bool>(),
    ) {
        let whole = &*SAFETENSORS;
        let header = usize::try_from(u64::from_le_bytes(whole[..8].try_into().unwrap())).unwrap();
        let mut text = whole[8..8 + header].to_vec();
        let mut bytes = if keep_length {
            // The JSON changes and the length in front with it.
            mutate_all(&mut text, &mutations);
            let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend(&text);
            bytes
        } else {
            whole[..8 + header].to_vec()
        };
        bytes.extend(&whole[8 + header..]);
        if !keep_length {
            mutate_all(&mut bytes, &mutations);
        }
        let length = bytes.len() as u64;
        if let Ok(entries) = read_header(&bytes[..], length, LONGEST_HEADER) {
            let mut order: Vec<_> = entries.values().collect();
            order.sort_by_key(|entry| (entry.bytes.start, entry.bytes.end));
            let mut end = 8;
            for entry in order {
                prop_assert!(entry.bytes.start <= entry.bytes.end && entry.bytes.end <= length);
                if !entry.bytes.is_empty() {
                    prop_assert!(entry.bytes.start >= end, "tensors overlap");
                    end = entry.bytes.end;
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_a_header_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_header(&bytes[..], bytes.len() as u64, LONGEST_HEADER);
        // The same bytes behind a length that fits.
        let mut framed = (bytes.len() as u64).to_le_bytes().to_vec();
        framed.extend(&bytes);
        let _ = read_header(&framed[..], framed.len() as u64, LONGEST_HEADER);
    }

    #[test]
    fn a_mutated_table_is_refused_unless_it_says_the_same(
        mutations in prop::collection::vec(mutation(), 1..4),
        reseal in any::<bool>(),
    ) {
        let (folder, good) = &*STORE;
        let mut text = good.clone();
        mutate_all(&mut text, &mutations);
        if reseal {
            text = resealed(&String::from_utf8_lossy(&text)).into_bytes();
        }
        let scratch = TempDir::new().unwrap();
        fs::write(scratch.path().join(TABLE), &text).unwrap();
        fs::hard_link(target(folder).join(DATA), scratch.path().join(DATA)).unwrap();
        if let Ok(store) = Store::open(scratch.path()) {
            let original = Store::open(&target(folder)).unwrap();
            // Whoever means harm may call the model another name and claim other checksums, no more.
            let lengths = |store: &Store| {
                store.layout().places().map(|place| store.layout().range(place)).collect::<Vec<_>>()
            };
            prop_assert_eq!(lengths(&store), lengths(&original));
            if !reseal {
                prop_assert_eq!(store.layout(), original.layout());
                prop_assert!(store.verify().is_ok());
            }
        }
    }
}
