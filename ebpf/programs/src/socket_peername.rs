//! getpeername(2): a connected socket's peer is the address that was asked.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::socket::{Call, untranslate};

#[cgroup_sock_addr(getpeername4)]
fn sw_peername4(ctx: SockAddrContext) -> i32 {
    untranslate(Call::v4(ctx.sock_addr))
}

#[cgroup_sock_addr(getpeername6)]
fn sw_peername6(ctx: SockAddrContext) -> i32 {
    untranslate(Call::v6(ctx.sock_addr))
}
