//! `seaway/echo`: says over HTTP, TCP and UDP which pod answered and from where it was asked. The server end of most
//! tests of the network.
//!
//! On SIGTERM it does what a well-behaved server does: it says that it is not ready, goes on to accept for a moment
//! (until every proxy has heard), lets open connections come to their end for a while, and leaves with exit code 0.

mod datagram;
mod stream;
mod web;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::arguments::Arguments;
use crate::identity::Identity;
use crate::process::{ImageError, block_on, say, stop_on_signals};

/// What all of the servers share.
pub(crate) struct Shared {
    identity: Identity,
    ready: AtomicBool,
}

struct Options {
    http_port: u16,
    tcp_port: u16,
    udp_port: u16,
    lameduck: Duration,
    drain: Duration,
}

impl Options {
    fn read(args: &[String]) -> Result<Self, ImageError> {
        let names = ["http-port", "tcp-port", "udp-port", "lameduck-ms", "drain-ms"];
        let arguments = Arguments::read(args, &names, &[])?;
        Ok(Self {
            http_port: arguments.value("http-port", 8080)?,
            tcp_port: arguments.value("tcp-port", 8081)?,
            udp_port: arguments.value("udp-port", 8082)?,
            lameduck: Duration::from_millis(arguments.value("lameduck-ms", 300)?),
            drain: Duration::from_millis(arguments.value("drain-ms", 10_000)?),
        })
    }
}

/// Serves until SIGTERM. A port of 0 switches the protocol off.
pub(crate) fn run(args: &[String]) -> Result<(), ImageError> {
    let options = Options::read(args)?;
    block_on(async {
        let terminated = stop_on_signals()?;
        serve(&options, &terminated).await
    })
}

async fn serve(options: &Options, terminated: &CancellationToken) -> Result<(), ImageError> {
    let shared = Arc::new(Shared { identity: Identity::of_this_process(), ready: AtomicBool::new(true) });
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let mut listening = Vec::new();
    if let Some((listener, address)) = listen_tcp(options.http_port)? {
        listening.push(format!("http {address}"));
        let service = Arc::new(web::Web::new(Arc::clone(&shared)));
        tasks.spawn(crate::http::serve(listener, service, tasks.clone(), stop.clone()));
    }
    if let Some((listener, address)) = listen_tcp(options.tcp_port)? {
        listening.push(format!("tcp {address}"));
        tasks.spawn(stream::serve(listener, Arc::clone(&shared), tasks.clone(), stop.clone()));
    }
    if let Some((socket, address)) = listen_udp(options.udp_port)? {
        listening.push(format!("udp {address}"));
        tasks.spawn(datagram::serve(socket, address, Arc::clone(&shared), stop.clone()));
    }
    say(&format!("{} listens on {}", shared.identity.pod, listening.join(", ")));
    terminated.cancelled().await;
    say("terminating");
    shared.ready.store(false, std::sync::atomic::Ordering::Relaxed);
    tokio::time::sleep(options.lameduck).await;
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(options.drain, tasks.wait()).await.is_err() {
        say(&format!("{} connections are still open after {:?}: leaving", tasks.len(), options.drain));
    }
    Ok(())
}

/// A listener for both families on `port`; `None` where it is 0.
pub(crate) fn listen_tcp(port: u16) -> Result<Option<(TcpListener, SocketAddr)>, ImageError> {
    const BACKLOG: i32 = 4096;
    let Some(socket) = bind(port, "TCP", SocketType::STREAM)? else { return Ok(None) };
    let (descriptor, address) = socket;
    let failed = |source| ImageError::Listen { protocol: "TCP", address, source };
    rustix::net::listen(&descriptor, BACKLOG).map_err(|errno| failed(errno.into()))?;
    let listener = std::net::TcpListener::from(descriptor);
    Ok(Some((TcpListener::from_std(listener).map_err(failed)?, address)))
}

fn listen_udp(port: u16) -> Result<Option<(UdpSocket, SocketAddr)>, ImageError> {
    let Some((descriptor, address)) = bind(port, "UDP", SocketType::DGRAM)? else { return Ok(None) };
    let socket = UdpSocket::from_std(std::net::UdpSocket::from(descriptor));
    let socket = socket.map_err(|source| ImageError::Listen { protocol: "UDP", address, source })?;
    Ok(Some((socket, address)))
}

/// Binds `port` for both families; for IPv4 alone where the machine has no IPv6.
fn bind(
    port: u16,
    protocol: &'static str,
    kind: SocketType,
) -> Result<Option<(std::os::fd::OwnedFd, SocketAddr)>, ImageError> {
    if port == 0 {
        return Ok(None);
    }
    let open = |ip: IpAddr| -> rustix::io::Result<std::os::fd::OwnedFd> {
        let family = if ip.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        if ip.is_ipv6() {
            rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
        }
        if kind == SocketType::STREAM {
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        rustix::net::bind(&socket, &SocketAddr::new(ip, port))?;
        Ok(socket)
    };
    let dual = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let no_ipv6 = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    let (opened, address) = match open(dual.ip()) {
        Err(errno) if no_ipv6.contains(&errno) => (open(v4.ip()), v4),
        opened => (opened, dual),
    };
    let opened = opened.map_err(|errno| ImageError::Listen { protocol, address, source: errno.into() })?;
    Ok(Some((opened, address)))
}
