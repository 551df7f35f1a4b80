//! UDP: a socket, a task, a packet after the other; what has to wait for an upstream goes on in a task of its own. While more
//! arrives than is answered, the sources take turns.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::yield_now;
use tokio::time::sleep;

use super::Shared;
use super::datagram::{Datagrams, Peer};
use super::exchange::{Outcome, View, answer_later, answer_now};
use super::queue::Queue;
use crate::metrics::{Meter, Transport};

/// Packets that are answered before other tasks get their turn.
const BURST: usize = 64;
/// Packets that are taken out of the socket for each burst of answers when there are too many.
const INTAKE: usize = 4 * BURST;
/// Longer questions are no questions.
const PACKET_BYTES_MAX: usize = 4096;
/// Longer ones do not wait.
const WAITING_BYTES_MAX: usize = 1500;

struct Listener {
    socket: Arc<Datagrams>,
    shared: Arc<Shared>,
    meter: Arc<Meter>,
    view: View,
    packet: Vec<u8>,
    reply: Vec<u8>,
    waiting: Queue<(Box<[u8]>, Peer)>,
}

/// Serves until the server closes.
pub(super) async fn serve(socket: Arc<Datagrams>, shared: Arc<Shared>, meter: Arc<Meter>) {
    let view = View::new(&shared.states);
    let (packet, reply) = (vec![0; PACKET_BYTES_MAX], Vec::with_capacity(PACKET_BYTES_MAX));
    let waiting = Queue::new(shared.queue_max);
    let mut listener = Listener { socket, shared, meter, view, packet, reply, waiting };
    let close = listener.shared.close.clone();
    listener.serve_until(close.cancelled()).await;
    // As long as the socket is open the kernel puts questions into it.
    while matches!(listener.burst(), Ok(true)) {}
}

impl Listener {
    async fn serve_until(&mut self, close: impl Future<Output = ()>) {
        let mut close = std::pin::pin!(close);
        loop {
            let readable = tokio::select! {
                () = &mut close => return,
                readable = self.socket.readable() => readable,
            };
            match readable.and_then(|()| self.burst()) {
                Ok(false) => {}
                Ok(true) => self.work_off().await,
                // Nothing that a single packet could cause: do not spin on it.
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Answers what has arrived, a burst at most. Whether there may be more.
    fn burst(&mut self) -> io::Result<bool> {
        for _ in 0..BURST {
            match self.socket.try_receive(&mut self.packet) {
                Ok((length, peer)) => {
                    let packet = std::mem::take(&mut self.packet);
                    self.take(&packet[..length], &peer);
                    self.packet = packet;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Goes on with all that has arrived, the sources in turn, until nothing is left.
    async fn work_off(&mut self) {
        loop {
            for _ in 0..INTAKE {
                let Ok((length, peer)) = self.socket.try_receive(&mut self.packet) else { break };
                if length > WAITING_BYTES_MAX {
                    self.meter.metrics().shed("oversized", 1);
                    continue;
                }
                let shed = self.waiting.push(peer.address.ip(), (self.packet[..length].into(), peer));
                if shed > 0 {
                    self.meter.metrics().shed("queue", shed);
                }
            }
            for _ in 0..BURST {
                let Some((packet, peer)) = self.waiting.pop() else { return };
                self.take(&packet, &peer);
            }
            yield_now().await;
        }
    }

    fn take(&mut self, packet: &[u8], peer: &Peer) {
        // Port 0 cannot be answered.
        if peer.address.port() == 0 || !self.admits(peer) {
            return;
        }
        let client = peer.address.ip();
        let (shared, meter) = (&self.shared, &self.meter);
        match answer_now(shared, &mut self.view, meter, (Transport::Udp, client), packet, &mut self.reply) {
            Outcome::Reply => {
                // A full send buffer or a client that has gone: the client asks again if it has to.
                self.socket.try_send(&self.reply, peer).ok();
            }
            Outcome::Silence => {}
            Outcome::Later(later) => {
                let (meter, socket, peer) = (Arc::clone(meter), Arc::clone(&self.socket), *peer);
                self.shared.pending.spawn(async move {
                    let reply = answer_later(&meter, *later).await;
                    socket.send(&reply, &peer).await.ok();
                });
            }
        }
    }

    fn admits(&mut self, peer: &Peer) -> bool {
        let Some(rate) = self.view.newest().rate_limit else { return true };
        let admits = self.shared.limiter.admits(peer.address.ip(), rate, Instant::now());
        if !admits {
            self.meter.metrics().shed("rate", 1);
        }
        admits
    }
}
