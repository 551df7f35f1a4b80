//! What a probe shall do.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The kind of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Opens a TCP connection; reads a greeting and exchanges a line where asked to.
    Tcp,
    /// Sends a datagram and waits for the answer.
    Udp,
    /// Sends an HTTP/1.1 request and reads the answer.
    Http,
    /// Asks a DNS server.
    Dns,
    /// Keeps one TCP connection to an echo server open and exchanges a line every `interval_ms`; connects again
    /// when it breaks. For disruption tests.
    Hold,
}

/// A probe. Only `kind` and `target` are needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of a flat wire format")]
pub struct ProbeRequest {
    /// The kind.
    pub kind: Kind,
    /// `tcp`, `udp`, `hold`: `host:port`. `http`: the URL. `dns`: the name.
    pub target: String,
    /// How many attempts; for `hold`, how many exchanges.
    #[serde(default = "one")]
    pub count: u32,
    /// How many attempts may be under way at once.
    #[serde(default = "one")]
    pub parallel: u32,
    /// The longest that one attempt may take, its retries included.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// The time between the starts of two attempts (per parallel line).
    #[serde(default)]
    pub interval_ms: u64,
    /// The address to send from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The port to send from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// `tcp`, `http`: one connection for all attempts of a parallel line; `udp`: one socket.
    #[serde(default)]
    pub keep_alive: bool,
    /// `tcp`: the server speaks first; read its line.
    #[serde(default)]
    pub greeting: bool,
    /// `tcp`, `hold`: a line to send, whose answer is read; `udp`: the datagram (default `probe`); `http`: the body of
    /// a POST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// `udp`, `dns` over UDP: how often the question is sent again within `timeout_ms`.
    #[serde(default)]
    pub retries: u32,
    /// `udp`: send from a socket that is not connected, and check that the answer comes from the address asked.
    #[serde(default)]
    pub unconnected: bool,
    /// `http`: the Host header, where it differs from the URL's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// `dns`: the record type (default A).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_type: Option<String>,
    /// `dns`: the server; default is the first of `/etc/resolv.conf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<SocketAddr>,
    /// `dns`: over TCP.
    #[serde(default)]
    pub tcp: bool,
    /// `dns`: apply the search path and `ndots` of `/etc/resolv.conf`.
    #[serde(default)]
    pub search: bool,
}

impl ProbeRequest {
    /// A probe of `kind` against `target`, everything else as by default.
    pub fn new(kind: Kind, target: impl Into<String>) -> Self {
        Self {
            kind,
            target: target.into(),
            count: one(),
            parallel: one(),
            timeout_ms: default_timeout_ms(),
            interval_ms: 0,
            source: None,
            source_port: None,
            keep_alive: false,
            greeting: false,
            send: None,
            retries: 0,
            unconnected: false,
            host: None,
            record_type: None,
            server: None,
            tcp: false,
            search: false,
        }
    }

    /// What is wrong with the request as such, if anything.
    pub(crate) fn mistake(&self) -> Option<String> {
        const PARALLEL_MAX: u32 = 1024;
        const COUNT_MAX: u32 = 10_000_000;
        if self.target.is_empty() {
            return Some("target: is empty".to_owned());
        }
        if self.parallel == 0 || self.parallel > PARALLEL_MAX {
            return Some(format!("parallel: {} is not within 1..={PARALLEL_MAX}", self.parallel));
        }
        if self.count == 0 || self.count > COUNT_MAX {
            return Some(format!("count: {} is not within 1..={COUNT_MAX}", self.count));
        }
        if self.timeout_ms == 0 {
            return Some("timeout_ms: 0 leaves no time at all".to_owned());
        }
        None
    }
}

fn one() -> u32 {
    1
}

fn default_timeout_ms() -> u64 {
    2000
}
