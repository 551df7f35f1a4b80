//! The words of the data plane: a frontend is an address that clients use, a backend an address where packets end.
//!
//! An Endpoint is in the model, a backend in a data plane; what lies between them is [`crate::desired`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use seaway_model::{Family, Protocol, ServiceKey};
use serde::Serialize;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// A pod or process of this node.
    Internal,
    /// A packet that arrives from outside of the node.
    External,
}

/// What a frontend is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The address that the client uses.
    pub addr: IpAddr,
    /// The port that the client uses.
    pub port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Who asks.
    pub scope: Scope,
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = match self.scope {
            Scope::Internal => "internal",
            Scope::External => "external",
        };
        write!(f, "{}/{} {scope}", SocketAddr::new(self.addr, self.port), self.protocol)
    }
}

/// Where packets of a frontend may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's address.
    pub addr: IpAddr,
    /// The endpoint's own port.
    pub port: u16,
    /// It runs on this node.
    pub local: bool,
}

/// What the kernel is told about a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The Service port that it is an address of.
    pub group: Group,
    /// What kind of address it stands at.
    pub kind: FrontendKind,
    /// The backends, ordered and without copies. None: clients are refused at once.
    pub backends: Arc<[Backend]>,
    /// One client keeps its backend for this long after its last connection.
    pub affinity: Option<Duration>,
    /// Only these sources may enter. Empty: everyone.
    pub source_ranges: Arc<[IpNet]>,
    /// The client's address must reach the backend unchanged (externalTrafficPolicy Local).
    pub preserve_source: bool,
    /// There are no backends here, but there are on other nodes: packets are dropped rather than refused, since
    /// whoever sent them here should try elsewhere.
    pub elsewhere: bool,
    /// Backends are chosen by consistent hashing, so that one that goes moves hardly any client of the others.
    pub maglev: bool,
    /// Backends on other nodes see the clients, and their nodes answer them directly.
    pub dsr: bool,
    /// Backends see the node in the place of its own pods, too.
    pub masquerade: bool,
}

/// A Service port in one family: all its frontends share session affinity and source ranges. The number is a hash
/// of the names, so that every process and every restart gives the same, and nothing has to be remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(u64);

impl Group {
    /// As many bits as a kernel entry has room for. A million Service ports collide once in a million clusters.
    pub const BITS: u32 = 58;

    /// The group of a Service port.
    pub fn of(service: &ServiceKey, port_name: &str, protocol: Protocol, family: Family) -> Self {
        let mut hash = StableHash::default();
        for part in [&*service.namespace, "/", &*service.name, "/", port_name] {
            hash.write(part.as_bytes());
        }
        hash.write(&[protocol.number(), u8::from(family == Family::V6)]);
        Self::from_bits(hash.finish())
    }

    /// The group of which only the low [`Group::BITS`] are known.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << Self::BITS) - 1))
    }

    /// Its number.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// FNV-1a with a final mix: not for secrets, but the same on every machine and in every version.
#[derive(Debug, Clone, Copy)]
pub struct StableHash(u64);

impl Default for StableHash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl StableHash {
    /// Takes `bytes` in.
    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The hash of all that was taken in.
    pub fn finish(self) -> u64 {
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ (mixed >> 33)
    }
}

/// What kind of address a frontend stands at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIP,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIP,
    /// A node's address with `spec.ports[].nodePort`.
    NodePort,
}

/// To whom a frontend belongs. This is for people; the kernel is not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The Service.
    pub service: ServiceKey,
    /// The name of the Service port.
    pub port_name: Arc<str>,
}
