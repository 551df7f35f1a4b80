//! The process that holds one pod: pid 1 of the pod's namespaces, parent of its containers. It outlives the agent.

use std::process::ExitCode;

/// The hidden subcommand `pod-shim`; `args` are those after the subcommand's name.
pub fn main(args: &[String]) -> ExitCode {
    let _ = args;
    ExitCode::FAILURE
}
