//! The node's DNS server as a part of the agent: what it is told, and in which order it comes and goes.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::config::NodeConfig;
use crate::dns_slices::{self, DnsPlace, Leaving};

/// What the node's DNS server is told.
pub(crate) fn dns_config(config: &NodeConfig) -> seaway_dns::DnsConfig {
    seaway_dns::DnsConfig {
        listen: config.node_ips.iter().map(|ip| SocketAddr::new(*ip, config.dns_port)).collect(),
        zone: config.cluster_domain.clone(),
        upstreams: config.dns_upstreams.clone(),
        // Pods get their search domains from the same file.
        resolv_conf: Some("/etc/resolv.conf".into()),
        reverse: config.service_cidrs.clone(),
        file: config.dns_config.clone(),
        ..seaway_dns::DnsConfig::default()
    }
}

/// Counts a client's requests to the API server, as CoreDNS counts its own.
pub fn counting_requests(metrics: seaway_dns::Metrics) -> seaway_watch::OnAnswered {
    Arc::new(move |answered: seaway_watch::Answered<'_>| {
        metrics.api_request(answered.method, answered.host, answered.code, answered.took);
    })
}

/// The process that holds the server's sockets, should the agent die.
fn standby(config: &NodeConfig) -> seaway_dns::StandbyConfig {
    let directory = config.state_dir.join("dns");
    seaway_dns::StandbyConfig {
        arguments: vec!["dns-standby".into(), "--directory".into(), directory.clone().into()],
        directory,
        program: config.self_exe.clone(),
    }
}

impl Agent {
    /// The node's DNS server, and its place in the Service. It answers until it has been taken out of there: nobody may be
    /// led to it any more when it ends.
    pub(crate) fn spawn_dns(&self, tasks: &mut JoinSet<()>, metrics: seaway_dns::Metrics) {
        let config = &self.config;
        let dns = dns_config(config);
        if config.healthz_port != 0 {
            let health = SocketAddr::new(config.bind_address, config.healthz_port);
            let (metrics, shutdown) = (metrics.clone(), self.shutdown.clone());
            tasks.spawn(async move {
                let watch = seaway_dns::watch_health(health, "/livez", &metrics);
                shutdown.run_until_cancelled(watch).await;
            });
        }
        let leaving = Leaving::default();
        let (parts, leave) = (self.parts.clone(), leaving.clone());
        let watched =
            seaway_dns::Watched { snapshots: self.snapshots.clone(), pods: self.pods_wanted.clone() };
        let standby = standby(config);
        tasks.spawn(async move {
            let end = &leave.withdrawn;
            let start = || {
                let (dns, watched, metrics) = (dns.clone(), watched.clone(), metrics.clone());
                seaway_dns::run_beside_standby(dns, standby.clone(), watched, metrics, end.clone())
            };
            parts.keep("dns", end, start).await;
            leave.drained.cancel();
        });
        let place = DnsPlace {
            node: config.name.clone(),
            node_ips: config.node_ips.clone(),
            port: config.dns_port,
            zone: config.zone.clone(),
        };
        let slices = dns_slices::Keeper {
            client: self.client.clone(),
            place,
            up: self.dns_up.subscribe(),
            snapshots: self.snapshots.clone(),
            shutdown: self.shutdown.clone(),
            leaving: leaving.clone(),
        };
        let speaker = dns_slices::Speaker {
            client: self.client.clone(),
            node: config.name.clone(),
            snapshots: self.snapshots.clone(),
        };
        self.endless(tasks, "dns-of-silent-nodes", move || speaker.clone().run());
        let (parts, shutdown) = (self.parts.clone(), self.shutdown.clone());
        tasks.spawn(async move {
            parts.keep("dns-endpoints", &shutdown, || slices.clone().run()).await;
            // Also where the API server could not be told.
            leaving.withdrawn.cancel();
        });
    }
}
