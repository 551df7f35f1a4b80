//! What the XDP program knows about the links that it runs at.

/// [`XdpLink::flags`]: frames that came by the link may be sent back by it.
pub const XDP_LINK_ANSWERS: u32 = 1;
/// [`XdpLink::flags`]: frames that came by others may be sent by it. One that does not take them loses them in silence.
pub const XDP_LINK_ACCEPTS: u32 = 1 << 1;

/// An uplink that the XDP program runs at.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpLink {
    /// `XDP_LINK_*`.
    pub flags: u32,
    /// The first four bytes of its MAC address, as they lie in memory: frames for others are not ours.
    pub mac_head: u32,
    /// The last two.
    pub mac_tail: u16,
    /// Zero.
    pub pad: u16,
}

impl XdpLink {
    /// A link with this MAC address.
    pub const fn new(mac: [u8; 6], flags: u32) -> Self {
        let mac_head = u32::from_ne_bytes([mac[0], mac[1], mac[2], mac[3]]);
        let mac_tail = u16::from_ne_bytes([mac[4], mac[5]]);
        Self { flags, mac_head, mac_tail, pad: 0 }
    }
}

const _: () = assert!(size_of::<XdpLink>() == 12);
