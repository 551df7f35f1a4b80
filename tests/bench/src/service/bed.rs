//! The test bed: nodes of the lab with a pod that answers and one that asks on each, and a client outside.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net};
use seaway_cni_network::netlink::Route;
use seaway_lab::{Lab, LabNode, LabPod};

use super::proxy::Serving;
use crate::cluster::{self, NODE_PORTS, PORT, Place, STREAM_TARGET, TARGET};
use crate::driver::{Asker, Talker, program};
use crate::objects;
use crate::row::Report;

/// A node with what runs on it. What is above ends before what is below.
pub struct Station {
    /// The pod that asks.
    pub asker: Asker,
    serving: Option<Serving>,
    _backend: Talker,
    _pods: [LabPod; 2],
}

/// All of it.
pub struct Bed {
    /// The client outside.
    pub outside: Asker,
    stations: Vec<Station>,
    lab: Lab,
}

impl Bed {
    /// A bed of `nodes` nodes without any proxy.
    pub fn new(nodes: u8) -> Result<Self> {
        let lab = Lab::new(nodes)?;
        let mut stations = Vec::new();
        for number in 1..=nodes {
            let place = Place(number);
            stations.push(Station::new(lab.node(usize::from(number) - 1), place)?);
            route(lab.client(), place)?;
        }
        let outside = Asker::start(lab.client().command(&program()?))?;
        Ok(Self { outside, stations, lab })
    }

    /// The node at `place`.
    pub fn node(&self, place: Place) -> &LabNode {
        self.lab.node(usize::from(place.0) - 1)
    }

    /// What runs on it.
    pub fn station(&mut self, place: Place) -> &mut Station {
        &mut self.stations[usize::from(place.0) - 1]
    }

    /// Makes the proxy of a node serve `size` Services.
    pub fn serve(&mut self, place: Place, size: usize) -> Result<()> {
        Report::progress(&format!("{} serves {size} Services", place.node()));
        let snapshot = objects::snapshot(&cluster::services(size, place), place)?;
        if self.station(place).serving.is_none() {
            let serving = Serving::start(self.node(place), |_| {});
            self.station(place).serving = Some(serving);
        }
        let serving = self.station(place).serving.as_mut().context("the proxy was just started")?;
        serving.show(snapshot)
    }

    /// Feeds `rules` to a program on a node.
    pub fn load(&self, place: Place, command: &[&str], rules: &str) -> Result<()> {
        let what = format!("{} loads {} lines of rules", place.node(), rules.lines().count());
        Report::progress(&what);
        let mut child = self
            .node(place)
            .command(command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command[0]))?;
        let mut input = child.stdin.take().context("a pipe to the program")?;
        let written = input.write_all(rules.as_bytes());
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {} {}", command.join(" "), output.status, said.lines().next().unwrap_or_default());
        }
        Ok(written?)
    }
}

impl Station {
    fn new(node: &LabNode, place: Place) -> Result<Self> {
        let backends: Vec<IpAddr> = place.backends().map(IpAddr::from).into();
        let backend_pod = node.add_pod("backend", &backends)?;
        let asker_pod = node.add_pod("asker", &[place.client().into()])?;
        let (port, stream_port) = (TARGET.to_string(), STREAM_TARGET.to_string());
        let program = program()?;
        let arguments = ["backend", "--port", &port, "--stream-port", &stream_port];
        let mut backend = Talker::start(backend_pod.command(&program), &arguments)?;
        if backend.line()? != "ready" {
            bail!("the backend does not begin");
        }
        Ok(Self {
            asker: Asker::start(asker_pod.command(&program))?,
            serving: None,
            _backend: backend,
            _pods: [backend_pod, asker_pod],
        })
    }
}

/// The way of the client outside to a node's pods and load balancer address.
fn route(client: &LabNode, place: Place) -> Result<()> {
    let mut netlink = client.netlink()?;
    let link = netlink.link("eth0")?.context("the client's link")?.index;
    for (addr, prefix) in [(place.vip(), 32), (Ipv4Addr::new(10, 244, place.0, 0), 24)] {
        let net = IpNet::from(Ipv4Net::new(addr, prefix)?);
        netlink.replace_route(&Route::to(net).via(place.address().into()).on(link))?;
    }
    Ok(())
}

/// The addresses that a place is asked at.
impl Place {
    /// The real Service inside.
    pub fn service(self) -> SocketAddr {
        (self.cluster_ip(), PORT).into()
    }

    /// Its pod.
    pub fn direct(self) -> SocketAddr {
        (self.backends()[0], TARGET).into()
    }

    /// Its pod's sink.
    pub fn direct_stream(self) -> SocketAddr {
        (self.backends()[0], STREAM_TARGET).into()
    }

    /// Its NodePort.
    pub fn node_port(self) -> SocketAddr {
        (self.address(), NODE_PORTS[0]).into()
    }

    /// Its NodePort for streams.
    pub fn node_port_stream(self) -> SocketAddr {
        (self.address(), NODE_PORTS[1]).into()
    }

    /// Its load balancer address.
    pub fn load_balancer(self) -> SocketAddr {
        (self.vip(), PORT).into()
    }
}
