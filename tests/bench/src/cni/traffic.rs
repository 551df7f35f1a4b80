//! What a packet between two pods takes: on one node and between two, by routes and in VXLAN. Ours as an agent and its
//! service proxy set it up, beside the same by hand, and beside bridge. By hand there are two pairs of nodes: on one,
//! nothing but links and routes; on the other, what pods' packets are masqueraded with when they leave the cluster. For
//! that the kernel tracks every connection that passes its stack.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use seaway_cni_network::{MasqueradeOffer, NodeNetworkOptions, Overlay, VXLAN_DEVICE};
use seaway_lab::{Lab, LabNode, poll_until};
use seaway_model::Snapshot;
use seaway_proxy::MasqueradeOrder;
use tokio::sync::watch;

use super::Effort;
use super::by_hand::{self, Way};
use super::paths::{BRIDGE, Path, compare};
use super::runtime::{Agent, Plugin, Sandbox, node_object, snapshot};
use crate::row::Report;
use crate::service::proxy::Serving;

const PATIENCE: Duration = Duration::from_secs(10);

/// Two nodes of ours, in one cluster.
struct Cluster<'a> {
    nodes: [&'a LabNode; 2],
    // What is above ends before what is below.
    _proxies: Vec<Serving>,
    _agents: Vec<Agent>,
}

/// Pod network and proxy of a node, which agree on who masquerades as they do in an agent.
fn start_node(node: &LabNode, overlay: Overlay, all: &Snapshot) -> Result<(Agent, Serving)> {
    let (wanted, done) = (watch::Sender::new(None), watch::Sender::new(None));
    let (order, said) = (MasqueradeOrder::new(wanted.subscribe(), done.clone()), done.subscribe());
    let offer = Some(MasqueradeOffer { wanted, done: done.subscribe() });
    let options = NodeNetworkOptions { masquerade: offer, ..NodeNetworkOptions::default() };
    let agent = Agent::start_with(node, overlay, all.clone(), options)?;
    let mut serving = Serving::start(node, |config| {
        config.masquerade = Some(order);
        if let Overlay::Vxlan { port, .. } = overlay {
            config.tunnels = vec![VXLAN_DEVICE.to_owned()];
            config.tunnel_port = Some(port);
        }
    });
    serving.show(all.clone())?;
    if !poll_until(PATIENCE, || said.borrow().as_ref().is_some_and(|links| !links.is_empty())) {
        bail!("the programs of {} do not masquerade", node.name());
    }
    Ok((agent, serving))
}

impl<'a> Cluster<'a> {
    fn start(nodes: [&'a LabNode; 2], overlay: Overlay) -> Result<Self> {
        let members = [1, 2].map(|number: u8| {
            let node = nodes[usize::from(number) - 1];
            node_object(node.name(), &node.addresses(), &[by_hand::subnet(number).into()])
        });
        let all = snapshot(members);
        let (mut agents, mut proxies) = (Vec::new(), Vec::new());
        for node in nodes {
            let (agent, proxy) = start_node(node, overlay, &all)?;
            agents.push(agent);
            proxies.push(proxy);
        }
        Ok(Self { nodes, _proxies: proxies, _agents: agents })
    }

    fn pod(&self, number: usize, id: &str) -> Result<(Sandbox, IpAddr)> {
        let (node, sandbox) = (self.nodes[number], Sandbox::new()?);
        let plugin = Plugin::installed(node)?;
        let addr = node.run(|| plugin.add(id, &sandbox))?;
        Ok((sandbox, addr))
    }

    /// From a pod of the first node to one of this or the other.
    fn path(&self, to: usize, id: &str) -> Result<Path> {
        let (client, _) = self.pod(0, &format!("client-{id}"))?;
        let (server, addr) = self.pod(to, &format!("server-{id}"))?;
        Path::new(&client.namespace, &server.namespace, addr)
    }
}

/// Two nodes as a person sets them up.
struct Hand<'a>([&'a LabNode; 2]);

impl Hand<'_> {
    fn join(&self, way: Way) -> Result<()> {
        by_hand::join([(self.0[0], 1), (self.0[1], 2)], way)
    }

    /// From a pod of the first node to one of the node `to`, which is counted from 1.
    fn path(&self, to: u8, hosts: [u8; 2], mtu: u32) -> Result<Path> {
        let pod = |number: u8, host| by_hand::pod(self.0[usize::from(number) - 1], number, host, mtu);
        let (client, server) = (pod(1, hosts[0])?, pod(to, hosts[1])?);
        Path::new(&client.namespace, &server.namespace, server.addr)
    }
}

/// Measures.
pub fn run(effort: Effort, report: &mut Report) -> Result<()> {
    let lab = Lab::new(7)?;
    let ours = [lab.node(0), lab.node(1)];
    let (plain, masked) = (Hand([lab.node(2), lab.node(3)]), Hand([lab.node(5), lab.node(6)]));
    masked.0.iter().try_for_each(|node| by_hand::masquerade(node))?;
    Report::progress("between pods, by routes");
    let cluster = Cluster::start(ours, Overlay::None)?;
    plain.join(Way::Direct)?;
    masked.join(Way::Direct)?;
    let near = [plain.path(1, [2, 3], 1500)?, masked.path(1, [2, 3], 1500)?];
    let paths = [cluster.path(0, "near")?].into_iter().chain(near).chain([bridged(lab.node(4))?]);
    compare("one-node", paths, &["veth", "veth, masq.", BRIDGE], effort, report)?;
    let paths = [cluster.path(1, "far")?, plain.path(2, [4, 5], 1500)?, masked.path(2, [4, 5], 1500)?];
    compare("direct", paths, &["veth", "veth, masq."], effort, report)?;
    drop(cluster);
    Report::progress("between pods, in VXLAN");
    let cluster = Cluster::start(ours, Overlay::Vxlan { vni: 1, port: 8472 })?;
    // The same two nodes by hand have routes now: they are measured first, then exchanged for a device.
    let paths = [cluster.path(1, "vxlan")?, plain.path(2, [6, 7], 1500)?];
    compare("vxlan", paths, &["veth"], effort, report)?;
    plain.join(Way::Vxlan)?;
    masked.join(Way::Vxlan)?;
    let paths = [cluster.path(1, "vxlan-2")?, plain.path(2, [8, 9], 1450)?, masked.path(2, [8, 9], 1450)?];
    compare("vxlan", paths, &["vxlan by hand", "vxlan, masq."], effort, report)
}

fn bridged(node: &LabNode) -> Result<Path> {
    let plugin = Plugin::bridge(node)?;
    let (client, server) = (Sandbox::new()?, Sandbox::new()?);
    let addr = node.run(|| -> Result<IpAddr> {
        plugin.add("client", &client)?;
        plugin.add("server", &server)
    })?;
    Path::new(&client.namespace, &server.namespace, addr)
}
