//! sendmsg(2) and sendto(2) on unconnected UDP sockets.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::socket::{Call, translate};

#[cgroup_sock_addr(sendmsg4)]
fn sw_sendmsg4(ctx: SockAddrContext) -> i32 {
    translate(Call::v4(ctx.sock_addr), true)
}

#[cgroup_sock_addr(sendmsg6)]
fn sw_sendmsg6(ctx: SockAddrContext) -> i32 {
    translate(Call::v6(ctx.sock_addr), true)
}
