//! UDP: a socket, a task, a packet after the other; what has to wait for an upstream goes on in a task of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::sleep;

use super::exchange::{Outcome, View, answer_later, answer_now};
use super::{DRAIN, Shared};
use crate::metrics::{Meter, Transport};

/// Packets that are answered before other tasks get their turn.
const BURST: usize = 64;
/// Longer questions are no questions.
const PACKET_BYTES_MAX: usize = 4096;

struct Listener {
    socket: Arc<UdpSocket>,
    shared: Arc<Shared>,
    meter: Arc<Meter>,
    view: View,
    packet: Vec<u8>,
    reply: Vec<u8>,
}

/// Serves until the server stops and what waits for upstreams is answered.
pub(super) async fn serve(socket: Arc<UdpSocket>, shared: Arc<Shared>, meter: Arc<Meter>) {
    let view = View::new(&shared.zones);
    let (packet, reply) = (vec![0; PACKET_BYTES_MAX], Vec::with_capacity(PACKET_BYTES_MAX));
    let mut listener = Listener { socket, shared, meter, view, packet, reply };
    let stop = listener.shared.stop.clone();
    listener.serve_until(stop.cancelled()).await;
    // As long as the socket is open the kernel puts questions into it: go on, until nothing is owed.
    let shared = Arc::clone(&listener.shared);
    let drained = async {
        tokio::select! {
            () = shared.pending.wait() => {}
            () = sleep(DRAIN) => {}
        }
    };
    listener.serve_until(drained).await;
    listener.burst(usize::MAX).ok();
}

impl Listener {
    async fn serve_until(&mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let readable = tokio::select! {
                () = &mut stop => return,
                readable = self.socket.readable() => readable,
            };
            if readable.and_then(|()| self.burst(BURST)).is_err() {
                // Nothing that a single packet could cause: do not spin on it.
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Answers what has arrived, at most `max` packets.
    fn burst(&mut self, max: usize) -> io::Result<()> {
        for _ in 0..max {
            match self.socket.try_recv_from(&mut self.packet) {
                Ok((length, client)) => self.take(length, client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, length: usize, client: SocketAddr) {
        // Port 0 cannot be answered.
        if client.port() == 0 {
            return;
        }
        let packet = &self.packet[..length];
        match answer_now(&self.shared, &mut self.view, &self.meter, Transport::Udp, packet, &mut self.reply) {
            Outcome::Reply => {
                // A full send buffer or a client that has gone: the client asks again if it has to.
                self.socket.try_send_to(&self.reply, client).ok();
            }
            Outcome::Silence => {}
            Outcome::Later(later) => {
                let (shared, meter) = (Arc::clone(&self.shared), Arc::clone(&self.meter));
                let socket = Arc::clone(&self.socket);
                self.shared.pending.spawn(async move {
                    let reply = answer_later(&shared, &meter, *later).await;
                    socket.send_to(&reply, client).await.ok();
                });
            }
        }
    }
}
