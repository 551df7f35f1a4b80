//! One upstream resolver: a question there, an answer back, over UDP and, where that is too small, over TCP.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::DNSClass;
use hickory_proto::rr::{Name, RecordType};
use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use super::connection::{Connections, TlsConfig};
use crate::Metrics;
use crate::cache::{Found, Key};
use crate::settings::{ForwardSettings, UpstreamSettings};
use crate::wire::UDP_PAYLOAD_MAX;

/// Why an exchange failed.
#[derive(Debug, Error)]
pub(super) enum ExchangeError {
    #[error("{to} did not answer in time")]
    Timeout { to: SocketAddr },
    #[error("cannot talk to {to}")]
    Io {
        to: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the question cannot be encoded")]
    Encode,
    #[error("{to} answered something else over TCP")]
    Mismatch { to: SocketAddr },
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    /// Somebody looks after it.
    probed: bool,
}

/// An upstream.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    label: String,
    health: Mutex<Health>,
    connections: Connections,
    /// Over a connection at once.
    stream_only: bool,
    max_fails: u32,
    health_check: Duration,
    /// Packets that answer no question of ours and have not been told yet.
    dropped: AtomicU64,
}

impl Upstream {
    pub(super) fn new(
        upstream: &UpstreamSettings,
        tls: Option<TlsConfig>,
        settings: &ForwardSettings,
    ) -> Self {
        let address = upstream.address;
        let stream_only = settings.force_tcp || tls.is_some();
        let label = if tls.is_some() { format!("tls://{address}") } else { address.to_string() };
        let connections = Connections::new(upstream, tls, settings);
        let (max_fails, health_check) = (settings.max_fails, settings.health_check);
        let (health, dropped) = (Mutex::default(), AtomicU64::new(0));
        Self { address, label, health, connections, stream_only, max_fails, health_check, dropped }
    }

    /// Whether it has failed several times in a row.
    pub(super) fn is_failing(&self) -> bool {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        self.max_fails > 0 && health.failures >= self.max_fails
    }

    /// Asks an upstream that fails now and then whether it is well again. Ends when it is, or when it is not wanted any
    /// more.
    pub(super) fn look_after(self: &Arc<Self>, metrics: &Metrics) {
        {
            let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
            let failing = self.max_fails > 0 && health.failures >= self.max_fails;
            if !failing || std::mem::replace(&mut health.probed, true) {
                return;
            }
        }
        let (upstream, metrics, every) = (Arc::downgrade(self), metrics.clone(), self.health_check);
        tokio::spawn(async move {
            loop {
                sleep(every).await;
                let Some(upstream) = upstream.upgrade() else { return };
                if upstream.is_well().await {
                    *upstream.health.lock().unwrap_or_else(PoisonError::into_inner) = Health::default();
                    return;
                }
                metrics.health_check_failed(&upstream.label);
            }
        });
    }

    /// Whether it answers anything at all.
    async fn is_well(&self) -> bool {
        const PATIENCE: Duration = Duration::from_secs(1);
        let name = probe_name().clone();
        let key = Key { name, kind: RecordType::A, dnssec_ok: false, checking_disabled: false };
        let heard = PROBES_HEARD.load(Ordering::Relaxed);
        let answer = timeout(PATIENCE, self.ask_once(&key, false)).await;
        let leads_back = PROBES_HEARD.load(Ordering::Relaxed) != heard;
        // A server of some zones only refuses the name; we do as well, where it comes back to us.
        matches!(answer, Ok(Ok(found)) if found.code != ResponseCode::Refused || !leads_back)
    }

    /// Asks, within `patience`.
    pub(super) async fn exchange(
        &self,
        key: &Key,
        patience: Duration,
        metrics: &Metrics,
    ) -> Result<Found, ExchangeError> {
        let began = Instant::now();
        metrics.forward_request(&self.label);
        let ended = match timeout(patience, self.ask(key)).await {
            Ok(ended) => ended,
            Err(_) => Err(ExchangeError::Timeout { to: self.address }),
        };
        {
            let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
            health.failures = if ended.is_ok() { 0 } else { health.failures.saturating_add(1) };
        }
        let (reused, opened) = self.connections.take_counts();
        metrics.forward_connections(&self.label, reused, opened);
        metrics.forward_response(&self.label, ended.as_ref().ok().map(|found| found.code), began.elapsed());
        ended
    }

    /// Replies since the last time that were not remembered, since they do not answer the question.
    pub(super) fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }

    async fn ask(&self, key: &Key) -> Result<Found, ExchangeError> {
        let found = self.ask_once(key, true).await?;
        // Old resolvers do not know EDNS.
        if matches!(found.code, ResponseCode::FormErr | ResponseCode::NotImp) && !key.dnssec_ok {
            return self.ask_once(key, false).await;
        }
        Ok(found)
    }

    async fn ask_once(&self, key: &Key, edns: bool) -> Result<Found, ExchangeError> {
        let question = question(key, edns);
        let wire = question.to_vec().map_err(|_| ExchangeError::Encode)?;
        let failed = |source| ExchangeError::Io { to: self.address, source };
        let mismatch = ExchangeError::Mismatch { to: self.address };
        if !self.stream_only {
            let message = self.over_udp(&question, &wire).await.map_err(failed)?;
            if !message.metadata.truncation {
                return Ok(found(message));
            }
        }
        let reply = self.connections.exchange(&wire).await.map_err(failed)?;
        let answer = answer_to(&question, &reply);
        if answer.is_none() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        answer.map(found).ok_or(mismatch)
    }

    /// A socket of its own for each question: the kernel picks its port at random, and, being connected, it takes packets
    /// from nobody else.
    async fn over_udp(&self, question: &Message, wire: &[u8]) -> io::Result<Message> {
        let any: IpAddr =
            if self.address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(self.address).await?;
        socket.send(wire).await?;
        let mut buffer = vec![0; 4096];
        loop {
            let length = socket.recv(&mut buffer).await?;
            // What does not answer the question is a forgery or a late one: go on waiting.
            if let Some(message) = answer_to(question, &buffer[..length]) {
                return Ok(message);
            }
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn found(message: Message) -> Found {
    Found {
        code: message.metadata.response_code,
        authentic_data: message.metadata.authentic_data,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
    }
}

/// A name that nobody else asks for: upstreams are asked for it to see whether they are well, and one that asks us for it
/// leads back to us.
fn probe_name() -> &'static Name {
    static NAME: OnceLock<Name> = OnceLock::new();
    NAME.get_or_init(|| {
        let token = RandomState::new().build_hasher().finish();
        Name::from_ascii(format!("{token:016x}.probe.seaway.invalid.")).unwrap_or_else(|_| Name::root())
    })
}

/// Probes that have come back to us.
static PROBES_HEARD: AtomicU64 = AtomicU64::new(0);

/// Whether a name is the one that upstreams are asked for to see whether they are well.
pub(super) fn is_probe(name: &Name) -> bool {
    let is = *name == *probe_name();
    if is {
        PROBES_HEARD.fetch_add(1, Ordering::Relaxed);
    }
    is
}

/// A question with a random id.
fn question(key: &Key, edns: bool) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = key.checking_disabled;
    // Whether it is authentic is of interest, also without signatures (RFC 6840, 5.7): the answer is remembered for all.
    message.metadata.authentic_data = true;
    message.add_query(Query::query(key.name.clone(), key.kind));
    if edns {
        let mut opt = Edns::new();
        opt.set_max_payload(UDP_PAYLOAD_MAX);
        opt.set_version(0);
        opt.set_dnssec_ok(key.dnssec_ok);
        message.set_edns(opt);
    }
    message
}

/// The answer in `packet`, if it is one to `question`.
fn answer_to(question: &Message, packet: &[u8]) -> Option<Message> {
    if packet.get(..2)? != question.metadata.id.to_be_bytes() {
        return None;
    }
    let message = Message::from_vec(packet).ok()?;
    let asked = question.queries.first()?;
    let repeats = match message.queries.as_slice() {
        [query] => {
            query.name() == asked.name()
                && query.query_type() == asked.query_type()
                && query.query_class() == DNSClass::IN
        }
        // Some resolvers leave the question out of an error.
        [] => message.metadata.response_code != ResponseCode::NoError,
        _ => false,
    };
    let answers =
        message.metadata.message_type == MessageType::Response && message.metadata.op_code == OpCode::Query;
    (answers && repeats).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> Key {
        let name = Name::from_ascii("www.example.").unwrap();
        Key { name, kind: RecordType::A, dnssec_ok: false, checking_disabled: false }
    }

    #[test]
    fn only_the_answer_is_the_answer() {
        let question = question(&key(), true);
        let answer = question.clone().into_response();
        let is_answer = |change: fn(&mut Message)| {
            let mut message = answer.clone();
            change(&mut message);
            answer_to(&question, &message.to_vec().unwrap()).is_some()
        };
        assert!(is_answer(|_| {}));
        assert!(!is_answer(|m| m.metadata.id ^= 1));
        assert!(!is_answer(|m| m.metadata.message_type = MessageType::Query));
        assert!(!is_answer(|m| m.metadata.op_code = OpCode::Notify));
        assert!(!is_answer(|m| m.queries.clear()));
        assert!(is_answer(|m| {
            m.queries.clear();
            m.metadata.response_code = ResponseCode::FormErr;
        }));
        assert!(!is_answer(|m| m.queries = vec![Query::query(Name::root(), RecordType::A)]));
        assert!(!is_answer(|m| {
            m.queries[0].set_query_type(RecordType::AAAA);
        }));
        assert!(!is_answer(|m| {
            m.queries[0].set_query_class(DNSClass::CH);
        }));
    }

    proptest! {
        #[test]
        fn any_packet_is_taken(packet in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut question = question(&key(), false);
            if let [high, low, ..] = packet[..] {
                question.metadata.id = u16::from_be_bytes([high, low]);
            }
            answer_to(&question, &packet);
        }
    }
}
