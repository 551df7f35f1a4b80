//! UDP: each datagram comes back behind a line that says who answers.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::identity::{Answer, canonical};

/// The longest datagram that UDP over IPv4 carries.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// Answers until `stop`.
pub(super) async fn serve(
    socket: UdpSocket,
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let mut buffer = vec![0; 65_536];
    let mut requests = 0;
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        // An error here is the ICMP answer to an earlier datagram.
        let Ok((length, client)) = received else { continue };
        requests += 1;
        let answer = Answer {
            identity: &shared.identity,
            protocol: "udp",
            client: canonical(client),
            local: address,
            requests,
        };
        let mut reply = answer.line().into_bytes();
        reply.extend_from_slice(&buffer[..length]);
        reply.truncate(DATAGRAM_BYTES_MAX);
        // The client asks again if it has to.
        socket.send_to(&reply, client).await.ok();
    }
}
