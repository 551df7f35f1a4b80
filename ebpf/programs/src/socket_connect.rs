//! connect(2): TCP, and UDP sockets that connect.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::socket::{Call, translate};

#[cgroup_sock_addr(connect4)]
fn sw_connect4(ctx: SockAddrContext) -> i32 {
    translate(Call::v4(ctx.sock_addr), false)
}

#[cgroup_sock_addr(connect6)]
fn sw_connect6(ctx: SockAddrContext) -> i32 {
    translate(Call::v6(ctx.sock_addr), false)
}
