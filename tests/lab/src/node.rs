//! One node of the lab, and bare pods on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ipnet::IpNet;
use seaway_cni_network::netlink::{Mac, Neighbour, NeighbourKind, Netlink, Route, Veth, VethPeer};
use seaway_cni_network::netns::{Namespace, join_cgroup, sysctl};

use crate::{LabError, Process};

/// The Ethernet address of every near end of a pod's veth.
const GATEWAY_MAC: Mac = Mac([0xee; 6]);

/// A node, or the client.
#[derive(Debug)]
pub struct LabNode {
    name: String,
    namespace: Namespace,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    cgroup: PathBuf,
    bpffs: PathBuf,
    state_dir: PathBuf,
}

impl LabNode {
    pub(crate) fn new(
        name: String,
        namespace: Namespace,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
        cgroup: PathBuf,
        bpffs: PathBuf,
        state_dir: PathBuf,
    ) -> Self {
        Self { name, namespace, v4, v6, cgroup, bpffs, state_dir }
    }

    /// Its name: `node1` …, or `client`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address on the LAN.
    pub fn address_v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address on the LAN.
    pub fn address_v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Its cgroup (version 2).
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its directory in a bpffs.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Its directory for files.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// A netlink socket of its namespace.
    pub fn netlink(&self) -> Result<Netlink, LabError> {
        Ok(Netlink::open_in(&self.namespace)?)
    }

    /// Runs `work` in its namespace, on a thread of its own. (The thread stays in the cgroup of the process: use
    /// [`Self::command`] for what a socket program has to see.)
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self.namespace.run(work) {
            Ok(value) => value,
            Err(error) => panic!("{}: {error}", self.name),
        }
    }

    /// A command that will run in its namespace and its cgroup.
    pub fn command(&self, program: &str) -> Command {
        command_in(&self.namespace, &self.cgroup, program)
    }

    /// Starts a program in its namespace and cgroup; it ends when the guard is dropped.
    pub fn spawn(&self, arguments: &[&str]) -> Process {
        spawn(self.command(arguments[0]), &arguments[1..])
    }

    /// Runs a program and returns what it printed and how it ended.
    pub fn output(&self, arguments: &[&str]) -> Output {
        output(self.command(arguments[0]), &arguments[1..])
    }

    /// Runs a program that has to succeed and returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        expect_success(&self.name, arguments, &self.output(arguments))
    }

    /// Makes a pod without any CNI: a namespace with `eth0`, the addresses given, and a route to it on the node.
    /// `cgroup` is a directory below the node's own.
    pub fn add_pod(&self, name: &str, addresses: &[IpAddr]) -> Result<LabPod, LabError> {
        let namespace = Namespace::anonymous()?;
        let mut outer = self.netlink()?;
        let near = format!("lp-{name}");
        let link = outer.create_veth(&Veth {
            name: &near,
            mac: Some(GATEWAY_MAC),
            mtu: None,
            group: 0,
            peer: VethPeer { name: "eth0", mac: None, netns: Some(namespace.as_fd()) },
        })?;
        outer.set_up(link.index)?;
        let mut inner = Netlink::open_in(&namespace)?;
        let Some(eth0) = inner.link("eth0")? else { return Err(LabError::NoMount("veth")) };
        inner.set_up(eth0.index)?;
        self.run(|| {
            for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
                drop(sysctl::write(key, "1"));
            }
        });
        for addr in addresses {
            inner.add_address(eth0.index, IpNet::from(*addr))?;
            let gateway: IpAddr = match addr {
                IpAddr::V4(_) => Ipv4Addr::new(169, 254, 1, 1).into(),
                IpAddr::V6(_) => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
            };
            let kind = NeighbourKind::Permanent;
            inner.set_neighbour(&Neighbour {
                link: eth0.index,
                addr: gateway,
                mac: Some(GATEWAY_MAC),
                kind,
            })?;
            inner.replace_route(&Route { onlink: true, ..Route::default_via(gateway).on(eth0.index) })?;
            outer.set_neighbour(&Neighbour { link: link.index, addr: *addr, mac: eth0.mac, kind })?;
            outer.replace_route(&Route::to(IpNet::from(*addr)).on(link.index))?;
        }
        let cgroup = self.cgroup.join(format!("pod-{name}"));
        crate::create_dir(&cgroup)?;
        Ok(LabPod { name: name.to_owned(), namespace, cgroup, addresses: addresses.to_vec(), near })
    }
}

/// A bare pod. Its namespace goes with it.
#[derive(Debug)]
pub struct LabPod {
    name: String,
    namespace: Namespace,
    cgroup: PathBuf,
    addresses: Vec<IpAddr>,
    near: String,
}

impl LabPod {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its cgroup, below its node's.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The name of the near end of its veth pair, on the node.
    pub fn host_link(&self) -> &str {
        &self.near
    }

    /// Runs `work` in its namespace, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self.namespace.run(work) {
            Ok(value) => value,
            Err(error) => panic!("{}: {error}", self.name),
        }
    }

    /// A command that will run in its namespace and cgroup.
    pub fn command(&self, program: &str) -> Command {
        command_in(&self.namespace, &self.cgroup, program)
    }

    /// Starts a program in its namespace and cgroup; it ends when the guard is dropped.
    pub fn spawn(&self, arguments: &[&str]) -> Process {
        spawn(self.command(arguments[0]), &arguments[1..])
    }

    /// Runs a program and returns what it printed and how it ended.
    pub fn output(&self, arguments: &[&str]) -> Output {
        output(self.command(arguments[0]), &arguments[1..])
    }

    /// Runs a program that has to succeed and returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        expect_success(&self.name, arguments, &self.output(arguments))
    }
}

fn command_in(namespace: &Namespace, cgroup: &Path, program: &str) -> Command {
    let mut command = match namespace.command(program) {
        Ok(command) => command,
        Err(error) => panic!("{program}: {error}"),
    };
    if let Err(error) = join_cgroup(&mut command, cgroup) {
        panic!("{program}: cannot join cgroup {}: {error}", cgroup.display());
    }
    command
}

fn spawn(mut command: Command, arguments: &[&str]) -> Process {
    match Process::spawn(command.args(arguments).stdin(Stdio::null())) {
        Ok(process) => process,
        Err(error) => panic!("cannot start {command:?}: {error}"),
    }
}

fn output(mut command: Command, arguments: &[&str]) -> Output {
    match command.args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => panic!("cannot start {command:?}: {error}"),
    }
}

fn expect_success(who: &str, arguments: &[&str], output: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{who}: {arguments:?} ended with {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}
