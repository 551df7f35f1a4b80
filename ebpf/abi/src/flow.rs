//! What the programs remember: connections, sockets, clients and fragments. All LRU: the programs write them, user
//! space reads and prunes.

use crate::Addr;

/// The 5-tuple of a packet, as it arrives at a hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowTuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, network byte order.
    pub src_port_be: u16,
    /// Destination port, network byte order.
    pub dst_port_be: u16,
    /// IP protocol.
    pub proto: u32,
}

impl FlowTuple {
    /// The tuple of packets in the opposite direction.
    #[inline(always)]
    #[must_use]
    pub const fn inverted(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port_be: self.dst_port_be,
            dst_port_be: self.src_port_be,
            proto: self.proto,
        }
    }

    /// Equality without `memcmp`.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.src.same(&other.src)
            && self.dst.same(&other.dst)
            && self.src_port_be == other.src_port_be
            && self.dst_port_be == other.dst_port_be
            && self.proto == other.proto
    }
}

/// [`FlowValue::flags`]: the entry is for packets from the backend to the client.
pub const FLOW_REPLY: u16 = 1;
/// [`FlowValue::flags`]: the backend is on another node, and sees this node's address as its client.
pub const FLOW_SNAT: u16 = 1 << 1;
/// [`FlowValue::flags`]: a FIN or RST was seen; a SYN may start anew.
pub const FLOW_CLOSING: u16 = 1 << 2;
/// [`FlowValue::flags`]: the backend has answered.
pub const FLOW_SEEN_REPLY: u16 = 1 << 3;

/// [`FlowValue::flags`]: made for a pod of this node, at the host's end of its link.
pub const FLOW_POD: u16 = 1 << 4;
/// [`FlowValue::flags`]: the backend is on another node, sees the client and answers it directly. Of the two entries,
/// the reply's only keeps others from the same addresses and ports.
pub const FLOW_DSR: u16 = 1 << 5;
/// [`FlowValue::flags`]: with [`FLOW_DSR`]: the backend's node has been told what the client asked for.
pub const FLOW_ANNOUNCED: u16 = 1 << 6;
/// [`FlowValue::flags`]: another node has translated it for a backend here ([`FLOW_DSR`] there); this direction stays as
/// it is, the reply is translated here.
pub const FLOW_TRANSPARENT: u16 = 1 << 7;
/// [`FlowValue::flags`]: a pod of this node talks to somebody outside of the cluster, who sees the node's address. It
/// belongs to no service. In the place of ports, ICMP has its identifier (on the pod's side; 0 on the other), and protocols
/// that the programs do not read have 0.
pub const FLOW_MASQUERADE: u16 = 1 << 8;

/// How packets of a flow are rewritten: `to` is the whole tuple after translation. A connection has two entries,
/// the request's (client -> frontend) and the reply's (backend -> client, or -> node address when [`FLOW_SNAT`]).
/// They hold addresses, not indices: a flow outlives every change of its service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowValue {
    /// The tuple after translation.
    pub to: FlowTuple,
    /// [`crate::Service::id`].
    pub service: u32,
    /// `FLOW_*`.
    pub flags: u16,
    /// Zero.
    pub pad: u16,
    /// `CLOCK_MONOTONIC` seconds of the last packet.
    pub last_seen_s: u32,
    /// `CLOCK_MONOTONIC` seconds of the first packet.
    pub created_s: u32,
}

/// [`SocketKey::kind`]: key is the backend, value the frontend that the application believes in.
pub const SOCKET_BACKEND: u8 = 0;
/// [`SocketKey::kind`]: key is the frontend, value the backend that this unconnected socket last used.
pub const SOCKET_FRONTEND: u8 = 1;

/// A socket's translation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// The socket's cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// Address by [`SocketKey::kind`].
    pub addr: Addr,
    /// Port by [`SocketKey::kind`], network byte order.
    pub port_be: u16,
    /// [`SOCKET_BACKEND`] or [`SOCKET_FRONTEND`].
    pub kind: u8,
    /// IP protocol.
    pub proto: u8,
    /// Zero.
    pub pad: u32,
}

/// The other side of a socket's translation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketValue {
    /// Address by [`SocketKey::kind`].
    pub addr: Addr,
    /// Port by [`SocketKey::kind`], network byte order.
    pub port_be: u16,
    /// Zero.
    pub pad: u16,
    /// [`crate::Service::id`].
    pub service: u32,
    /// `CLOCK_MONOTONIC` seconds of the last use.
    pub last_used_s: u32,
    /// Zero.
    pub pad2: u32,
}

/// [`AffinityKey::kind`]: the client is an address.
pub const CLIENT_ADDRESS: u32 = 0;
/// [`AffinityKey::kind`]: the client is a network namespace on this node, by [`netns_client`].
pub const CLIENT_NETNS: u32 = 1;

/// A network namespace's cookie in the place of an address.
#[inline(always)]
pub const fn netns_client(cookie: u64) -> Addr {
    Addr { words: [cookie as u32, (cookie >> 32) as u32, 0, 0] }
}

/// The cookie that [`netns_client`] was given.
#[inline(always)]
pub const fn client_netns(client: &Addr) -> u64 {
    client.words[0] as u64 | (client.words[1] as u64) << 32
}

/// A client of a service with session affinity.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// Address or network namespace cookie.
    pub client: Addr,
    /// [`crate::Service::id`].
    pub service: u32,
    /// [`CLIENT_ADDRESS`] or [`CLIENT_NETNS`].
    pub kind: u32,
}

/// The backend that a client goes to. It counts only while it stands in the service's slice.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AffinityValue {
    /// Its address.
    pub addr: Addr,
    /// Its port, network byte order.
    pub port_be: u16,
    /// Zero.
    pub pad: u16,
    /// `CLOCK_MONOTONIC` seconds of the last new connection.
    pub last_used_s: u32,
}

/// A fragmented datagram of a translated flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Identification, as it stands in the header.
    pub ident: u32,
    /// IP protocol.
    pub proto: u32,
}

/// The ports that only its first fragment carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentValue {
    /// Source port, network byte order.
    pub src_port_be: u16,
    /// Destination port, network byte order.
    pub dst_port_be: u16,
}

const _: () = {
    assert!(size_of::<FlowTuple>() == 40);
    assert!(size_of::<FlowValue>() == 56);
    assert!(size_of::<SocketKey>() == 32);
    assert!(size_of::<SocketValue>() == 32);
    assert!(size_of::<AffinityKey>() == 24);
    assert!(size_of::<AffinityValue>() == 24);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentValue>() == 4);
};
