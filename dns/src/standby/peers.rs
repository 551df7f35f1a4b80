//! The other nodes' servers, as a file: a line for each, the address and whether it is ready.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use seaway_model::{Protocol, ServiceKey, Snapshot};

/// Servers by address, and whether each is ready.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Peers(BTreeMap<SocketAddr, bool>);

impl Peers {
    /// The endpoints of the Service but for those at `own` addresses. Pure.
    pub(super) fn of(snapshot: &Snapshot, service: &(String, String), own: &[SocketAddr]) -> Self {
        let set = snapshot.endpoints.get(&ServiceKey::new(&service.0, &service.1));
        let endpoints = set.into_iter().flat_map(|set| set.endpoints.iter());
        let others = endpoints.filter(|endpoint| own.iter().all(|own| own.ip() != endpoint.addr));
        let places = others.filter_map(|endpoint| {
            let port = endpoint.ports.iter().find(|port| port.protocol == Protocol::Udp)?.port;
            Some((SocketAddr::new(endpoint.addr, port), endpoint.ready))
        });
        Self(places.collect())
    }

    /// Reads the file. What is no line of it is passed over.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string(path)?))
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| {
            let (address, state) = line.split_once(' ')?;
            Some((address.parse().ok()?, state == "ready"))
        });
        Self(lines.collect())
    }

    fn text(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, (address, ready)| {
            // Writing into a String does not fail.
            writeln!(text, "{address} {}", if *ready { "ready" } else { "down" }).ok();
            text
        })
    }

    /// Writes the file. Whoever reads it sees the former one or this, whole.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let next = path.with_extension("next");
        std::fs::write(&next, self.text())?;
        std::fs::rename(&next, path)
    }

    /// The servers of `own`'s family that are ready.
    pub(super) fn ready(&self, own: IpAddr) -> Vec<SocketAddr> {
        let ready = self.0.iter().filter(|(address, ready)| **ready && address.is_ipv4() == own.is_ipv4());
        ready.map(|(address, _)| *address).collect()
    }

    /// Whether there is one that is ready.
    pub(super) fn any_ready(&self) -> bool {
        self.0.values().any(|ready| *ready)
    }

    /// All their addresses.
    pub(super) fn addresses(&self) -> HashSet<IpAddr> {
        self.0.keys().map(SocketAddr::ip).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seaway_model::{Endpoint, EndpointPort, EndpointSet};
    use std::sync::Arc;

    #[test]
    fn the_other_servers_of_the_service() {
        let ports: Arc<[EndpointPort]> =
            [EndpointPort { name: "dns".into(), protocol: Protocol::Udp, port: 10053 }].into();
        let endpoint = |addr: &str, ready: bool| Endpoint {
            ready,
            serving: ready,
            ..Endpoint::new(addr.parse().unwrap(), Arc::clone(&ports))
        };
        let endpoints =
            ["192.0.2.1", "192.0.2.2", "2001:db8::2"].map(|addr| endpoint(addr, true)).into_iter();
        let endpoints = endpoints.chain([endpoint("192.0.2.3", false)]).collect();
        let set = EndpointSet { endpoints };
        let mut snapshot = Snapshot::default();
        snapshot.endpoints.insert(ServiceKey::new("kube-system", "kube-dns"), Arc::new(set));
        let service = ("kube-system".to_owned(), "kube-dns".to_owned());
        let peers = Peers::of(&snapshot, &service, &["192.0.2.1:10053".parse().unwrap()]);
        assert_eq!(peers.text(), "192.0.2.2:10053 ready\n192.0.2.3:10053 down\n[2001:db8::2]:10053 ready\n");
        assert_eq!(Peers::parse(&(peers.text() + "rubbish\n192.0.2.9 ready\n")), peers);
        assert_eq!(peers.ready("192.0.2.1".parse().unwrap()), ["192.0.2.2:10053".parse().unwrap()]);
        assert_eq!(peers.ready("::1".parse().unwrap()), ["[2001:db8::2]:10053".parse().unwrap()]);
        assert_eq!(peers.addresses().len(), 3);
        assert!(peers.any_ready() && !Peers::parse("192.0.2.3:10053 down\n").any_ready());
    }
}
