//! What has to be done so that the kernel's tables become what they should be: a pure function of both.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::desired::{Desired, Peer, Way};
use crate::netlink::{FdbEntry, Mac, Neighbour, NeighbourKind, Route, RouteKind};

/// Who made the routes to other nodes' pods (`ip route show proto 88`).
pub(super) const ROUTE_PROTOCOL: u8 = 88;

/// What the kernel has: our routes, others' (which are theirs), and the tables of our device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Actual {
    pub(super) routes: Vec<Route>,
    pub(super) others: Vec<Route>,
    pub(super) neighbours: Vec<Neighbour>,
    pub(super) fdb: Vec<FdbEntry>,
}

/// One step. A step that fails does not keep the others from being done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    SetNeighbour(Neighbour),
    SetFdb(FdbEntry),
    SetRoute(Route),
    DeleteRoute(Route),
    DeleteFdb(FdbEntry),
    DeleteNeighbour(Neighbour),
}

/// What the kernel should have, by what there can be only one of. With thousands of nodes nothing may be searched.
#[derive(Debug, Default)]
struct Wanted {
    routes: BTreeMap<IpNet, Route>,
    neighbours: BTreeMap<IpAddr, Neighbour>,
    fdb: BTreeMap<Mac, FdbEntry>,
}

/// The steps from `actual` to `desired`, in an order in which no packet finds a route without what is behind it.
/// Nothing is deleted unless `prune`. `vxlan` is the index of the VXLAN device, if there is one.
pub(super) fn plan(desired: &Desired, actual: &Actual, vxlan: Option<u32>, prune: bool) -> Vec<Op> {
    let wanted = wanted(desired, vxlan);
    let mut routes: BTreeMap<IpNet, Vec<&Route>> = BTreeMap::new();
    for held in &actual.routes {
        routes.entry(held.destination).or_default().push(held);
    }
    let neighbours: BTreeMap<IpAddr, &Neighbour> =
        actual.neighbours.iter().map(|held| (held.addr, held)).collect();
    let fdb: BTreeMap<Mac, &FdbEntry> = actual.fdb.iter().map(|held| (held.mac, held)).collect();

    let mut ops = Vec::new();
    let missing = wanted.neighbours.values().filter(|entry| neighbours.get(&entry.addr) != Some(entry));
    ops.extend(missing.copied().map(Op::SetNeighbour));
    let missing = wanted.fdb.values().filter(|entry| fdb.get(&entry.mac) != Some(entry));
    ops.extend(missing.copied().map(Op::SetFdb));
    let is_held = |route: &&Route| {
        routes.get(&route.destination).is_some_and(|held| held.iter().any(|held| same_route(route, held)))
    };
    for route in wanted.routes.values().filter(|route| !is_held(route)) {
        let held = routes.get(&route.destination).into_iter().flatten().filter(|_| prune);
        ops.extend(held.filter(|held| blocks(held, route)).map(|held| Op::DeleteRoute((*held).clone())));
        ops.push(Op::SetRoute(route.clone()));
    }
    if !prune {
        return ops;
    }
    for (destination, held) in &routes {
        let wanted = wanted.routes.get(destination);
        let stays = |held: &Route| wanted.is_some_and(|route| same_route(route, held) || blocks(held, route));
        // One that is replaced goes by that. If there are several (with different metrics), replacing touches one.
        if held.len() > 1 || wanted.is_none() {
            ops.extend(held.iter().filter(|held| !stays(held)).map(|held| Op::DeleteRoute((*held).clone())));
        }
    }
    let stale = actual.fdb.iter().filter(|held| !wanted.fdb.contains_key(&held.mac));
    ops.extend(stale.copied().map(Op::DeleteFdb));
    let stale = actual
        .neighbours
        .iter()
        .filter(|held| held.kind == NeighbourKind::Permanent && !wanted.neighbours.contains_key(&held.addr));
    ops.extend(stale.copied().map(Op::DeleteNeighbour));
    ops
}

fn wanted(desired: &Desired, vxlan: Option<u32>) -> Wanted {
    let mut wanted = Wanted::default();
    for subnet in &desired.own {
        // A packet to a pod that is not there is refused instead of going out by the default route.
        let kind = RouteKind::Unreachable;
        wanted.routes.insert(*subnet, Route { kind, protocol: ROUTE_PROTOCOL, ..Route::to(*subnet) });
    }
    for peer in &desired.peers {
        want_peer(&mut wanted, peer, vxlan);
    }
    wanted
}

fn want_peer(wanted: &mut Wanted, peer: &Peer, vxlan: Option<u32>) {
    let route = Route { protocol: ROUTE_PROTOCOL, ..Route::to(peer.subnet) };
    match (peer.way, vxlan) {
        (Way::Direct { gateway, link }, _) => {
            wanted.routes.insert(peer.subnet, Route { link, ..route.via(gateway) });
        }
        (Way::Vxlan { mac, remote }, Some(link)) => {
            let addr = gateway_behind(peer);
            let neighbour = Neighbour { link, addr, mac: Some(mac), kind: NeighbourKind::Permanent };
            wanted.neighbours.insert(addr, neighbour);
            wanted.fdb.insert(mac, FdbEntry { link, mac, remote });
            wanted.routes.insert(peer.subnet, Route { onlink: true, ..route.via(addr).on(link) });
        }
        (Way::Vxlan { .. }, None) => {}
    }
}

/// The next hop on the VXLAN device: the first address of the subnet, which the peer's device has.
fn gateway_behind(peer: &Peer) -> IpAddr {
    peer.subnet.network()
}

/// IPv6 takes no next hop that another route leads to by another link, as one to the same subnet does: that one has to go
/// before, not by being replaced. It is gone already when what else is stale goes.
fn blocks(held: &Route, wanted: &Route) -> bool {
    wanted.onlink && wanted.destination.addr().is_ipv6() && held.link != wanted.link
}

/// The kernel fills in what was not said: the link of a next hop, the metric, flags.
fn same_route(wanted: &Route, held: &Route) -> bool {
    let same_link = wanted.kind != RouteKind::Unicast || wanted.link.is_none() || wanted.link == held.link;
    (wanted.destination, wanted.gateway, wanted.kind) == (held.destination, held.gateway, held.kind)
        && same_link
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seaway_model::Snapshot;

    use super::super::desired::desired;
    use super::super::desired::tests::{config, node, snapshot, uplinks};
    use super::*;
    use crate::Overlay;

    const VXLAN: u32 = 9;

    /// A kernel that does what it is told.
    fn apply(mut actual: Actual, ops: &[Op]) -> Actual {
        for op in ops {
            match op {
                Op::SetNeighbour(set) => {
                    actual.neighbours.retain(|held| held.addr != set.addr);
                    actual.neighbours.push(*set);
                }
                Op::SetFdb(set) => {
                    actual.fdb.retain(|held| held.mac != set.mac);
                    actual.fdb.push(*set);
                }
                Op::SetRoute(set) => {
                    actual.routes.retain(|held| held.destination != set.destination);
                    actual.routes.push(set.clone());
                }
                Op::DeleteRoute(gone) => actual.routes.retain(|held| held != gone),
                Op::DeleteFdb(gone) => actual.fdb.retain(|held| held != gone),
                Op::DeleteNeighbour(gone) => actual.neighbours.retain(|held| held != gone),
            }
        }
        actual
    }

    fn cluster(members: &[(u8, u8)]) -> Snapshot {
        let mut nodes = vec![node("a", &["192.0.2.1", "2001:db8::1"], &["10.244.0.0/24", "fd00:0:0:0::/64"])];
        for (number, host) in members {
            let addresses = [format!("192.0.2.{host}"), format!("2001:db8::{host}")];
            let subnets = [format!("10.244.{number}.0/24"), format!("fd00:0:0:{number}::/64")];
            let addresses = [addresses[0].as_str(), addresses[1].as_str()];
            nodes.push(node(&format!("n{number}"), &addresses, &[subnets[0].as_str(), subnets[1].as_str()]));
        }
        snapshot(nodes)
    }

    fn overlays() -> impl Strategy<Value = Overlay> {
        prop_oneof![
            Just(Overlay::None),
            Just(Overlay::Vxlan { vni: 1, port: 8472 }),
            Just(Overlay::VxlanAcrossLinks { vni: 1, port: 8472 }),
        ]
    }

    fn members() -> impl Strategy<Value = Vec<(u8, u8)>> {
        proptest::collection::btree_map(1..9_u8, 2..90_u8, 0..8).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn a_plan_leads_to_what_is_wanted_and_then_there_is_nothing_to_do(
            overlay in overlays(), before in members(), after in members(),
        ) {
            let want = |members: &[(u8, u8)]| desired(&config(overlay), &cluster(members), &uplinks()).unwrap();
            let (old, new) = (want(&before), want(&after));
            let start = apply(Actual::default(), &plan(&old, &Actual::default(), Some(VXLAN), true));
            let steps = plan(&new, &start, Some(VXLAN), true);
            let end = apply(start.clone(), &steps);
            let wanted = wanted(&new, Some(VXLAN));
            prop_assert_eq!(end.routes.len(), wanted.routes.len());
            prop_assert!(wanted.routes.values().all(|route| end.routes.contains(route)));
            prop_assert_eq!(end.fdb.len(), wanted.fdb.len());
            prop_assert_eq!(end.neighbours.len(), wanted.neighbours.len());
            prop_assert_eq!(plan(&new, &end, Some(VXLAN), true), vec![]);
            // Before everything is known nothing goes.
            let careful = plan(&new, &start, Some(VXLAN), false);
            let deletes = |op: &Op| matches!(op, Op::DeleteRoute(_) | Op::DeleteFdb(_) | Op::DeleteNeighbour(_));
            prop_assert!(!careful.iter().any(deletes));
            // Nothing wanted leaves nothing behind.
            let cleared = apply(end.clone(), &plan(&Desired::default(), &end, Some(VXLAN), true));
            prop_assert_eq!(cleared, Actual::default());
        }
    }

    #[test]
    fn a_route_that_is_there_twice_is_left_once() {
        let desired = desired(&config(Overlay::None), &cluster(&[(1, 2)]), &uplinks()).unwrap();
        let mut held = apply(Actual::default(), &plan(&desired, &Actual::default(), None, true));
        let twice = held.routes.iter().find(|route| route.gateway.is_some()).cloned().unwrap();
        let second = Route { metric: Some(77), gateway: "192.0.2.9".parse().ok(), ..twice };
        held.routes.push(second.clone());
        assert_eq!(plan(&desired, &held, None, true), [Op::DeleteRoute(second)]);
    }

    #[test]
    fn a_direct_route_of_ipv6_makes_room_for_one_into_the_tunnel() {
        let of = |overlay| desired(&config(overlay), &cluster(&[(1, 2)]), &uplinks()).unwrap();
        let (direct, vxlan) = (of(Overlay::None), of(Overlay::Vxlan { vni: 1, port: 8472 }));
        let held = apply(Actual::default(), &plan(&direct, &Actual::default(), None, true));
        let steps = plan(&vxlan, &held, Some(VXLAN), true);
        let routes: Vec<String> = steps
            .iter()
            .filter_map(|op| match op {
                Op::SetRoute(route) => Some(format!("set {}", route.destination)),
                Op::DeleteRoute(route) => Some(format!("delete {}", route.destination)),
                _ => None,
            })
            .collect();
        assert_eq!(
            routes,
            ["set 10.244.1.0/24", "delete fd00:0:0:1::/64", "set fd00:0:0:1::/64"],
            "the other family is replaced in one step"
        );
    }

    #[test]
    fn a_peer_comes_from_the_back_to_the_front_and_goes_the_other_way() {
        let overlay = Overlay::Vxlan { vni: 1, port: 8472 };
        let want = |members: &[(u8, u8)]| desired(&config(overlay), &cluster(members), &uplinks()).unwrap();
        let kinds = |ops: &[Op]| -> Vec<String> {
            ops.iter().map(|op| format!("{op:?}").split('(').next().unwrap_or_default().to_owned()).collect()
        };
        let alone = apply(Actual::default(), &plan(&want(&[]), &Actual::default(), Some(VXLAN), true));
        let coming = plan(&want(&[(1, 2)]), &alone, Some(VXLAN), true);
        assert_eq!(kinds(&coming), ["SetNeighbour", "SetNeighbour", "SetFdb", "SetRoute", "SetRoute"]);
        let both = apply(alone, &coming);
        let going = plan(&want(&[]), &both, Some(VXLAN), true);
        assert_eq!(
            kinds(&going),
            ["DeleteRoute", "DeleteRoute", "DeleteFdb", "DeleteNeighbour", "DeleteNeighbour"]
        );
        let moved = plan(&want(&[(1, 3)]), &both, Some(VXLAN), true);
        assert_eq!(kinds(&moved), ["SetFdb"], "a changed node address is one entry");
    }
}
