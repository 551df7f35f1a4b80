//! Names to addresses, and sockets that start from the address and port that a probe asks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream, UdpSocket, lookup_host};

use super::attempt::Failure;
use super::{ErrorKind, ProbeRequest};

/// The addresses of `target` (`host:port`), those of the source address's family only.
pub(super) async fn resolve(request: &ProbeRequest, target: &str) -> Result<Vec<SocketAddr>, Failure> {
    let found = lookup_host(target)
        .await
        .map_err(|error| Failure::new(ErrorKind::Resolve, format!("cannot resolve {target}: {error}")))?;
    let addresses: Vec<SocketAddr> = found
        .filter(|address| request.source.is_none_or(|source| source.is_ipv4() == address.is_ipv4()))
        .collect();
    if addresses.is_empty() {
        return Err(Failure::new(
            ErrorKind::Resolve,
            format!("{target} has no address of the source's family"),
        ));
    }
    Ok(addresses)
}

/// Connects to the first of the target's addresses that accepts.
pub(super) async fn tcp(request: &ProbeRequest, target: &str) -> Result<TcpStream, Failure> {
    let mut failure = None;
    for address in resolve(request, target).await? {
        match tcp_to(request, address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                failure = failure.or(Some(Failure::io(format_args!("connect to {address}"), &error)));
            }
        }
    }
    Err(failure.unwrap_or_else(|| Failure::new(ErrorKind::Resolve, format!("{target} has no address"))))
}

async fn tcp_to(request: &ProbeRequest, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source(request, address) {
        socket.set_reuseaddr(true)?;
        socket.bind(source)?;
    }
    if request.source_port.is_some() {
        // The next attempt needs the same port at once: close without TIME_WAIT.
        socket.set_zero_linger()?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A UDP socket that can reach `address`.
pub(super) async fn udp(request: &ProbeRequest, address: SocketAddr) -> Result<UdpSocket, Failure> {
    let from = source(request, address).unwrap_or_else(|| SocketAddr::new(unspecified(address), 0));
    UdpSocket::bind(from).await.map_err(|error| Failure::io(format_args!("bind {from}"), &error))
}

fn source(request: &ProbeRequest, address: SocketAddr) -> Option<SocketAddr> {
    if request.source.is_none() && request.source_port.is_none() {
        return None;
    }
    let ip = request.source.unwrap_or_else(|| unspecified(address));
    Some(SocketAddr::new(ip, request.source_port.unwrap_or(0)))
}

fn unspecified(address: SocketAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}
