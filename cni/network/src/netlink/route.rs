//! Routes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::address::family;
use super::{Netlink, Request, Result, Write};

/// The main table.
const TABLE_MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;
/// `RTPROT_STATIC`: set by an administrator.
const PROTOCOL_STATIC: u8 = 4;

/// What happens to a packet that a route matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RouteKind {
    /// It is sent on.
    #[default]
    Unicast,
    /// It is for this machine.
    Local,
    /// It is dropped silently.
    Blackhole,
    /// It is dropped, and its sender is told.
    Unreachable,
    /// Something else (multicast, broadcast …).
    Other,
}

/// A route. Build one with [`Route::to`] and change what is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// The next hop. Without one the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The link to send on.
    pub link: Option<u32>,
    /// The source address that this machine prefers for it.
    pub source: Option<IpAddr>,
    /// The next hop is taken to be on the link even though no address of ours says so.
    pub onlink: bool,
    /// What happens to packets.
    pub kind: RouteKind,
    /// Who made it. Each program uses a number of its own to find its routes again.
    pub protocol: u8,
    /// The table.
    pub table: u32,
    /// The metric; the kernel's default if none.
    pub metric: Option<u32>,
    /// The MTU along the way, if it is smaller than the link's.
    pub mtu: Option<u32>,
}

impl Route {
    /// A route to `destination` in the main table.
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination,
            gateway: None,
            link: None,
            source: None,
            onlink: false,
            kind: RouteKind::Unicast,
            protocol: PROTOCOL_STATIC,
            table: TABLE_MAIN,
            metric: None,
            mtu: None,
        }
    }

    /// The default route of the family of `gateway`.
    pub fn default_via(gateway: IpAddr) -> Self {
        let any = match gateway {
            IpAddr::V4(_) => IpNet::from(IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => IpNet::from(IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        };
        let any = IpNet::new_assert(any.addr(), 0);
        Self { gateway: Some(gateway), ..Self::to(any) }
    }

    /// The same route on a link.
    #[must_use]
    pub fn on(self, link: u32) -> Self {
        Self { link: Some(link), ..self }
    }

    /// The same route through a next hop.
    #[must_use]
    pub fn via(self, gateway: IpAddr) -> Self {
        Self { gateway: Some(gateway), ..self }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route to {}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(link) = self.link {
            write!(f, " on link {link}")?;
        }
        Ok(())
    }
}

/// Which routes to list. An empty one lists everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteQuery {
    /// Of this program only.
    pub protocol: Option<u8>,
    /// Of this table only.
    pub table: Option<u32>,
    /// On this link only.
    pub link: Option<u32>,
}

impl Netlink {
    /// The routes of both families that match.
    pub fn routes(&mut self, query: RouteQuery) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.protocol = query.protocol.unwrap_or(0).into();
            message.attributes.extend(query.table.map(RouteAttribute::Table));
            message.attributes.extend(query.link.map(RouteAttribute::Oif));
            match self.dump(RouteNetlinkMessage::GetRoute(message), &"routes") {
                Ok(answers) => routes.extend(answers.into_iter().filter_map(Route::from_answer)),
                // A table that does not exist yet has no routes.
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        routes.retain(|route| query.matches(route));
        Ok(routes)
    }

    /// Adds a route; fails if there is one to the same destination with the same metric.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        self.execute(Request::add_route(route))
    }

    /// Adds a route in the place of the one to the same destination with the same metric, if there is one.
    pub fn replace_route(&mut self, route: &Route) -> Result<()> {
        self.execute(Request::replace_route(route))
    }

    /// Deletes a route.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        self.execute(Request::delete_route(route))
    }

    /// The route that a packet to `addr` would take, or none if it is unreachable.
    pub fn route_to(&mut self, addr: IpAddr) -> Result<Option<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(addr);
        message.header.destination_prefix_length = if addr.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(addr.into()));
        match self.query(RouteNetlinkMessage::GetRoute(message), "find", &format_args!("route to {addr}")) {
            Ok(answer) => Ok(Route::from_answer(answer)),
            Err(error) => match error.errno() {
                Some(rustix::io::Errno::NETUNREACH | rustix::io::Errno::HOSTUNREACH) => Ok(None),
                _ => Err(error),
            },
        }
    }
}

impl Request {
    /// See [`Netlink::add_route`].
    pub fn add_route(route: &Route) -> Self {
        let message = RouteNetlinkMessage::NewRoute(route.to_message());
        Self::new(message, Write::Create, "add", route.to_string())
    }

    /// See [`Netlink::replace_route`].
    pub fn replace_route(route: &Route) -> Self {
        let message = RouteNetlinkMessage::NewRoute(route.to_message());
        Self::new(message, Write::Replace, "set", route.to_string())
    }

    /// See [`Netlink::delete_route`].
    pub fn delete_route(route: &Route) -> Self {
        let message = RouteNetlinkMessage::DelRoute(route.to_message());
        Self::new(message, Write::Change, "delete", route.to_string())
    }
}

impl RouteQuery {
    /// Kernels before strict checking send everything.
    fn matches(&self, route: &Route) -> bool {
        self.protocol.is_none_or(|protocol| route.protocol == protocol)
            && self.table.is_none_or(|table| route.table == table)
            && self.link.is_none_or(|link| route.link == Some(link))
    }
}

impl Route {
    fn to_message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.destination.addr());
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.protocol = self.protocol.into();
        message.header.kind = match self.kind {
            RouteKind::Unicast | RouteKind::Other => RouteType::Unicast,
            RouteKind::Local => RouteType::Local,
            RouteKind::Blackhole => RouteType::BlackHole,
            RouteKind::Unreachable => RouteType::Unreachable,
        };
        message.header.scope = match (self.kind, self.gateway) {
            (RouteKind::Local, _) => RouteScope::Host,
            (RouteKind::Unicast, None) if self.destination.addr().is_ipv4() => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if self.onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        message.attributes = self.to_attributes();
        message
    }

    fn to_attributes(&self) -> Vec<RouteAttribute> {
        let mut attributes = vec![
            RouteAttribute::Table(self.table),
            RouteAttribute::Destination(self.destination.network().into()),
        ];
        attributes.extend(self.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(source.into())));
        attributes.extend(self.metric.map(RouteAttribute::Priority));
        attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        attributes
    }

    fn from_answer(answer: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = answer else { return None };
        let header = message.header;
        if header.flags.contains(RouteFlags::Cloned) && header.destination_prefix_length == 0 {
            return None;
        }
        let any: IpAddr = match header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let mut route = Self::to(IpNet::new(any, 0).ok()?);
        let mut destination = any;
        route.protocol = protocol_number(header.protocol);
        route.table = u32::from(header.table);
        route.onlink = header.flags.contains(RouteFlags::Onlink);
        route.kind = match header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::Local => RouteKind::Local,
            RouteType::BlackHole => RouteKind::Blackhole,
            RouteType::Unreachable => RouteKind::Unreachable,
            _ => RouteKind::Other,
        };
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Destination(addr) => destination = ip_addr(&addr)?,
                RouteAttribute::Gateway(addr) => route.gateway = ip_addr(&addr),
                RouteAttribute::PrefSource(addr) => route.source = ip_addr(&addr),
                RouteAttribute::Oif(link) => route.link = Some(link),
                RouteAttribute::Priority(metric) => route.metric = Some(metric),
                RouteAttribute::Table(table) => route.table = table,
                RouteAttribute::Metrics(metrics) => route.mtu = metrics.iter().find_map(mtu_of),
                _ => {}
            }
        }
        route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
        Some(route)
    }
}

fn protocol_number(protocol: RouteProtocol) -> u8 {
    protocol.into()
}

fn mtu_of(metric: &RouteMetric) -> Option<u32> {
    if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None }
}

fn ip_addr(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(addr) => Some((*addr).into()),
        RouteAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_survives_the_way_through_its_message() {
        let cases = [
            Route::to("10.1.2.0/24".parse().unwrap()).via("192.0.2.1".parse().unwrap()).on(3),
            Route { onlink: true, ..Route::default_via("fe80::1".parse().unwrap()).on(2) },
            Route { metric: Some(7), protocol: 99, ..Route::to("fd00::/64".parse().unwrap()).on(4) },
            Route { kind: RouteKind::Blackhole, table: 1000, ..Route::to("10.9.0.0/16".parse().unwrap()) },
            Route {
                source: "192.0.2.7".parse().ok(),
                mtu: Some(1400),
                ..Route::to("10.0.0.1/32".parse().unwrap()).on(1)
            },
        ];
        for route in cases {
            assert_eq!(Route::from_answer(RouteNetlinkMessage::NewRoute(route.to_message())), Some(route));
        }
    }
}
