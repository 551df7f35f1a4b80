//! Ends sockets of this node whose endpoint is gone, so that clients reconnect at once instead of waiting for an answer
//! that nobody will give.
//!
//! Traffic of this node is translated at the socket: afterwards the socket is connected to the endpoint itself, and
//! nothing in between can send it elsewhere. When an endpoint has vanished, the table of translated sockets tells which
//! sockets it left behind, and SOCK_DIAG ends them in whichever network namespace of the node they are.
//!
//! **Invariant:** only sockets that the data plane translated are ended. An endpoint that is still listed keeps its
//! connections, whatever its conditions (for UDP: while it serves); one that is listed by another Service does too; and
//! so does every connection of a Service that was deleted.

mod diag;
mod namespaces;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use seaway_model::{Endpoint, Protocol, Snapshot};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Metrics;
use crate::dataplane::{DataplaneError, SocketTable};
use crate::desired::Desired;
use crate::frontend::{FrontendKey, Scope};

/// A connected socket of this node that the data plane sent to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The socket's cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// What the application addressed.
    pub frontend: (IpAddr, u16),
    /// Where its packets go.
    pub backend: (IpAddr, u16),
}

/// What the loop in `reconcile` shows of its state.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// What the kernel holds, or is about to.
    pub(crate) desired: Desired,
    /// What that follows from.
    pub(crate) snapshot: Snapshot,
    /// Counts up when endpoints have vanished and the kernel knows it.
    pub(crate) departures: u64,
}

/// How long after a departure it is looked again: a socket may have been on its way to connect.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// Departures within this time are looked at together.
const GATHER: Duration = Duration::from_millis(20);

/// Ends what departures leave behind until `shutdown`.
pub(crate) async fn run(
    table: Box<dyn SocketTable>,
    cgroup: PathBuf,
    mut views: watch::Receiver<View>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let mut worker = Some(Ender { table, cgroup });
    let mut seen = 0;
    let mut look_again = false;
    loop {
        let departure =
            async { views.wait_for(|view| view.departures != seen).await.map(|view| view.departures) };
        tokio::select! {
            () = shutdown.cancelled() => return,
            departures = departure => if let Ok(departures) = departures {
                (seen, look_again) = (departures, true);
            } else {
                shutdown.cancelled().await;
                return;
            },
            () = tokio::time::sleep(SECOND_LOOK), if look_again => look_again = false,
        }
        tokio::time::sleep(GATHER).await;
        let Some(working) = worker.take() else { return };
        let views = views.clone();
        // Its thread enters other namespaces, and must not be one that anybody else will use.
        let (sender, done) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let ended = working.pass(&views);
            drop(sender.send((working, ended)));
        });
        let Ok((working, ended)) = done.await else {
            tracing::error!("ending the sockets of vanished endpoints panicked; it is not done any more");
            shutdown.cancelled().await;
            return;
        };
        worker = Some(working);
        match ended {
            Ok(ended) => report(&metrics, &ended),
            Err(error) => {
                tracing::warn!(error = %crate::reconcile::chain(&error), "sockets of vanished endpoints were not ended");
            }
        }
    }
}

fn report(metrics: &Metrics, ended: &[Translation]) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let count = ended.iter().filter(|socket| socket.protocol == protocol).count();
        metrics.ended_sockets(protocol.as_str(), count);
    }
    if let Some(first) = ended.first() {
        let backend = std::net::SocketAddr::from(first.backend);
        tracing::info!(sockets = ended.len(), first = %backend, "ended sockets whose endpoint is gone");
    }
}

/// The ends of a connection: this node's, and the other.
pub(crate) type Ends = ((IpAddr, u16), (IpAddr, u16));

/// The TCP connections of this network namespace's sockets, also those that are about to be accepted.
pub(crate) fn open_tcp() -> std::io::Result<Vec<Ends>> {
    let mut diag = diag::Diag::open()?;
    let mut all = Vec::new();
    for family in [diag::Family::V4, diag::Family::V6] {
        let sockets = diag.connecting(family, Protocol::Tcp.number())?;
        all.extend(sockets.iter().map(|socket| (socket.local(), socket.remote())));
    }
    Ok(all)
}

struct Ender {
    table: Box<dyn SocketTable>,
    cgroup: PathBuf,
}

impl Ender {
    /// Ends all orphans. The table is read before the view: a socket that is in it was translated by what the view
    /// shows or by something older, never by something newer.
    fn pass(&self, views: &watch::Receiver<View>) -> Result<Vec<Translation>, DataplaneError> {
        let sockets = self.table.translated()?;
        let view = views.borrow().clone();
        let orphans = orphans(&view.desired, &view.snapshot, sockets);
        Ok(end(&self.cgroup, orphans))
    }
}

/// Those of `sockets` whose endpoint is gone.
pub fn orphans(desired: &Desired, snapshot: &Snapshot, mut sockets: Vec<Translation>) -> Vec<Translation> {
    sockets.retain(|socket| left_its_service(desired, snapshot, socket));
    if sockets.is_empty() {
        return sockets;
    }
    let suspects: HashSet<IpAddr> = sockets.iter().map(|socket| socket.backend.0).collect();
    let mut living = HashSet::new();
    let endpoints = snapshot.endpoints.values().flat_map(|set| set.endpoints.iter());
    for endpoint in endpoints.filter(|endpoint| suspects.contains(&endpoint.addr)) {
        living.extend(offers(endpoint).map(|(protocol, port)| (protocol, endpoint.addr, port)));
    }
    sockets.retain(|s| !living.contains(&(s.protocol, s.backend.0, s.backend.1)));
    sockets
}

/// The Service is there, and does not list the socket's endpoint any more.
fn left_its_service(desired: &Desired, snapshot: &Snapshot, socket: &Translation) -> bool {
    let (addr, port) = socket.frontend;
    let key = FrontendKey { addr, port, protocol: socket.protocol, scope: Scope::Internal };
    let Some(entry) = desired.frontends.get(&key) else { return false };
    let held = entry.frontend.backends.iter().any(|b| (b.addr, b.port) == socket.backend);
    let wanted = (socket.protocol, socket.backend.1);
    let listed = || {
        let set = snapshot.endpoints.get(&entry.owner.service)?;
        let mut at = set.endpoints.iter().filter(|endpoint| endpoint.addr == socket.backend.0);
        at.find(|endpoint| offers(endpoint).any(|offer| offer == wanted))
    };
    !held && listed().is_none()
}

/// What an endpoint goes on serving to those who are connected. A UDP client has no other way to notice that nobody
/// answers.
fn offers(endpoint: &Endpoint) -> impl Iterator<Item = (Protocol, u16)> + '_ {
    let serves = endpoint.ready || endpoint.serving;
    let offers = endpoint.ports.iter().map(|offer| (offer.protocol, offer.port));
    offers.filter(move |(protocol, _)| serves || *protocol != Protocol::Udp)
}

/// Ends `sockets` in the namespaces of the processes of `cgroup` and in the own one. Enters them with this thread.
/// Returns those that were found and ended.
fn end(cgroup: &Path, sockets: Vec<Translation>) -> Vec<Translation> {
    let mut wanted: HashMap<u64, Translation> = sockets.into_iter().map(|s| (s.cookie, s)).collect();
    let mut ended = Vec::new();
    if wanted.is_empty() {
        return ended;
    }
    for namespace in namespaces::of_node(cgroup) {
        if wanted.is_empty() {
            break;
        }
        let found = namespace.enter().and_then(|()| end_here(&wanted));
        match found {
            Ok(found) => ended.extend(found.into_iter().filter_map(|cookie| wanted.remove(&cookie))),
            Err(error) => tracing::debug!(%error, "a namespace's sockets could not be ended"),
        }
    }
    ended
}

/// Ends those of `wanted` that are in the namespace of this thread. Returns their cookies.
fn end_here(wanted: &HashMap<u64, Translation>) -> std::io::Result<Vec<u64>> {
    let mut diag = diag::Diag::open()?;
    let mut ended = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut families: Vec<diag::Family> = Vec::new();
        for socket in wanted.values().filter(|socket| socket.protocol == protocol) {
            // An IPv6 socket may be connected to an IPv4 address.
            families.extend(socket.backend.0.is_ipv4().then_some(diag::Family::V4));
            families.push(diag::Family::V6);
        }
        families.sort_unstable();
        families.dedup();
        for family in families {
            let found = diag.connected(family, protocol.number())?;
            for socket in found.iter().filter(|socket| {
                wanted
                    .get(&socket.cookie())
                    .is_some_and(|w| (w.protocol, w.backend) == (protocol, socket.remote()))
            }) {
                if diag.destroy(family, protocol.number(), socket)? {
                    ended.push(socket.cookie());
                }
            }
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests;
