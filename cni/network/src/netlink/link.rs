//! Links: veth pairs, bridges, VXLAN devices, and what can be set on any link.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoBridge, InfoData, InfoKind,
    InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};

use super::{Netlink, Request, Result, Write};

/// The group that every link is in from the start.
const DEFAULT_GROUP: u32 = 0;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            let colon = if position == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

/// A link, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index, unique within its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// It has a carrier.
    pub running: bool,
    /// The kernel has noticed that, and sends: what is sent before is dropped.
    pub operational: bool,
    /// It is a loopback link.
    pub loopback: bool,
    /// `veth`, `bridge`, `vxlan` …; none for hardware.
    pub kind: Option<String>,
    /// The bridge (or bond, VRF) that it is a port of.
    pub controller: Option<u32>,
    /// The index of its peer (veth) or lower link, in the namespace that it lives in.
    pub peer: Option<u32>,
    /// Its group, see [`Netlink::delete_group`].
    pub group: u32,
    /// The remark on it, see [`Netlink::set_alias`].
    pub alias: Option<String>,
    /// What a VXLAN device is made of.
    pub vxlan: Option<VxlanInfo>,
    /// How it is set for IPv6; none if the kernel has no IPv6.
    pub ipv6: Option<Ipv6Settings>,
}

/// Sysctls of a link, `net/ipv6/conf/<link>/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Settings {
    /// `disable_ipv6`
    pub disabled: bool,
    /// `forwarding`
    pub forwarding: bool,
    /// `accept_ra`: 0 never, 1 unless it forwards, 2 always.
    pub accept_ra: i32,
}

/// The parameters of an existing VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VxlanInfo {
    /// Its network identifier.
    pub vni: u32,
    /// Its UDP port.
    pub port: u16,
    /// The address that it sends from.
    pub local: Option<IpAddr>,
    /// The link underneath.
    pub link: Option<u32>,
    /// It learns addresses from what it receives.
    pub learning: bool,
}

/// A veth pair to create. The near end is made in the socket's namespace, the far end in `peer.netns`. Both are
/// down.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// The near end's name.
    pub name: &'a str,
    /// The near end's address; the kernel's choice if none.
    pub mac: Option<Mac>,
    /// The MTU of both ends; 1500 if none.
    pub mtu: Option<u32>,
    /// The near end's group; 0 is the default of all links.
    pub group: u32,
    /// The far end.
    pub peer: VethPeer<'a>,
}

/// The far end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub struct VethPeer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address; the kernel's choice if none.
    pub mac: Option<Mac>,
    /// The namespace that it is made in; the socket's if none.
    pub netns: Option<BorrowedFd<'a>>,
}

/// A bridge to create.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bridge<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address. Without one it changes with its ports.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: Option<u32>,
}

/// A VXLAN device to create: no learning, no multicast, zero checksums over IPv6 received and not sent.
#[derive(Debug, Clone, Copy)]
pub struct Vxlan<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its network identifier.
    pub vni: u32,
    /// The UDP port that it receives and sends on.
    pub port: u16,
    /// The address that it sends from. Its family is the underlay's.
    pub local: IpAddr,
    /// The link underneath.
    pub link: Option<u32>,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// Every link of the namespace, by index.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), &"links")?;
        let mut links: Vec<Link> = answers.into_iter().filter_map(Link::from_answer).collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// The link of a name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.one_link(message, &format_args!("link {name}"))
    }

    /// The link of an index, if there is one.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.one_link(message, &format_args!("link {index}"))
    }

    /// Creates a veth pair and returns its near end.
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> Result<Link> {
        let mut peer = LinkMessage::default();
        peer.attributes = described(veth.peer.name, veth.peer.mac, veth.mtu);
        peer.attributes.extend(one_queue());
        if let Some(netns) = veth.peer.netns {
            peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        }
        let mut message = LinkMessage::default();
        message.attributes = described(veth.name, veth.mac, veth.mtu);
        message.attributes.extend(one_queue());
        if veth.group != DEFAULT_GROUP {
            message.attributes.push(LinkAttribute::Group(veth.group));
        }
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.create_link(message, veth.name)
    }

    /// Creates a bridge (without spanning tree) and returns it.
    pub fn create_bridge(&mut self, bridge: &Bridge<'_>) -> Result<Link> {
        let mut message = LinkMessage::default();
        message.attributes = described(bridge.name, bridge.mac, bridge.mtu);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(bridge_options())),
        ]));
        self.create_link(message, bridge.name)
    }

    /// Creates a VXLAN device and returns it.
    pub fn create_vxlan(&mut self, vxlan: &Vxlan<'_>) -> Result<Link> {
        let mut data = vec![
            InfoVxlan::Id(vxlan.vni),
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::Learning(false),
            InfoVxlan::UDPZeroCsumRX(true),
        ];
        data.push(match vxlan.local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        });
        data.extend(vxlan.link.map(InfoVxlan::Link));
        let mut message = LinkMessage::default();
        message.attributes = described(vxlan.name, vxlan.mac, vxlan.mtu);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(data)),
        ]));
        self.create_link(message, vxlan.name)
    }

    /// Deletes a link; of a veth pair, both ends.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let message = RouteNetlinkMessage::DelLink(message);
        self.execute(Request::new(message, Write::Change, "delete", format!("link {index}")))
    }

    /// Deletes every link of a group in one go, which costs a fraction of deleting them one by one. `Ok(false)`:
    /// the group has no link.
    pub fn delete_group(&mut self, group: u32) -> Result<bool> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        let message = RouteNetlinkMessage::DelLink(message);
        let request = Request::new(message, Write::Change, "delete", format!("link group {group}"));
        match self.execute(request) {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sets a link up.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        self.execute(Request::set_up(index))
    }

    /// Sets a link down.
    pub fn set_down(&mut self, index: u32) -> Result<()> {
        self.execute(Request::flags(index, LinkFlags::empty(), "set down"))
    }

    /// Sets a link's MTU.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        self.set(index, "set the MTU of", vec![LinkAttribute::Mtu(mtu)])
    }

    /// Sets a link's Ethernet address.
    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<()> {
        self.set(index, "set the address of", vec![LinkAttribute::Address(mac.0.to_vec())])
    }

    /// Makes a link a port of a bridge, or of none.
    pub fn set_controller(&mut self, index: u32, controller: Option<u32>) -> Result<()> {
        self.set(index, "set the bridge of", vec![LinkAttribute::Controller(controller.unwrap_or(0))])
    }

    /// Renames a link. On older kernels it has to be down.
    pub fn set_name(&mut self, index: u32, name: &str) -> Result<()> {
        self.set(index, "rename", vec![LinkAttribute::IfName(name.to_owned())])
    }

    /// Moves a link to the group of a number.
    pub fn set_group(&mut self, index: u32, group: u32) -> Result<()> {
        self.set(index, "set the group of", vec![LinkAttribute::Group(group)])
    }

    /// Writes a remark on a link, shown by `ip link`: who it belongs to.
    pub fn set_alias(&mut self, index: u32, alias: &str) -> Result<()> {
        self.set(index, "set the alias of", vec![LinkAttribute::IfAlias(alias.to_owned())])
    }

    /// Moves a link into another namespace, where it is down and has no addresses.
    pub fn set_netns(&mut self, index: u32, netns: BorrowedFd<'_>) -> Result<()> {
        self.set(index, "move", vec![LinkAttribute::NetNsFd(netns.as_raw_fd())])
    }

    /// Stops the kernel from making a link-local IPv6 address when the link comes up (and from waiting for
    /// duplicates of it).
    pub fn set_no_link_local(&mut self, index: u32) -> Result<()> {
        let attributes = vec![LinkAttribute::AfSpecUnspec(vec![no_link_local()])];
        self.set(index, "set the IPv6 address mode of", attributes)
    }

    fn set(&mut self, index: u32, action: &'static str, attributes: Vec<LinkAttribute>) -> Result<()> {
        self.execute(Request::set_link(index, action, attributes))
    }

    fn create_link(&mut self, message: LinkMessage, name: &str) -> Result<Link> {
        let object = format!("link {name}");
        let request = Request::new(RouteNetlinkMessage::NewLink(message), Write::Create, "create", &*object);
        let echo = self.execute_echoed(request)?.and_then(Link::from_answer);
        let made = match echo.filter(|link| link.name == name) {
            Some(link) => Some(link),
            None => self.link(name)?,
        };
        let reason = "it is gone right after it was created".to_owned();
        made.ok_or(super::NetlinkError::Answer { object, reason })
    }

    fn one_link(&mut self, message: LinkMessage, object: &dyn fmt::Display) -> Result<Option<Link>> {
        match self.query(RouteNetlinkMessage::GetLink(message), "find", object) {
            Ok(answer) => Ok(Link::from_answer(answer)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Request {
    /// Sets a link up.
    pub fn set_up(index: u32) -> Self {
        Self::flags(index, LinkFlags::Up, "set up")
    }

    /// Sets a link up that passes packets on and takes answers that come by another way than its own
    /// (`rp_filter=2`), and that gets no link-local IPv6 address by itself. It must not have a carrier yet, or be up.
    pub fn set_up_forwarding(index: u32, has_v6: bool) -> Self {
        let mut conf = InetDevConf::default();
        (conf.forwarding, conf.rp_filter) = (1, 2);
        let v4 = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)]);
        let v6 = has_v6.then(no_link_local);
        Self::set_up(index).with(LinkAttribute::AfSpecUnspec(std::iter::once(v4).chain(v6).collect()))
    }

    /// Sets a link up that gets no link-local IPv6 address by itself. It must not have a carrier yet, or be up.
    pub fn set_up_without_link_local(index: u32) -> Self {
        Self::set_up(index).with(LinkAttribute::AfSpecUnspec(vec![no_link_local()]))
    }

    /// See [`Netlink::set_group`].
    pub fn set_group(index: u32, group: u32) -> Self {
        Self::set_link(index, "set the group of", vec![LinkAttribute::Group(group)])
    }

    fn set_link(index: u32, action: &'static str, attributes: Vec<LinkAttribute>) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        Self::new(RouteNetlinkMessage::SetLink(message), Write::Change, action, format!("link {index}"))
    }

    fn flags(index: u32, flags: LinkFlags, action: &'static str) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.header.change_mask = LinkFlags::Up;
        Self::new(RouteNetlinkMessage::SetLink(message), Write::Change, action, format!("link {index}"))
    }

    fn with(mut self, attribute: LinkAttribute) -> Self {
        if let RouteNetlinkMessage::SetLink(message) = &mut self.message {
            message.attributes.push(attribute);
        }
        self
    }
}

fn no_link_local() -> AfSpecUnspec {
    AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])
}

/// The kernel makes a veth with a queue for each processor and then switches all but one off, which takes it a grace
/// period (ten milliseconds) at each end. Saying that one does leads to the same in half a millisecond.
fn one_queue() -> [LinkAttribute; 2] {
    [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)]
}

/// No spanning tree and no snooping: packets pass from the first moment on.
fn bridge_options() -> Vec<InfoBridge> {
    vec![InfoBridge::ForwardDelay(0), InfoBridge::MulticastSnooping(false)]
}

fn described(name: &str, mac: Option<Mac>, mtu: Option<u32>) -> Vec<LinkAttribute> {
    let mut attributes = vec![LinkAttribute::IfName(name.to_owned())];
    attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes.extend(mtu.map(LinkAttribute::Mtu));
    attributes
}

impl Link {
    pub(super) fn from_answer(answer: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewLink(message) = answer else { return None };
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::LowerUp),
            operational: false,
            loopback: flags.contains(LinkFlags::Loopback),
            kind: None,
            controller: None,
            peer: None,
            group: DEFAULT_GROUP,
            alias: None,
            vxlan: None,
            ipv6: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::OperState(state) => link.operational = state == State::Up,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::Group(group) => link.group = group,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::LinkInfo(info) => link.read_info(info),
                LinkAttribute::AfSpecUnspec(families) => link.read_families(families),
                _ => {}
            }
        }
        Some(link)
    }

    fn read_families(&mut self, families: Vec<AfSpecUnspec>) {
        for family in families {
            let AfSpecUnspec::Inet6(items) = family else { continue };
            self.ipv6 = items.into_iter().find_map(|item| match item {
                AfSpecInet6::DevConf(conf) => Some(Ipv6Settings {
                    disabled: conf.disable_ipv6 != 0,
                    forwarding: conf.forwarding != 0,
                    accept_ra: conf.accept_ra,
                }),
                _ => None,
            });
        }
    }

    fn read_info(&mut self, info: Vec<LinkInfo>) {
        for item in info {
            match item {
                LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
                LinkInfo::Data(InfoData::Vxlan(data)) => self.vxlan = Some(VxlanInfo::from_data(data)),
                _ => {}
            }
        }
    }
}

impl VxlanInfo {
    fn from_data(data: Vec<InfoVxlan>) -> Self {
        let mut info = Self::default();
        for item in data {
            match item {
                InfoVxlan::Id(vni) => info.vni = vni,
                InfoVxlan::Port(port) => info.port = port,
                InfoVxlan::Local(local) => info.local = Some(local.into()),
                InfoVxlan::Local6(local) => info.local = Some(local.into()),
                InfoVxlan::Link(link) => info.link = Some(link),
                InfoVxlan::Learning(learning) => info.learning = learning,
                _ => {}
            }
        }
        info
    }
}
