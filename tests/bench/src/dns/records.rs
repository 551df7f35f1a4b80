//! The records that all servers of a run have: a Service per number with an address and a port, told as a snapshot, as
//! unbound's local data and as a zone file.
//!
//! All names have the same length, be there few or many: a longer one costs more by itself.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Result;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use seaway_model::{Protocol, Service, ServiceKey, ServicePort, Snapshot};

/// The namespace of all Services.
pub const NAMESPACE: &str = "shop";
/// The different questions of a run: more than any cache of a processor holds, in an order that jumps.
const QUESTIONS: usize = 20_000;
const STRIDE: usize = 7919;

/// A kind of question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// An address that is there.
    Hit,
    /// No such name.
    NxDomain,
    /// A name without an address of this family.
    NoData,
    /// A named port.
    Srv,
}

impl Case {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Hit, Self::NxDomain, Self::NoData, Self::Srv];

    /// Its name in a row.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::NxDomain => "nxdomain",
            Self::NoData => "nodata",
            Self::Srv => "srv",
        }
    }

    /// The question of this kind about the Service `n`.
    fn question(self, n: usize) -> (String, RecordType) {
        let below = |label: String| format!("{label}.{NAMESPACE}.svc.cluster.local.");
        match self {
            Self::Hit => (below(label(n)), RecordType::A),
            Self::NxDomain => (below(format!("n{n:05}")), RecordType::A),
            Self::NoData => (below(label(n)), RecordType::AAAA),
            Self::Srv => (below(format!("_http._tcp.{}", label(n))), RecordType::SRV),
        }
    }

    /// A packet that asks about the Service `n`.
    pub fn packet(self, n: usize) -> Result<Vec<u8>> {
        let (name, kind) = self.question(n);
        packet(&name, kind)
    }

    /// Packets about Services all over a zone of `size`.
    pub fn packets(self, size: usize, count: usize) -> Result<Vec<Vec<u8>>> {
        (0..count).map(|n| self.packet(n * STRIDE % size)).collect()
    }

    /// The same as dnsperf reads it.
    pub fn lines(self, size: usize) -> String {
        (0..QUESTIONS).fold(String::new(), |text, n| {
            let (name, kind) = self.question(n * STRIDE % size);
            text + &format!("{name} {kind}\n")
        })
    }
}

/// A packet that asks for `name`.
pub fn packet(name: &str, kind: RecordType) -> Result<Vec<u8>> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    Ok(message.to_vec()?)
}

/// The name of the Service `n`.
fn label(n: usize) -> String {
    format!("s{n:05}")
}

fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + n as u32)
}

/// What our server is shown. Words that many objects have are shared, as the watch shares them.
pub fn snapshot(size: usize) -> Snapshot {
    let mut snapshot = Snapshot { version: 1, synced: true, ..Snapshot::default() };
    let (namespace, port_name): (Arc<str>, Arc<str>) = (NAMESPACE.into(), "http".into());
    for n in 0..size {
        let name = label(n).into();
        let mut service = Service::new(ServiceKey { namespace: Arc::clone(&namespace), name });
        service.cluster_ips.push(address(n).into());
        service.ports.push(ServicePort {
            name: Arc::clone(&port_name),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            app_protocol: None,
        });
        snapshot.services.insert(service.key.clone(), Arc::new(service));
    }
    snapshot
}

/// unbound's local data.
pub fn local_data(size: usize) -> Result<String> {
    let mut text =
        " local-zone: \"cluster.local.\" static\n local-data: \"cluster.local. 5 SOA ns.dns.cluster.local. \
                    hostmaster.cluster.local. 1 7200 1800 86400 5\"\n"
            .to_owned();
    for n in 0..size {
        let name = format!("{}.{NAMESPACE}.svc.cluster.local.", label(n));
        writeln!(text, " local-data: \"{name} 5 A {}\"", address(n))?;
        writeln!(text, " local-data: \"_http._tcp.{name} 5 SRV 0 100 80 {name}\"")?;
    }
    Ok(text)
}

/// A zone file, for knot and CoreDNS.
pub fn zone_file(size: usize) -> Result<String> {
    let mut text =
        "$ORIGIN cluster.local.\n@ 5 IN SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ 5 IN NS ns.dns\n\
                    ns.dns 5 IN A 10.96.0.10\n"
            .to_owned();
    for n in 0..size {
        let name = format!("{}.{NAMESPACE}.svc", label(n));
        writeln!(text, "{name} 5 IN A {}", address(n))?;
        writeln!(text, "_http._tcp.{name} 5 IN SRV 0 100 80 {name}")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_side_has_the_same_records() {
        assert_eq!(snapshot(30).services.len(), 30);
        assert_eq!(local_data(30).unwrap().matches(" 5 A 10.96.0.").count(), 30);
        assert_eq!(zone_file(30).unwrap().matches(" IN SRV ").count(), 30);
        assert_eq!(Case::Hit.lines(1_000).lines().count(), QUESTIONS);
        let distinct: std::collections::BTreeSet<_> =
            Case::Hit.packets(1_000, 1_000).unwrap().into_iter().collect();
        assert!(distinct.len() > 990, "the id differs, and so does the name");
    }
}
