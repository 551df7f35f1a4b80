//! The CNI plugin: environment and stdin in, JSON and an exit code out, as the CNI specification 1.1 has it.
//!
//! It is executed for every verb on every pod, so it does its work directly: there is no daemon to ask, no runtime
//! to start, and no log to open. What it knows is in the environment, in the configuration on stdin, in the files of
//! [`seaway_cni_network::ipam`], and in the kernel.
//!
//! One module per verb; [`call`] is the way through all of them, and has no global state, so that tests can call it.

mod add;
mod attachment;
mod bury;
mod capability;
mod check;
mod config;
mod del;
mod env;
mod error;
mod gc;
mod result;
mod status;
mod version;

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

pub use env::{Command, Environment};
pub use error::{CniError, Code};

/// The most that is read from stdin. A network configuration has a few kilobytes.
const MAX_STDIN: u64 = 4 << 20;

/// What `seaway-cni` does when it is executed.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(answer_panic));
    let mut arguments = std::env::args_os().skip(1);
    if let (Some(bury::ARGUMENT), Some(data_dir)) =
        (arguments.next().as_deref().and_then(std::ffi::OsStr::to_str), arguments.next())
    {
        return if bury::now(Path::new(&data_dir)).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let environment = Environment::from_process();
    if environment.command.is_none() {
        eprintln!("seaway-cni {}: CNI plugin of Seaway", env!("CARGO_PKG_VERSION"));
        eprintln!("CNI protocol versions supported: {}", version::SUPPORTED.join(", "));
        return ExitCode::SUCCESS;
    }
    // Who asks for the version may give nothing, and leave the pipe open.
    let given = environment.command.as_deref() != Some(Command::Version.as_str()) || is_readable();
    let stdin = if given { read_stdin() } else { Ok(Vec::new()) };
    let (output, succeeded) = match stdin.and_then(|stdin| carry_out(&environment, &stdin, &bury::later)) {
        Ok(output) => (output, true),
        Err(error) => (Some(error.to_json()), false),
    };
    let written = output.is_none_or(|output| {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{output}").and_then(|()| stdout.flush()).is_ok()
    });
    if succeeded && written { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A mistake of ours is an answer, too. Nothing comes after it: whoever called reads one.
fn answer_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let error = CniError::new(Code::Internal, format!("a mistake in the plugin: {panic}"));
    println!("{}", error.to_json());
    std::process::exit(1);
}

/// Whether something comes from stdin, or its end, within a moment.
fn is_readable() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    let stdin = std::io::stdin();
    poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&MOMENT)).is_ok_and(|ready| ready > 0)
}

fn read_stdin() -> Result<Vec<u8>, CniError> {
    let mut stdin = std::io::stdin().lock();
    let mut bytes = Vec::new();
    if stdin.is_terminal() {
        return Ok(bytes);
    }
    stdin.by_ref().take(MAX_STDIN + 1).read_to_end(&mut bytes).map_err(|error| {
        CniError::new(Code::Io, "cannot read the configuration from stdin").because(&error)
    })?;
    if bytes.len() as u64 > MAX_STDIN {
        return Err(CniError::new(
            Code::Decoding,
            format!("the configuration on stdin is longer than {MAX_STDIN} bytes"),
        ));
    }
    Ok(bytes)
}

/// Carries out one call. `Ok(Some(…))` goes to stdout. Nothing is left for after the answer, as the executable does.
pub fn call(environment: &Environment, stdin: &[u8]) -> Result<Option<Value>, CniError> {
    carry_out(environment, stdin, &bury::now)
}

fn carry_out(
    environment: &Environment,
    stdin: &[u8],
    bury: &dyn Fn(&Path) -> Result<(), CniError>,
) -> Result<Option<Value>, CniError> {
    let command = environment.validate()?;
    if command == Command::Version {
        return Ok(Some(version::answer(stdin)));
    }
    let mut config = config::Config::parse_for(command, stdin)?;
    let version = config.version;
    if command == Command::Add {
        config.ask_for(environment).map_err(|error| error.at_version(version))?;
    }
    dispatch(command, environment, &config, bury).map_err(|error| error.at_version(version))
}

fn dispatch(
    command: Command,
    environment: &Environment,
    config: &config::Config,
    bury: &dyn Fn(&Path) -> Result<(), CniError>,
) -> Result<Option<Value>, CniError> {
    version::require(command, config.version)?;
    match command {
        Command::Add => add::add(environment, config).map(Some),
        Command::Del => del::del(environment, config, bury).map(|()| None),
        Command::Check => check::check(environment, config).map(|()| None),
        Command::Status => status::status(config).map(|()| None),
        Command::Gc => gc::gc(config).map(|()| None),
        Command::Version => Ok(Some(json!({}))),
    }
}
