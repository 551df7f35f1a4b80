//! The eBPF programs: one file per attach point, and beside them the datapath logic that they share. Sockets of this
//! node are translated at the system call (`socket_*`), packets from outside on the uplinks, and those of pods that
//! the socket programs do not see on the pods' links (`tc_*`). What only passes this node may be sent on in the uplink's
//! driver already (`xdp`).
//!
//! What is pure (headers, checksums, choosing) lives in `seaway-ebpf-abi` and is tested on the host.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "helpers of the kernel and pointers into maps")]
#![allow(clippy::inline_always, reason = "a program's frame is 512 bytes over all calls")]

mod balance;
mod count;
mod dsr;
mod flow;
mod frame;
mod icmp;
mod maps;
mod masquerade;
mod nat;
mod parse;
mod pods;
mod repeat;
mod reply;
mod route;
mod skb;
mod socket;
mod socket_bind;
mod socket_connect;
mod socket_peername;
mod socket_recvmsg;
mod socket_release;
mod socket_sendmsg;
mod stats;
mod tc_egress;
mod tc_ingress;
mod tunnel;
mod xdp;
mod xdp_buff;

/// What the kernel is told: some helpers (`bpf_fib_lookup`) are for programs under a GPL-compatible licence only, so
/// this crate may be used under MIT or GPL-2.0 too, beside the project's Apache-2.0.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The verifier admits no program that could come here.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
