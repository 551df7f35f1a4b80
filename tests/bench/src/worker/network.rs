//! The agent's part of the pod network with many other nodes, in a process of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use seaway_cni_network::netlink::Netlink;
use seaway_cni_network::{NodeNetworkConfig, Overlay};
use seaway_model::{Node, Snapshot};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cni::runtime::{ms_since, node_object, snapshot};

const PATIENCE: Duration = Duration::from_secs(120);
/// How exactly the moment is known.
const POLL: Duration = Duration::from_micros(200);

/// What the part is told.
#[derive(Args)]
pub struct Options {
    /// The own Node
    #[arg(long)]
    node: String,
    /// Its addresses
    #[arg(long)]
    address: Vec<IpAddr>,
    /// Where everything goes
    #[arg(long)]
    state_dir: PathBuf,
    /// How many other nodes there are
    #[arg(long)]
    peers: u16,
    /// How often one comes and goes
    #[arg(long)]
    changes: usize,
}

/// What it took.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Said {
    /// From the start until pods may start.
    pub programmed_ms: f64,
    /// From a snapshot with one more node until the route to it is there.
    pub change_ms: Vec<f64>,
}

/// The pod subnets of a node by its number.
pub fn subnets(number: u16) -> [IpNet; 2] {
    let [high, low] = number.to_be_bytes();
    // The node itself has the last number, whose subnet lies below the others.
    let v4 = Ipv4Net::new_assert(Ipv4Addr::new(10, 64_u8.wrapping_add(high), low, 0), 24);
    let v6 = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x64, number, 0, 0, 0, 0), 64);
    [v4.into(), v6.into()]
}

fn peer(number: u16) -> Node {
    let [high, low] = number.to_be_bytes();
    let addresses = [
        Ipv4Addr::new(172, 31, high, low).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x31, 0, 0, 0, number, 1).into(),
    ];
    node_object(&format!("peer{number}"), &addresses, &subnets(number))
}

/// Runs until standard input ends.
pub fn run(options: &Options) -> Result<()> {
    let own = node_object(&options.node, &options.address, &subnets(u16::MAX));
    let all = snapshot((0..options.peers).map(peer).chain([own]));
    let mut more = all.clone();
    let newcomer = Arc::new(peer(options.peers));
    more.nodes.insert(newcomer.name.clone(), Arc::clone(&newcomer));
    let (snapshots, receiver) = watch::channel(Arc::new(all));
    let config = config(options)?;
    let conflist = config.cni_conf_dir.join("10-seaway.conflist");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let begun = Instant::now();
    let running = runtime.spawn(seaway_cni_network::run(config, receiver, CancellationToken::new()));
    let mut said = Said::default();
    until(|| Ok(conflist.exists() || running.is_finished()))?;
    said.programmed_ms = ms_since(begun);
    let without = Arc::clone(&snapshots.borrow());
    let with = Arc::new(more);
    let mut netlink = Netlink::open()?;
    for _ in 0..options.changes {
        let begun = Instant::now();
        change(&snapshots, &with, || there(&mut netlink, options.peers))?;
        said.change_ms.push(ms_since(begun));
        change(&snapshots, &without, || Ok(!there(&mut netlink, options.peers)?))?;
        // Its own changes wake it once more.
        std::thread::sleep(Duration::from_millis(300));
    }
    println!("{}", serde_json::to_string(&said)?);
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn change(
    snapshots: &watch::Sender<Arc<Snapshot>>,
    to: &Arc<Snapshot>,
    done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    snapshots.send_replace(Arc::clone(to));
    until(done)
}

/// Whether the kernel has the way to a node's pods.
fn there(netlink: &mut Netlink, number: u16) -> Result<bool> {
    let [destination, _] = subnets(number);
    let route = netlink.route_to(destination.network())?;
    Ok(route.is_some_and(|route| route.gateway == Some(destination.network())))
}

fn until(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() > deadline {
            bail!("the ways to other nodes are not there after {PATIENCE:?}");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn config(options: &Options) -> Result<NodeNetworkConfig> {
    Ok(NodeNetworkConfig::new(&options.node, Overlay::Vxlan { vni: 1, port: 8472 }, std::env::current_exe()?)
        .below(&options.state_dir))
}
