//! The counters of one listener, found once and then only counted up: finding one by its labels costs more than answering.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use prometheus::{Histogram, IntCounter};

use super::Metrics;

/// Who counts questions and answers.
pub(crate) trait Count {
    fn request(&mut self, scope: Scope, transport: Transport, kind: RecordType, size: usize, dnssec_ok: bool);

    fn response(
        &mut self,
        scope: Scope,
        transport: Transport,
        made: (ResponseCode, Source),
        size: usize,
        took: Duration,
    );
}

/// Which zone a question belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The cluster's zone.
    Cluster,
    /// Reverse names that we answer.
    Reverse,
    /// Everything else.
    Other,
}

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Who made the answer, in CoreDNS's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The zone.
    Kubernetes,
    /// The cache.
    Cache,
    /// An upstream.
    Forward,
    /// The hosts table of the settings.
    Hosts,
    /// A code that the settings give.
    Template,
    /// Nobody: the question was not taken.
    None,
}

const SCOPES: usize = 3;
const TRANSPORTS: usize = 2;
const SOURCES: usize = 6;

impl Scope {
    pub(super) const ALL: [Self; SCOPES] = [Self::Cluster, Self::Reverse, Self::Other];
}

impl Transport {
    pub(super) const ALL: [Self; TRANSPORTS] = [Self::Udp, Self::Tcp];
}

impl Source {
    pub(super) const ALL: [Self; SOURCES] =
        [Self::Kubernetes, Self::Cache, Self::Forward, Self::Hosts, Self::Template, Self::None];
}

/// Record types that are counted by name; the last place is for the others.
pub(super) const TYPES: [RecordType; 18] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::PTR,
    RecordType::CNAME,
    RecordType::TXT,
    RecordType::MX,
    RecordType::NS,
    RecordType::SOA,
    RecordType::HTTPS,
    RecordType::SVCB,
    RecordType::DS,
    RecordType::DNSKEY,
    RecordType::RRSIG,
    RecordType::NSEC,
    RecordType::ANY,
    RecordType::AXFR,
    RecordType::IXFR,
];
/// Response codes that fit the header; the last place is for the others.
pub(super) const CODES: usize = 17;

/// Counters of one listener.
#[derive(Debug)]
pub(crate) struct Meter {
    metrics: Metrics,
    server: String,
    zone: String,
    family: &'static str,
    requests: [[[OnceLock<IntCounter>; TYPES.len() + 1]; TRANSPORTS]; SCOPES],
    responses: [[[OnceLock<IntCounter>; CODES]; SOURCES]; SCOPES],
    do_requests: [OnceLock<IntCounter>; SCOPES],
    durations: [OnceLock<Histogram>; SCOPES],
    request_sizes: [[OnceLock<Histogram>; TRANSPORTS]; SCOPES],
    response_sizes: [[OnceLock<Histogram>; TRANSPORTS]; SCOPES],
}

impl Meter {
    pub(crate) fn new(metrics: &Metrics, listener: SocketAddr, origin: &Name) -> Self {
        Self {
            metrics: metrics.clone(),
            server: format!("dns://{listener}"),
            zone: origin.to_ascii(),
            family: if listener.is_ipv4() { "1" } else { "2" },
            requests: Default::default(),
            responses: Default::default(),
            do_requests: Default::default(),
            durations: Default::default(),
            request_sizes: Default::default(),
            response_sizes: Default::default(),
        }
    }

    pub(super) fn requests(&self, scope: Scope, transport: Transport, type_at: usize) -> &IntCounter {
        let set = &self.metrics.set.questions;
        let (zone, proto) = (self.zone(scope), transport_name(transport));
        self.requests[scope as usize][transport as usize][type_at].get_or_init(|| {
            let type_name = TYPES.get(type_at).map_or_else(|| "other".to_owned(), ToString::to_string);
            set.requests.with_label_values(&[&*self.server, zone, "", proto, self.family, &*type_name])
        })
    }

    pub(super) fn do_requests(&self, scope: Scope) -> &IntCounter {
        let (set, zone) = (&self.metrics.set.questions, self.zone(scope));
        self.do_requests[scope as usize]
            .get_or_init(|| set.do_requests.with_label_values(&[&*self.server, zone, ""]))
    }

    pub(super) fn request_sizes(&self, scope: Scope, transport: Transport) -> &Histogram {
        let (set, zone, proto) = (&self.metrics.set.questions, self.zone(scope), transport_name(transport));
        self.request_sizes[scope as usize][transport as usize]
            .get_or_init(|| set.request_size.with_label_values(&[&*self.server, zone, "", proto]))
    }

    pub(super) fn responses(&self, scope: Scope, source: Source, code_at: usize) -> &IntCounter {
        let (set, zone) = (&self.metrics.set.questions, self.zone(scope));
        self.responses[scope as usize][source as usize][code_at].get_or_init(|| {
            let code = u8::try_from(code_at).unwrap_or(u8::MAX);
            let code = ResponseCode::from(code >> 4, code & 0xf);
            set.responses.with_label_values(&[&*self.server, zone, "", code_name(code), source_name(source)])
        })
    }

    pub(super) fn durations(&self, scope: Scope) -> &Histogram {
        let (set, zone) = (&self.metrics.set.questions, self.zone(scope));
        self.durations[scope as usize]
            .get_or_init(|| set.duration.with_label_values(&[&*self.server, zone, ""]))
    }

    pub(super) fn response_sizes(&self, scope: Scope, transport: Transport) -> &Histogram {
        let (set, zone, proto) = (&self.metrics.set.questions, self.zone(scope), transport_name(transport));
        self.response_sizes[scope as usize][transport as usize]
            .get_or_init(|| set.response_size.with_label_values(&[&*self.server, zone, "", proto]))
    }

    fn zone(&self, scope: Scope) -> &str {
        match scope {
            Scope::Cluster => &self.zone,
            Scope::Reverse => "arpa.",
            Scope::Other => ".",
        }
    }
}

impl Count for &Meter {
    fn request(
        &mut self,
        scope: Scope,
        transport: Transport,
        kind: RecordType,
        size: usize,
        dnssec_ok: bool,
    ) {
        self.requests(scope, transport, type_at(kind)).inc();
        if dnssec_ok {
            self.do_requests(scope).inc();
        }
        self.request_sizes(scope, transport).observe(as_f64(size));
    }

    fn response(
        &mut self,
        scope: Scope,
        transport: Transport,
        (code, source): (ResponseCode, Source),
        size: usize,
        took: Duration,
    ) {
        self.responses(scope, source, code_at(code)).inc();
        self.durations(scope).observe(took.as_secs_f64());
        self.response_sizes(scope, transport).observe(as_f64(size));
    }
}

/// A response code as dig and CoreDNS spell it.
pub(crate) fn code_name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "OTHER",
    }
}

fn source_name(source: Source) -> &'static str {
    match source {
        Source::Kubernetes => "kubernetes",
        Source::Cache => "cache",
        Source::Forward => "forward",
        Source::Hosts => "hosts",
        Source::Template => "template",
        Source::None => "",
    }
}

fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    }
}

/// The place of a record type among [`TYPES`], or behind them.
pub(super) fn type_at(kind: RecordType) -> usize {
    TYPES.iter().position(|&known| known == kind).unwrap_or(TYPES.len())
}

/// The place of a response code.
pub(super) fn code_at(code: ResponseCode) -> usize {
    usize::from(u16::from(code)).min(CODES - 1)
}

pub(super) fn as_f64(size: usize) -> f64 {
    f64::from(u32::try_from(size).unwrap_or(u32::MAX))
}
