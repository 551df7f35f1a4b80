//! The MTU of pods that exist already, when the way underneath gets another one.

use tracing::{debug, info};

use super::NodeNetworkError;
use super::install::NETWORK;
use crate::NodeNetworkConfig;
use crate::ipam::{Ipam, Owner};
use crate::netlink::{Link, Netlink};
use crate::netns::Namespace;
use crate::pod::{Attachment, LINK_GROUP};

/// Gives both ends of the pods' links the MTU. A pod whose namespace is not known keeps its own.
pub(super) fn follow(
    netlink: &mut Netlink,
    config: &NodeNetworkConfig,
    links: &[Link],
    mtu: u32,
) -> Result<(), NodeNetworkError> {
    let other = links.iter().filter(|link| link.group == LINK_GROUP && link.mtu != mtu);
    let other = other.filter_map(|link| Some((link, Attachment::from_alias(link.alias.as_deref()?)?)));
    let other: Vec<_> = other.filter(|(_, attachment)| attachment.network == NETWORK).collect();
    if other.is_empty() {
        return Ok(());
    }
    let Some(ipam) = Ipam::open_if_there(&config.data_dir, NETWORK)? else { return Ok(()) };
    let mut known = Vec::new();
    for (link, attachment) in other {
        let owner = Owner::new(&attachment.container_id, &attachment.ifname);
        if let Some(netns) = ipam.reservation(&owner)?.and_then(|held| held.netns) {
            known.push((link, attachment, netns));
        }
    }
    drop(ipam);
    for (link, attachment, netns) in known {
        match set(netlink, link, &attachment, &netns, mtu) {
            Ok(()) => info!(link = %link.name, was = link.mtu, mtu, "a pod's MTU follows"),
            // It may be on its way out.
            Err(error) => debug!(link = %link.name, %error, "a pod keeps its MTU"),
        }
    }
    Ok(())
}

fn set(
    netlink: &mut Netlink,
    link: &Link,
    attachment: &Attachment,
    netns: &str,
    mtu: u32,
) -> Result<(), NodeNetworkError> {
    let namespace = Namespace::open(netns.as_ref()).map_err(crate::netlink::NetlinkError::from)?;
    let mut inner = Netlink::open_in(&namespace)?;
    // The file may stand for another pod's namespace by now.
    if let Some(end) = inner.link(&attachment.ifname)?.filter(|end| end.peer == Some(link.index)) {
        // The node's end is the last: by it one that was cut short is found again.
        inner.set_mtu(end.index, mtu)?;
        netlink.set_mtu(link.index, mtu)?;
    }
    Ok(())
}
