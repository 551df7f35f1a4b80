//! Masquerading for the pod network, where the data plane has programs at the uplinks: it needs nothing of the kernel's
//! connection tracking then, which costs every packet of the node. What is to be masqueraded is the pod network's to say,
//! and what the programs do not reach stays its own to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use seaway_model::{Family, Masquerade};
use tokio::sync::watch;

use crate::ProxyConfig;
use crate::dataplane::{Dataplane, DataplaneError, Failure, Subject};
use crate::links::Link;
use crate::plan::{Host, MasqueradeRole, Masquerading};

/// Links by index, and the family of packets that are masqueraded where they leave by them.
pub type MasqueradedAt = BTreeSet<(u32, Family)>;

/// With fewer ports of source NAT pods get into each other's way: those that the node's own connections use are not among
/// them, and an administrator may have given it nearly all.
pub(crate) const PORTS_MIN: usize = 8192;

/// What the pod network asks for, and what it is told.
#[derive(Debug, Clone)]
pub struct MasqueradeOrder {
    wanted: watch::Receiver<Option<Arc<Masquerade>>>,
    done: watch::Sender<Option<MasqueradedAt>>,
    /// The data plane can do it.
    offered: bool,
}

impl MasqueradeOrder {
    /// What is `wanted` is done, and told in `done`. Of both, `None` says that it is not known: what is done stays then.
    pub const fn new(
        wanted: watch::Receiver<Option<Arc<Masquerade>>>,
        done: watch::Sender<Option<MasqueradedAt>>,
    ) -> Self {
        Self { wanted, done, offered: false }
    }

    /// The data plane is open.
    pub(crate) fn begin(&mut self, dataplane: &dyn Dataplane) {
        self.offered = dataplane.offers_masquerade();
    }

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

    /// What is wanted now, if that is known.
    pub(crate) fn wanted(&self) -> Option<Arc<Masquerade>> {
        self.wanted.borrow().clone()
    }

    /// Tells where it is done, once the programs know of it. Where that failed nobody knows any more what they do.
    pub(crate) fn answer(&self, host: &Host, outcome: &Result<Vec<Failure>, DataplaneError>) {
        let done: MasqueradedAt = host.masquerading.sources.keys().copied().collect();
        let failed = |failed: &Vec<Failure>| failed.iter().any(|failure| failure.subject == Subject::Host);
        let done = Some(done).filter(|_| outcome.as_ref().is_ok_and(|outcome| !failed(outcome)));
        self.done.send_if_modified(|held| {
            let changed = *held != done;
            *held = done;
            changed
        });
    }

    /// What the programs should do on `host` for what is `wanted`; what is `held`, while that is not known.
    pub(crate) fn decide(
        &self,
        wanted: Option<&Masquerade>,
        host: &Host,
        held: &Masquerading,
        config: &ProxyConfig,
        links: &[Link],
    ) -> Masquerading {
        let Some(wanted) = wanted else { return held.clone() };
        if wanted.pods.is_empty() || !self.offered {
            return Masquerading::default();
        }
        // What leaves by a tunnel goes to the cluster.
        let is_tunnel = |link: &&Link| config.tunnels.iter().any(|name| **name == *link.name);
        let is_uplink = |link: &&Link| host.uplinks.contains(&link.device()) && !is_tunnel(link);
        let uplinks: Vec<&Link> = links.iter().filter(is_uplink).collect();
        Masquerading { nets: Arc::new(nets(wanted)), sources: sources(&uplinks, host) }
    }
}

/// What each network is, by itself: of an address only the most specific one is looked at. With thousands of nodes those
/// that are kept are many, and none of them is compared with the others; the own pods' are few.
fn nets(wanted: &Masquerade) -> BTreeMap<IpNet, MasqueradeRole> {
    let within = |net: &IpNet, nets: &[IpNet]| nets.iter().any(|wider| wider.contains(net));
    let kept = wanted.kept.iter().map(|net| {
        let pods = within(net, &wanted.pods);
        (*net, MasqueradeRole { pods, kept: true })
    });
    let pods = wanted.pods.iter().map(|net| {
        let kept = within(net, &wanted.kept);
        (*net, MasqueradeRole { pods: true, kept })
    });
    kept.chain(pods).collect()
}

/// The address that packets get which leave by a link: the node's, if the link has it, or the only one that it has. Where
/// the kernel could choose between addresses that are not for the same peers, that is left to it.
fn sources(uplinks: &[&Link], host: &Host) -> BTreeMap<(u32, Family), IpAddr> {
    let own = [host.node_v4.map(IpAddr::V4), host.node_v6.map(IpAddr::V6)];
    let mut sources = BTreeMap::new();
    for link in uplinks {
        for family in Family::ALL {
            let usable = |addr: &IpAddr| Family::of(*addr) == family && is_global(*addr);
            let all: Vec<IpAddr> = link.addrs.iter().copied().filter(usable).collect();
            let known = own.into_iter().flatten().find(|addr| all.contains(addr));
            let only = all.first().copied().filter(|_| all.len() == 1);
            if let Some(addr) = known.or(only)
                && all.iter().all(|other| is_private(*other) == is_private(addr))
            {
                sources.insert((link.index, family), addr);
            }
        }
    }
    sources
}

/// Whether the world knows no way to it.
const fn is_private(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_private(),
        IpAddr::V6(addr) => addr.is_unique_local(),
    }
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
    use super::*;
    use crate::dataplane::fake::Fake;

    fn parsed(text: &str) -> Vec<IpNet> {
        text.split(' ').map(|net| net.parse().unwrap()).collect()
    }

    fn link(index: u32, addrs: &str) -> Link {
        let addrs = addrs.split(' ').map(|addr| addr.parse().unwrap()).collect();
        Link { name: format!("eth{index}").into(), index, addrs, ..Link::default() }
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
    fn packets_get_the_nodes_address_or_the_only_one_of_the_link() {
        let cases = [
            ("192.0.2.1 192.0.2.7 fe80::1", "192.0.2.7"),
            ("169.254.1.1 198.51.100.1 2001:db8::1", "198.51.100.1 2001:db8::1"),
            // Which of them a peer could answer to depends on the way.
            ("198.51.100.1 198.51.100.2", ""),
            ("192.0.2.7 10.17.0.5", ""),
            ("fd00::5 2001:db8::1", ""),
        ];
        let host = Host { node_v4: Some([192, 0, 2, 7].into()), ..Host::default() };
        for (addrs, expected) in cases {
            let sources = sources(&[&link(2, addrs)], &host);
            let text = sources.values().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            assert_eq!(text, expected, "{addrs}");
        }
    }

    /// An order, and where it is told what is done.
    fn order() -> (MasqueradeOrder, watch::Receiver<Option<MasqueradedAt>>) {
        let (done, told) = watch::channel(None);
        let wanted = watch::Sender::new(None).subscribe();
        (MasqueradeOrder { offered: true, ..MasqueradeOrder::new(wanted, done) }, told)
    }

    #[test]
    fn uplinks_masquerade_and_tunnels_do_not() {
        let (mut order, _) = order();
        let links = [link(2, "192.0.2.1"), link(3, "192.0.2.9"), link(4, "10.244.1.0")];
        let uplinks = [&links[0], &links[2]].map(Link::device);
        let host = Host { uplinks: uplinks.into(), ..Host::default() };
        let mut config = ProxyConfig::new("a", "", "");
        config.tunnels = vec!["eth4".to_owned()];
        let wanted = Masquerade::new(parsed("10.244.1.0/24"), &[]);
        let held = Masquerading { sources: sources(&[&links[1]], &host), ..Masquerading::default() };
        assert_eq!(order.decide(None, &host, &held, &config, &links), held, "it is not known what is wanted");
        let decided = order.decide(Some(&wanted), &host, &held, &config, &links);
        assert_eq!(decided.sources.keys().copied().collect::<Vec<_>>(), [(2, Family::V4)]);
        let none = order.decide(Some(&Masquerade::default()), &host, &held, &config, &links);
        assert_eq!(none, Masquerading::default());
        order.begin(&Fake::default());
        let cannot = order.decide(Some(&wanted), &host, &held, &config, &links);
        assert_eq!(cannot, Masquerading::default());
    }

    #[test]
    fn what_failed_is_not_known_any_more() {
        let (order, told) = order();
        let sources = [((2, Family::V4), "192.0.2.1".parse().unwrap())].into();
        let masquerading = Masquerading { sources, ..Masquerading::default() };
        let host = Host { masquerading, ..Host::default() };
        let failure = |subject| Failure { subject, error: DataplaneError::Injected { step: 1 } };
        let done = Some(BTreeSet::from([(2, Family::V4)]));
        let cases = [
            (Ok(Vec::new()), done.clone()),
            (Ok(vec![failure(Subject::Host)]), None),
            // Another's failure is none of its.
            (Ok(vec![failure(Subject::Sweep)]), done),
            (Err(DataplaneError::Lost), None),
        ];
        for (outcome, expected) in cases {
            order.answer(&host, &outcome);
            assert_eq!(*told.borrow(), expected, "{outcome:?}");
        }
    }
}
