//! What the kernel says of a device's XDP: which program runs there, and whether frames may be sent by it. Asked over
//! netlink, since no call of bpf(2) tells.

use std::io;

use netlink_packet_core::{DefaultNla, Emitable, NlasIterator};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

/// The id of the XDP program that a device runs, whoever has attached it.
pub(crate) fn running(ifindex: u32) -> io::Result<Option<u32>> {
    // struct ifinfomsg
    let mut payload = [0; 16];
    payload[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let answer = ask(NETLINK_ROUTE, RTM_GETLINK, &payload)?;
    Ok(running_in(answer.get(16..).unwrap_or_default()))
}

/// The same, from the attributes of a link.
fn running_in(link: &[u8]) -> Option<u32> {
    let xdp = attribute(link, IFLA_XDP)?;
    let attached = attribute(&xdp, IFLA_XDP_ATTACHED)?;
    let id = attribute(&xdp, IFLA_XDP_PROG_ID).and_then(|id| id.try_into().ok());
    (attached != [0]).then_some(id.map_or(0, u32::from_ne_bytes))
}

/// Whether frames that came by other devices can be sent by this one. A veth link can only while its far end has a
/// program or GRO, and loses them otherwise.
pub(crate) fn sends(ifindex: u32) -> io::Result<bool> {
    let mut payload = vec![CTRL_CMD_GETFAMILY, 1, 0, 0];
    payload.extend(attribute_bytes(CTRL_ATTR_FAMILY_NAME, b"netdev\0"));
    let answer = ask(NETLINK_GENERIC, GENL_ID_CTRL, &payload)?;
    let family = attribute(answer.get(4..).unwrap_or_default(), CTRL_ATTR_FAMILY_ID)
        .and_then(|id| id.try_into().ok())
        .map(u16::from_ne_bytes)
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut payload = vec![NETDEV_CMD_DEV_GET, 1, 0, 0];
    payload.extend(attribute_bytes(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes()));
    let answer = ask(NETLINK_GENERIC, family, &payload)?;
    let features = attribute(answer.get(4..).unwrap_or_default(), NETDEV_A_DEV_XDP_FEATURES)
        .and_then(|features| features.try_into().ok())
        .map_or(0, u64::from_ne_bytes);
    Ok(features & NETDEV_XDP_ACT_NDO_XMIT != 0)
}

/// Sends a request, in the calling thread's network namespace, and returns what follows the header of its answer.
fn ask(protocol: isize, kind: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
    let socket = Socket::new(protocol)?;
    let length = u32::try_from(HEADER_BYTES + payload.len()).unwrap_or_default();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(payload);
    socket.send_to(&message, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    read_answer(&answer)
}

fn read_answer(answer: &[u8]) -> io::Result<Vec<u8>> {
    let (header, body) =
        answer.split_at_checked(HEADER_BYTES).ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
    if header[4..6] == NLMSG_ERROR.to_ne_bytes() {
        let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        return Err(io::Error::from_raw_os_error(-code));
    }
    Ok(body.to_vec())
}

/// An attribute as it is sent.
fn attribute_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// The value of the first attribute of a kind.
fn attribute(bytes: &[u8], wanted: u16) -> Option<Vec<u8>> {
    let found = NlasIterator::new(bytes).map_while(Result::ok).find(|found| found.kind() == wanted)?;
    Some(found.value().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_link_runs_is_read() {
        let link = |attached: u8| {
            let xdp = [
                attribute_bytes(IFLA_XDP_ATTACHED, &[attached]),
                attribute_bytes(IFLA_XDP_PROG_ID, &77_u32.to_ne_bytes()),
            ];
            [attribute_bytes(3, b"eth0\0"), attribute_bytes(IFLA_XDP | 0x8000, &xdp.concat())].concat()
        };
        assert_eq!(running_in(&link(0)), None);
        assert_eq!(running_in(&link(1)), Some(77));
        assert_eq!(running_in(&link(2)), Some(77));
        assert_eq!(running_in(&attribute_bytes(3, b"eth0\0")), None);
    }

    #[test]
    fn answers_that_end_early_are_no_panic() {
        let whole = [attribute_bytes(3, b"eth0\0"), attribute_bytes(IFLA_XDP, &[1, 2, 3])].concat();
        for end in 0..whole.len() {
            assert_eq!(running_in(&whole[..end]), None);
            assert!(read_answer(&whole[..end.min(15)]).is_err());
        }
        let mut refused = vec![0; 20];
        refused[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        refused[16..20].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());
        assert_eq!(read_answer(&refused).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
