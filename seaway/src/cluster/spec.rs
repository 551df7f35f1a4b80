//! What `seaway up` was asked for, and every name and address that follows from it. Pure, but for reading and
//! writing the one file that remembers it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::topology;

/// The most nodes that fit between the first node's address and the outside client's.
pub const MAX_NODES: u8 = 64;
/// The API server's port.
pub const API_PORT: u16 = 6443;
const FIRST_NODE_HOST: u8 = 11;
const CLIENT_HOST: u8 = 100;

/// A cluster as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Its name, the prefix of all that it makes.
    pub name: String,
    /// How many nodes.
    pub nodes: u8,
    /// Pod subnets, at most one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// Service addresses, at most one per family.
    pub service_cidrs: Vec<IpNet>,
    /// The network that joins the nodes.
    pub lan_v4: Ipv4Net,
    /// The same, IPv6.
    pub lan_v6: Ipv6Net,
    /// Addresses for LoadBalancer Services, parts of the LAN.
    pub load_balancer_pools: Vec<IpNet>,
    /// Pod packets travel in VXLAN instead of by routes.
    pub vxlan: bool,
    /// The backend of the service proxy.
    pub proxy_mode: String,
    /// The service proxy chooses backends by Maglev where a Service does not say how.
    #[serde(default)]
    pub maglev: bool,
    /// Backends on other nodes answer clients outside directly where a Service does not say how.
    #[serde(default)]
    pub dsr: bool,
    /// Packets between pods always pass the nodes' stacks.
    #[serde(default)]
    pub never_hand_over: bool,
    /// Whether nodes send on by XDP what only passes them.
    #[serde(default = "no_xdp")]
    pub xdp: String,
    /// The service proxy counts traffic per Service and backend.
    #[serde(default)]
    pub traffic_metrics: bool,
    /// Where the API server is reached from this machine.
    pub api_listen: SocketAddr,
    /// Where the demo is reached from this machine.
    pub publish: Option<SocketAddr>,
    /// Install the demo application.
    pub demo: bool,
}

/// What clusters had that were made before there was a choice.
fn no_xdp() -> String {
    "off".into()
}

impl Default for ClusterSpec {
    fn default() -> Self {
        let net4 = |a, b, c, d, len| Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len);
        let net6 = |segments: [u16; 8], len| Ipv6Net::new_assert(Ipv6Addr::from(segments), len);
        Self {
            name: "seaway".into(),
            nodes: 3,
            pod_cidrs: vec![
                net4(10, 244, 0, 0, 16).into(),
                net6([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 56).into(),
            ],
            service_cidrs: vec![
                net4(10, 96, 0, 0, 16).into(),
                net6([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0], 112).into(),
            ],
            lan_v4: net4(172, 30, 0, 0, 24),
            lan_v6: net6([0xfd00, 0x10, 0x30, 0, 0, 0, 0, 0], 64),
            load_balancer_pools: vec![
                net4(172, 30, 0, 192, 26).into(),
                net6([0xfd00, 0x10, 0x30, 0, 0, 0, 0, 0xc000], 120).into(),
            ],
            vxlan: false,
            proxy_mode: "auto".into(),
            maglev: false,
            dsr: false,
            never_hand_over: false,
            xdp: no_xdp(),
            traffic_metrics: false,
            api_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, API_PORT)),
            publish: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))),
            demo: true,
        }
    }
}

impl ClusterSpec {
    /// Refuses what cannot work, naming the values.
    pub fn validate(&self) -> Result<()> {
        check_name(&self.name)?;
        if self.nodes == 0 || self.nodes > MAX_NODES {
            bail!("--nodes {} is out of range: 1 to {MAX_NODES}", self.nodes);
        }
        one_per_family("--pod-cidr", &self.pod_cidrs)?;
        one_per_family("--service-cidr", &self.service_cidrs)?;
        self.check_sizes()?;
        self.check_overlaps()
    }

    fn check_sizes(&self) -> Result<()> {
        for cidr in &self.pod_cidrs {
            let per_node: u8 = if cidr.addr().is_ipv4() { 24 } else { 64 };
            let room = per_node.checked_sub(cidr.prefix_len()).map_or(0, |bits| 1_u64 << bits.min(32));
            if room < u64::from(self.nodes) {
                bail!(
                    "--pod-cidr {cidr} has room for {room} nodes of a /{per_node} each, {} are wanted",
                    self.nodes
                );
            }
        }
        for cidr in &self.service_cidrs {
            let bits = cidr.max_prefix_len() - cidr.prefix_len();
            if !(4..=20).contains(&bits) {
                bail!("--service-cidr {cidr} holds 2^{bits} addresses: between 2^4 and 2^20 are supported");
            }
        }
        Ok(())
    }

    fn check_overlaps(&self) -> Result<()> {
        let mut ranges: Vec<(&str, IpNet)> =
            vec![("the node network", self.lan_v4.into()), ("the node network", self.lan_v6.into())];
        ranges.extend(self.pod_cidrs.iter().map(|cidr| ("--pod-cidr", *cidr)));
        ranges.extend(self.service_cidrs.iter().map(|cidr| ("--service-cidr", *cidr)));
        check_apart(&ranges)
    }

    /// The name of node `index` (from 0).
    pub fn node_name(index: u8) -> String {
        format!("node{}", index + 1)
    }

    /// The addresses of node `index`.
    pub fn node_ips(&self, index: u8) -> [IpAddr; 2] {
        self.lan_hosts(FIRST_NODE_HOST + index)
    }

    /// The addresses of the control plane.
    pub fn server_ips(&self) -> [IpAddr; 2] {
        self.lan_hosts(1)
    }

    /// The addresses of the client outside of the cluster.
    pub fn client_ips(&self) -> [IpAddr; 2] {
        self.lan_hosts(CLIENT_HOST)
    }

    /// The API server as the nodes reach it.
    pub fn api_url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.server_ips()[0], API_PORT))
    }

    /// The API server as this machine reaches it.
    pub fn local_api_url(&self) -> String {
        format!("https://{}", self.api_listen)
    }

    fn lan_hosts(&self, host: u8) -> [IpAddr; 2] {
        let v4 = u32::from(self.lan_v4.network()) + u32::from(host);
        let v6 = u128::from(self.lan_v6.network()) + u128::from(host);
        [Ipv4Addr::from(v4).into(), Ipv6Addr::from(v6).into()]
    }

    /// `addr` with the LAN's prefix length.
    pub fn on_lan(&self, addr: IpAddr) -> (IpAddr, u8) {
        (addr, if addr.is_ipv4() { self.lan_v4.prefix_len() } else { self.lan_v6.prefix_len() })
    }
}

/// Refuses ranges that have an address in common; each comes with the words that name it.
pub fn check_apart(ranges: &[(&str, IpNet)]) -> Result<()> {
    for (at, (what, range)) in ranges.iter().enumerate() {
        for (other_what, other) in &ranges[at + 1..] {
            if range.contains(&other.addr()) || other.contains(&range.addr()) {
                bail!("{what} {range} overlaps {other_what} {other}: choose ranges apart from each other");
            }
        }
    }
    Ok(())
}

/// Refuses what cannot be a cluster's name. Paths are made of it: every command that takes one must ask here first.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 32 || !name.chars().all(plain) || name.starts_with('-') {
        bail!("--name {name:?} must be 1 to 32 of a-z, 0-9 and '-', and not begin with '-'");
    }
    Ok(())
}

/// Refuses more than one range of an address family, and ranges that are none.
pub fn one_per_family(flag: &str, cidrs: &[IpNet]) -> Result<()> {
    if cidrs.is_empty() {
        bail!("{flag} is missing: give one range per address family");
    }
    for (at, cidr) in cidrs.iter().enumerate() {
        if cidr.trunc() != *cidr {
            bail!("{flag} {cidr} has bits set beyond its prefix: did you mean {}?", cidr.trunc());
        }
        if cidrs[..at].iter().any(|other| other.addr().is_ipv4() == cidr.addr().is_ipv4()) {
            bail!("{flag} is given twice for one address family: {} and {cidr}", cidrs[0]);
        }
    }
    Ok(())
}

/// Where a cluster of some name keeps things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    name: String,
    root: PathBuf,
    cgroup2: PathBuf,
}

/// Named network namespaces are bind mounts in this directory, as iproute2 has it.
pub const NETNS_DIR: &str = "/run/netns";
/// Where bpffs is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

impl Layout {
    /// The places of cluster `name` with its state below `state_root`.
    pub fn new(name: &str, state_root: &Path, cgroup2: &Path) -> Self {
        Self { name: name.to_owned(), root: state_root.join(name), cgroup2: cgroup2.to_owned() }
    }

    /// The state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that remembers the [`ClusterSpec`].
    pub fn spec_file(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    /// Held by the running supervisor.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("supervisor.lock")
    }

    /// The administrator's credentials.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// The control plane's data.
    pub fn server_dir(&self) -> PathBuf {
        self.root.join("server")
    }

    /// A node's data.
    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node)
    }

    /// The cluster's own copy of the binary: what runs must still be there to start again when somebody builds anew.
    pub fn exe(&self) -> PathBuf {
        self.root.join("bin/seaway")
    }

    /// Logs of all processes.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Who runs under which process id.
    pub fn pids(&self) -> PathBuf {
        self.root.join("pids")
    }

    /// The name of a namespace, by what lives in it.
    pub fn netns_name(&self, what: &str) -> String {
        format!("{}-{what}", self.name)
    }

    /// The file of a namespace.
    pub fn netns(&self, what: &str) -> PathBuf {
        Path::new(NETNS_DIR).join(self.netns_name(what))
    }

    /// Whether a namespace of this name is the cluster's own. Of clusters `blue` and `blue-2` neither takes the other's.
    pub fn owns_netns(&self, name: &str) -> bool {
        let what = name.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('-'));
        what.is_some_and(|what| {
            let index = what.strip_prefix("node").unwrap_or_default();
            let is_node = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
            is_node || [topology::LAN, topology::CLIENT].contains(&what)
        })
    }

    /// The cgroup that holds every process of the cluster.
    pub fn cgroup(&self) -> PathBuf {
        self.cgroup2.join("seaway").join(&self.name)
    }

    /// The bpffs directory.
    pub fn bpffs(&self) -> PathBuf {
        Path::new(BPFFS).join("seaway").join(&self.name)
    }

    /// Reads what `up` was asked for; `None` where there is no such cluster.
    pub fn load_spec(&self) -> Result<Option<ClusterSpec>> {
        let file = self.spec_file();
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let spec = serde_json::from_slice(&text);
        spec.map(Some).with_context(|| format!("{} is damaged; `seaway down` clears it away", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&mut ClusterSpec)) -> String {
        let mut spec = ClusterSpec::default();
        change(&mut spec);
        spec.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_sound() {
        ClusterSpec::default().validate().unwrap();
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let cidrs = |text: &str| text.split(',').map(|cidr| cidr.parse().unwrap()).collect::<Vec<IpNet>>();
        let cases = [
            (refused(|s| s.nodes = 0), "--nodes 0"),
            (refused(|s| s.name = "A b".into()), "--name"),
            (refused(|s| s.pod_cidrs = cidrs("10.96.0.0/12")), "overlaps --service-cidr 10.96.0.0/16"),
            (refused(|s| s.pod_cidrs = cidrs("172.30.0.0/16")), "the node network 172.30.0.0/24 overlaps"),
            (refused(|s| s.pod_cidrs = cidrs("10.1.2.3/16")), "did you mean 10.1.0.0/16"),
            (refused(|s| s.pod_cidrs = cidrs("10.1.0.0/16,10.2.0.0/16")), "twice for one address family"),
            (refused(|s| s.pod_cidrs = cidrs("10.1.0.0/23")), "room for 2 nodes"),
            (refused(|s| s.service_cidrs = cidrs("10.96.0.0/30")), "2^2 addresses"),
        ];
        for (message, wanted) in cases {
            assert!(message.contains(wanted), "{message:?} should contain {wanted:?}");
        }
    }

    #[test]
    fn a_cluster_owns_no_namespace_of_one_whose_name_begins_with_its_own() {
        let layout = |name: &str| Layout::new(name, Path::new("/state"), Path::new("/cg"));
        for what in ["lan", "client", "node1", "node64"] {
            assert!(layout("blue").owns_netns(&layout("blue").netns_name(what)), "{what}");
            assert!(!layout("blue").owns_netns(&layout("blue-2").netns_name(what)), "{what}");
            assert!(!layout("blue-2").owns_netns(&layout("blue").netns_name(what)), "{what}");
        }
        for foreign in ["blue", "blue-", "blue-node", "blue-node1x", "blue-other", "blues-lan"] {
            assert!(!layout("blue").owns_netns(foreign), "{foreign}");
        }
    }

    #[test]
    fn nodes_get_consecutive_addresses_of_both_families() {
        let spec = ClusterSpec::default();
        assert_eq!(spec.node_ips(1).map(|ip| ip.to_string()), ["172.30.0.12", "fd00:10:30::c"]);
        assert_eq!(spec.api_url(), "https://172.30.0.1:6443");
    }
}
