//! What came of a probe.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorKind {
    /// Nobody listens there (RST, or ICMP port unreachable).
    Refused,
    /// No answer in time.
    Timeout,
    /// No route, or ICMP host or network unreachable.
    Unreachable,
    /// The connection was reset.
    Reset,
    /// The connection was closed before the answer was whole.
    Closed,
    /// The source address or port is taken or not ours.
    Source,
    /// Not permitted (a firewall rule or program on this machine).
    Denied,
    /// The target's name has no address.
    Resolve,
    /// DNS: no such name.
    NxDomain,
    /// DNS: the name has no record of this type.
    NoData,
    /// DNS: the server failed or refused.
    ServFail,
    /// HTTP: an answer with a status of 400 or more.
    Status,
    /// An answer, but not what was asked for, or not in the protocol's form.
    Mismatch,
    /// The request itself is wrong; nothing was tried.
    Invalid,
    /// Something else; see the message.
    #[serde(other)]
    Other,
}

impl ErrorKind {
    /// The kind of an I/O error.
    pub fn of(error: &io::Error) -> Self {
        use io::ErrorKind as Io;
        match error.kind() {
            Io::ConnectionRefused => Self::Refused,
            Io::TimedOut => Self::Timeout,
            Io::HostUnreachable | Io::NetworkUnreachable | Io::NetworkDown => Self::Unreachable,
            Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe => Self::Reset,
            Io::UnexpectedEof => Self::Closed,
            Io::AddrInUse | Io::AddrNotAvailable => Self::Source,
            Io::PermissionDenied => Self::Denied,
            Io::InvalidData => Self::Mismatch,
            _ => Self::Other,
        }
    }
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempt {
    /// It went as asked.
    pub ok: bool,
    /// When it began, after the probe's start.
    pub at_us: u64,
    /// How long it took.
    pub latency_us: u64,
    /// The address that it was sent from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// The address that answered, as the socket tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
    /// The answer: a line, a datagram, or an HTTP body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// `tcp` with both a greeting and a line sent: the answer to the line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo: Option<String>,
    /// HTTP status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// DNS: the response code, as dig spells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rcode: Option<String>,
    /// DNS: the answer section, as `name type data`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<String>,
    /// DNS: the addresses among the answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorKind>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Latency of the attempts that went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LatencyUs {
    /// The shortest.
    pub min: u64,
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbeResult {
    /// Every attempt went well, and there was at least one.
    pub ok: bool,
    /// Attempts that went well.
    pub good: u32,
    /// Attempts that failed.
    pub failed: u32,
    /// How long all of it took.
    pub duration_us: u64,
    /// Latency of those that went well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<LatencyUs>,
    /// Which pods answered, and how often (answers of `seaway/echo` name their pod).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub answered_by: BTreeMap<String, u32>,
    /// Failures by kind.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<ErrorKind, u32>,
    /// The first failure, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `hold`: how often the connection had to be opened again.
    pub reconnects: u32,
    /// The longest time between two attempts that went well, from the first one on.
    pub longest_gap_us: u64,
    /// The first attempts, at most 1,000, in the order in which they ended.
    pub attempts: Vec<Attempt>,
}

/// Attempts that are kept in full.
pub(super) const ATTEMPTS_KEPT: usize = 1000;

impl ProbeResult {
    /// The result of a probe that did not even begin.
    pub fn not_run(kind: ErrorKind, message: String) -> Self {
        Self { failed: 1, errors: BTreeMap::from([(kind, 1)]), message: Some(message), ..Self::default() }
    }

    /// The kind of the first failure that is kept, else the most frequent one.
    pub fn error(&self) -> Option<ErrorKind> {
        self.attempts
            .iter()
            .find_map(|attempt| attempt.error)
            .or_else(|| self.errors.iter().max_by_key(|(_, count)| **count).map(|(kind, _)| *kind))
    }
}
