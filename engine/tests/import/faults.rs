//! Damage and interruption: always noticed, never anything left behind.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use pipo_engine::arithmetic::Arithmetic;
use pipo_engine::import::{Import, Source, import_through};
use pipo_engine::store::{BLOCK, DATA, Header, Origin, Store, StoreError, TABLE, Writer};
use pipo_plan::model::{Model, Precision, catalog};
use tempfile::TempDir;

use crate::checkpoint::small;
use crate::support::{listed, resealed, run, target, written};

fn store() -> TempDir {
    let folder = written(&small("opt", "F32", true), 1);
    run(&folder, Precision::Int4).unwrap();
    folder
}

fn check(folder: &TempDir) -> Result<(), StoreError> {
    Store::open(&target(folder))?.verify()
}

#[test]
fn every_flipped_bit_of_the_table_is_noticed() {
    let folder = store();
    let path = target(&folder).join(TABLE);
    let good = fs::read(&path).unwrap();
    // Every byte, and one bit of it each: the eight bits take turns. The line break at the end is
    // not part of what the table says.
    for at in 0..good.len() - 1 {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        let error = Store::open(&target(&folder)).expect_err("a flipped bit was believed");
        assert!(error.to_string().contains(TABLE), "byte {at}: {error}");
    }
    fs::write(&path, &good).unwrap();
    check(&folder).unwrap();
}

#[test]
fn an_edited_table_is_shown_where_it_is_wrong() {
    let folder = store();
    let path = target(&folder).join(TABLE);
    let table = fs::read_to_string(&path).unwrap();
    for (from, to, words) in [
        ("\"version\":1", "\"version\":2", [":2:", "`version` is 2, 1 is expected"]),
        ("\"hidden\":72", "\"hidden\":73", [":3:", "`checksum` is"]),
        ("\"offset\":0", "\"offset\":-1", [":11:", "invalid value"]),
        ("\"length\":", "\"length\":1152921504606846976,\"x\":", [":7:", "unknown field `x`"]),
    ] {
        assert!(table.contains(from));
        fs::write(&path, table.replacen(from, to, 1)).unwrap();
        let error = Store::open(&target(&folder)).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    }
}

/// The checksum finds accidents; whoever writes a table on purpose computes it.
#[test]
fn a_table_that_lies_with_the_right_checksum_is_refused() {
    let folder = store();
    let path = target(&folder).join(TABLE);
    let table = fs::read_to_string(&path).unwrap();
    assert_eq!(resealed(&table), table);
    let attention = table.lines().find(|line| line.contains("part\":\"attention")).unwrap();
    let offset = attention.split(',').find(|field| field.contains("offset")).unwrap();
    let beyond = 1_u64 << 60;
    for (from, to, words) in [
        // Overlapping the embedding, beside the alignment, beyond the file, beyond belief.
        (offset, "\"offset\":0".into(), ["layer 0 attention", "at 0, "]),
        (offset, "\"offset\":12289".into(), ["layer 0 attention", "at 12289, "]),
        (offset, format!("\"offset\":{beyond}"), ["layer 0 attention", "1152921504606846976"]),
        ("\"length\":", format!("\"length\":{beyond},\n\"l\":"), ["unknown field", "`l`"]),
        ("\"block\":4194304", format!("\"block\":{beyond}"), ["`block` is", "4194304"]),
        ("\"layers\":2", "\"layers\":4294967295".into(), ["`layers` is 4294967295", "10000"]),
        ("\"layers\":2", "\"layers\":3".into(), ["`length` is", "is expected"]),
        ("\"ffn\":100", "\"ffn\":101".into(), ["the run `layer 0 mlp`", "the model says"]),
        ("\"tied\":true,", String::new(), ["the run `head`", "tied"]),
        ("\"blocks\":[", "\"blocks\":[1,".into(), ["the run `embedding`", "2 blocks"]),
    ] {
        assert!(table.contains(from), "{from}");
        fs::write(&path, resealed(&table.replacen(from, &to, 1))).unwrap();
        let error = Store::open(&target(&folder)).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    }
}

#[test]
fn every_flipped_bit_of_a_run_is_noticed_and_named() {
    let folder = store();
    let path = target(&folder).join(DATA);
    let good = fs::read(&path).unwrap();
    let layout = Store::open(&target(&folder)).unwrap().layout().clone();
    for place in layout.places() {
        let range = layout.range(place).unwrap();
        for at in [range.start, range.start.midpoint(range.end), range.end - 1] {
            let mut bad = good.clone();
            bad[usize::try_from(at).unwrap()] ^= 1 << (at % 8);
            fs::write(&path, &bad).unwrap();
            let error = check(&folder).unwrap_err().to_string();
            assert!(error.contains(&format!("block 0 of the run `{place}`")), "{error}");
        }
    }
}

#[test]
fn a_truncated_or_longer_or_missing_file_is_noticed() {
    for (file, word) in [(DATA, "weights.bin"), (TABLE, "store.json")] {
        for change in [-1_i64, 1, -100, i64::MIN] {
            let folder = store();
            let path = target(&folder).join(file);
            let mut bytes = fs::read(&path).unwrap();
            let length = i64::try_from(bytes.len()).unwrap().saturating_add(change).max(0);
            bytes.resize(usize::try_from(length).unwrap(), b'x');
            fs::write(&path, bytes).unwrap();
            // The table ends in a line break, which may go.
            if (file, change) == (TABLE, -1) {
                check(&folder).unwrap();
            } else {
                assert!(check(&folder).unwrap_err().to_string().contains(word));
            }
            fs::remove_file(path).unwrap();
            assert!(check(&folder).unwrap_err().to_string().contains(word));
        }
    }
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_a_named_block() {
    let folder = store();
    let store = Store::open(&target(&folder)).unwrap();
    File::options().write(true).open(store.data_path()).unwrap().set_len(10).unwrap();
    let error = store.verify().unwrap_err().to_string();
    assert!(error.contains("block 0 of the run `embedding`"), "{error}");
}

/// A disk with room for so many bytes.
struct Full {
    file: File,
    room: usize,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let written = self.file.write(&bytes[..bytes.len().min(self.room)])?;
        self.room -= written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let folder = written(&small("mixtral", "F32", false), 1);
    let (source, target) = (folder.path().join("tiny"), target(&folder));
    let request =
        Import { source: Source::Checkpoint(&source), precision: Precision::Int8, target: &target };
    for room in [0, 1, 4096, 50_000] {
        let full = |file| -> Box<dyn Write> { Box::new(Full { file, room }) };
        let error = import_through(&request, &mut |_| (), full).unwrap_err().to_string();
        assert!(error.contains("weights.bin") && error.contains("free some space"), "{error}");
        assert_eq!(listed(folder.path()), ["tiny"]);
    }
}

#[test]
fn what_a_killed_import_left_is_removed_by_the_next() {
    let folder = written(&small("llama", "F32", false), 1);
    let abandoned = folder.path().join(".store.importing");
    fs::create_dir(&abandoned).unwrap();
    fs::write(abandoned.join(DATA), "half of the weights").unwrap();
    run(&folder, Precision::Int4).unwrap();
    assert_eq!(listed(folder.path()), ["store", "tiny"]);
    check(&folder).unwrap();
}

#[test]
fn a_folder_of_that_name_with_something_else_in_it_is_left_alone() {
    let folder = written(&small("llama", "F32", false), 1);
    let strange = folder.path().join(".store.importing");
    fs::create_dir(&strange).unwrap();
    fs::write(strange.join("thesis.tex"), "years of work").unwrap();
    let error = run(&folder, Precision::Int4).unwrap_err().to_string();
    assert!(error.contains("thesis.tex"), "{error}");
    assert_eq!(listed(&strange), ["thesis.tex"]);
}

fn header(model: &str) -> Header {
    let model: Model = catalog::find(model).unwrap();
    let arithmetic = Arithmetic::default_of(model.family);
    Header { model, arithmetic, precision: Precision::Int4, origin: Origin::Random { seed: 1 } }
}

#[test]
fn two_imports_of_one_store_do_not_mix() {
    let folder = TempDir::new().unwrap();
    let first = Writer::create(&target(&folder), header("opt-125m")).unwrap();
    let second = Writer::create(&target(&folder), header("opt-125m")).unwrap_err();
    assert!(matches!(second, StoreError::Busy { .. }), "{second}");
    drop(first);
    assert!(listed(folder.path()).is_empty());
    Writer::create(&target(&folder), header("opt-125m")).unwrap();
}

#[test]
fn what_is_there_is_never_overwritten() {
    let folder = store();
    let before = fs::read(target(&folder).join(TABLE)).unwrap();
    let error = run(&folder, Precision::Int8).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(fs::read(target(&folder).join(TABLE)).unwrap(), before);
    for (name, word) in [("/", "/"), ("..", ".."), ("nowhere/store", "nowhere/")] {
        let error = Writer::create(Path::new(name), header("opt-125m")).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_writer_wants_exactly_the_bytes_of_the_layout() {
    let folder = TempDir::new().unwrap();
    let mut writer = Writer::create(&target(&folder), header("opt-125m")).unwrap();
    writer.write(&[0; 1000]).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("1000 bytes"), "{error}");
    let mut writer = Writer::create(&target(&folder), header("opt-125m")).unwrap();
    let piece = vec![0; usize::try_from(BLOCK).unwrap()];
    let error = (0..100).find_map(|_| writer.write(&piece).err()).unwrap();
    assert!(matches!(error, StoreError::Incomplete { .. }), "{error}");
    drop(writer);
    assert!(listed(folder.path()).is_empty());
}

#[test]
fn a_store_beyond_belief_is_refused_before_anything_is_written() {
    let folder = TempDir::new().unwrap();
    let mut header = header("opt-175b");
    (header.model.layers, header.precision) = (9000, Precision::Fp16);
    let error = Writer::create(&target(&folder), header.clone()).unwrap_err().to_string();
    assert!(error.contains("blocks"), "{error}");
    // 19 TB.
    header.model.layers = 5000;
    let error = Writer::create(&target(&folder), header.clone()).unwrap_err();
    assert!(matches!(error, StoreError::NoRoom { .. }), "{error}");
    for word in ["store takes 18.", "is free on its disk", "name another disk"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    header.model.layers = u32::MAX;
    let error = Writer::create(&target(&folder), header).unwrap_err().to_string();
    assert!(error.contains(&u32::MAX.to_string()), "{error}");
    assert!(listed(folder.path()).is_empty());
}
