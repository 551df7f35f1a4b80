//! What DEL leaves for after its answer: deleting links.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use seaway_cni_network::pod::retired::{self, Undertaker};

use crate::error::CniError;

/// The argument that makes the executable delete links instead of being a plugin.
pub(crate) const ARGUMENT: &str = "delete-retired";

/// Deletes links until there are none left that are done with.
pub(crate) fn now(data_dir: &Path) -> Result<(), CniError> {
    Ok(retired::delete_all(data_dir)?)
}

/// Leaves it to the agent, if one is there, or to a process of its own, which the runtime does not wait for.
pub(crate) fn later(data_dir: &Path) -> Result<(), CniError> {
    // That the lock cannot be had at all, too, is for the one to tell that does the work here and now.
    if matches!(Undertaker::appoint(data_dir), Ok(None)) {
        return Ok(());
    }
    let started = Command::new("/proc/self/exe")
        .arg0("seaway-cni")
        .args([ARGUMENT.as_ref(), data_dir.as_os_str()])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    if started.is_ok() { Ok(()) } else { now(data_dir) }
}
