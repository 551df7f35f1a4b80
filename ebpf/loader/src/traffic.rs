//! What is counted per service and backend, in user terms.

use std::net::IpAddr;

use seaway_ebpf_abi as abi;

/// The traffic of a service's backend since it began to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// The service's [`crate::ServiceEntry::id`].
    pub service: u32,
    /// The backend.
    pub backend: (IpAddr, u16),
    /// Connections, and datagrams of unconnected sockets, that were given this backend.
    pub connections: u64,
    /// Packets towards it. Traffic of this node's own sockets is counted in `connections` only.
    pub packets_in: u64,
    /// Their bytes, from the IP header on.
    pub bytes_in: u64,
    /// Packets that it sent.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

impl Traffic {
    pub(crate) fn key(&self) -> abi::StatsKey {
        abi::StatsKey {
            addr: self.backend.0.into(),
            service: self.service,
            port_be: self.backend.1.to_be(),
            pad: 0,
        }
    }

    pub(crate) fn new(key: &abi::StatsKey, per_cpu: &[abi::Stats]) -> Self {
        let sum = |field: fn(&abi::Stats) -> u64| per_cpu.iter().map(field).sum();
        Self {
            service: key.service,
            backend: (key.addr.into(), u16::from_be(key.port_be)),
            connections: sum(|stats| stats.connections),
            packets_in: sum(|stats| stats.packets_in),
            bytes_in: sum(|stats| stats.bytes_in),
            packets_out: sum(|stats| stats.packets_out),
            bytes_out: sum(|stats| stats.bytes_out),
        }
    }
}
