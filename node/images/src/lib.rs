//! The container images that the binary carries itself, so that a cluster has something to run on a machine with no
//! container runtime and no registry: an echo server that says which pod answered, a client that probes the network
//! from where it stands, and a pause. [`probe`] is the network probe by itself; `seaway check` runs it from nodes and
//! from outside of the cluster too.

mod arguments;
mod client;
mod echo;
mod http;
mod identity;
mod image;
mod pause;
pub mod probe;
mod process;

use std::io::Write as _;
use std::process::ExitCode;

pub use image::{Image, is_builtin};

/// Runs the process of the built-in image `image` until it ends; blocks. `args` are the container's arguments,
/// without the program's name.
///
/// A mistake in `args` gives exit code 2 and a line on stderr, a name that is no built-in image 127, as shells do.
pub fn run(image: &str, args: &[String]) -> ExitCode {
    let ended = match Image::parse(image) {
        Some(Image::Echo) => echo::run(args),
        Some(Image::Client) => client::run(args),
        Some(Image::Pause) => pause::run(),
        None => {
            complain(&format!(
                "{image:?} is no built-in image: want seaway/echo, seaway/client or seaway/pause"
            ));
            return ExitCode::from(127);
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{image}: {}", process::chain(&error)));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Writes a line to stderr, whether or not anybody reads it.
fn complain(line: &str) {
    writeln!(std::io::stderr(), "{line}").ok();
}
