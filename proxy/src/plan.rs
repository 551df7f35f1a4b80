//! What to do so that the kernel holds what is desired: a pure difference of two values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use seaway_model::{Family, Lookup};

use crate::desired::Desired;
use crate::frontend::{Frontend, FrontendKey};

/// What a data plane holds, as read back from it or as known from what was applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// All frontends.
    pub frontends: OrdMap<FrontendKey, Arc<Frontend>>,
    /// What it knows about the node.
    pub host: Host,
    /// Things that belong to nothing: remains of a crash or of someone else's hand.
    pub stale: usize,
}

/// The node as packets see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Backends on other nodes see external clients under this address.
    pub node_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub node_v6: Option<Ipv6Addr>,
    /// The links that traffic from outside arrives on.
    pub uplinks: BTreeSet<Device>,
    /// The node's ends of its pods' links, for backends that look at what comes from pods there.
    pub pod_links: BTreeSet<Device>,
    /// Those of them that limit or filter packets: nothing may go past that.
    pub shaped_links: BTreeSet<Device>,
    /// What is in the cluster, for the same backends.
    pub cluster: Arc<ClusterNets>,
    /// Packets between pods are handed over, past the node's stack.
    pub hand_over: bool,
    /// The UDP port of the tunnels to other nodes, for the same backends.
    pub tunnel_port: Option<u16>,
    /// Whose packets to the world outside of the cluster are masqueraded, for the same backends.
    pub masquerading: Masquerading,
}

/// Whose packets get another source, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masquerading {
    /// What networks are to it. The most specific one that holds an address decides.
    pub nets: Arc<BTreeMap<IpNet, MasqueradeRole>>,
    /// The address that packets of a family get which leave by a link, by the link's index.
    pub sources: BTreeMap<(u32, Family), IpAddr>,
}

/// What a network is to masquerading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MasqueradeRole {
    /// Its addresses are those of this node's pods.
    pub pods: bool,
    /// Who is there sees a pod's own address.
    pub kept: bool,
}

/// Whose addresses are in the cluster: who has none of these is outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterNets {
    /// The pod subnets of all nodes.
    pub pods: BTreeSet<IpNet>,
    /// The addresses of all nodes.
    pub nodes: BTreeSet<IpAddr>,
}

/// A link of this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// Its name.
    pub name: Arc<str>,
    /// Its index: a link that was deleted and made again has the same name and another index.
    pub index: u32,
}

/// Ordered steps: the node first, so that frontends can be reached as soon as they exist; new and changed frontends
/// before those that go, so that nothing is missing in between.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The node, where it has changed.
    pub host: Option<Host>,
    /// Frontends to write, by key.
    pub upserts: Vec<(FrontendKey, Arc<Frontend>)>,
    /// Frontends to remove, by key.
    pub removals: Vec<FrontendKey>,
    /// Remove what belongs to nothing.
    pub sweep: bool,
}

impl Plan {
    /// There is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same in parts of at most `size` frontends to write: the node comes first, what goes comes last.
    pub fn parts(&self, size: usize) -> impl Iterator<Item = Self> {
        let parts = self.upserts.chunks(size.max(1));
        let last = parts.len().saturating_sub(1);
        let empty = self.upserts.is_empty().then_some(&[][..]);
        parts.chain(empty).enumerate().map(move |(number, upserts)| Self {
            host: self.host.clone().filter(|_| number == 0),
            upserts: upserts.to_vec(),
            removals: if number == last { self.removals.clone() } else { Vec::new() },
            sweep: self.sweep && number == last,
        })
    }

    /// How many frontends it is about that are not among `expected`. Of a plan whose frontends stand in order.
    pub(crate) fn unexpected(&self, expected: &BTreeSet<FrontendKey>) -> usize {
        let upserts = self.upserts.iter().map(|(key, _)| key);
        beyond(upserts, expected) + beyond(self.removals.iter(), expected)
    }

    /// The number of steps.
    pub fn len(&self) -> usize {
        usize::from(self.host.is_some()) + self.upserts.len() + self.removals.len() + usize::from(self.sweep)
    }
}

/// How many of `keys`, which stand in order, are not in `expected`.
fn beyond<'a>(keys: impl Iterator<Item = &'a FrontendKey>, expected: &BTreeSet<FrontendKey>) -> usize {
    let mut expected = expected.iter().peekable();
    keys.filter(|key| {
        while expected.next_if(|passed| passed < key).is_some() {}
        expected.peek() != Some(key)
    })
    .count()
}

/// Everything that differs between what is wanted and `actual`. Nothing is pruned while `desired` is incomplete.
pub fn diff(desired: &Desired, host: &Host, actual: &Actual) -> Plan {
    let mut plan = without_frontends(desired, host, actual);
    let mut held = Lookup::new(&actual.frontends, desired.frontends.len());
    for (key, wanted) in &desired.frontends {
        if held.get(key) != Some(&wanted.frontend) {
            plan.upserts.push((*key, Arc::clone(&wanted.frontend)));
        }
    }
    if desired.complete {
        let mut wanted = Lookup::new(&desired.frontends, actual.frontends.len());
        plan.removals.extend(actual.frontends.keys().filter(|key| wanted.get(key).is_none()));
    }
    plan
}

fn without_frontends(desired: &Desired, host: &Host, actual: &Actual) -> Plan {
    Plan {
        host: (*host != actual.host).then(|| host.clone()),
        sweep: desired.complete && actual.stale > 0,
        ..Plan::default()
    }
}

/// As [`diff`], looking only at `keys`.
pub fn diff_of(keys: &BTreeSet<FrontendKey>, desired: &Desired, host: &Host, actual: &Actual) -> Plan {
    let mut plan = without_frontends(desired, host, actual);
    for key in keys {
        match (desired.frontends.get(key), actual.frontends.get(key)) {
            (Some(wanted), held) if held != Some(&wanted.frontend) => {
                plan.upserts.push((*key, Arc::clone(&wanted.frontend)));
            }
            (None, Some(_)) if desired.complete => plan.removals.push(*key),
            _ => {}
        }
    }
    plan
}

impl Actual {
    /// What is held once `plan` has been carried out.
    #[must_use]
    pub fn after(mut self, plan: &Plan) -> Self {
        // In this order they fill the nodes of the map, which in their own would each stay half empty.
        let ordered = |first| plan.upserts.iter().skip(first).step_by(2);
        for (key, frontend) in ordered(0).chain(ordered(1)) {
            self.frontends.insert(*key, Arc::clone(frontend));
        }
        for key in &plan.removals {
            self.frontends.remove(key);
        }
        if let Some(host) = &plan.host {
            self.host = host.clone();
        }
        if plan.sweep {
            self.stale = 0;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seaway_model::{Family, Protocol, ServiceKey};

    use super::*;
    use crate::frontend::{FrontendKind, Group, Scope};

    fn key(number: u8) -> FrontendKey {
        FrontendKey {
            addr: [10, 96, 0, number].into(),
            port: 80,
            protocol: Protocol::Tcp,
            scope: Scope::Internal,
        }
    }

    fn frontend() -> Arc<Frontend> {
        Arc::new(Frontend {
            group: Group::of(&ServiceKey::new("default", "web"), "", Protocol::Tcp, Family::V4),
            kind: FrontendKind::ClusterIP,
            backends: [].into(),
            affinity: None,
            source_ranges: [].into(),
            preserve_source: false,
            elsewhere: false,
            maglev: false,
            dsr: false,
            masquerade: false,
        })
    }

    #[test]
    fn what_is_about_to_change_is_expected() {
        let plan = Plan {
            upserts: [1, 3, 5].map(|number| (key(number), frontend())).into(),
            removals: [2, 4].map(key).into(),
            ..Plan::default()
        };
        assert_eq!(plan.unexpected(&BTreeSet::new()), 5);
        assert_eq!(plan.unexpected(&[0, 3, 4, 9].map(key).into()), 3);
        assert_eq!(plan.unexpected(&(0..9).map(key).collect()), 0);
    }

    proptest! {
        #[test]
        fn parts_are_the_plan_in_its_order(
            upserts in 0..20_u8,
            removals in 0..3_u8,
            sweep in any::<bool>(),
            moved in any::<bool>(),
            size in 0..8_usize,
        ) {
            let plan = Plan {
                host: moved.then(Host::default),
                upserts: (0..upserts).map(|number| (key(number), frontend())).collect(),
                removals: (100..100 + removals).map(key).collect(),
                sweep,
            };
            let parts: Vec<Plan> = plan.parts(size).collect();
            prop_assert!(parts.iter().all(|part| part.upserts.len() <= size.max(1)));
            let (first, last) = (parts.first().unwrap(), parts.last().unwrap());
            let joined = Plan {
                host: first.host.clone(),
                upserts: parts.iter().flat_map(|part| part.upserts.clone()).collect(),
                removals: last.removals.clone(),
                sweep: last.sweep,
            };
            prop_assert_eq!(&joined, &plan);
            prop_assert_eq!(parts.iter().map(Plan::len).sum::<usize>(), plan.len());
        }
    }
}
