//! Network sysctls. Files under /proc/sys/net show the namespace of the thread that opens them: call these within
//! [`super::Namespace::run`] to reach another namespace.

use std::fs;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::disk;

/// A sysctl that could not be read or set.
#[derive(Debug, Error)]
#[error("cannot {action} sysctl {}", path.display())]
pub struct SysctlError {
    /// "read" or "set … to VALUE".
    pub action: String,
    /// Its file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl SysctlError {
    /// There is no such sysctl (the link is gone, or the kernel does not have it).
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Reads `/proc/sys/<key>`; `key` has slashes, since names of links may have dots.
pub fn read(key: &str) -> Result<String, SysctlError> {
    let path = PathBuf::from("/proc/sys").join(key);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(value.trim_end().to_owned()),
        Err(source) => Err(SysctlError { action: "read".to_owned(), path, source }),
    }
}

/// Sets `/proc/sys/<key>`. Where it has the value already nothing is written, so that a read-only /proc/sys with
/// the right values does.
pub fn write(key: &str, value: &str) -> Result<(), SysctlError> {
    let path = PathBuf::from("/proc/sys").join(key);
    match disk::tell(&path, value) {
        Ok(()) => Ok(()),
        Err(_) if read(key).is_ok_and(|held| held == value) => Ok(()),
        Err(source) => Err(SysctlError { action: format!("set to {value}"), path, source }),
    }
}

/// As [`write`], but looks first. Some sysctls of all links reset the links' own ones even when nothing changes.
pub fn ensure(key: &str, value: &str) -> Result<(), SysctlError> {
    if read(key)? == value { Ok(()) } else { write(key, value) }
}
