//! UDP: send a datagram, wait for the answer, perhaps send again.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::attempt::Failure;
use super::{Attempt, ErrorKind, ProbeRequest, connect};

/// A socket and whom it talks to.
pub(super) struct Socket {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Socket {
    async fn open(request: &ProbeRequest, to: SocketAddr) -> Result<Self, Failure> {
        let socket = connect::udp(request, to).await?;
        if !request.unconnected {
            socket.connect(to).await.map_err(|error| Failure::io(format_args!("connect to {to}"), &error))?;
        }
        Ok(Self { socket, to })
    }

    async fn send(&self, request: &ProbeRequest, datagram: &[u8]) -> Result<(), Failure> {
        let sent = if request.unconnected {
            self.socket.send_to(datagram, self.to).await
        } else {
            self.socket.send(datagram).await
        };
        sent.map(|_| ()).map_err(|error| Failure::io(format_args!("send to {}", self.to), &error))
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.recv_from(buffer).await
    }

    /// Throws away answers that came too late for the attempt that they belong to.
    fn drain(&self, buffer: &mut [u8]) {
        while self.socket.try_recv_from(buffer).is_ok() {}
    }
}

/// Sends `datagram` to `to`, at most `retries` times again, and returns the answer and the socket's address.
pub(super) async fn exchange(
    request: &ProbeRequest,
    kept: &mut Option<Socket>,
    to: SocketAddr,
    datagram: &[u8],
) -> Result<(Vec<u8>, Attempt), Failure> {
    let open = match kept.take().filter(|open| open.to == to) {
        Some(open) => open,
        None => Socket::open(request, to).await?,
    };
    let mut buffer = vec![0; 65_536];
    open.drain(&mut buffer);
    let tries = request.retries + 1;
    let patience = Duration::from_millis(request.timeout_ms) / tries;
    for _ in 0..tries {
        open.send(request, datagram).await?;
        let Ok(received) = timeout(patience, open.receive(&mut buffer)).await else { continue };
        let (length, from) =
            received.map_err(|error| Failure::io(format_args!("receive from {to}"), &error))?;
        let attempt =
            Attempt { local: open.socket.local_addr().ok(), peer: Some(from), ..Attempt::default() };
        if (from.ip(), from.port()) != (to.ip(), to.port()) {
            return Err(Failure {
                kind: ErrorKind::Mismatch,
                message: format!("asked {to}, but {from} answered"),
                attempt: Some(Box::new(attempt)),
            });
        }
        buffer.truncate(length);
        *kept = request.keep_alive.then_some(open);
        return Ok((buffer, attempt));
    }
    Err(Failure::new(ErrorKind::Timeout, format!("no answer from {to} to {tries} datagrams")))
}

pub(super) async fn attempt(request: &ProbeRequest, kept: &mut Option<Socket>) -> Result<Attempt, Failure> {
    let to = match kept {
        Some(open) => open.to,
        None => connect::resolve(request, &request.target).await?[0],
    };
    let datagram = request.send.as_deref().unwrap_or("probe").as_bytes();
    let (reply, attempt) = exchange(request, kept, to, datagram).await?;
    Ok(Attempt { reply: Some(String::from_utf8_lossy(&reply).into_owned()), ..attempt })
}
