//! What is counted per service and backend.

use crate::Addr;

/// A backend of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StatsKey {
    /// The backend's address.
    pub addr: Addr,
    /// [`crate::Service::id`].
    pub service: u32,
    /// The backend's port, network byte order.
    pub port_be: u16,
    /// Zero.
    pub pad: u16,
}

/// What it was sent and what it sent, on one CPU. Traffic that is translated at the socket shows in `connections`
/// only: nobody looks at its packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections and unconnected datagrams that were given this backend.
    pub connections: u64,
    /// Packets towards it.
    pub packets_in: u64,
    /// Their bytes, from the IP header on.
    pub bytes_in: u64,
    /// Packets that it sent.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

const _: () = {
    assert!(size_of::<StatsKey>() == 24);
    assert!(size_of::<Stats>() == 40);
};
