//! From where a probe is sent: a pod, a node, or the client outside of the cluster. Each probe is a process of its
//! own in the right network namespace and cgroup.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use seaway_images::probe::{ProbeRequest, ProbeResult};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::cluster::{Layout, topology};
use crate::place::Place;

/// The port of the client image's `/dial`.
const DIAL_PORT: u16 = 8080;

/// A place to send probes from.
#[derive(Debug, Clone)]
pub struct Vantage {
    /// What it is, for messages.
    pub name: String,
    place: Place,
    via: Option<SocketAddr>,
}

impl Vantage {
    /// A node itself: its namespace and its cgroup, as its daemons have them.
    pub fn node(layout: &Layout, node: &str) -> Self {
        let place = Place {
            netns: Some(layout.netns(node)),
            join_cgroup: Some(layout.cgroup().join(node).join("check")),
        };
        Self { name: node.to_owned(), place, via: None }
    }

    /// A client pod, reached from its node.
    pub fn pod(layout: &Layout, node: &str, pod: &str, ip: IpAddr) -> Self {
        let via = Some(SocketAddr::new(ip, DIAL_PORT));
        Self { name: format!("pod {pod} on {node}"), via, ..Self::node(layout, node) }
    }

    /// The client outside.
    pub fn outside(layout: &Layout) -> Self {
        let place = Place {
            netns: Some(layout.netns(topology::CLIENT)),
            join_cgroup: Some(layout.cgroup().join(topology::CLIENT)),
        };
        Self { name: "outside".into(), place, via: None }
    }

    /// Sends a probe; what goes wrong with it stands in the result.
    pub async fn send(&self, request: &ProbeRequest) -> Result<ProbeResult> {
        let mut command =
            Command::new(std::env::current_exe().context("cannot find the running executable")?);
        command.args(["--log", "error", "probe"]).args(self.place.flags());
        if let Some(via) = self.via {
            command.args(["--via", &via.to_string()]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start a probe")?;
        let mut stdin = child.stdin.take().context("the probe has no standard input")?;
        stdin.write_all(&serde_json::to_vec(request)?).await?;
        drop(stdin);
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            bail!("from {}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("the probe printed no result")
    }

    /// Sends a probe that must go well.
    pub async fn expect(&self, request: &ProbeRequest) -> Result<ProbeResult> {
        let result = self.send(request).await?;
        if !result.ok {
            let why = result.message.as_deref().unwrap_or("no message");
            let total = result.good + result.failed;
            bail!("from {} to {}: {} of {total} failed: {why}", self.name, request.target, result.failed);
        }
        Ok(result)
    }
}
