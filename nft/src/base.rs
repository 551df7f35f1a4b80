//! Base chains: where packets enter somebody's rules, whoever made them and by whichever program.

use crate::batch::{SUBSYSTEM, message};
use crate::error::NftError;
use crate::socket;
use crate::wire::{Message, NLM_F_DUMP, NLM_F_REQUEST, Writer};

/// `NF_ACCEPT`
const ACCEPT: u32 = 1;
/// What a message begins with: `nfgenmsg`, whose first byte is the family.
const UNSPECIFIED: u8 = 0;

/// The family of a base chain's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BaseFamily {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// ARP.
    Arp,
    /// Single links.
    Netdev,
    /// Bridges.
    Bridge,
    /// IPv6.
    Ip6,
}

impl BaseFamily {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Inet, Self::Ip, Self::Arp, Self::Netdev, Self::Bridge, Self::Ip6];

    /// Its name, as `nft` writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
        }
    }

    /// `NFPROTO_*`
    const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Arp => 3,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ip6 => 10,
        }
    }

    /// The hook of this number: single links have others than all else.
    fn point(self, hook: u32) -> Option<Point> {
        let of_links = [Point::Ingress, Point::Egress];
        let of_stack = [
            Point::Prerouting,
            Point::Input,
            Point::Forward,
            Point::Output,
            Point::Postrouting,
            Point::Ingress,
        ];
        let points = if self == Self::Netdev { &of_links[..] } else { &of_stack };
        points.get(usize::try_from(hook).ok()?).copied()
    }
}

/// Where packets enter a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// Before routing.
    Prerouting,
    /// To a process of this machine.
    Input,
    /// Between two links.
    Forward,
    /// From a process of this machine.
    Output,
    /// Before leaving.
    Postrouting,
    /// From a link.
    Ingress,
    /// To a link.
    Egress,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Prerouting,
        Self::Input,
        Self::Forward,
        Self::Output,
        Self::Postrouting,
        Self::Ingress,
        Self::Egress,
    ];

    /// Its name, as `nft` writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A chain that packets enter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseChain {
    /// The family of its table.
    pub family: BaseFamily,
    /// Its table's name.
    pub table: String,
    /// It belongs to the former iptables, not to nftables.
    pub legacy: bool,
    /// Where packets enter it.
    pub point: Point,
    /// On which links, at [`Point::Ingress`] and [`Point::Egress`]. A name that ends in `*` stands for all that begin so.
    pub devices: Vec<String>,
    /// It accepts what no rule decides. Said of every chain of a legacy table that has rules for forwarded packets: that
    /// the kernel lists such a table whole is worth avoiding.
    pub accepts: bool,
    /// It has rules.
    pub has_rules: bool,
}

/// All base chains of this network namespace. A kernel without nftables has none.
///
/// # Errors
/// Without CAP_NET_ADMIN, and where others change chains all the time.
pub fn base_chains() -> Result<Vec<BaseChain>, NftError> {
    let mut writer = Writer::default();
    let kind = SUBSYSTEM << 8 | message::GET_CHAIN;
    let start = writer.begin_message(kind, NLM_F_REQUEST | NLM_F_DUMP, UNSPECIFIED, 0);
    writer.end_message(start);
    let found = socket::dump(&writer.bytes, "list base chains", |message, found| found.extend(read(message)));
    match found {
        Err(NftError::Refused { errno, .. }) if is_unknown(errno) => Ok(Vec::new()),
        other => other,
    }
}

/// What a kernel without nftables says.
fn is_unknown(errno: rustix::io::Errno) -> bool {
    matches!(errno, rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP)
}

/// Reads a chain. `None`: packets do not enter it, or not in a way that is known.
fn read(message: &Message<'_>) -> Option<BaseChain> {
    let number = *message.body.first()?;
    let family = BaseFamily::ALL.into_iter().find(|family| family.number() == number)?;
    let attributes = message.attributes();
    let hook = attributes.nested(4)?;
    let mut devices: Vec<String> = hook.string(3).map(str::to_owned).into_iter().collect();
    for (kind, name) in hook.nested(4).into_iter().flatten() {
        let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name));
        // NFTA_DEVICE_NAME, or NFTA_DEVICE_PREFIX.
        let device = if kind == 1 { name.into_owned() } else { format!("{name}*") };
        if !devices.contains(&device) {
            devices.push(device);
        }
    }
    Some(BaseChain {
        family,
        table: attributes.string(1)?.to_owned(),
        legacy: false,
        point: family.point(hook.number(1)?)?,
        devices,
        accepts: attributes.number(5).is_none_or(|policy| policy == ACCEPT),
        // No rule can lead to a base chain: what uses it is its rules.
        has_rules: attributes.number(6).is_none_or(|uses| uses > 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::messages;

    fn chain(
        family: u8,
        hook: impl FnOnce(&mut Writer),
        policy: Option<u32>,
        uses: u32,
    ) -> Option<BaseChain> {
        let mut writer = Writer::default();
        let start = writer.begin_message(SUBSYSTEM << 8 | message::NEW_CHAIN, 0, family, 0);
        writer.string(1, "filter");
        writer.string(3, "FORWARD");
        writer.nested(4, hook);
        if let Some(policy) = policy {
            writer.number(5, policy);
        }
        writer.number(6, uses);
        writer.end_message(start);
        read(&messages(&writer.bytes).next().unwrap())
    }

    #[test]
    fn chains_are_read_as_the_kernel_writes_them() {
        let hook = |number: u32| move |writer: &mut Writer| writer.number(1, number);
        let forward = BaseChain {
            family: BaseFamily::Ip,
            table: "filter".into(),
            legacy: false,
            point: Point::Forward,
            devices: Vec::new(),
            accepts: true,
            has_rules: false,
        };
        assert_eq!(chain(2, hook(2), Some(1), 0), Some(forward.clone()));
        let dropping =
            BaseChain { family: BaseFamily::Inet, accepts: false, has_rules: true, ..forward.clone() };
        assert_eq!(chain(1, hook(2), Some(0), 3), Some(dropping));
        let at_links = |writer: &mut Writer| {
            writer.number(1, 0);
            writer.nested(4, |devices| {
                devices.string(1, "eth0");
                devices.string(2, "sw");
            });
        };
        let devices = vec!["eth0".to_owned(), "sw*".to_owned()];
        let ingress = BaseChain { family: BaseFamily::Netdev, point: Point::Ingress, devices, ..forward };
        assert_eq!(chain(5, at_links, Some(1), 0), Some(ingress));
        assert_eq!(chain(2, |_| {}, None, 1), None, "a chain that packets do not enter");
        assert_eq!(chain(99, hook(2), None, 1), None);
    }
}
