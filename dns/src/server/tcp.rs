//! TCP: questions one after the other or several at once (RFC 7766), each answer as soon as it is there.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::exchange::{Outcome, View, answer_later, answer_now};
use super::seats::{Seat, Seats};
use super::{DRAIN, Shared};
use crate::config::open_files_max;
use crate::metrics::{Meter, Transport};

/// Questions of one connection that may wait for upstreams at once; then it is read no further.
const PENDING_MAX: usize = 64;
const LENGTH_BYTES: usize = 2;
/// How long a client may take to read its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Accepts until the server stops.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, meter: Arc<Meter>) {
    let seats = Seats::new(shared.tcp_connections_max.min(open_files_max() / 4));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shared.close.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let seat = seats.take(client.ip());
                let connection = Connection::new(Arc::clone(&shared), Arc::clone(&meter), client.ip());
                connections.spawn(async move {
                    let given_away = seat.given_away.clone();
                    // A client that breaks off is the client's affair.
                    given_away.run_until_cancelled(connection.serve(stream, seat)).await;
                });
            }
            // Out of file descriptors, most likely: give connections time to end.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
    drop(listener);
    connections.close();
    // What is still open then belongs to clients that do not read.
    timeout(DRAIN, connections.wait()).await.ok();
}

struct Connection {
    shared: Arc<Shared>,
    meter: Arc<Meter>,
    client: IpAddr,
    view: View,
    /// Octets that have been read and not yet understood.
    unread: Vec<u8>,
    reply: Vec<u8>,
    answers: mpsc::Receiver<Vec<u8>>,
    answered: mpsc::Sender<Vec<u8>>,
    pending: usize,
}

impl Connection {
    fn new(shared: Arc<Shared>, meter: Arc<Meter>, client: IpAddr) -> Self {
        let view = View::new(&shared.states);
        let (answered, answers) = mpsc::channel(PENDING_MAX);
        let (unread, reply) = (Vec::new(), Vec::new());
        Self { shared, meter, client, view, unread, reply, answers, answered, pending: 0 }
    }

    async fn serve(mut self, mut stream: TcpStream, mut seat: Seat) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (stop, idle) = (self.shared.close.clone(), self.shared.tcp_idle_timeout);
        let mut open = true;
        while open || self.pending > 0 {
            let may_read = open && self.pending < PENDING_MAX;
            tokio::select! {
                read = stream.read_buf(&mut self.unread), if may_read => if read? == 0 {
                    open = false;
                } else {
                    seat.heard();
                    self.take_all(&mut stream).await?;
                },
                answer = self.answers.recv(), if self.pending > 0 => {
                    self.pending -= 1;
                    if let Some(answer) = answer {
                        send(&mut stream, &answer).await?;
                    }
                    self.take_all(&mut stream).await?;
                }
                () = stop.cancelled(), if open => open = false,
                () = sleep(idle) => return Ok(()),
            }
        }
        stream.shutdown().await
    }

    /// Answers every question that has arrived whole.
    async fn take_all(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        let mut at = 0;
        while self.pending < PENDING_MAX {
            let Some((length, rest)) = self.unread[at..].split_first_chunk::<LENGTH_BYTES>() else { break };
            let Some(packet) = rest.get(..usize::from(u16::from_be_bytes(*length))) else { break };
            at += LENGTH_BYTES + packet.len();
            match answer_now(
                &self.shared,
                &mut self.view,
                &mut &*self.meter,
                (Transport::Tcp, self.client),
                packet,
                &mut self.reply,
            ) {
                Outcome::Reply => send(stream, &self.reply).await?,
                // Who sends this over TCP does not speak DNS.
                Outcome::Silence => return Err(io::ErrorKind::InvalidData.into()),
                Outcome::Later(later) => {
                    self.pending += 1;
                    let meter = Arc::clone(&self.meter);
                    let answered = self.answered.clone();
                    self.shared.pending.spawn(async move {
                        let reply = answer_later(&meter, *later).await;
                        // The connection may have ended meanwhile.
                        answered.send(reply).await.ok();
                    });
                }
            }
        }
        self.unread.drain(..at);
        Ok(())
    }
}

async fn send(stream: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes(), answer].concat();
    timeout(WRITE_TIMEOUT, stream.write_all(&framed))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
