//! An upstream resolver that the tests play: UDP and TCP on one loopback port, with the behaviour that a test needs. Names say
//! what is answered: `nothing…` does not exist, `large…` is too large for UDP, `short…` lives for one second, and what ends
//! in `invalid.` is refused, as it is by whoever knows some zones only. Names have no IPv6 address, and what is said is
//! authentic for who asks for that.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "support of tests; not every one uses all of it"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

#[derive(Debug, Clone, Copy)]
pub enum Behaviour {
    Answer,
    Silent,
    Late(Duration),
    Fail(ResponseCode),
    /// Sends two wrong answers before the right one.
    ForgeFirst,
}

/// Ends when it is dropped.
pub struct Resolver {
    pub address: SocketAddr,
    asked: Arc<AtomicU32>,
    _tasks: JoinSet<()>,
}

impl Resolver {
    pub async fn start(behaviour: Behaviour) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        Self::serve(udp, tcp, behaviour)
    }

    /// One at the address that another one has left.
    pub async fn start_at(address: SocketAddr, behaviour: Behaviour) -> Self {
        loop {
            let sockets = (UdpSocket::bind(address).await, TcpListener::bind(address).await);
            if let (Ok(udp), Ok(tcp)) = sockets {
                return Self::serve(udp, tcp, behaviour);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn serve(udp: UdpSocket, tcp: TcpListener, behaviour: Behaviour) -> Self {
        let address = udp.local_addr().unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, behaviour, Arc::clone(&asked)));
        tasks.spawn(serve_tcp(tcp));
        Self { address, asked, _tasks: tasks }
    }

    /// Questions over UDP so far.
    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn serve_udp(socket: UdpSocket, behaviour: Behaviour, asked: Arc<AtomicU32>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; 4096];
    let mut late = JoinSet::new();
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
        asked.fetch_add(1, Ordering::SeqCst);
        let mut answer = answer(&buffer[..length], false);
        match behaviour {
            Behaviour::Silent => continue,
            Behaviour::Fail(code) => {
                answer.answers.clear();
                answer.metadata.response_code = code;
            }
            Behaviour::ForgeFirst => {
                let mut forged = answer.clone();
                forged.answers[0].data = RData::A(A::new(198, 51, 100, 66));
                forged.metadata.id ^= 1;
                socket.send_to(&forged.to_vec().unwrap(), client).await.unwrap();
                forged.metadata.id ^= 1;
                forged.queries[0].set_name(Name::from_ascii("other.example.").unwrap());
                socket.send_to(&forged.to_vec().unwrap(), client).await.unwrap();
            }
            Behaviour::Late(delay) => {
                let socket = Arc::clone(&socket);
                late.spawn(async move {
                    tokio::time::sleep(delay).await;
                    socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
                });
                continue;
            }
            Behaviour::Answer => {}
        }
        socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
    }
}

async fn serve_tcp(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let Ok(length) = stream.read_u16().await else { continue };
        let mut packet = vec![0; length.into()];
        stream.read_exact(&mut packet).await.unwrap();
        let reply = answer(&packet, true).to_vec().unwrap();
        let length = u16::try_from(reply.len()).unwrap();
        stream.write_all(&[&length.to_be_bytes()[..], &reply].concat()).await.unwrap();
    }
}

fn answer(packet: &[u8], tcp: bool) -> Message {
    let mut message = Message::from_vec(packet).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    let (name, kind) = (message.queries[0].name().clone(), message.queries[0].query_type());
    match name.to_ascii() {
        text if text.ends_with("invalid.") => message.metadata.response_code = ResponseCode::Refused,
        text if text.starts_with("nothing") || kind == RecordType::AAAA => {
            if text.starts_with("nothing") {
                message.metadata.response_code = ResponseCode::NXDomain;
            }
            let zone = Name::from_ascii("example.").unwrap();
            let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 60);
            message.add_authority(Record::from_rdata(zone, 60, RData::SOA(soa)));
        }
        text if text.starts_with("large") && !tcp => message.metadata.truncation = true,
        text if text.starts_with("large") => {
            let text = RData::TXT(TXT::new(vec!["x".repeat(200)]));
            message.add_answers((0..20).map(|_| Record::from_rdata(name.clone(), 60, text.clone())));
        }
        text => {
            let ttl = if text.starts_with("short") { 1 } else { 60 };
            message.add_answer(Record::from_rdata(name, ttl, RData::A(A::new(192, 0, 2, 1))));
        }
    }
    message
}
