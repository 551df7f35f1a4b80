//! The tables of a kernel, and the programs that read and write them.

use std::io::{self, Write as _};
use std::ops::RangeInclusive;
use std::process::{Command, Output, Stdio};

use seaway_model::{Family, Protocol};
use seaway_nft::conntrack::{self, Flow};

use super::rule::Table;
use crate::dataplane::DataplaneError;

/// How long to wait for the lock of the tables.
const LOCK_WAIT_S: &str = "5";

/// Tables that can be read and written.
pub trait Tables: Send {
    /// The tables `nat` and `filter` as `iptables-save -c` prints them.
    fn save(&mut self, family: Family) -> Result<String, DataplaneError>;

    /// What `iptables-restore --noflush` does.
    fn restore(&mut self, family: Family, input: &str) -> Result<(), DataplaneError>;

    /// Sets a kernel parameter; `name` as below `/proc/sys`.
    fn set_sysctl(&mut self, name: &'static str, value: &str) -> Result<(), DataplaneError>;

    /// The UDP flows that connection tracking knows.
    fn udp_flows(&mut self, family: Family) -> Result<Vec<Flow>, DataplaneError>;

    /// Ends one of them. Returns whether it was still there.
    fn forget(&mut self, flow: &Flow) -> Result<bool, DataplaneError>;

    /// The ports that source NAT may take.
    fn snat_ports(&self) -> RangeInclusive<u16>;
}

/// The tables of the network namespace of the calling thread, through the programs of the package iptables. Which
/// kernel interface is behind them, the legacy one or nf_tables, is the administrator's choice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Commands;

/// The programs are there.
pub(super) fn installed() -> bool {
    Command::new("iptables-save")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

impl Tables for Commands {
    fn save(&mut self, family: Family) -> Result<String, DataplaneError> {
        let program = program(family, "save");
        let mut text = String::new();
        for table in Table::ALL {
            let output =
                Command::new(&program).args(["-c", "-t", table.name()]).stdin(Stdio::null()).output();
            let output = checked(&program, output)?;
            text.push_str(&String::from_utf8_lossy(&output.stdout));
        }
        Ok(text)
    }

    fn restore(&mut self, family: Family, input: &str) -> Result<(), DataplaneError> {
        let program = program(family, "restore");
        let output = run(&program, &["-w", LOCK_WAIT_S, "--noflush"], input);
        checked(&program, output).map(|_| ())
    }

    fn set_sysctl(&mut self, name: &'static str, value: &str) -> Result<(), DataplaneError> {
        let path = format!("/proc/sys/{name}");
        if std::fs::read_to_string(&path).is_ok_and(|held| held.trim() == value) {
            return Ok(());
        }
        std::fs::write(&path, value).map_err(|source| DataplaneError::Io {
            action: format!("cannot write {value} to {path}"),
            source,
        })
    }

    fn udp_flows(&mut self, family: Family) -> Result<Vec<Flow>, DataplaneError> {
        let family = match family {
            Family::V4 => seaway_nft::Family::Ip,
            Family::V6 => seaway_nft::Family::Ip6,
        };
        conntrack::flows(Some(family), Protocol::Udp.number()).map_err(tracking("cannot list UDP flows"))
    }

    fn forget(&mut self, flow: &Flow) -> Result<bool, DataplaneError> {
        conntrack::forget(flow).map_err(tracking("cannot forget a UDP flow"))
    }

    fn snat_ports(&self) -> RangeInclusive<u16> {
        crate::dataplane::tracked_snat_ports()
    }
}

fn tracking(action: &'static str) -> impl Fn(seaway_nft::NftError) -> DataplaneError {
    move |source| DataplaneError::Loader { action, source: Box::new(source) }
}

fn program(family: Family, verb: &str) -> String {
    match family {
        Family::V4 => format!("iptables-{verb}"),
        Family::V6 => format!("ip6tables-{verb}"),
    }
}

fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut command = Command::new(program);
    let piped = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn()?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    // A program that fails early closes its input; why it failed says more than that it did.
    if output.status.success() {
        written?;
    }
    Ok(output)
}

fn checked(program: &str, output: io::Result<Output>) -> Result<Output, DataplaneError> {
    let failed = |source| DataplaneError::Io { action: format!("{program} failed"), source };
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
    Err(failed(io::Error::other(format!("{}: {}", output.status, lines.join(" / ")))))
}
