//! Taking the wiring of pods away.

use std::net::IpAddr;

use super::{Attachment, RETIRED_GROUP, host_route, is_retired};
use crate::netlink::{Link, Netlink, NetlinkError, Request, Route, RouteQuery};
use crate::netns::Namespace;

impl Attachment {
    /// The node's end is there, and not done with.
    pub fn is_wired(&self) -> Result<bool, NetlinkError> {
        Ok(Netlink::open()?.link(&self.host_link())?.is_some_and(|link| !is_retired(&link)))
    }

    /// Removes the wiring. `Ok(false)`: there was none. It needs no namespace of the pod: with the node's end the
    /// pod's end goes as well.
    pub fn unwire(&self) -> Result<bool, NetlinkError> {
        let mut outer = Netlink::open()?;
        match outer.link(&self.host_link())? {
            Some(link) => delete_if_there(&mut outer, link.index),
            None => Ok(false),
        }
    }

    /// Cuts the pod off and leaves the rest, the links, to whoever deletes what is [retired](super::retired).
    /// `Ok(false)`: there was no wiring. `addresses` are the pod's, as far as they are known; `pod` is its namespace,
    /// if that is there still.
    pub fn retire(&self, addresses: &[IpAddr], pod: Option<&Namespace>) -> Result<bool, NetlinkError> {
        let mut outer = Netlink::open()?;
        let Some(host) = outer.link(&self.host_link())? else { return Ok(false) };
        let routes = if addresses.is_empty() {
            outer.routes(RouteQuery { link: Some(host.index), ..RouteQuery::default() })?
        } else {
            addresses.iter().map(|addr| host_route(*addr, host.index)).collect()
        };
        cut(&mut outer, &host, &routes)?;
        if let (Some(pod), Some(index)) = (pod, host.peer) {
            // Whatever still runs there stops speaking as an address that is another pod's soon. If its namespace is on
            // its way out, that does it, too.
            drop(self.strip(pod, index, host.index));
        }
        Ok(true)
    }

    /// Takes the addresses of the pod's end away, and with them its routes.
    fn strip(&self, pod: &Namespace, index: u32, host: u32) -> Result<(), NetlinkError> {
        let mut inner = Netlink::open_in(pod)?;
        // The file may stand for another pod's namespace by now.
        let ours = |link: &Link| link.name == self.ifname && link.peer == Some(host);
        if !inner.link_by_index(index)?.as_ref().is_some_and(ours) {
            return Ok(());
        }
        let held = inner.addresses(Some(index))?;
        let requests = held.iter().map(|address| Request::delete_address(index, address.net));
        inner.execute_each(requests.collect()).map(drop)
    }
}

/// In one go: no packet finds the way to the pod, and its link is done with.
fn cut(outer: &mut Netlink, host: &Link, routes: &[Route]) -> Result<(), NetlinkError> {
    let mut requests: Vec<Request> = routes.iter().map(Request::delete_route).collect();
    requests.push(Request::set_group(host.index, RETIRED_GROUP));
    let mut refused = outer.execute_each(requests)?.into_iter().filter_map(Result::err);
    refused.find(|error| !error.is_missing()).map_or(Ok(()), Err)
}

/// Removes the wiring of many attachments, in a fraction of the time that it takes one by one. Goes on after an
/// error; returns those that are still there with the reason.
pub fn unwire_all(attachments: Vec<Attachment>) -> Vec<(Attachment, NetlinkError)> {
    let mut stuck = Vec::new();
    // If there is no socket, each one says why.
    let Ok(mut outer) = Netlink::open() else { return unwire_each(attachments) };
    let mut doomed = Vec::new();
    for attachment in attachments {
        let moved = match outer.link(&attachment.host_link()) {
            Ok(Some(link)) => outer.set_group(link.index, RETIRED_GROUP).map(|()| true),
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        match moved {
            Ok(true) => doomed.push(attachment),
            Ok(false) => {}
            Err(error) if error.is_missing() => {}
            Err(error) => stuck.push((attachment, error)),
        }
    }
    // Together with what calls of DEL have left.
    if outer.delete_group(RETIRED_GROUP).is_err() {
        stuck.extend(unwire_each(doomed));
    }
    stuck
}

fn unwire_each(attachments: Vec<Attachment>) -> Vec<(Attachment, NetlinkError)> {
    let each = attachments.into_iter().filter_map(|attachment| {
        let error = attachment.unwire().err()?;
        Some((attachment, error))
    });
    each.collect()
}

/// The attachments of `network` that have wiring on this node.
pub fn wired_attachments(network: &str) -> Result<Vec<Attachment>, NetlinkError> {
    let links = Netlink::open()?.links()?;
    let links = links.iter().filter(|link| !is_retired(link));
    let attachments = links.filter_map(|link| Attachment::from_alias(link.alias.as_deref()?));
    Ok(attachments.filter(|attachment| attachment.network == network).collect())
}

pub(super) fn delete_if_there(netlink: &mut Netlink, index: u32) -> Result<bool, NetlinkError> {
    match netlink.delete_link(index) {
        Ok(()) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}
