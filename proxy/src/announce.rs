//! LoadBalancer addresses on the local network: one node at a time answers ARP and NDP for each, without the address
//! ever standing on an interface.
//!
//! Every node makes the same choice from the same snapshot, so that none has to talk to another. A node that takes an
//! address over says so unasked, since neighbours remember who had it before.

mod frame;
mod owner;
mod socket;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use seaway_model::Snapshot;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub use frame::{Request, gratuitous, parse, reply};
pub use owner::{candidates, owned, owner};

use crate::plan::Device;
use crate::{Metrics, ProxyConfig, links, reconcile};
use socket::PacketSocket;

const LINKS_INTERVAL: Duration = Duration::from_millis(500);
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);
/// When an address is taken over, neighbours are told at once and then again, in case they did not listen.
const TELL_AGAIN: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_millis(1500)];

type Addresses = Arc<BTreeSet<IpAddr>>;

/// Answers for this node's share of the addresses until `shutdown`.
pub async fn run(
    config: ProxyConfig,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let (sender, addresses) = watch::channel(Addresses::default());
    let mut responders: HashMap<Device, CancellationToken> = HashMap::new();
    let mut look_at_links = interval(LINKS_INTERVAL);
    look_at_links.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut open = true;
    let mut seen: Option<Arc<Snapshot>> = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = snapshots.changed(), if open => open = changed.is_ok(),
            _ = look_at_links.tick() => {}
        }
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        if !snapshot.synced {
            continue;
        }
        let known = seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &snapshot));
        let mine =
            if known { BTreeSet::clone(&addresses.borrow()) } else { owned(&snapshot, &config.node_name) };
        seen = Some(Arc::clone(&snapshot));
        if **addresses.borrow() != mine {
            tracing::info!(addresses = ?mine, "answering for load balancer addresses");
            metrics.announcing(mine.len());
            config.status.update(|status| status.announced = mine.iter().copied().collect());
            sender.send_replace(Arc::new(mine));
        }
        let Ok(links) = links::list() else { continue };
        let node = snapshot.nodes.get(&*config.node_name).map(AsRef::as_ref);
        let uplinks = reconcile::host(&config, node, &links).uplinks;
        responders.retain(|device, stop| {
            let keep = uplinks.contains(device);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for link in links.iter().filter(|link| uplinks.contains(&link.device())) {
            let Some(mac) = link.mac else { continue };
            responders.entry(link.device()).or_insert_with(|| {
                let stop = shutdown.child_token();
                let responder = Responder {
                    device: link.device(),
                    mac,
                    addresses: addresses.clone(),
                    metrics: metrics.clone(),
                };
                tokio::spawn(responder.run(stop.clone()));
                stop
            });
        }
    }
}

/// Answers on one link.
struct Responder {
    device: Device,
    mac: [u8; 6],
    addresses: watch::Receiver<Addresses>,
    metrics: Metrics,
}

impl Responder {
    async fn run(mut self, stop: CancellationToken) {
        let mut complained = false;
        loop {
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = self.respond() => result,
            };
            if let Err(error) = result
                && !complained
            {
                complained = true;
                let device = &*self.device.name;
                tracing::warn!(device, %error, "cannot answer for load balancer addresses here; trying again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(REOPEN_INTERVAL) => {}
            }
        }
    }

    /// Answers until something fails.
    async fn respond(&mut self) -> std::io::Result<()> {
        let mut socket = PacketSocket::open(&self.device)?;
        let mut told = Addresses::default();
        let mut telling: Vec<(tokio::time::Instant, Addresses)> = Vec::new();
        loop {
            let mine = Arc::clone(&self.addresses.borrow_and_update());
            let taken: Addresses = Arc::new(mine.difference(&told).copied().collect());
            if !taken.is_empty() {
                let now = tokio::time::Instant::now();
                telling.extend(TELL_AGAIN.iter().map(|after| (now + *after, Arc::clone(&taken))));
                telling.sort_by_key(|(at, _)| *at);
            }
            socket.join(&mine)?;
            told = Arc::clone(&mine);
            let next = telling.first().map(|(at, _)| *at);
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.addresses.changed() => if changed.is_err() { return Ok(()) },
                () = due => {
                    let (_, taken) = telling.remove(0);
                    for addr in taken.iter().filter(|addr| mine.contains(addr)) {
                        socket.send(&gratuitous(*addr, self.mac)).await?;
                    }
                }
                request = socket.receive() => self.answer(&mut socket, &mine, request?).await?,
            }
        }
    }

    async fn answer(
        &self,
        socket: &mut PacketSocket,
        mine: &BTreeSet<IpAddr>,
        frame: Vec<u8>,
    ) -> std::io::Result<()> {
        let Some(request) = parse(&frame) else { return Ok(()) };
        if request.sender_mac == self.mac || !mine.contains(&request.target) {
            return Ok(());
        }
        socket.send(&reply(&request, self.mac)).await?;
        self.metrics.announce_reply(if request.target.is_ipv4() { "arp" } else { "ndp" });
        Ok(())
    }
}
