//! Translation at the socket: what connect and sendmsg send elsewhere, and what recvmsg and getpeername show.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval,
};
use seaway_ebpf_abi::{
    Addr, AffinityKey, CLIENT_NETNS, Counter, SCOPE_INTERNAL, SERVICE_HOST_ONLY, SERVICE_MASQUERADE,
    SOCKET_BACKEND, SOCKET_FRONTEND, Service, SocketKey, SocketValue, TCP, UDP, netns_client,
};

use crate::balance::{choose, member, service};
use crate::count::count;
use crate::maps::{SOCKETS, config, now_s};
use crate::stats::{self, Event};

/// The call goes on.
pub(crate) const ALLOW: i32 = 1;
/// The call fails with the errno that was set.
pub(crate) const DENY: i32 = 0;

const ECONNREFUSED: i32 = 111;
/// An unconnected socket keeps its backend while it does not pause for longer: the time that connection tracking
/// would give a UDP flow.
const STICKY_S: u32 = 120;

/// The context of a `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` program of either family.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    ctx: *mut bpf_sock_addr,
    v4: bool,
}

impl Call {
    /// A call of the IPv4 hooks.
    #[inline(always)]
    pub(crate) fn v4(ctx: *mut bpf_sock_addr) -> Self {
        Self { ctx, v4: true }
    }

    /// A call of the IPv6 hooks; its address may be mapped IPv4.
    #[inline(always)]
    pub(crate) fn v6(ctx: *mut bpf_sock_addr) -> Self {
        Self { ctx, v4: false }
    }

    /// The address and port in the call. Volatile, for the kernel wants accesses of the width that is written here.
    #[inline(always)]
    fn address(self) -> (Addr, u16) {
        // SAFETY: the context is valid while the program runs.
        unsafe {
            let port_be = read_volatile(&raw const (*self.ctx).user_port) as u16;
            if self.v4 {
                return (Addr::v4_be(read_volatile(&raw const (*self.ctx).user_ip4)), port_be);
            }
            let words = [
                read_volatile(&raw const (*self.ctx).user_ip6[0]),
                read_volatile(&raw const (*self.ctx).user_ip6[1]),
                read_volatile(&raw const (*self.ctx).user_ip6[2]),
                read_volatile(&raw const (*self.ctx).user_ip6[3]),
            ];
            (Addr { words }, port_be)
        }
    }

    #[inline(always)]
    fn set_address(self, addr: &Addr, port_be: u16) {
        // SAFETY: as above.
        unsafe {
            write_volatile(&raw mut (*self.ctx).user_port, port_be as u32);
            if self.v4 {
                write_volatile(&raw mut (*self.ctx).user_ip4, addr.v4_word());
                return;
            }
            write_volatile(&raw mut (*self.ctx).user_ip6[0], addr.words[0]);
            write_volatile(&raw mut (*self.ctx).user_ip6[1], addr.words[1]);
            write_volatile(&raw mut (*self.ctx).user_ip6[2], addr.words[2]);
            write_volatile(&raw mut (*self.ctx).user_ip6[3], addr.words[3]);
        }
    }

    /// TCP or UDP; `None` for all else.
    #[inline(always)]
    fn proto(self) -> Option<u8> {
        // SAFETY: as above.
        match unsafe { read_volatile(&raw const (*self.ctx).protocol) } {
            6 => Some(TCP),
            17 => Some(UDP),
            _ => None,
        }
    }

    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_socket_cookie(self.ctx.cast()) }
    }

    #[inline(always)]
    fn netns(self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_netns_cookie(self.ctx.cast()) }
    }
}

/// Sends a call to a backend if it addresses a frontend. `datagram`: the socket is not connected, every call comes
/// here.
#[inline(always)]
pub(crate) fn translate(call: Call, datagram: bool) -> i32 {
    let Some(proto) = call.proto() else { return ALLOW };
    let (addr, port_be) = call.address();
    let Some(found) = service(&addr, port_be, proto, SCOPE_INTERNAL) else { return ALLOW };
    let netns = call.netns();
    // Sockets of the node have its address anyway: of what is masqueraded, too, only packets of pods need a translation
    // that sockets cannot give.
    if found.flags & (SERVICE_HOST_ONLY | SERVICE_MASQUERADE) != 0
        && config().is_none_or(|config| config.netns_cookie != netns)
    {
        return ALLOW;
    }
    if found.count == 0 {
        return refuse(Counter::SocketRefused);
    }
    let cookie = call.cookie();
    let frontend = SocketKey { cookie, addr, port_be, kind: SOCKET_FRONTEND, proto, pad: 0 };
    if datagram
        && found.affinity_timeout_s == 0
        && let Some((addr, port_be)) = sticky(found, &frontend)
    {
        remember(&frontend, &addr, port_be, found.id, Use::Again);
        call.set_address(&addr, port_be);
        return ALLOW;
    }
    let client = AffinityKey { client: netns_client(netns), service: found.id, kind: CLIENT_NETNS };
    // SAFETY: the helper has no arguments.
    let hash = unsafe { bpf_get_prandom_u32() };
    let backend = match choose(found, &client, hash) {
        Some(backend) => backend,
        // The slice is being replaced: the service points to the new one by now.
        None => match service(&addr, port_be, proto, SCOPE_INTERNAL)
            .and_then(|found| choose(found, &client, hash))
        {
            Some(backend) => backend,
            None => return refuse(Counter::StaleSlice),
        },
    };
    let used = if datagram { Use::FirstDatagram } else { Use::Connection };
    remember(&frontend, &backend.addr, backend.port_be, found.id, used);
    stats::note(found.id, &backend.addr, backend.port_be, Event::Socket);
    call.set_address(&backend.addr, backend.port_be);
    count(Counter::SocketTranslated);
    ALLOW
}

#[inline(always)]
fn refuse(reason: Counter) -> i32 {
    count(reason);
    // SAFETY: the helper takes an errno.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

/// The backend that an unconnected socket used last, while it serves.
#[inline(always)]
fn sticky(service: &Service, frontend: &SocketKey) -> Option<(Addr, u16)> {
    let held = SOCKETS.get_ptr_mut(frontend)?;
    // SAFETY: an LRU element may be reused while it is read; membership is checked below.
    let held = unsafe { &mut *held };
    let now = now_s();
    if now.wrapping_sub(held.last_used_s) >= STICKY_S {
        return None;
    }
    let backend = member(service, &held.addr, held.port_be)?;
    if held.last_used_s != now {
        held.last_used_s = now;
    }
    Some((backend.addr, backend.port_be))
}

/// What a socket uses a backend for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It connects.
    Connection,
    /// It sends a datagram there for the first time.
    FirstDatagram,
    /// It sends another one.
    Again,
}

/// Notes which frontend stands behind a backend for this socket, and for a socket that is not connected the reverse.
#[inline(always)]
fn remember(frontend: &SocketKey, addr: &Addr, port_be: u16, service: u32, used: Use) {
    let key = SocketKey { addr: *addr, port_be, kind: SOCKET_BACKEND, ..*frontend };
    let mut value = SocketValue {
        addr: frontend.addr,
        port_be: frontend.port_be,
        pad: 0,
        service,
        last_used_s: now_s(),
        pad2: 0,
    };
    // A socket connects once.
    // SAFETY: as in `sticky`: at worst an entry is written once more than needed.
    let known = used != Use::Connection
        && SOCKETS.get_ptr(&key).is_some_and(|held| {
            let held = unsafe { &*held };
            held.addr.same(&value.addr)
                && held.port_be == value.port_be
                && held.last_used_s == value.last_used_s
        });
    let mut full = !known && SOCKETS.insert(&key, &value, 0).is_err();
    if used == Use::FirstDatagram {
        value.addr = *addr;
        value.port_be = port_be;
        full |= SOCKETS.insert(frontend, &value, 0).is_err();
    }
    if full {
        count(Counter::SocketMapFull);
    }
}

/// Shows the frontend where a call is about to show the backend that stands in for it.
#[inline(always)]
pub(crate) fn untranslate(call: Call) -> i32 {
    let Some(proto) = call.proto() else { return ALLOW };
    let (addr, port_be) = call.address();
    let key = SocketKey { cookie: call.cookie(), addr, port_be, kind: SOCKET_BACKEND, proto, pad: 0 };
    if let Some(held) = SOCKETS.get_ptr(&key) {
        // SAFETY: the element belongs to this socket's cookie; reuse while it is read is the LRU's risk.
        let held = unsafe { &*held };
        call.set_address(&held.addr, held.port_be);
        count(Counter::SocketReply);
    }
    ALLOW
}
