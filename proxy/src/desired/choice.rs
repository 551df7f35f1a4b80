//! Which endpoints of a Service port serve: readiness, the terminating fallback (KEP-1669), topology (KEP-3015).
//!
//! The rules are kube-proxy's, so that a cluster behaves the same under both.

use std::net::IpAddr;
use std::sync::Arc;

use seaway_model::{Endpoint, Family, Service, ServicePort, TrafficDistribution};

use super::NodeView;
use crate::frontend::Backend;

/// The backends of one Service port in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// For policy Cluster: of the whole cluster, near ones only where topology says so.
    pub cluster: Arc<[Backend]>,
    /// For policy Local: of this node only.
    pub local: Arc<[Backend]>,
    /// Some endpoint somewhere could serve.
    pub any: bool,
}

#[derive(Clone, Copy)]
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    backend: Backend,
    ready: bool,
}

/// Worth a try when nothing is ready: it still serves while it terminates.
fn is_fallback(candidate: &Candidate<'_>) -> bool {
    !candidate.ready && candidate.endpoint.serving && candidate.endpoint.terminating
}

/// Chooses among `endpoints` for `port` of `service` on the node `view`.
pub fn choose(
    service: &Service,
    port: &ServicePort,
    family: Family,
    endpoints: &[Endpoint],
    view: &NodeView,
) -> Choice {
    let candidates = candidates(service, port, family, endpoints, view);
    let near = near(service, &candidates, view);
    let mut cluster = backends(&candidates, |c| c.ready && near(c));
    if cluster.is_empty() {
        cluster = backends(&candidates, is_fallback);
    }
    let mut local = backends(&candidates, |c| c.ready && c.backend.local);
    if local.is_empty() {
        local = backends(&candidates, |c| is_fallback(c) && c.backend.local);
    }
    Choice { any: !cluster.is_empty(), cluster, local }
}

/// Endpoints of the family that offer the port, at most one per address and port: the one that is further on.
fn candidates<'a>(
    service: &Service,
    port: &ServicePort,
    family: Family,
    endpoints: &'a [Endpoint],
    view: &NodeView,
) -> Vec<Candidate<'a>> {
    let mut found: Vec<Candidate<'a>> = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints.iter().filter(|e| Family::of(e.addr) == family) {
        let offered = endpoint.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        for offer in offered {
            let local = endpoint.node.as_ref().is_some_and(|node| *node == view.name);
            found.push(Candidate {
                endpoint,
                backend: Backend { addr: endpoint.addr, port: offer.port, local },
                ready: endpoint.ready || service.publish_not_ready,
            });
        }
    }
    found.sort_by_key(place);
    found.dedup_by(|next, held| {
        let same = place(next) == place(held);
        if same && rank(next) > rank(held) {
            *held = *next;
        }
        same
    });
    found
}

fn place(candidate: &Candidate<'_>) -> (IpAddr, u16) {
    (candidate.backend.addr, candidate.backend.port)
}

fn rank(candidate: &Candidate<'_>) -> (bool, bool) {
    (candidate.ready, is_fallback(candidate))
}

fn backends(candidates: &[Candidate<'_>], keep: impl Fn(&Candidate<'_>) -> bool) -> Arc<[Backend]> {
    let kept: Vec<Backend> = candidates.iter().filter(|c| keep(c)).map(|c| c.backend).collect();
    // Most Services have none on this node: that is no allocation each.
    if kept.is_empty() { Arc::default() } else { kept.into() }
}

/// How near endpoints must be for policy Cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nearness {
    Anywhere,
    HintedNode,
    HintedZone,
    OwnNode,
    OwnZone,
}

/// The nearness that leaves at least one ready endpoint. Hints count only when every ready endpoint has them; where
/// nobody wrote hints, `trafficDistribution` is resolved from the endpoints' own places.
fn near<'a>(
    service: &Service,
    candidates: &[Candidate<'_>],
    view: &'a NodeView,
) -> impl Fn(&Candidate<'_>) -> bool + use<'a> {
    let ready = || candidates.iter().filter(|c| c.ready);
    let hinted = ready().any(|c| !c.endpoint.zone_hints().is_empty() || !c.endpoint.node_hints().is_empty());
    let unhinted: &[Nearness] = match service.traffic_distribution {
        Some(_) | None if hinted => &[],
        Some(TrafficDistribution::PreferSameNode) => &[Nearness::OwnNode, Nearness::OwnZone],
        Some(TrafficDistribution::PreferSameZone) => &[Nearness::OwnZone],
        None => &[],
    };
    let mut preferences =
        [Nearness::HintedNode, Nearness::HintedZone].into_iter().chain(unhinted.iter().copied());
    let nearness = preferences.find(|preference| match preference {
        Nearness::HintedNode => {
            ready().all(|c| !c.endpoint.node_hints().is_empty())
                && ready().any(|c| is_near(*preference, c, view))
        }
        Nearness::HintedZone => {
            ready().all(|c| !c.endpoint.zone_hints().is_empty())
                && ready().any(|c| is_near(*preference, c, view))
        }
        _ => ready().any(|c| is_near(*preference, c, view)),
    });
    move |candidate| is_near(nearness.unwrap_or(Nearness::Anywhere), candidate, view)
}

fn is_near(nearness: Nearness, candidate: &Candidate<'_>, view: &NodeView) -> bool {
    let endpoint = candidate.endpoint;
    match nearness {
        Nearness::Anywhere => true,
        Nearness::HintedNode => endpoint.node_hints().contains(&view.name),
        Nearness::HintedZone => view.zone.as_ref().is_some_and(|zone| endpoint.zone_hints().contains(zone)),
        Nearness::OwnNode => candidate.backend.local,
        Nearness::OwnZone => view.zone.is_some() && endpoint.zone == view.zone,
    }
}
