//! A synthetic cluster: many Services of which one is real, told once and rendered for each side: API objects,
//! iptables rules, nftables rules.

use std::net::Ipv4Addr;

/// The namespace of all Services.
pub const NAMESPACE: &str = "bench";
/// The port of every Service.
pub const PORT: u16 = 80;
/// Where backends answer.
pub const TARGET: u16 = 8080;
/// The port of the real Service for streams of bytes.
pub const STREAM_PORT: u16 = 81;
/// Where the real backend swallows streams.
pub const STREAM_TARGET: u16 = 8081;
/// The real Service's NodePorts: of [`PORT`] and of [`STREAM_PORT`].
pub const NODE_PORTS: [u16; 2] = [30_080, 30_081];
/// Endpoints of each Service.
pub const ENDPOINTS: usize = 4;
/// Services that are more than a ClusterIP: the range of NodePorts has no room for all.
const WITH_NODE_PORT: usize = 500;
/// The pods of the cluster.
pub const POD_CIDR: &str = "10.244.0.0/16";

/// A node of the lab by its number, from 1, and the addresses that belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(pub u8);

impl Place {
    /// The node's name.
    pub fn node(self) -> String {
        format!("node{}", self.0)
    }

    /// The node's address on the LAN.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, 0, 10 + self.0)
    }

    /// The addresses of the pod that answers: one for each endpoint of the real Service.
    pub fn backends(self) -> [Ipv4Addr; ENDPOINTS] {
        [2, 3, 4, 5].map(|last| Ipv4Addr::new(10, 244, self.0, last))
    }

    /// The pod that asks.
    pub fn client(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.0, 10)
    }

    /// The real Service's ClusterIP.
    pub fn cluster_ip(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 97, 0, self.0)
    }

    /// The real Service's load balancer address.
    pub fn vip(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 31, 0, self.0)
    }
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: &'static str,
    /// The port at ClusterIP and load balancer address.
    pub port: u16,
    /// The port of the backends.
    pub target: u16,
    /// The port at the nodes' addresses.
    pub node_port: Option<u16>,
}

/// A Service with its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Its ClusterIP.
    pub cluster_ip: Ipv4Addr,
    /// Its load balancer address.
    pub vip: Option<Ipv4Addr>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its endpoints.
    pub endpoints: Vec<Ipv4Addr>,
    /// The node that they run on.
    pub node: String,
}

/// `size` Services. The real one, with endpoints at `place`, stands in the middle of their order, so that what searches
/// them one after the other searches half of them.
pub fn services(size: usize, place: Place) -> Vec<Spec> {
    (0..size).map(|index| if index == size / 2 { real(index, place) } else { synthetic(index) }).collect()
}

fn name(index: usize) -> String {
    format!("svc-{index:05}")
}

fn real(index: usize, place: Place) -> Spec {
    let port = |name, port, target, node_port| Port { name, port, target, node_port: Some(node_port) };
    Spec {
        name: name(index),
        cluster_ip: place.cluster_ip(),
        vip: Some(place.vip()),
        ports: vec![
            port("http", PORT, TARGET, NODE_PORTS[0]),
            port("stream", STREAM_PORT, STREAM_TARGET, NODE_PORTS[1]),
        ],
        endpoints: place.backends().into(),
        node: place.node(),
    }
}

fn synthetic(index: usize) -> Spec {
    let number = index as u32;
    let node_port = (index < WITH_NODE_PORT).then_some(31_000 + index as u16);
    let address = |base: [u8; 4], offset: u32| Ipv4Addr::from_bits(Ipv4Addr::from(base).to_bits() + offset);
    Spec {
        name: name(index),
        cluster_ip: address([10, 96, 1, 0], number),
        vip: node_port.map(|_| address([172, 31, 1, 0], number)),
        ports: vec![Port { name: "http", port: PORT, target: TARGET, node_port }],
        endpoints: (0..ENDPOINTS as u32).map(|k| address([10, 200, 0, 0], number * 4 + k)).collect(),
        node: "elsewhere".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn one_service_in_the_middle_is_real() {
        let specs = services(11, Place(3));
        let real: Vec<usize> = (0..11).filter(|i| specs[*i].node == "node3").collect();
        assert_eq!(real, [5]);
        assert_eq!(specs[5].endpoints, Place(3).backends());
        assert!(specs.iter().all(|spec| spec.endpoints.len() == ENDPOINTS));
        assert!(specs.is_sorted_by_key(|spec| &spec.name));
    }

    #[test]
    fn nothing_is_there_twice() {
        let specs = services(30_000, Place(1));
        let distinct = |addresses: Vec<Ipv4Addr>| {
            let count = addresses.len();
            assert_eq!(addresses.into_iter().collect::<BTreeSet<_>>().len(), count);
        };
        distinct(specs.iter().map(|spec| spec.cluster_ip).collect());
        distinct(specs.iter().filter_map(|spec| spec.vip).collect());
        distinct(specs.iter().flat_map(|spec| spec.endpoints.clone()).collect());
        let ports: Vec<u16> = specs.iter().flat_map(|s| &s.ports).filter_map(|p| p.node_port).collect();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
        assert!(ports.iter().all(|port| (30_000..=32_767).contains(port)));
    }
}
