//! Services and backends: the maps that user space writes and the programs read.
//!
//! `service key -> {base, count}` -> `backends[base .. base + count]`. Policies, topology and terminating fallback
//! are all decided before they come here: a program sees only the slice that it may use.

use crate::Addr;

/// [`ServiceKey::scope`]: how sockets of this node see the frontend (cgroup hooks).
pub const SCOPE_INTERNAL: u8 = 0;
/// [`ServiceKey::scope`]: how packets that arrive on an uplink see the frontend (tcx).
pub const SCOPE_EXTERNAL: u8 = 1;

/// [`Service::flags`]: sources are checked against [`SourceRangeKey`]s (external scope).
pub const SERVICE_SOURCE_RANGES: u32 = 1;
/// [`Service::flags`]: with no backend, packets are dropped, not rejected: another node may have one
/// (`externalTrafficPolicy: Local` without a local endpoint).
pub const SERVICE_DROP_WHEN_EMPTY: u32 = 1 << 1;
/// [`Service::flags`]: the frontend is a NodePort; at an unspecified address it is the guard against binding the port.
pub const SERVICE_NODE_PORT: u32 = 1 << 2;
/// [`Service::flags`]: only sockets of the node's own network namespace see it (a NodePort on localhost).
pub const SERVICE_HOST_ONLY: u32 = 1 << 3;
/// [`Service::flags`]: backends on other nodes see the client's address and answer it directly ([`crate::dsr`]).
pub const SERVICE_DSR: u32 = 1 << 4;
/// [`Service::flags`]: every backend sees the node's address as its client (kube-proxy's `masqueradeAll`). Sockets of
/// the node have it anyway; those of pods are left alone, and their packets translated at the pods' links.
pub const SERVICE_MASQUERADE: u32 = 1 << 5;

/// A frontend.
///
/// `port_be == 0 && proto == 0` stands for every port of the address that has no entry of its own: with a service
/// of `count == 0` it makes undefined ports of a ClusterIP refuse.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// The address.
    pub addr: Addr,
    /// The port, network byte order.
    pub port_be: u16,
    /// [`crate::TCP`] or [`crate::UDP`].
    pub proto: u8,
    /// [`SCOPE_INTERNAL`] or [`SCOPE_EXTERNAL`].
    pub scope: u8,
    /// Zero.
    pub pad: u32,
}

/// What stands behind a frontend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Service {
    /// The service port that all its frontends share; session affinity and source ranges are kept by it.
    pub id: u32,
    /// First index in the backend array.
    pub base: u32,
    /// Number of backends there; 0 refuses.
    pub count: u32,
    /// `SERVICE_*`.
    pub flags: u32,
    /// Session affinity; 0 is none.
    pub affinity_timeout_s: u32,
    /// Changes with every rewrite; for user space, which reads it back.
    pub generation: u32,
    /// First chunk of the service's table in the Maglev array.
    pub maglev_base: u32,
    /// Slots of that table; 0: it has none, backends are chosen by the hash alone.
    pub maglev_size: u32,
}

/// Slots that a [`MaglevChunk`] holds; a power of two, so that the verifier sees that an index is within.
pub const CHUNK_SLOTS: u32 = 32;

/// An element of the Maglev array: a piece of a service's table. A slot is a position in the service's slice. There is
/// no owner in it: who reads a table that is being replaced finds a backend of its own service all the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaglevChunk {
    /// The slots.
    pub slots: [u16; CHUNK_SLOTS as usize],
}

/// [`Backend::flags`]: runs on this node: packets keep the client's address.
pub const BACKEND_LOCAL: u16 = 1;

/// A backend: an element of the backend array. Within a slice, backends are ordered by (address bytes, port).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Backend {
    /// The address.
    pub addr: Addr,
    /// The port, network byte order.
    pub port_be: u16,
    /// `BACKEND_*`.
    pub flags: u16,
    /// [`Service::id`] of the slice's owner. A program that meets another id has read a slice that was being
    /// replaced, and looks the service up once more.
    pub service: u32,
}

/// A source that a service with [`SERVICE_SOURCE_RANGES`] admits. LPM: the prefix covers the 32 bits of the id and
/// the address's bits (IPv4: 96 more than its own prefix).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceRangeKey {
    /// 32 + prefix length of the address in its 16-byte form.
    pub prefix_len: u32,
    /// [`Service::id`].
    pub service: u32,
    /// The network's address.
    pub addr: Addr,
}

const _: () = {
    assert!(size_of::<ServiceKey>() == 24);
    assert!(size_of::<Service>() == 32);
    assert!(size_of::<MaglevChunk>() == 64);
    assert!(size_of::<Backend>() == 24);
    assert!(size_of::<SourceRangeKey>() == 24);
};
