//! Packets from one namespace to another and back, without any program to be installed.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use seaway_cni_network::netns::Namespace;

/// How long an exchange may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Listens on a free TCP port of `addr` in `server`, connects from `client`, and sends `length` bytes there and
/// back. Returns the client's address as the server saw it.
pub fn tcp_exchange(
    client: &Namespace,
    server: &Namespace,
    addr: IpAddr,
    length: usize,
) -> io::Result<IpAddr> {
    let listener = enter(server, || TcpListener::bind((addr, 0)))?;
    let target = listener.local_addr()?;
    let server = std::thread::spawn(move || answer(&listener, length));
    enter(client, || connect(target, length))?;
    server.join().map_err(|_| io::Error::other("the server panicked"))?
}

/// Sends one UDP packet of `length` bytes from `client` to `addr` in `server` and the answer back. Returns the
/// client's address as the server saw it.
pub fn udp_exchange(
    client: &Namespace,
    server: &Namespace,
    addr: IpAddr,
    length: usize,
) -> io::Result<IpAddr> {
    let server = enter(server, || UdpSocket::bind((addr, 0)))?;
    let any: IpAddr = if addr.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let client = enter(client, || UdpSocket::bind((any, 0)))?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let mut buffer = vec![7; length];
    client.connect(server.local_addr()?)?;
    client.send(&buffer)?;
    let (received, from) = server.recv_from(&mut buffer)?;
    server.send_to(&buffer[..received], from)?;
    client.recv(&mut buffer)?;
    Ok(from.ip())
}

fn enter<T: Send>(namespace: &Namespace, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    namespace.run(work).map_err(io::Error::other)?
}

fn connect(target: SocketAddr, length: usize) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let sent = vec![42; length];
    stream.write_all(&sent)?;
    let mut received = vec![0; length];
    stream.read_exact(&mut received)?;
    if received == sent { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}

fn answer(listener: &TcpListener, length: usize) -> io::Result<IpAddr> {
    listener.set_nonblocking(true)?;
    let mut accepted = None;
    crate::poll_until(PATIENCE, || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (mut stream, from) = accepted.ok_or(io::ErrorKind::TimedOut)?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    stream.write_all(&bytes)?;
    Ok(from.ip())
}
