//! A cluster's hardware on one machine: nodes as network namespaces that a bridge joins, and a client outside.
//!
//! Each node has a network namespace with `eth0` on the LAN, a cgroup (socket programs attach there), a directory
//! in a bpffs, and a state directory, so that several agents do not see each other. Private addresses exist only
//! inside. All of it carries the run's name, and the [`Lab`] removes it when it is dropped, also by a panic; what a
//! killed run left is removed by the next one.
//!
//! ```no_run
//! # fn main() -> Result<(), seaway_lab::LabError> {
//! let lab = seaway_lab::Lab::new(2)?;
//! let (from, to) = (lab.node(0), lab.node(1));
//! seaway_lab::tcp_exchange(from.namespace(), to.namespace(), to.address_v4().into(), 100).unwrap();
//! # Ok(())
//! # }
//! ```

mod mounts;
mod node;
mod process;
mod talk;

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use seaway_cni_network::netlink::{Bridge, Netlink, NetlinkError, Veth, VethPeer};
use seaway_cni_network::netns::{self, Namespace, NetnsError};
use thiserror::Error;

pub use mounts::{bpffs_mount, cgroup2_mount};
pub use node::{LabNode, LabPod};
pub use process::Process;
pub use talk::{tcp_exchange, udp_exchange};

/// Where namespaces get their names; `ip netns exec NAME` finds them there.
const NETNS_DIRECTORY: &str = "/run/netns";
/// What the names of all runs begin with.
const RUN_PREFIX: &str = "swlab";

/// What can go wrong while a lab is set up. As tests `unwrap`, its debug form is its sentence, causes included.
#[derive(Error)]
pub enum LabError {
    /// Not root.
    #[error("the lab makes network namespaces, cgroups and pins: run the tests as root")]
    NotRoot,
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A link, address or route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A directory or file.
    #[error("lab: cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file system that is not mounted and could not be mounted.
    #[error("lab: no {0} file system is mounted, and it could not be mounted")]
    NoMount(&'static str),
}

impl fmt::Debug for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = std::error::Error::source(self);
        while let Some(next) = cause {
            write!(f, ": {next}")?;
            cause = next.source();
        }
        Ok(())
    }
}

/// Nodes, a client outside of the cluster, and the bridge between them.
#[derive(Debug)]
pub struct Lab {
    nodes: Vec<LabNode>,
    client: LabNode,
    bridge: Namespace,
    run: Run,
}

impl Lab {
    /// A lab with `nodes` nodes, at 172.30.0.11, .12 … and fd00:10:30::11, ::12 …, and a client at .100 / ::100.
    pub fn new(nodes: u8) -> Result<Self, LabError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        remove_leftovers();
        let run = Run::new()?;
        let bridge = Namespace::create(Path::new(NETNS_DIRECTORY), &run.name("lan"))?;
        let mut netlink = Netlink::open_in(&bridge)?;
        let lan = netlink.create_bridge(&Bridge { name: "lan", ..Bridge::default() })?;
        netlink.set_up(lan.index)?;
        let mut made = Vec::new();
        for number in 1..=nodes {
            made.push(run.add_node(&mut netlink, lan.index, &format!("node{number}"), 10 + number)?);
        }
        let client = run.add_node(&mut netlink, lan.index, "client", 100)?;
        Ok(Self { nodes: made, client, bridge, run })
    }

    /// The nodes.
    pub fn nodes(&self) -> &[LabNode] {
        &self.nodes
    }

    /// A node by its number, from 0.
    pub fn node(&self, number: usize) -> &LabNode {
        &self.nodes[number]
    }

    /// The client outside of the cluster.
    pub fn client(&self) -> &LabNode {
        &self.client
    }

    /// The namespace of the bridge between them.
    pub fn bridge(&self) -> &Namespace {
        &self.bridge
    }

    /// The name that everything of this run begins with.
    pub fn run_name(&self) -> &str {
        &self.run.0
    }

    /// A directory of this run for files.
    pub fn directory(&self) -> PathBuf {
        self.run.directory()
    }
}

/// The name of one run. Dropping it removes all that carries the name.
#[derive(Debug)]
struct Run(String);

impl Run {
    fn new() -> Result<Self, LabError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let run = Self(format!("{RUN_PREFIX}-{}-{count}", std::process::id()));
        create_dir(&run.directory())?;
        Ok(run)
    }

    fn name(&self, of: &str) -> String {
        format!("{}-{of}", self.0)
    }

    fn directory(&self) -> PathBuf {
        std::env::temp_dir().join(&self.0)
    }

    fn add_node(&self, lan: &mut Netlink, bridge: u32, name: &str, host: u8) -> Result<LabNode, LabError> {
        let namespace = Namespace::create(Path::new(NETNS_DIRECTORY), &self.name(name))?;
        let port = format!("p-{name}");
        let link = lan.create_veth(&Veth {
            name: &port,
            mac: None,
            mtu: None,
            group: 0,
            peer: VethPeer { name: "eth0", mac: None, netns: Some(namespace.as_fd()) },
        })?;
        lan.set_controller(link.index, Some(bridge))?;
        lan.set_up(link.index)?;
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(172, 30, 0, host), 24);
        // The same digits are read as hexadecimal: .11 and ::11.
        let digits = u16::from_str_radix(&host.to_string(), 16).unwrap_or(u16::from(host));
        let v6 = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x30, 0, 0, 0, 0, digits), 64);
        let mut netlink = Netlink::open_in(&namespace)?;
        if let Some(eth0) = netlink.link("eth0")? {
            for net in [IpNet::V4(v4), IpNet::V6(v6)] {
                netlink.add_address(eth0.index, net)?;
            }
            netlink.set_up(eth0.index)?;
            // Addresses of IPv6 that were set while the link was down have no route yet on some kernels.
            netlink.add_address(eth0.index, IpNet::V6(v6))?;
        }
        let cgroup = cgroup2_mount().ok_or(LabError::NoMount("cgroup2"))?.join(&self.0).join(name);
        let bpffs = bpffs_mount().ok_or(LabError::NoMount("bpf"))?.join(&self.0).join(name);
        let state_dir = self.directory().join(name);
        for directory in [&cgroup, &bpffs, &state_dir] {
            create_dir(directory)?;
        }
        Ok(LabNode::new(name.to_owned(), namespace, v4.addr(), v6.addr(), cgroup, bpffs, state_dir))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        remove_run(&self.0);
    }
}

fn create_dir(path: &Path) -> Result<(), LabError> {
    fs::create_dir_all(path).map_err(|source| LabError::Io {
        action: "create",
        path: path.to_owned(),
        source,
    })
}

/// Removes what runs of processes that are gone have left behind.
fn remove_leftovers() {
    let places =
        [Some(PathBuf::from(NETNS_DIRECTORY)), Some(std::env::temp_dir()), cgroup2_mount(), bpffs_mount()];
    for name in places.into_iter().flatten().flat_map(|place| names_in(&place)) {
        let mut parts = name.splitn(4, '-');
        let (Some(RUN_PREFIX), Some(pid), Some(count)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            remove_run(&format!("{RUN_PREFIX}-{pid}-{count}"));
        }
    }
}

fn remove_run(run: &str) {
    let owned =
        |name: &String| name == run || name.strip_prefix(run).is_some_and(|rest| rest.starts_with('-'));
    for name in names_in(Path::new(NETNS_DIRECTORY)).iter().filter(|name| owned(name)) {
        // There is nobody to report to: the next run tries again.
        drop(netns::delete(Path::new(NETNS_DIRECTORY), name));
    }
    if let Some(mount) = bpffs_mount() {
        drop(fs::remove_dir_all(mount.join(run)));
    }
    if let Some(mount) = cgroup2_mount() {
        remove_cgroup(&mount.join(run));
    }
    drop(fs::remove_dir_all(std::env::temp_dir().join(run)));
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes a cgroup and those below it, ending the processes that are still in them.
fn remove_cgroup(path: &Path) {
    for name in names_in(path) {
        let below = path.join(&name);
        if below.is_dir() {
            remove_cgroup(&below);
        }
    }
    if fs::remove_dir(path).is_err() && path.exists() {
        // Kernels from 5.14 on end a whole cgroup at once.
        drop(fs::write(path.join("cgroup.kill"), "1"));
        poll_until(Duration::from_secs(2), || fs::remove_dir(path).is_ok());
    }
}

/// Waits until `holds` does, and says whether it did within `limit`.
pub fn poll_until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `holds` does; panics with `what` if it does not within `limit`.
pub fn wait_for(limit: Duration, what: &str, holds: impl FnMut() -> bool) {
    assert!(poll_until(limit, holds), "{what} did not happen within {limit:?}");
}
