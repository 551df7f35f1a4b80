//! From a name to its place in the zone's tree.

use std::borrow::Cow;
use std::net::IpAddr;

use hickory_proto::rr::Name;
use seaway_model::Protocol;

use super::service::{ServiceRecords, parse_dashed};
use super::{PodRecords, Zone};

/// The levels of names that are looked at one by one: `pin._zone.service.namespace.svc`, and one more that tells "deeper".
const LEVELS_MAX: usize = 6;
/// Those above a topology zone, whose name may have dots.
const LEVELS_ABOVE_PART: usize = 5;

/// The labels of a name below the zone's origin, lower case, the highest one first.
pub(super) struct Labels<'a> {
    labels: [Cow<'a, str>; LEVELS_MAX],
    count: usize,
    /// All of them, and how many of its labels they are.
    name: &'a Name,
    depth: usize,
}

impl Labels<'_> {
    /// What stands below the fifth level, as one.
    fn part(&self) -> String {
        let labels = self.name.iter().take(self.depth.saturating_sub(LEVELS_ABOVE_PART));
        labels.map(lower).collect::<Vec<_>>().join(".")
    }

    fn get(&self) -> [&str; LEVELS_MAX] {
        std::array::from_fn(|at| &*self.labels[at])
    }
}

/// A named port, as its Service spells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port<'a> {
    pub(super) name: &'a [u8],
    pub(super) protocol: Protocol,
}

/// The endpoints that are in one topology zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) zone: String,
    /// All endpoints, where there are none in it.
    pub(super) prefer: bool,
}

/// A place in the zone's tree.
pub(super) enum Node<'a> {
    /// No such name.
    Missing,
    /// The name exists because something below it does.
    Empty,
    /// The zone itself.
    Apex,
    /// `dns-version`.
    Version,
    /// `ns.dns`.
    NameServer,
    /// A Service that has something to tell.
    Service(&'a ServiceRecords),
    /// A part of a headless Service's endpoints.
    Part(&'a ServiceRecords, Part),
    /// A named port of a Service.
    Port(&'a ServiceRecords, Port<'a>),
    /// An endpoint's name below its Service, and its addresses.
    Endpoint(&'a ServiceRecords, Vec<IpAddr>),
    /// A pod by its address.
    Pod(IpAddr),
}

/// The labels of `name` below `origin`; `None` where it is not in there. Labels that no name of the zone can have come out
/// as an impossible one.
pub(super) fn relative<'a>(origin: &Name, name: &'a Name) -> Option<Labels<'a>> {
    // Not `num_labels`, which leaves out a leading `*`.
    let depth = name.iter().len().checked_sub(origin.iter().len())?;
    let (mut tail, origin) = (name.iter().rev(), origin.iter().rev());
    for label in origin {
        if !tail.next()?.eq_ignore_ascii_case(label) {
            return None;
        }
    }
    let mut labels: [Cow<'a, str>; LEVELS_MAX] = Default::default();
    let count = depth.min(LEVELS_MAX);
    for (place, label) in labels.iter_mut().zip(tail) {
        *place = lower(label);
    }
    Some(Labels { labels, count, name, depth })
}

/// The namespace and the name of the Service that a name is most likely about, from its labels as they stand in a packet.
/// Whether the name is in the zone at all is not looked at.
pub(super) fn likely<'a>(origin: &Name, labels: &[&'a [u8]]) -> Option<(&'a [u8], &'a [u8])> {
    let above = labels.len().checked_sub(origin.iter().len())?;
    match labels.get(..above)? {
        [.., service, namespace, svc] if svc.eq_ignore_ascii_case(b"svc") => Some((namespace, service)),
        _ => None,
    }
}

fn lower(label: &[u8]) -> Cow<'_, str> {
    match str::from_utf8(label) {
        Ok(text) if text.bytes().any(|byte| byte.is_ascii_uppercase()) => text.to_ascii_lowercase().into(),
        Ok(text) => text.into(),
        // Two dots in a row are in no label of ours.
        Err(_) => "..".into(),
    }
}

impl Zone {
    pub(super) fn node<'a>(&'a self, labels: &Labels<'_>) -> Node<'a> {
        let [first, second, third, fourth, fifth, _] = labels.get();
        match (labels.count, first) {
            (0, _) => Node::Apex,
            (1, "dns-version") => Node::Version,
            (1, "svc" | "pod" | "dns") => Node::Empty,
            (2, "dns") if second == "ns" => Node::NameServer,
            (2, "svc") if self.has_namespace(second) => Node::Empty,
            (2, "pod") if self.may_hold_pods(second) => Node::Empty,
            (3, "pod") => self.pod(second, third).map_or(Node::Missing, Node::Pod),
            (3..=5, "svc") => match self.find(second, third).filter(|records| records.exists()) {
                None => Node::Missing,
                Some(records) if labels.count == 3 => Node::Service(records),
                Some(records) if records.external().is_some() => Node::Missing,
                Some(records) if labels.count == 4 => below_service(records, fourth),
                Some(records) => port_of(records, fourth, fifth),
            },
            (6, "svc") if self.settings.zonal && fourth == "_zone" => {
                let headless = |records: &&ServiceRecords| records.exists() && records.is_headless();
                let known = matches!(fifth, "pin" | "prefer");
                match self.find(second, third).filter(headless).filter(|_| known) {
                    Some(records) => {
                        Node::Part(records, Part { zone: labels.part(), prefer: fifth == "prefer" })
                    }
                    None => Node::Missing,
                }
            }
            _ => Node::Missing,
        }
    }

    /// Whether there may be pods in a namespace. Where namespaces are not watched, only Services tell of them, and pods may be
    /// in others, too.
    fn may_hold_pods(&self, namespace: &str) -> bool {
        let unknown = self.snapshot.namespaces.is_empty() && self.shows(namespace);
        self.has_namespace(namespace) || unknown && self.settings.pod_records == PodRecords::Insecure
    }

    /// The address of a pod that is named by it.
    fn pod(&self, namespace: &str, label: &str) -> Option<IpAddr> {
        let addr = parse_dashed(label)?;
        let told = match self.settings.pod_records {
            PodRecords::Disabled => false,
            PodRecords::Insecure => self.may_hold_pods(namespace),
            PodRecords::Verified => self.namespace_of(addr) == Some(namespace) && self.shows(namespace),
        };
        told.then_some(addr)
    }
}

/// `_protocol` or an endpoint's name.
fn below_service<'a>(records: &'a ServiceRecords, label: &str) -> Node<'a> {
    if let Some(protocol) = protocol(label) {
        return if records.has_protocol(protocol) { Node::Empty } else { Node::Missing };
    }
    match records.endpoint(label) {
        addrs if addrs.is_empty() => Node::Missing,
        addrs => Node::Endpoint(records, addrs),
    }
}

fn port_of<'a>(records: &'a ServiceRecords, protocol_label: &str, port_label: &str) -> Node<'a> {
    let Some((protocol, name)) = protocol(protocol_label).zip(port_label.strip_prefix('_')) else {
        return Node::Missing;
    };
    match records.port_name(name, protocol) {
        Some(name) => Node::Port(records, Port { name, protocol }),
        None => Node::Missing,
    }
}

fn protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        "_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_that_a_name_is_about() {
        let origin = Name::from_ascii("cluster.local.").unwrap();
        let told = |name: &str| {
            let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
            let (namespace, service) = likely(&origin, &labels)?;
            Some((str::from_utf8(namespace).unwrap().to_owned(), str::from_utf8(service).unwrap().to_owned()))
        };
        let web = Some(("shop".to_owned(), "web".to_owned()));
        assert_eq!(told("web.shop.svc.cluster.local"), web);
        assert_eq!(told("_http._tcp.web.shop.SVC.cluster.local"), web);
        assert_eq!(told("10-0-0-1.web.shop.svc.cluster.local"), web);
        for other in
            ["shop.svc.cluster.local", "web.shop.pod.cluster.local", "svc.cluster.local", "local", ""]
        {
            assert_eq!(told(other), None, "{other}");
        }
    }
}
