//! close(2) of a socket's last descriptor: what was remembered for a connected socket goes with it, so that the table
//! holds living sockets and does not have to push one of them out.

use core::ptr::read_volatile;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use seaway_ebpf_abi::{Addr, SOCKET_BACKEND, SocketKey, TCP, UDP};

use crate::maps::SOCKETS;
use crate::socket::ALLOW;

const AF_INET: u32 = 2;

#[cgroup_sock(sock_release)]
fn sw_release(ctx: SockContext) -> i32 {
    forget(ctx.sock);
    ALLOW
}

#[inline(always)]
fn forget(sock: *mut bpf_sock) {
    // Both addresses are read, whatever the family: a choice between them would become one of pointers into the
    // context, which the verifier does not follow.
    // SAFETY: the context is valid while the program runs; volatile keeps the accesses at their width.
    let (protocol, port_be, family, v4, words) = unsafe {
        (
            read_volatile(&raw const (*sock).protocol),
            read_volatile(&raw const (*sock).dst_port),
            read_volatile(&raw const (*sock).family),
            read_volatile(&raw const (*sock).dst_ip4),
            [
                read_volatile(&raw const (*sock).dst_ip6[0]),
                read_volatile(&raw const (*sock).dst_ip6[1]),
                read_volatile(&raw const (*sock).dst_ip6[2]),
                read_volatile(&raw const (*sock).dst_ip6[3]),
            ],
        )
    };
    let addr = if family == AF_INET { Addr::v4_be(v4) } else { Addr { words } };
    let proto = match protocol {
        6 => TCP,
        17 => UDP,
        _ => return,
    };
    if port_be == 0 {
        return;
    }
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(sock.cast()) };
    let key = SocketKey { cookie, addr, port_be, kind: SOCKET_BACKEND, proto, pad: 0 };
    // Most sockets have no entry.
    let _ = SOCKETS.remove(&key);
}
