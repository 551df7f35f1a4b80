//! The counters of one listener, found once and then only counted up: finding one by its labels costs more than answering.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use prometheus::{Histogram, IntCounter};

use super::Metrics;

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
/// Record types that are counted by name; the last place is for the others.
const TYPES: [RecordType; 18] = [
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
const CODES: usize = 17;

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

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn request(
        &self,
        scope: Scope,
        transport: Transport,
        kind: RecordType,
        size: usize,
        dnssec_ok: bool,
    ) {
        let set = &self.metrics.set.questions;
        let (zone, proto) = (self.zone(scope), transport_name(transport));
        let type_at = TYPES.iter().position(|&known| known == kind).unwrap_or(TYPES.len());
        let cell = &self.requests[scope as usize][transport as usize][type_at];
        cell.get_or_init(|| {
            let type_name = TYPES.get(type_at).map_or_else(|| "other".to_owned(), ToString::to_string);
            set.requests.with_label_values(&[&*self.server, zone, "", proto, self.family, &*type_name])
        })
        .inc();
        if dnssec_ok {
            let cell = &self.do_requests[scope as usize];
            cell.get_or_init(|| set.do_requests.with_label_values(&[&*self.server, zone, ""])).inc();
        }
        let cell = &self.request_sizes[scope as usize][transport as usize];
        let sizes =
            cell.get_or_init(|| set.request_size.with_label_values(&[&*self.server, zone, "", proto]));
        sizes.observe(as_f64(size));
    }

    pub(crate) fn response(
        &self,
        scope: Scope,
        transport: Transport,
        (code, source): (ResponseCode, Source),
        size: usize,
        took: Duration,
    ) {
        let set = &self.metrics.set.questions;
        let (zone, proto) = (self.zone(scope), transport_name(transport));
        let code_at = usize::from(u16::from(code)).min(CODES - 1);
        let cell = &self.responses[scope as usize][source as usize][code_at];
        cell.get_or_init(|| {
            let labels = [&*self.server, zone, "", code_name(code), source_name(source)];
            set.responses.with_label_values(&labels)
        })
        .inc();
        let cell = &self.durations[scope as usize];
        let durations = cell.get_or_init(|| set.duration.with_label_values(&[&*self.server, zone, ""]));
        durations.observe(took.as_secs_f64());
        let cell = &self.response_sizes[scope as usize][transport as usize];
        let sizes =
            cell.get_or_init(|| set.response_size.with_label_values(&[&*self.server, zone, "", proto]));
        sizes.observe(as_f64(size));
    }

    fn zone(&self, scope: Scope) -> &str {
        match scope {
            Scope::Cluster => &self.zone,
            Scope::Reverse => "arpa.",
            Scope::Other => ".",
        }
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

fn as_f64(size: usize) -> f64 {
    f64::from(u32::try_from(size).unwrap_or(u32::MAX))
}
