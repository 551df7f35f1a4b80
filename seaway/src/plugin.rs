//! The CNI plugin that this binary carries.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Empty in builds that are their own plugin.
const PLUGIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/seaway-cni"));

/// Puts the plugin into `directory`, in one step, unless it is there, and returns its place. None: there is none to be
/// put anywhere.
pub fn unpack(directory: &Path) -> Result<Option<PathBuf>> {
    if PLUGIN.is_empty() {
        return Ok(None);
    }
    let path = directory.join("seaway-cni");
    if fs::read(&path).is_ok_and(|held| held == PLUGIN) {
        return Ok(Some(path));
    }
    let new = directory.join(".seaway-cni.new");
    let written = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut file = File::create(&new)?;
        file.write_all(PLUGIN)?;
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        fs::rename(&new, &path)
    };
    written().with_context(|| format!("cannot write the CNI plugin to {}", path.display()))?;
    Ok(Some(path))
}
