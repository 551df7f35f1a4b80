//! Starting a program in a cgroup, from its first instruction on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Makes `command` start in the cgroup (version 2) of a directory. The child moves itself between `fork` and
/// `exec`, so that no packet and no process of it is ever outside.
#[expect(clippy::disallowed_methods, reason = "nothing is changed before the child runs")]
pub fn join_cgroup<'a>(command: &'a mut Command, cgroup: &Path) -> io::Result<&'a mut Command> {
    let mut procs: File = OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"))?;
    // "0" is the writing process itself.
    let hook = move || procs.write_all(b"0");
    // SAFETY: between fork and exec the hook makes one system call on a descriptor opened before, and touches no
    // lock and no heap.
    Ok(unsafe { command.pre_exec(hook) })
}
