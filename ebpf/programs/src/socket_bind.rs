//! bind(2), after the port is chosen: a NodePort is not to be taken by a process of the node, for packets to it never
//! arrive there.

use core::ptr::read_volatile;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use seaway_ebpf_abi::{Counter, TCP, UDP};

use crate::balance::is_node_port;
use crate::count::count;
use crate::maps::config;
use crate::socket::{ALLOW, DENY};

const EADDRINUSE: i32 = 98;

#[cgroup_sock(post_bind4)]
fn sw_bind4(ctx: SockContext) -> i32 {
    protect(ctx.sock, false)
}

#[cgroup_sock(post_bind6)]
fn sw_bind6(ctx: SockContext) -> i32 {
    protect(ctx.sock, true)
}

#[inline(always)]
fn protect(sock: *mut bpf_sock, v6: bool) -> i32 {
    // SAFETY: the context is valid while the program runs; volatile keeps the accesses at their width.
    let (protocol, port) =
        unsafe { (read_volatile(&raw const (*sock).protocol), read_volatile(&raw const (*sock).src_port)) };
    let proto = match protocol {
        6 => TCP,
        17 => UDP,
        _ => return ALLOW,
    };
    // SAFETY: the helper takes the context.
    let netns = unsafe { bpf_get_netns_cookie(sock.cast()) };
    if config().is_none_or(|config| config.netns_cookie == 0 || config.netns_cookie != netns) {
        return ALLOW;
    }
    let port_be = (port as u16).to_be();
    if is_node_port(!v6, port_be, proto) || (v6 && is_node_port(true, port_be, proto)) {
        count(Counter::BindRefused);
        // SAFETY: the helper takes an errno.
        unsafe { bpf_set_retval(-EADDRINUSE) };
        return DENY;
    }
    ALLOW
}
