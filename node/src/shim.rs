//! The process that holds one pod: pid 1 of the pod's namespaces, parent of its containers. It outlives the agent.
//!
//! `init` is that process; `container` is what it starts for the moment between fork and exec in which a container's
//! root is built, `exec` for a probe from inside.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::namespaces;
use protocol::ContainerSpec;

pub(crate) mod children;
mod init;
pub(crate) mod log;
pub(crate) mod protocol;
mod root;

/// The exit code of a container that could not be started.
const START_FAILED: u8 = 128;

/// The hidden subcommand `pod-shim`; `args` are those after the subcommand's name.
pub fn main(args: &[String]) -> ExitCode {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let failed = match words.as_slice() {
        ["init", directory] => init::run(Path::new(directory)).err().map(|e| e.to_string()),
        ["container"] => Some(container()),
        ["exec", pid] => match exec(pid) {
            Ok(()) => None,
            Err(message) => {
                complain(&message);
                return ExitCode::FAILURE;
            }
        },
        _ => Some("usage: pod-shim init <pod directory>; the node agent starts it".to_owned()),
    };
    let Some(message) = failed else { return ExitCode::SUCCESS };
    complain(&message);
    ExitCode::from(START_FAILED)
}

fn complain(message: &str) {
    use std::io::Write;
    // Nobody is left to tell when even this fails.
    let _ignored = writeln!(io::stderr(), "seaway pod-shim: {message}");
}

/// Builds the container's root and becomes its image. Returns only to say what went wrong.
fn container() -> String {
    let spec = match spec_from_stdin() {
        Ok(spec) => spec,
        Err(message) => return message,
    };
    if let Err(error) = namespaces::own_mounts() {
        return format!("cannot get a mount namespace: {error}");
    }
    if let Err(error) = root::enter(Path::new("rootfs"), &spec) {
        return error.to_string();
    }
    become_image(&spec)
}

/// Enters the running container and probes from there.
fn exec(pid: &str) -> Result<(), String> {
    let spec = spec_from_stdin()?;
    let pid =
        pid.parse().ok().and_then(Pid::from_raw).ok_or_else(|| format!("{pid:?} is not a process id"))?;
    pidfd_open(pid, PidfdFlags::empty())
        .and_then(|fd| move_into_thread_name_spaces(fd.as_fd(), ThreadNameSpaceType::MOUNT))
        .map_err(|error| {
            format!("cannot enter the container of process {}: {error}", pid.as_raw_nonzero())
        })?;
    probe(&spec.args)
}

/// `probe KIND TARGET`: one network probe.
fn probe(args: &[String]) -> Result<(), String> {
    let [_, kind, target] = args else { return Err("usage: /probe KIND TARGET".to_owned()) };
    let request = serde_json::json!({"kind": kind, "target": target});
    let request = serde_json::from_value(request).map_err(|e| format!("/probe {kind} {target}: {e}"))?;
    let result = seaway_images::probe::execute_blocking(request);
    if result.ok { Ok(()) } else { Err(result.message.unwrap_or_else(|| "it failed".to_owned())) }
}

fn spec_from_stdin() -> Result<ContainerSpec, String> {
    let mut text = String::new();
    io::stdin()
        .read_to_string(&mut text)
        .map_err(|e| format!("cannot read the container's description: {e}"))?;
    serde_json::from_str(&text).map_err(|e| format!("cannot read the container's description: {e}"))
}

fn become_image(spec: &ContainerSpec) -> String {
    let mut command = Command::new(root::BINARY);
    command.arg("image").arg(&spec.image).args(&spec.args).env_clear().envs(&spec.env);
    command.current_dir(spec.working_dir.as_deref().unwrap_or(Path::new("/")));
    if let Some(gid) = spec.gid {
        command.gid(gid);
    }
    if let Some(uid) = spec.uid {
        command.uid(uid);
    }
    format!("cannot start the image {}: {}", spec.image, command.exec())
}
