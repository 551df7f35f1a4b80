//! recvmsg(2) and recvfrom(2): answers come from the address that was asked.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::socket::{Call, untranslate};

#[cgroup_sock_addr(recvmsg4)]
fn sw_recvmsg4(ctx: SockAddrContext) -> i32 {
    untranslate(Call::v4(ctx.sock_addr))
}

#[cgroup_sock_addr(recvmsg6)]
fn sw_recvmsg6(ctx: SockAddrContext) -> i32 {
    untranslate(Call::v6(ctx.sock_addr))
}
