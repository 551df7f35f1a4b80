//! Thousands of nodes: the time until the way to each is there, the time of one change, and the memory.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use seaway_lab::{Lab, LabNode};

use super::Effort;
use super::runtime::ms_since;
use crate::driver::{Talker, program};
use crate::row::{Report, Row, Target};
use crate::stats::{Compared, percentile};
use crate::sync::footprint::Footprint;
use crate::worker::network::Said;

/// Measures.
pub fn run(effort: Effort, report: &mut Report) -> Result<()> {
    Report::progress(&format!("{} other nodes", effort.peers));
    let lab = Lab::new(3)?;
    let size = usize::from(effort.peers);
    let empty = started(lab.node(0), 0, 0)?.1;
    let (said, full) = started(lab.node(1), effort.peers, effort.changes)?;
    let batch = by_batch(lab.node(2), effort.peers)?;
    let ratio = said.programmed_ms / batch;
    let compared = Compared { ours: said.programmed_ms, theirs: batch, ratio, spread: [ratio, ratio] };
    report.add(
        Row::beside("peers-cold", size, "ms", "ip -batch", compared, Target::None)
            .with_note("VXLAN, IPv4 and IPv6: 2 neighbours, a forwarding entry and 2 routes for each"),
    );
    let change = |p| percentile(&said.change_ms, p);
    report.add(
        Row::alone("peers-one-change", size, "ms", change(0.5), Target::None)
            .with_spread(change(0.25), change(0.75)),
    );
    let mb = |bytes: u64| bytes as f64 / 1e6;
    report.add(
        Row::alone("peers-rss", size, "MB", mb(full.resident), Target::None)
            .with_note(format!("{:.1} MB without other nodes", mb(empty.resident))),
    );
    Ok(())
}

/// The agent's part in a process of its own, until everything is measured.
fn started(node: &LabNode, peers: u16, changes: usize) -> Result<(Said, Footprint)> {
    let (peers, changes) = (peers.to_string(), changes.to_string());
    let state = node.state_dir().display().to_string();
    let arguments = ["network", "--node", node.name(), "--peers", &peers, "--changes", &changes];
    let arguments = [arguments.as_slice(), &["--state-dir", &state]].concat();
    let addresses = node.addresses().map(|addr| addr.to_string());
    let arguments =
        [arguments.as_slice(), &["--address", &addresses[0], "--address", &addresses[1]]].concat();
    let mut talker = Talker::start(node.command(&program()?), &arguments)?;
    let said = talker.said()?;
    let footprint = Footprint::of(talker.pid())?;
    Ok((said, footprint))
}

/// The same entries by `ip -batch` and `bridge -batch`: the least that it takes to tell the kernel.
fn by_batch(node: &LabNode, peers: u16) -> Result<f64> {
    let local = node.address_v4();
    let device = format!("link add peers type vxlan id 9 dstport 4790 local {local} dev eth0 nolearning\n");
    feed(node, &["ip", "-batch", "-"], &format!("{device}link set peers up\n"))?;
    let (mut entries, mut fdb, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..peers {
        let [high, low] = number.to_be_bytes();
        let mac = format!("02:00:00:00:{high:02x}:{low:02x}");
        let remote = IpAddr::from(Ipv4Addr::new(172, 31, high, low));
        for net in crate::worker::network::subnets(number) {
            let gateway = net.network();
            entries.push(format!("neigh replace {gateway} lladdr {mac} dev peers nud permanent"));
            routes.push(format!("route replace {net} via {gateway} dev peers onlink"));
        }
        fdb.push(format!("fdb replace {mac} dev peers dst {remote} self permanent"));
    }
    let [entries, fdb, routes] = [entries, fdb, routes].map(|lines| lines.join("\n"));
    let begun = Instant::now();
    feed(node, &["ip", "-batch", "-"], &entries)?;
    feed(node, &["bridge", "-batch", "-"], &fdb)?;
    feed(node, &["ip", "-batch", "-"], &routes)?;
    Ok(ms_since(begun))
}

fn feed(node: &LabNode, command: &[&str], input: &str) -> Result<()> {
    let mut process: Command = node.command(command[0]);
    process.args(&command[1..]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn().with_context(|| format!("cannot start {}", command[0]))?;
    child.stdin.take().context("a pipe to the program")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", command.join(" "), said.lines().next().unwrap_or_default());
    }
    Ok(())
}
