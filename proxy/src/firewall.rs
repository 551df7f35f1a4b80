//! Other people's rules about forwarded packets. What is handed over to and from pods passes these rules by, so it is handed
//! over only while there are none.
//!
//! [`judge`] decides, from a list of the chains that packets enter. [`watch`] keeps that list: nftables gives notice of
//! every change, the former iptables none, so that one looks now and then, too.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seaway_nft::{BaseChain, BaseFamily, Point, base_chains, legacy_chains};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::monitor::Monitor;
use crate::reconcile::chain;

/// Tables of this project begin with this.
const OWN: &str = "seaway-";
/// Between two looks. Where others change rules all the time and have very many chains, looking may take this part of
/// the time.
const REST: Duration = Duration::from_millis(100);
const REST_PER_LOOK: u32 = 20;

/// Whether packets to and from pods may be handed over, past the node's stack and its firewall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodHandOver {
    /// While nobody else filters or changes forwarded packets.
    #[default]
    Auto,
    /// Never.
    Never,
}

/// The chains that packets enter in this network namespace. `Err`: they could not be read, or not yet.
pub type Rulesets = Result<Arc<[BaseChain]>, String>;

/// Which way packets of pods go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodPath {
    /// They are handed over from link to link.
    pub direct: bool,
    /// Why they are not.
    pub reason: Option<String>,
}

impl fmt::Display for PodPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            None => f.write_str("pods are handed over directly"),
            Some(reason) => write!(f, "pods go through the stack: {reason}"),
        }
    }
}

impl PodPath {
    /// Through the stack, for this reason.
    pub(crate) fn stack(reason: impl Into<String>) -> Self {
        Self { direct: false, reason: Some(reason.into()) }
    }
}

/// Decides from the chains that there are. `links`: the names of the links that packets of pods come and go by.
pub fn judge(wish: PodHandOver, rulesets: &Rulesets, links: &BTreeSet<Arc<str>>) -> PodPath {
    let chains = match (wish, rulesets) {
        (PodHandOver::Never, _) => return PodPath::stack("it is set so"),
        (PodHandOver::Auto, Err(error)) => return PodPath::stack(error),
        (PodHandOver::Auto, Ok(chains)) => chains,
    };
    match chains.iter().find(|chain| matters(chain, links)) {
        None => PodPath { direct: true, reason: None },
        Some(chain) => PodPath::stack(objection(chain)),
    }
}

/// Whether somebody else's chain does something with packets between pods.
fn matters(chain: &BaseChain, links: &BTreeSet<Arc<str>>) -> bool {
    let is_own = chain.table.starts_with(OWN) && !chain.legacy;
    !is_own && (chain.has_rules || !chain.accepts) && is_passed(chain, links)
}

/// Whether packets between pods enter a chain.
fn is_passed(chain: &BaseChain, links: &BTreeSet<Arc<str>>) -> bool {
    match (chain.family, chain.point) {
        (BaseFamily::Arp | BaseFamily::Bridge, _) | (_, Point::Input | Point::Output) => false,
        (_, Point::Ingress | Point::Egress) => {
            links.iter().any(|link| chain.devices.iter().any(|device| is_named(link, device)))
        }
        (_, Point::Prerouting | Point::Forward | Point::Postrouting) => true,
    }
}

/// Whether a chain's device is this link. One that ends in `*` is all that begin so.
fn is_named(link: &str, device: &str) -> bool {
    device.strip_suffix('*').map_or(link == device, |prefix| link.starts_with(prefix))
}

/// What a person can look for.
fn objection(chain: &BaseChain) -> String {
    let BaseChain { family, table, point, .. } = chain;
    let of = if chain.legacy { " of iptables-legacy" } else { "" };
    let (table, point) = (format!("table {} {table}{of}", family.name()), point.name());
    if chain.has_rules {
        format!("{table} has rules at {point}")
    } else {
        format!("{table} does not accept by default at {point}")
    }
}

/// What is known before anybody has looked.
pub(crate) fn unread() -> Rulesets {
    Err("the firewall's rules are not read yet".to_owned())
}

/// Keeps `found` as the rules are. They are looked at when nftables changes, and every `period`.
pub(crate) async fn watch(found: watch::Sender<Rulesets>, period: Duration, shutdown: CancellationToken) {
    let monitor = Monitor::of_rules()
        .inspect_err(
            |error| tracing::warn!(%error, "the kernel does not tell of changed rules; they are polled"),
        )
        .ok();
    let heard = async || match &monitor {
        Some(monitor) => monitor.changed().await,
        None => std::future::pending().await,
    };
    let mut look = interval(period);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look.tick() => {}
            () = heard() => {}
        }
        let started = Instant::now();
        let now = look_once().await;
        found.send_if_modified(|held| {
            let changed = *held != now;
            *held = now;
            changed
        });
        let rest = started.elapsed().saturating_mul(REST_PER_LOOK).max(REST);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(rest) => {}
        }
    }
}

/// The chains as they are. System calls block: they are made where they hold nobody up.
pub(crate) async fn look_once() -> Rulesets {
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| unread())
}

/// The chains as they are, of both kinds, in an order of their own.
fn read() -> Rulesets {
    let failed = |error| format!("the firewall's rules cannot be read: {}", chain(&error));
    let mut chains = base_chains().map_err(failed)?;
    chains.append(&mut legacy_chains().map_err(failed)?);
    chains.sort();
    Ok(chains.into())
}
