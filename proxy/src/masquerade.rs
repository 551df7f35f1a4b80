//! Masquerading for the pod network, where the data plane has programs at the uplinks: it needs nothing of the kernel's
//! connection tracking then, which costs every packet of the node. What is to be masqueraded is the pod network's to say,
//! and what the programs do not reach stays its own to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use seaway_model::{Family, Masquerade, Node};
use tokio::sync::watch;

use crate::ProxyConfig;
use crate::dataplane::{Failure, Subject};
use crate::links::Link;
use crate::plan::{Host, MasqueradeRole, Masquerading};

/// Links by index, and the family of packets that are masqueraded where they leave by them.
pub type MasqueradedAt = BTreeSet<(u32, Family)>;

/// What the pod network asks for, and what it is told.
#[derive(Debug, Clone)]
pub struct MasqueradeOrder {
    /// What is to be masqueraded. `None`: that is not known yet, and what is done stays.
    pub wanted: watch::Receiver<Option<Arc<Masquerade>>>,
    /// Where that is done. `None`: that is not known yet.
    pub done: watch::Sender<Option<MasqueradedAt>>,
}

impl MasqueradeOrder {
    /// Waits until something else is wanted; for ever, if nobody can say so.
    pub(crate) async fn changed(order: &mut Option<Self>) {
        let heard = match order {
            Some(order) => order.wanted.changed().await.is_ok(),
            None => false,
        };
        if !heard {
            std::future::pending::<()>().await;
        }
    }

    /// Tells where it is done, once the programs know of it.
    pub(crate) fn answer(&self, host: &Host, failed: &[Failure]) {
        if self.wanted.borrow().is_none() || failed.iter().any(|failure| failure.subject == Subject::Host) {
            return;
        }
        let done: MasqueradedAt = host.masquerading.sources.keys().copied().collect();
        self.done.send_if_modified(|held| {
            let changed = held.as_ref() != Some(&done);
            *held = Some(done);
            changed
        });
    }

    /// What the programs should do on `host`, which do what is `held`.
    pub(crate) fn masquerading(
        &self,
        host: &Host,
        config: &ProxyConfig,
        links: &[Link],
        node: Option<&Node>,
        held: &Masquerading,
    ) -> Masquerading {
        let Some(wanted) = self.wanted.borrow().clone() else { return held.clone() };
        if wanted.pods.is_empty() {
            return Masquerading::default();
        }
        // What leaves by a tunnel goes to the cluster.
        let is_tunnel = |link: &&Link| config.tunnels.iter().any(|name| **name == *link.name);
        let is_uplink = |link: &&Link| host.uplinks.contains(&link.device()) && !is_tunnel(link);
        let uplinks: Vec<&Link> = links.iter().filter(is_uplink).collect();
        Masquerading { nets: Arc::new(nets(&wanted)), sources: sources(&uplinks, node) }
    }
}

/// What each network is, by itself: of an address only the most specific one is looked at.
fn nets(wanted: &Masquerade) -> BTreeMap<IpNet, MasqueradeRole> {
    let within = |net: &IpNet, nets: &[IpNet]| nets.iter().any(|wider| wider.contains(net));
    let all = wanted.pods.iter().chain(&wanted.kept);
    all.map(|net| {
        let role = MasqueradeRole { pods: within(net, &wanted.pods), kept: within(net, &wanted.kept) };
        (*net, role)
    })
    .collect()
}

/// The address that packets get which leave by a link: the node's, if the link has it, or one that it has.
fn sources(uplinks: &[&Link], node: Option<&Node>) -> BTreeMap<(u32, Family), IpAddr> {
    let mut sources = BTreeMap::new();
    for link in uplinks {
        for family in Family::ALL {
            let usable = |addr: &&IpAddr| Family::of(**addr) == family && is_global(**addr);
            let known = node.and_then(|node| node.addr(family)).filter(|addr| link.addrs.contains(addr));
            if let Some(addr) = known.or_else(|| link.addrs.iter().find(usable).copied()) {
                sources.insert((link.index, family), addr);
            }
        }
    }
    sources
}

/// Whether others could answer to it.
const fn is_global(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !addr.is_link_local() && !addr.is_loopback() && !addr.is_unspecified(),
        IpAddr::V6(addr) => !addr.is_unicast_link_local() && !addr.is_loopback() && !addr.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use seaway_model::{NodeAddress, NodeAddressKind};

    use super::*;
    use crate::dataplane::DataplaneError;

    fn parsed(text: &str) -> Vec<IpNet> {
        text.split(' ').map(|net| net.parse().unwrap()).collect()
    }

    fn link(index: u32, addrs: &str) -> Link {
        let addrs = addrs.split(' ').map(|addr| addr.parse().unwrap()).collect();
        Link { name: format!("eth{index}").into(), index, addrs, ..Link::default() }
    }

    fn node(addr: &str) -> Node {
        let address = NodeAddress { addr: addr.parse().unwrap(), kind: NodeAddressKind::Internal };
        Node {
            name: "a".into(),
            addresses: vec![address],
            pod_cidrs: Vec::new(),
            zone: None,
            ready: true,
            excluded_from_load_balancers: false,
            draining: false,
            unreachable: false,
            vtep_mac: None,
        }
    }

    #[test]
    fn a_network_is_what_all_around_it_say() {
        let wanted =
            Masquerade { pods: parsed("10.244.1.0/24"), kept: parsed("10.244.0.0/23 198.51.100.0/24") };
        let text = nets(&wanted)
            .iter()
            .map(|(net, role)| format!("{net} {} {}", role.pods, role.kept))
            .collect::<Vec<_>>();
        assert_eq!(
            text,
            ["10.244.0.0/23 false true", "10.244.1.0/24 true true", "198.51.100.0/24 false true"]
        );
    }

    #[test]
    fn packets_get_the_nodes_address_or_one_of_the_link() {
        let uplinks =
            [link(2, "192.0.2.1 192.0.2.7 fe80::1"), link(3, "169.254.1.1 198.51.100.1 2001:db8::1")];
        let sources = sources(&uplinks.iter().collect::<Vec<_>>(), Some(&node("192.0.2.7")));
        let text = sources.iter().map(|((link, _), addr)| format!("{link} {addr}")).collect::<Vec<_>>();
        assert_eq!(text, ["2 192.0.2.7", "3 198.51.100.1", "3 2001:db8::1"]);
    }

    #[test]
    fn nothing_changes_before_it_is_known_what_is_wanted() {
        let (wants, wanted) = watch::channel(None);
        let (done, told) = watch::channel(None);
        let order = MasqueradeOrder { wanted, done };
        let links = [link(2, "192.0.2.1"), link(3, "192.0.2.9"), link(4, "10.244.1.0")];
        let uplinks = [&links[0], &links[2]].map(Link::device);
        let mut host = Host { uplinks: uplinks.into(), ..Host::default() };
        let mut config = ProxyConfig::new("a", "", "");
        config.tunnels = vec!["eth4".to_owned()];
        let decided = |held: &Masquerading| order.masquerading(&host, &config, &links, None, held);
        let held = Masquerading { sources: sources(&[&links[1]], None), ..Masquerading::default() };
        assert_eq!(decided(&held), held);
        order.answer(&host, &[]);
        assert_eq!(*told.borrow(), None);
        wants.send_replace(Some(Arc::new(Masquerade::new(parsed("10.244.1.0/24"), &[]))));
        let wanted = decided(&held);
        wants.send_replace(Some(Arc::default()));
        assert_eq!(decided(&held), Masquerading::default());
        host.masquerading = wanted;
        let error = DataplaneError::Injected { step: 1 };
        order.answer(&host, &[Failure { subject: Subject::Host, error }]);
        assert_eq!(*told.borrow(), None, "it is not done");
        order.answer(&host, &[]);
        assert_eq!(*told.borrow(), Some(BTreeSet::from([(2, Family::V4)])));
    }
}
