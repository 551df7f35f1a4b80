//! Hands questions on to other nodes' servers, as they are, and their answers back. Without such a server nothing is read:
//! what arrives waits in the sockets for the next server, as far as they have room.
//!
//! The sockets are shared with whoever serves next, who sets their flags as a server needs them.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use rustix::net::{SocketType, sockopt};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::peers::Peers;
use crate::wire::{Response, decode, encode};

/// Questions that may be under way; those beyond are lost, as they may be on the way.
const QUESTIONS_MAX: usize = 256;
const CONNECTIONS_MAX: usize = 64;
/// Servers that are asked for one question, and how long each has. Clients wait for 5 s by default.
const ATTEMPTS: usize = 3;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// No question takes longer.
const QUESTION_MAX: Duration = Duration::from_secs(4);
const CONNECTION_MAX: Duration = Duration::from_secs(30);
/// Longer packets are no questions, and no answers over UDP that anybody asks for.
const PACKET_BYTES_MAX: usize = 4096;
const HEADER_BYTES: usize = 12;

/// What hands on. It stops reading when it is dropped; what is under way comes to its end.
pub(super) struct Relay {
    readers: JoinSet<()>,
    questions: Arc<Semaphore>,
}

/// What the readers of one address share.
struct Way {
    own: IpAddr,
    ready: Vec<SocketAddr>,
    /// Other nodes' addresses: nobody hands on what another one has handed on.
    nodes: HashSet<IpAddr>,
    /// Which server is asked first; another one after each failure.
    turn: AtomicUsize,
    questions: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Relay {
    pub(super) fn start(sockets: &[OwnedFd], peers: &Peers) -> Self {
        let (questions, connections) = (Semaphore::new(QUESTIONS_MAX), Semaphore::new(CONNECTIONS_MAX));
        let (questions, connections) = (Arc::new(questions), Arc::new(connections));
        let mut readers = JoinSet::new();
        for socket in sockets {
            let way = |own: SocketAddr| Way {
                own: own.ip(),
                ready: peers.ready(own.ip()),
                nodes: peers.addresses(),
                turn: AtomicUsize::new(0),
                questions: Arc::clone(&questions),
                connections: Arc::clone(&connections),
            };
            if let Err(error) = read(socket, way, &mut readers) {
                warn!(%error, "a socket is not read");
            }
        }
        Self { readers, questions }
    }

    /// Stops reading. The future ends when the questions that are under way are answered, or will not be any more.
    pub(super) fn stop(mut self) -> impl Future<Output = ()> {
        self.readers.abort_all();
        async move {
            let all = u32::try_from(QUESTIONS_MAX).unwrap_or(u32::MAX);
            // However it ends, there is no more to wait for.
            timeout(QUESTION_MAX, self.questions.acquire_many(all)).await.ok();
        }
    }
}

/// Begins to read a socket, where there is somebody to hand on to.
fn read(socket: &OwnedFd, way: impl Fn(SocketAddr) -> Way, readers: &mut JoinSet<()>) -> io::Result<()> {
    let kind = sockopt::socket_type(socket)?;
    let socket = socket.try_clone()?;
    if kind == SocketType::DGRAM {
        let socket = std::net::UdpSocket::from(socket);
        let way = Arc::new(way(socket.local_addr()?));
        if !way.ready.is_empty() {
            socket.set_nonblocking(true)?;
            let socket = Arc::new(UdpSocket::from_std(socket)?);
            readers.spawn(async move { read_questions(&socket, &way).await });
        }
    } else {
        let listener = std::net::TcpListener::from(socket);
        let way = Arc::new(way(listener.local_addr()?));
        if !way.ready.is_empty() {
            // It is so already: its server waits for it in a runtime, too.
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            readers.spawn(async move { accept(&listener, &way).await });
        }
    }
    Ok(())
}

async fn read_questions(socket: &Arc<UdpSocket>, way: &Arc<Way>) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut packet).await else {
            // An error that an earlier answer met, most likely; or the socket is done with.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        if way.nodes.contains(&client.ip()) {
            if let Some(refusal) = failure(&packet[..length]) {
                answer(socket, &refusal, client);
            }
            continue;
        }
        let Ok(place) = Arc::clone(&way.questions).try_acquire_owned() else { continue };
        let (socket, way, question) = (Arc::clone(socket), Arc::clone(way), packet[..length].to_vec());
        tokio::spawn(async move {
            if let Some(reply) = way.ask(&question).await {
                answer(&socket, &reply, client);
            }
            drop(place);
        });
    }
}

/// A client that does not get it asks again.
fn answer(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    socket.try_send_to(reply, client).ok();
}

/// That nobody can tell, where the packet is a question.
fn failure(packet: &[u8]) -> Option<Vec<u8>> {
    let request = decode(packet).ok()?;
    let mut reply = Vec::new();
    encode(&request, &Response::empty(ResponseCode::ServFail), request.udp_limit(), &mut reply).ok()?;
    Some(reply)
}

impl Way {
    /// What the first of the servers says that says anything.
    async fn ask(&self, question: &[u8]) -> Option<Vec<u8>> {
        const RESPONSE: u8 = 0x80;
        if question.len() < HEADER_BYTES || question[2] & RESPONSE != 0 {
            return None;
        }
        for _ in 0..ATTEMPTS {
            let turn = self.turn.load(Ordering::Relaxed);
            let server = self.ready[turn % self.ready.len()];
            match timeout(ATTEMPT_TIMEOUT, self.exchange(question, server)).await {
                Ok(Ok(reply)) => return Some(reply),
                // One step for all who met the same failure.
                _ => _ = self.turn.compare_exchange(turn, turn + 1, Ordering::Relaxed, Ordering::Relaxed),
            }
        }
        None
    }

    async fn exchange(&self, question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
        let socket = UdpSocket::bind((self.own, 0)).await?;
        socket.connect(server).await?;
        socket.send(question).await?;
        let mut reply = vec![0; PACKET_BYTES_MAX];
        loop {
            let length = socket.recv(&mut reply).await?;
            if length >= HEADER_BYTES && reply[..2] == question[..2] {
                reply.truncate(length);
                return Ok(reply);
            }
        }
    }

    async fn connect(&self) -> Option<TcpStream> {
        for _ in 0..ATTEMPTS {
            let turn = self.turn.load(Ordering::Relaxed);
            let server = self.ready[turn % self.ready.len()];
            let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.ok()?;
            socket.bind((self.own, 0).into()).ok()?;
            match timeout(ATTEMPT_TIMEOUT, socket.connect(server)).await {
                Ok(Ok(stream)) => return Some(stream),
                _ => _ = self.turn.compare_exchange(turn, turn + 1, Ordering::Relaxed, Ordering::Relaxed),
            }
        }
        None
    }
}

async fn accept(listener: &TcpListener, way: &Arc<Way>) {
    loop {
        let Ok(place) = Arc::clone(&way.connections).acquire_owned().await else { return };
        let Ok((mut client, from)) = listener.accept().await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        if way.nodes.contains(&from.ip()) {
            continue;
        }
        let way = Arc::clone(way);
        tokio::spawn(async move {
            if let Some(mut server) = way.connect().await {
                // However it ends, both sides are closed.
                timeout(CONNECTION_MAX, copy_bidirectional(&mut client, &mut server)).await.ok();
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, Query};
    use hickory_proto::rr::{Name, RecordType};
    use std::path::Path;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn question() -> Vec<u8> {
        let mut message = Message::query();
        message
            .add_query(Query::query(Name::from_ascii("web.shop.svc.cluster.local.").unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    /// A server that says of every question that it has one answer, by its length.
    async fn server(at: &str) -> SocketAddr {
        let udp = UdpSocket::bind(at).await.unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).await.unwrap();
        tokio::spawn(async move {
            let mut packet = vec![0; 512];
            loop {
                let (length, from) = udp.recv_from(&mut packet).await.unwrap();
                packet[2] |= 0x80;
                udp.send_to(&[&packet[..length], b"answered"].concat(), from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                stream.write_all(b"answered").await.unwrap();
            }
        });
        address
    }

    async fn ask(from: &str, at: SocketAddr) -> Vec<u8> {
        let client = UdpSocket::bind(from).await.unwrap();
        client.send_to(&question(), at).await.unwrap();
        let mut reply = vec![0; 512];
        let (length, _) =
            timeout(Duration::from_secs(10), client.recv_from(&mut reply)).await.unwrap().unwrap();
        reply.truncate(length);
        reply
    }

    fn peers(dir: &Path, lines: &str) -> Peers {
        let path = dir.join("peers");
        std::fs::write(&path, lines).unwrap();
        Peers::read(&path).unwrap()
    }

    #[tokio::test]
    async fn questions_are_handed_on_once() {
        let dir = tempfile::tempdir().unwrap();
        let live = server("127.0.0.2:0").await;
        // Nobody listens there.
        let dead = UdpSocket::bind("127.0.0.3:0").await.unwrap().local_addr().unwrap();
        let peers = peers(dir.path(), &format!("{dead} ready\n{live} ready\n127.0.0.4:53 down\n"));
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = udp.local_addr().unwrap();
        let tcp = std::net::TcpListener::bind(at).unwrap();
        let kept = udp.try_clone().unwrap();
        let relay = Relay::start(&[udp.into(), tcp.into()], &peers);

        assert!(ask("127.0.0.1:0", at).await.ends_with(b"answered"));
        let mut stream = TcpStream::connect(at).await.unwrap();
        let mut text = [0; 8];
        timeout(Duration::from_secs(10), stream.read_exact(&mut text)).await.unwrap().unwrap();
        assert_eq!(&text, b"answered");
        // Other nodes are told that it fails, whether they are ready or not.
        for node in ["127.0.0.2:0", "127.0.0.4:0"] {
            let reply = Message::from_vec(&ask(node, at).await).unwrap();
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        }
        drop(relay);
        // What arrives now is left for the next server.
        kept.set_nonblocking(false).unwrap();
        tokio::task::yield_now().await;
        UdpSocket::bind("127.0.0.1:0").await.unwrap().send_to(&question(), at).await.unwrap();
        assert_eq!(kept.recv(&mut [0; 512]).unwrap(), question().len());
    }

    #[tokio::test]
    async fn without_another_server_questions_wait() {
        let dir = tempfile::tempdir().unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (at, kept) = (udp.local_addr().unwrap(), udp.try_clone().unwrap());
        let _relay = Relay::start(&[udp.into()], &peers(dir.path(), "127.0.0.4:53 down\n[::1]:53 ready\n"));
        UdpSocket::bind("127.0.0.1:0").await.unwrap().send_to(&question(), at).await.unwrap();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(kept.recv(&mut [0; 512]).unwrap(), question().len());
    }
}
