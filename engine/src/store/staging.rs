//! A store in the making: a folder beside the target, renamed when it is whole.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use pipo_plan::units::Bytes;

use super::{DATA, StoreError, TABLE, TOKENIZER};
use crate::disk::free_space;

/// Every file that an import writes under a name.
const FILES: [&str; 3] = [DATA, TABLE, TOKENIZER];

/// The folder `.NAME.importing` beside the target `NAME`.
///
/// Dropped without [`Staging::publish`], it is removed. A process that was killed leaves it behind;
/// the next one that writes the same target finds it by its name and removes it. The data file is
/// locked while its writer lives, so that a folder in use is not mistaken for an abandoned one.
#[derive(Debug)]
pub(super) struct Staging {
    folder: PathBuf,
    parent: PathBuf,
    target: PathBuf,
    data: File,
    published: bool,
}

impl Staging {
    /// Fails before anything is written where the disk has no room for `bytes`.
    pub(super) fn create(target: &Path, bytes: Bytes) -> Result<Self, StoreError> {
        let Some(name) = target.file_name() else {
            return Err(StoreError::BadTarget { path: target.to_owned() });
        };
        if target.symlink_metadata().is_ok() {
            return Err(StoreError::Exists { path: target.to_owned() });
        }
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).to_owned();
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".importing");
        let folder = parent.join(hidden);

        remove_abandoned(&folder)?;
        // Where a file system does not say what is free, writing will.
        if let Ok(free) = free_space(&parent)
            && free < bytes
        {
            return Err(StoreError::NoRoom { path: target.to_owned(), needed: bytes, free });
        }
        fs::create_dir(&folder).map_err(StoreError::io("create the folder", &folder))?;
        let data = create_locked(&folder).inspect_err(|_| {
            let _ = remove(&folder);
        })?;
        Ok(Self { folder, parent, target: target.to_owned(), data, published: false })
    }

    /// The data file, for writing.
    pub(super) fn data(&self) -> Result<File, StoreError> {
        self.data.try_clone().map_err(StoreError::io("open", &self.folder.join(DATA)))
    }

    /// Where the data file lies for now, for errors.
    pub(super) fn data_path(&self) -> PathBuf {
        self.folder.join(DATA)
    }

    /// The folder, for files that only the writing needs.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a small file whole, and waits until it is on the disk.
    pub(super) fn attach(&self, name: &'static str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.folder.join(name);
        fs::write(&path, bytes).map_err(StoreError::io("write", &path))?;
        sync(&path)
    }

    /// Writes the table, waits until all of it is on the disk, and gives the folder its name.
    pub(super) fn publish(mut self, table: &str) -> Result<(), StoreError> {
        self.attach(TABLE, table.as_bytes())?;
        self.data.sync_all().map_err(StoreError::io("write", &self.data_path()))?;
        let _ = sync(&self.folder);
        if self.target.symlink_metadata().is_ok() {
            return Err(StoreError::Exists { path: self.target.clone() });
        }
        fs::rename(&self.folder, &self.target).map_err(StoreError::io("create", &self.target))?;
        self.published = true;
        // The store is whole. A power cut could now only lose its name, and some file systems cannot
        // sync a folder.
        let _ = sync(&self.parent);
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            // Where this fails, the next import tries again.
            let _ = remove(&self.folder);
        }
    }
}

fn create_locked(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join(DATA);
    let data = File::create_new(&path).map_err(StoreError::io("create", &path))?;
    // A file system without locks only loses the warning about a second import.
    let _ = data.try_lock();
    Ok(data)
}

/// Removes what a killed import left; refuses a folder that is in use or that no import made.
fn remove_abandoned(folder: &Path) -> Result<(), StoreError> {
    let Ok(metadata) = folder.symlink_metadata() else { return Ok(()) };
    let failed = || StoreError::io("remove the abandoned import", folder);
    let path = folder.to_owned();
    if !metadata.is_dir() {
        return Err(StoreError::NotOurs { path, entry: "a file of that name".into() });
    }
    for entry in fs::read_dir(folder).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        if !FILES.iter().any(|file| name == *file) {
            return Err(StoreError::NotOurs { path, entry: name.to_string_lossy().into_owned() });
        }
    }
    if let Ok(data) = File::open(folder.join(DATA))
        && matches!(data.try_lock(), Err(TryLockError::WouldBlock))
    {
        return Err(StoreError::Busy { path });
    }
    remove(folder).map_err(failed())
}

/// Removes the files an import writes, and the folder if that was all.
fn remove(folder: &Path) -> std::io::Result<()> {
    for name in FILES {
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::remove_dir(folder)
}

fn sync(path: &Path) -> Result<(), StoreError> {
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    file.sync_all().map_err(StoreError::io("write", path))
}
