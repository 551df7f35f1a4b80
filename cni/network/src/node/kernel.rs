//! The thin edge to the kernel: reading what is, doing a plan's steps, keeping the VXLAN device.

use std::collections::BTreeMap;

use ipnet::IpNet;
use rustix::io::Errno;
use seaway_model::{Family, Node};

use super::NodeNetworkError;
use super::desired::{Uplink, VxlanDevice};
use super::plan::{Actual, Op, ROUTE_PROTOCOL};
use crate::NodeNetworkConfig;
use crate::netlink::{Link, Netlink, NetlinkError, Request, RouteQuery, Vxlan};
use crate::netns::sysctl::{self, SysctlError};

/// The remark on the VXLAN device, which says that it is ours whatever its name is.
const VXLAN_ALIAS: &str = "seaway:vxlan";

/// The uplink of each family: the one that is configured, or the link that has the own node's address.
pub(super) fn uplinks(
    netlink: &mut Netlink,
    config: &NodeNetworkConfig,
    own: Option<&Node>,
) -> Result<BTreeMap<Family, Uplink>, NetlinkError> {
    let links = netlink.links()?;
    let addresses = netlink.addresses(None)?;
    let of = |family| {
        let link = if let Some(name) = &config.uplink {
            links.iter().find(|link| link.name == *name)
        } else {
            let addr = own?.addr(family)?;
            let index = addresses.iter().find(|address| address.net.addr() == addr)?.link;
            links.iter().find(|link| link.index == index)
        };
        link.map(|link| {
            let on_link = addresses.iter().filter(|address| {
                let net = address.net;
                address.link == link.index
                    && Family::of(net.addr()) == family
                    && net.prefix_len() < net.max_prefix_len()
            });
            let on_link = on_link.map(|address| address.net.trunc()).collect();
            (family, Uplink { index: link.index, mtu: link.mtu, on_link })
        })
    };
    Ok(Family::ALL.into_iter().filter_map(of).collect())
}

/// Lets the node pass packets on. A link that listens to routers goes on doing so: the kernel would stop it.
pub(super) fn enable_forwarding(links: &[Link]) -> Result<(), SysctlError> {
    if sysctl::read("net/ipv6/conf/all/forwarding").is_ok_and(|value| value == "0") {
        for link in links {
            let key = format!("net/ipv6/conf/{}/accept_ra", link.name);
            if sysctl::read(&key).is_ok_and(|value| value == "1") {
                sysctl::write(&key, "2")?;
            }
        }
    }
    sysctl::ensure("net/ipv4/ip_forward", "1")?;
    match sysctl::ensure("net/ipv6/conf/all/forwarding", "1") {
        // A kernel without IPv6.
        Err(error) if error.is_missing() => Ok(()),
        outcome => outcome,
    }
}

/// Makes the VXLAN device as it should be and returns its index. One that cannot be changed into it is replaced.
pub(super) fn ensure_vxlan(
    netlink: &mut Netlink,
    name: &str,
    wanted: &VxlanDevice,
) -> Result<u32, NodeNetworkError> {
    let held = netlink.link(name)?;
    // Two devices of one port and network cannot be: the former one goes first.
    if held.is_none() {
        remove_vxlan(netlink)?;
    }
    let link = match held {
        Some(link) if is_compatible(&link, wanted) => link,
        other => {
            if let Some(link) = other {
                refuse_foreign(&link)?;
                netlink.delete_link(link.index)?;
            }
            let created = netlink.create_vxlan(&Vxlan {
                name,
                vni: wanted.vni,
                port: wanted.port,
                local: wanted.local,
                link: wanted.link,
                mac: Some(wanted.mac),
                mtu: Some(wanted.mtu),
            });
            let link = created.map_err(|error| explain(netlink, name, wanted, error))?;
            set_vxlan_sysctls(netlink, &link)?;
            link
        }
    };
    if link.alias.as_deref() != Some(VXLAN_ALIAS) {
        netlink.set_alias(link.index, VXLAN_ALIAS)?;
    }
    if link.mac != Some(wanted.mac) {
        netlink.set_mac(link.index, wanted.mac)?;
    }
    if link.mtu != wanted.mtu {
        netlink.set_mtu(link.index, wanted.mtu)?;
    }
    if !link.up {
        netlink.set_up(link.index).map_err(|error| explain(netlink, name, wanted, error))?;
    }
    ensure_addresses(netlink, link.index, &wanted.addresses)?;
    Ok(link.index)
}

/// A link of this name that is no VXLAN device is not taken away: the name was chosen by mistake.
fn refuse_foreign(link: &Link) -> Result<(), NodeNetworkError> {
    let is_ours = link.alias.as_deref() == Some(VXLAN_ALIAS);
    if is_ours || link.vxlan.is_some() {
        return Ok(());
    }
    Err(NodeNetworkError::NotVxlan { name: link.name.clone() })
}

/// Other projects like the same numbers, and two devices share a port only if they are of one kind: the kernel refuses to
/// create one, or to bring it up. The error then says who is in the way.
fn explain(netlink: &mut Netlink, name: &str, wanted: &VxlanDevice, error: NetlinkError) -> NodeNetworkError {
    let in_use = error.errno() == Some(Errno::ADDRINUSE);
    if !in_use && error.errno() != Some(Errno::EXIST) {
        return error.into();
    }
    let links = netlink.links().unwrap_or_default();
    let at_port = |link: &&Link| link.name != name && link.vxlan.is_some_and(|info| info.port == wanted.port);
    let holder = match links.iter().find(at_port) {
        Some(other) => format!("device {}", other.name),
        None if in_use => "a process".to_owned(),
        None => return error.into(),
    };
    NodeNetworkError::VxlanTaken { holder, vni: wanted.vni, port: wanted.port }
}

/// What a new device gets before it comes up.
fn set_vxlan_sysctls(netlink: &mut Netlink, link: &Link) -> Result<(), NodeNetworkError> {
    // A kernel without IPv6 has neither.
    if link.ipv6.is_some() {
        netlink.set_no_link_local(link.index)?;
        sysctl::write(&format!("net/ipv6/conf/{}/accept_ra", link.name), "0")?;
    }
    Ok(sysctl::write(&format!("net/ipv4/conf/{}/rp_filter", link.name), "2")?)
}

fn is_compatible(link: &Link, wanted: &VxlanDevice) -> bool {
    link.vxlan.is_some_and(|info| {
        (info.vni, info.port, info.local, info.link, info.learning)
            == (wanted.vni, wanted.port, Some(wanted.local), wanted.link, false)
    })
}

fn ensure_addresses(netlink: &mut Netlink, link: u32, wanted: &[IpNet]) -> Result<(), NetlinkError> {
    let held = netlink.addresses(Some(link))?;
    for net in wanted.iter().filter(|net| !held.iter().any(|address| address.net == **net)) {
        netlink.add_address(link, *net)?;
    }
    for address in held.iter().filter(|address| !wanted.contains(&address.net)) {
        netlink.delete_address(link, address.net)?;
    }
    Ok(())
}

/// Removes the VXLAN device, whatever its name is, if there is one.
pub(super) fn remove_vxlan(netlink: &mut Netlink) -> Result<(), NetlinkError> {
    for link in netlink.links()?.iter().filter(|link| link.alias.as_deref() == Some(VXLAN_ALIAS)) {
        netlink.delete_link(link.index)?;
    }
    Ok(())
}

/// Reads the routes, ours apart from others', and the tables of our device.
pub(super) fn read(netlink: &mut Netlink, vxlan: Option<u32>) -> Result<Actual, NetlinkError> {
    let all = netlink.routes(RouteQuery::default())?;
    let (routes, others) = all.into_iter().partition(|route| route.protocol == ROUTE_PROTOCOL);
    let (neighbours, fdb) = match vxlan {
        Some(link) => (netlink.neighbours(Some(link))?, netlink.fdb(link)?),
        None => Default::default(),
    };
    Ok(Actual { routes, others, neighbours, fdb })
}

/// Does the steps, in order and many at a time: the first error is returned after all have been tried. What is to be
/// deleted may be gone.
pub(super) fn apply(netlink: &mut Netlink, ops: &[Op]) -> Result<(), NetlinkError> {
    let outcomes = netlink.execute_each(ops.iter().map(request).collect())?;
    for (op, outcome) in ops.iter().zip(outcomes) {
        match outcome {
            Err(error) if error.is_missing() && is_delete(op) => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

fn request(op: &Op) -> Request {
    match op {
        Op::SetNeighbour(neighbour) => Request::set_neighbour(neighbour),
        Op::SetFdb(entry) => Request::set_fdb(entry),
        Op::SetRoute(route) => Request::replace_route(route),
        Op::DeleteRoute(route) => Request::delete_route(route),
        Op::DeleteFdb(entry) => Request::delete_fdb(entry),
        Op::DeleteNeighbour(neighbour) => Request::delete_neighbour(neighbour),
    }
}

fn is_delete(op: &Op) -> bool {
    matches!(op, Op::DeleteRoute(_) | Op::DeleteFdb(_) | Op::DeleteNeighbour(_))
}
