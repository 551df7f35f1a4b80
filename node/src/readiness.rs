//! Whether the node can run pods: what is still missing for that.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::cni::Network;
use crate::config::NodeConfig;
use crate::register::Readiness;
use crate::supervise::Parts;

/// The conflist that the pod network installs last of all.
const CONFLIST: &str = "10-seaway.conflist";

/// Finds out whether the node can run pods.
pub(crate) struct ReadinessWatcher {
    pub(crate) config: NodeConfig,
    pub(crate) parts: Parts,
    pub(crate) proxy: seaway_proxy::StatusHandle,
    pub(crate) network: Network,
    pub(crate) dns: DnsWatcher,
    pub(crate) readiness: watch::Sender<Readiness>,
}

/// Finds out whether the node's DNS server is to be asked.
pub(crate) struct DnsWatcher {
    pub(crate) parts: Parts,
    pub(crate) metrics: Option<seaway_dns::Metrics>,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) up: watch::Sender<bool>,
}

impl ReadinessWatcher {
    /// Looks often until the node is ready, then every second.
    pub(crate) async fn watch(self) {
        loop {
            let now = self.look().await;
            let ready = now.missing.is_empty();
            self.readiness.send_if_modified(|held| {
                let changed = *held != now;
                *held = now;
                changed
            });
            tokio::time::sleep(Duration::from_millis(if ready { 1000 } else { 20 })).await;
        }
    }

    async fn look(&self) -> Readiness {
        let config = &self.config;
        let mut missing = Vec::new();
        let network = if config.cni {
            config.cni_conf_dir.join(CONFLIST).exists()
        } else {
            self.network.configuration().is_ok()
        };
        if !network && (config.cni || config.run_pods) {
            missing
                .push(format!("the pod network is not installed in {} yet", config.cni_conf_dir.display()));
        }
        if config.proxy && !self.proxy.status().synced {
            let why = self.proxy.status().last_error.or_else(|| self.parts.last_error("proxy"));
            let why = why.map(|error| format!(": {error}")).unwrap_or_default();
            missing.push(format!("the service proxy has not synced yet{why}"));
        }
        if config.dns && !self.dns.look().await {
            missing.push(format!("DNS does not answer on port {} yet", config.dns_port));
        }
        Readiness { missing, network }
    }
}

impl DnsWatcher {
    /// Whether it is, and says so.
    async fn look(&self) -> bool {
        let up = self.answers().await;
        self.up.send_if_modified(|held| std::mem::replace(held, up) != up);
        up
    }

    /// It knows the cluster: nobody is led to a server that can only fail. Once it was reached, it is up as long as its part
    /// runs.
    async fn answers(&self) -> bool {
        let ready = self.metrics.as_ref().is_some_and(seaway_dns::Metrics::ready);
        if !ready || !self.parts.running("dns") {
            return false;
        }
        if *self.up.borrow() {
            return true;
        }
        for address in &self.addresses {
            let reached = tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await;
            if !matches!(reached, Ok(Ok(_))) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use prometheus::Registry;
    use seaway_model::Snapshot;
    use tokio_util::sync::CancellationToken;

    /// A server that listens and does not know the cluster yet is not to be asked.
    #[tokio::test]
    async fn dns_is_up_when_it_knows_the_cluster() {
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let config = seaway_dns::DnsConfig { listen, sockets: 1, ..seaway_dns::DnsConfig::default() };
        let server = seaway_dns::Server::bind(&config).unwrap();
        let metrics = seaway_dns::Metrics::new(&Registry::new()).unwrap();
        let (snapshots, cluster) = watch::channel(Arc::new(Snapshot::default()));
        let (parts, end) = (Parts::default(), CancellationToken::new());
        let watcher = DnsWatcher {
            parts: parts.clone(),
            metrics: Some(metrics.clone()),
            addresses: server.local_addrs(),
            up: watch::Sender::new(false),
        };
        assert!(!watcher.look().await, "it does not run");
        let mut serve = Some(server.serve(cluster, metrics, end.clone()));
        let part_end = end.clone();
        let part = tokio::spawn(async move {
            let start = || {
                let serve = serve.take();
                async move { if let Some(serve) = serve { serve.await } else { std::future::pending().await } }
            };
            parts.keep("dns", &part_end, start).await;
        });
        TcpStream::connect(watcher.addresses[0]).await.unwrap();
        while !watcher.parts.running("dns") {
            tokio::task::yield_now().await;
        }
        assert!(!watcher.look().await, "it listens");
        snapshots.send_replace(Arc::new(Snapshot { version: 1, synced: true, ..Snapshot::default() }));
        let up = async {
            while !watcher.look().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), up).await.unwrap();
        assert!(*watcher.up.borrow());
        end.cancel();
        part.await.unwrap();
    }
}
