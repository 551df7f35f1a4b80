//! What an agent and its worker say to each other: one JSON object a line. Fields that a version does not know are
//! passed over, and a plan travels one frontend a line, so that neither side holds it twice.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;
use seaway_model::Protocol;
use serde::{Deserialize, Serialize};

use super::Refusal;
use super::site::{Place, SiteKey};
use crate::dataplane::{DataplaneError, Failure, Subject};
use crate::frontend::{Backend, Frontend, FrontendKey, FrontendKind, Group, Scope};
use crate::plan::{Device, Host};
use crate::status::DropCount;

/// The language. One side that speaks another is not understood.
pub(super) const PROTOCOL: u32 = 1;

/// A line of either side.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// Who is there? Answered by `Worker`.
    Hello,
    /// Answered by `Frontend`s, `Host`, and `Done`.
    Read,
    /// Part of a plan; or of an answer.
    Host(WireHost),
    /// Part of a plan.
    Upsert(WireKey, WireFrontend),
    /// Part of a plan.
    Remove(WireKey),
    /// Carry the plan out that was told. Answered by `Failed`s and `Done`.
    Apply,
    /// Endpoints that serve UDP.
    Serving(Vec<(u64, IpAddr, u16)>),
    /// Forget UDP flows to others than were told. Answered by `Done`.
    ForgetUdp,
    /// Tell everything to a successor, sockets included. Answered like `Read`, then by `Listener`s, each followed by
    /// its `Flow`s, by `Affinity`s, and `Done`.
    HandOver,
    /// The successor has it all.
    Taken,
    /// Take no new connection, and end with the last one that is open. Answered by `Done`.
    Retire,
    /// End. Answered by `Done`.
    End,
    Worker(Presence),
    Frontend(WireKey, WireFrontend),
    /// A socket that listens; its descriptor comes along.
    Listener(WirePlace),
    /// A UDP client of the `Listener` before, and the backend that it has; the socket towards that comes along.
    Flow {
        client: SocketAddr,
        target: (u64, IpAddr, u16),
    },
    /// The backend that a client had, so many milliseconds ago.
    Affinity {
        group: u64,
        client: IpAddr,
        backend: (IpAddr, u16),
        ago_ms: u64,
    },
    Failed(WireFailure),
    Done {
        count: usize,
        /// How many of them are of IPv6, where that is of interest.
        #[serde(default)]
        of_ipv6: usize,
        drops: Vec<(String, u64)>,
    },
}

/// A worker that answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// The language that it speaks.
    pub(super) protocol: u32,
    /// The version of the program.
    pub version: String,
    /// Its process id, as it knows it.
    pub pid: u32,
    /// It takes new connections.
    pub serving: bool,
    /// Connections and associations that are open.
    pub busy: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireKey(IpAddr, u16, String, WireScope);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WireScope {
    Internal,
    External,
}

impl From<&FrontendKey> for WireKey {
    fn from(key: &FrontendKey) -> Self {
        let scope = match key.scope {
            Scope::Internal => WireScope::Internal,
            Scope::External => WireScope::External,
        };
        Self(key.addr, key.port, key.protocol.as_str().to_owned(), scope)
    }
}

impl TryFrom<&WireKey> for FrontendKey {
    type Error = String;

    fn try_from(WireKey(addr, port, name, scope): &WireKey) -> Result<Self, String> {
        let scope = match scope {
            WireScope::Internal => Scope::Internal,
            WireScope::External => Scope::External,
        };
        Ok(Self { addr: *addr, port: *port, protocol: protocol(name)?, scope })
    }
}

fn protocol(name: &str) -> Result<Protocol, String> {
    name.parse().map_err(|_| format!("there is no protocol {name:?}"))
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireFrontend {
    group: u64,
    kind: String,
    backends: Vec<(IpAddr, u16, bool)>,
    #[serde(default)]
    affinity_s: Option<u64>,
    #[serde(default)]
    source_ranges: Vec<IpNet>,
    #[serde(default)]
    preserve_source: bool,
    #[serde(default)]
    elsewhere: bool,
    #[serde(default)]
    maglev: bool,
    #[serde(default)]
    dsr: bool,
    #[serde(default)]
    masquerade: bool,
}

const KINDS: [(FrontendKind, &str); 4] = [
    (FrontendKind::ClusterIP, "cluster-ip"),
    (FrontendKind::LoadBalancer, "load-balancer"),
    (FrontendKind::ExternalIP, "external-ip"),
    (FrontendKind::NodePort, "node-port"),
];

impl From<&Frontend> for WireFrontend {
    fn from(frontend: &Frontend) -> Self {
        let kind = KINDS.iter().find(|(kind, _)| *kind == frontend.kind).map_or("", |(_, name)| name);
        Self {
            group: frontend.group.bits(),
            kind: kind.to_owned(),
            backends: frontend.backends.iter().map(|b| (b.addr, b.port, b.local)).collect(),
            affinity_s: frontend.affinity.map(|affinity| affinity.as_secs()),
            source_ranges: frontend.source_ranges.to_vec(),
            preserve_source: frontend.preserve_source,
            elsewhere: frontend.elsewhere,
            maglev: frontend.maglev,
            dsr: frontend.dsr,
            masquerade: frontend.masquerade,
        }
    }
}

impl TryFrom<WireFrontend> for Arc<Frontend> {
    type Error = String;

    fn try_from(wire: WireFrontend) -> Result<Self, String> {
        let kind = KINDS.iter().find(|(_, name)| *name == wire.kind).map(|(kind, _)| *kind);
        let backend = |(addr, port, local)| Backend { addr, port, local };
        Ok(Self::new(Frontend {
            group: Group::from_bits(wire.group),
            kind: kind.ok_or_else(|| format!("there is no kind {:?} of frontend", wire.kind))?,
            backends: wire.backends.into_iter().map(backend).collect(),
            affinity: wire.affinity_s.map(Duration::from_secs),
            source_ranges: wire.source_ranges.into(),
            preserve_source: wire.preserve_source,
            elsewhere: wire.elsewhere,
            maglev: wire.maglev,
            dsr: wire.dsr,
            masquerade: wire.masquerade,
        }))
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireDevice(String, u32);

impl From<&Device> for WireDevice {
    fn from(device: &Device) -> Self {
        Self(device.name.to_string(), device.index)
    }
}

impl From<WireDevice> for Device {
    fn from(WireDevice(name, index): WireDevice) -> Self {
        Self { name: name.into(), index }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireHost {
    node_v4: Option<std::net::Ipv4Addr>,
    node_v6: Option<std::net::Ipv6Addr>,
    uplinks: Vec<WireDevice>,
    pod_links: Vec<WireDevice>,
}

impl From<&Host> for WireHost {
    fn from(host: &Host) -> Self {
        Self {
            node_v4: host.node_v4,
            node_v6: host.node_v6,
            uplinks: host.uplinks.iter().map(Into::into).collect(),
            pod_links: host.pod_links.iter().map(Into::into).collect(),
        }
    }
}

impl From<WireHost> for Host {
    fn from(wire: WireHost) -> Self {
        Self {
            node_v4: wire.node_v4,
            node_v6: wire.node_v6,
            uplinks: wire.uplinks.into_iter().map(Into::into).collect(),
            pod_links: wire.pod_links.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WirePlace {
    addr: SocketAddr,
    protocol: String,
    link: Option<WireDevice>,
}

impl From<(&SiteKey, &Place)> for WirePlace {
    fn from((key, place): (&SiteKey, &Place)) -> Self {
        let link = match place {
            Place::Anywhere => None,
            Place::Link(device) => Some(device.into()),
        };
        let addr = SocketAddr::new(key.addr, key.port);
        Self { addr, protocol: key.protocol.as_str().to_owned(), link }
    }
}

impl TryFrom<WirePlace> for (SiteKey, Place) {
    type Error = String;

    fn try_from(wire: WirePlace) -> Result<Self, String> {
        let (addr, port) = (wire.addr.ip(), wire.addr.port());
        let key = SiteKey { addr, port, protocol: protocol(&wire.protocol)? };
        Ok((key, wire.link.map_or(Place::Anywhere, |link| Place::Link(link.into()))))
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireFailure {
    frontend: Option<WireKey>,
    refusal: Option<Refusal>,
    /// Somebody else listens there.
    #[serde(default)]
    taken: bool,
    /// No more files can be opened.
    #[serde(default)]
    out_of_files: bool,
    text: String,
}

impl From<&Failure> for WireFailure {
    fn from(failure: &Failure) -> Self {
        let frontend = match failure.subject {
            Subject::Frontend(key) => Some((&key).into()),
            Subject::Host | Subject::Sweep => None,
        };
        let refusal = match &failure.error {
            DataplaneError::Unsupported { what, .. } => Refusal::of(what),
            _ => None,
        };
        let (taken, out_of_files) = (failure.error.is_taken(), failure.error.is_out_of_files());
        Self { frontend, refusal, taken, out_of_files, text: crate::reconcile::chain(&failure.error) }
    }
}

impl TryFrom<WireFailure> for Failure {
    type Error = String;

    fn try_from(wire: WireFailure) -> Result<Self, String> {
        let frontend = wire.frontend.as_ref().map(FrontendKey::try_from).transpose()?;
        let subject = frontend.map_or(Subject::Host, Subject::Frontend);
        let error = if let (Some(frontend), Some(refusal)) = (frontend, wire.refusal) {
            refusal.error(frontend)
        } else {
            let (action, source) = if wire.out_of_files {
                (wire.text, Errno::MFILE.into())
            } else {
                let kind = if wire.taken { ErrorKind::AddrInUse } else { ErrorKind::Other };
                ("the userspace data plane".to_owned(), std::io::Error::new(kind, wire.text))
            };
            DataplaneError::Io { action, source }
        };
        Ok(Self { subject, error })
    }
}

pub(super) fn drops_of(drops: Vec<(String, u64)>) -> Vec<DropCount> {
    drops.into_iter().map(|(reason, packets)| DropCount { reason, packets }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(line: &Line) -> Line {
        serde_json::from_str(&serde_json::to_string(line).unwrap()).unwrap()
    }

    #[test]
    fn a_frontend_arrives_as_it_was() {
        for (kind, _) in KINDS {
            let frontend = Frontend {
                group: Group::from_bits(u64::MAX),
                kind,
                backends: [Backend { addr: "fd00::1".parse().unwrap(), port: 8080, local: true }].into(),
                affinity: Some(Duration::from_secs(10_800)),
                source_ranges: ["192.0.2.0/24".parse().unwrap()].into(),
                preserve_source: true,
                elsewhere: true,
                maglev: true,
                dsr: true,
                masquerade: true,
            };
            let key = FrontendKey {
                addr: [10, 96, 0, 1].into(),
                port: 53,
                protocol: Protocol::Udp,
                scope: Scope::External,
            };
            let line = Line::Upsert((&key).into(), (&frontend).into());
            let Line::Upsert(told_key, told) = there_and_back(&line) else { panic!("another line") };
            assert_eq!(FrontendKey::try_from(&told_key).unwrap(), key);
            assert_eq!(*Arc::<Frontend>::try_from(told).unwrap(), frontend);
        }
    }

    #[test]
    fn a_place_and_a_host_arrive_as_they_were() {
        let link = Device { name: "eth0".into(), index: 7 };
        let key = SiteKey { addr: "::1".parse().unwrap(), port: 80, protocol: Protocol::Tcp };
        for place in [Place::Anywhere, Place::Link(link.clone())] {
            let Line::Listener(told) = there_and_back(&Line::Listener((&key, &place).into())) else {
                panic!("another line")
            };
            assert_eq!(<(SiteKey, Place)>::try_from(told).unwrap(), (key, place));
        }
        let host =
            Host { node_v4: Some([192, 0, 2, 1].into()), uplinks: [link.clone()].into(), ..Host::default() };
        let Line::Host(told) = there_and_back(&Line::Host((&host).into())) else { panic!("another line") };
        assert_eq!(Host::from(told), host);
    }

    #[test]
    fn why_there_is_no_socket_is_passed_on() {
        for (source, taken, out_of_files) in [
            (ErrorKind::AddrInUse.into(), true, false),
            (ErrorKind::PermissionDenied.into(), false, false),
            (std::io::Error::from(Errno::NFILE), false, true),
        ] {
            let error = DataplaneError::Io { action: "cannot listen".into(), source };
            let failure = Failure { subject: Subject::Host, error };
            let told = Failure::try_from(WireFailure::from(&failure)).unwrap().error;
            assert_eq!((told.is_taken(), told.is_out_of_files()), (taken, out_of_files), "{told}");
        }
    }

    #[test]
    fn a_refusal_stays_one() {
        let frontend = FrontendKey {
            addr: [10, 96, 0, 1].into(),
            port: 80,
            protocol: Protocol::Sctp,
            scope: Scope::Internal,
        };
        for refusal in Refusal::ALL {
            let failure = Failure { subject: Subject::Frontend(frontend), error: refusal.error(frontend) };
            let told = Failure::try_from(WireFailure::from(&failure)).unwrap();
            assert_eq!(told.subject, failure.subject);
            assert_eq!(told.error.to_string(), failure.error.to_string());
            assert!(matches!(told.error, DataplaneError::Unsupported { .. }));
        }
    }
}
