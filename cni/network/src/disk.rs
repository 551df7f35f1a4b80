//! All that changes files goes through here, and clippy sees to that (`cni/clippy.toml`): so there is a place before each
//! change where tests break the work off (`fault`), also before one that somebody adds.
#![allow(clippy::disallowed_methods, reason = "this is the place for them")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
#[cfg(feature = "node")]
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::fault;

/// Makes a directory and those above it, as far as they are missing.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fault::step();
    fs::create_dir_all(path)
}

/// Opens a file to be locked, or written in place, and makes it if it is missing.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    fault::step();
    OpenOptions::new().write(true).create(true).truncate(false).open(path)
}

/// Makes a file that is not there yet.
pub(crate) fn create_new(path: &Path) -> io::Result<()> {
    fault::step();
    OpenOptions::new().write(true).create_new(true).open(path).map(drop)
}

/// Writes bytes at a place of a file, and makes it if it is missing.
pub(crate) fn write_at(path: &Path, bytes: &[u8], place: u64) -> io::Result<()> {
    open(path)?.write_all_at(bytes, place)
}

/// Writes `content` to `new`, which is on the same file system, and puts that in the place of `path` in one step.
pub(crate) fn replace(path: &Path, new: &Path, content: &[u8]) -> io::Result<()> {
    fault::step();
    File::create(new)?.write_all(content)?;
    rename(new, path)
}

/// As [`replace`], for what a power loss may not tear, with permissions.
#[cfg(feature = "node")]
pub(crate) fn replace_for_good(path: &Path, new: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    fault::step();
    let mut file = File::create(new)?;
    file.write_all(content)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_data()?;
    rename(new, path)
}

/// Puts a file in the place of another in one step.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fault::step();
    fs::rename(from, to)
}

/// Gives a file another name. False: it cannot have one there.
#[cfg(feature = "node")]
pub(crate) fn link(file: &Path, name: &Path) -> bool {
    fault::step();
    fs::hard_link(file, name).is_ok()
}

/// Copies a file.
#[cfg(feature = "node")]
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fault::step();
    fs::copy(from, to).map(drop)
}

/// Sets who may do what with a file.
#[cfg(feature = "node")]
pub(crate) fn set_permissions(path: &Path, mode: u32) -> io::Result<()> {
    fault::step();
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Removes a file. `Ok(false)`: there was none.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    fault::step();
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes to a file that is a door to something else, as those of /proc are.
pub(crate) fn tell(path: &Path, value: &str) -> io::Result<()> {
    fault::step();
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}
