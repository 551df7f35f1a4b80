//! What the programs count. One per-CPU array holds it all; the enum is closed, so that every dropped packet has a
//! name.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// An index of the counter map.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// All counters, in the order of their index.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name as metrics spell it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

counters! {
    /// Sockets and datagrams sent to a backend instead of a frontend.
    SocketTranslated = "socket_translated",
    /// Answers shown to come from the frontend (recvmsg, getpeername).
    SocketReply = "socket_reply",
    /// Packets translated towards a backend.
    Forward = "forward",
    /// Packets translated towards a client.
    Reply = "reply",
    /// ICMP errors translated for the flow that they belong to.
    IcmpTranslated = "icmp_translated",
    /// Connections that were given a backend.
    FlowCreated = "flow_created",
    /// Source ports tried and found taken.
    SnatCollision = "snat_collision",
    /// Drop: refused at the socket, the service has no backend or no such port.
    SocketRefused = "socket_refused",
    /// Drop: bind to a NodePort refused.
    BindRefused = "bind_refused",
    /// Drop: rejected with RST or ICMP, the service has no backend.
    NoBackend = "no_backend",
    /// Drop: the service has no backend on this node and its policy asks for one.
    NoLocalBackend = "no_local_backend",
    /// Drop: the source is outside of loadBalancerSourceRanges.
    SourceRange = "source_range",
    /// Drop: no free source port.
    SnatExhausted = "snat_exhausted",
    /// Drop: no address to translate to (config lacks the node's address of this family).
    NoNodeAddress = "no_node_address",
    /// Drop: the connection table took no entry.
    FlowMapFull = "flow_map_full",
    /// Not dropped: a socket's translation could not be remembered, its replies show the backend.
    SocketMapFull = "socket_map_full",
    /// Drop: no route to the backend or client.
    NoRoute = "no_route",
    /// Drop: time to live exceeded.
    TtlExceeded = "ttl_exceeded",
    /// Drop: larger than the way's MTU and not to be fragmented; the sender was told.
    TooBig = "too_big",
    /// Drop: the packet could not be rewritten.
    RewriteFailed = "rewrite_failed",
    /// Drop: a slice was replaced twice while a program read it.
    StaleSlice = "stale_slice",
    /// Not dropped: traffic of a backend for which there was no room to count.
    StatsFull = "stats_full",
    /// Drop: refused without an answer, for too many were given in this second.
    RejectLimited = "reject_limited",
    /// Packets between pods that passed this node's stack by.
    HandedOver = "handed_over",
    /// Packets between clients outside and backends on other nodes that the XDP program sent on. They are also counted as
    /// translated.
    XdpForwarded = "xdp_forwarded",
    /// Packets between pods and the world outside of the cluster that were translated.
    Masqueraded = "masqueraded",
    /// Drop: a fragment that leaves the cluster without the first one of its datagram, which has the ports.
    FragmentUnknown = "fragment_unknown",
}

/// Number of slots of the counter map, with room to grow.
pub const COUNTERS: u32 = 64;

const _: () = assert!(Counter::ALL.len() <= COUNTERS as usize);

/// A counter that says why a packet or a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DropReason(Counter);

impl DropReason {
    /// The reason that a counter stands for, if it counts drops.
    pub const fn of(counter: Counter) -> Option<Self> {
        match counter {
            Counter::SocketTranslated
            | Counter::SocketReply
            | Counter::Forward
            | Counter::Reply
            | Counter::IcmpTranslated
            | Counter::FlowCreated
            | Counter::SnatCollision
            | Counter::SocketMapFull
            | Counter::HandedOver
            | Counter::XdpForwarded
            | Counter::Masqueraded
            | Counter::StatsFull => None,
            reason => Some(Self(reason)),
        }
    }

    /// The name as metrics spell it.
    pub const fn name(self) -> &'static str {
        self.0.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_is_position() {
        for (position, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, position);
        }
    }
}
