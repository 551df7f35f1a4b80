//! What the DNS server is told at its start.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use rustix::process::{Resource, getrlimit};

use crate::settings;

/// Whether names like `10-244-1-5.default.pod.cluster.local` are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodRecords {
    /// They do not exist.
    #[default]
    Disabled,
    /// The address in the name is given back, whether or not such a pod exists.
    Insecure,
    /// The address in the name is given back if a pod of that namespace has it. The snapshot has to know the pods.
    Verified,
}

/// Configuration of the DNS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// The addresses to listen at, UDP and TCP each. Several processes may share them (SO_REUSEPORT), so that a new one
    /// can take over from an old one. At an unspecified one (`0.0.0.0`, `::`) UDP answers leave from the address that was
    /// asked.
    pub listen: Vec<SocketAddr>,
    /// The cluster's zone, such as `cluster.local`.
    pub zone: String,
    /// Where names outside of the zone are asked for, in order of preference. Empty: they are refused, unless
    /// `resolv_conf` says more.
    pub upstreams: Vec<SocketAddr>,
    /// A file in the form of /etc/resolv.conf, which is followed while the server runs: its name servers are asked where
    /// `upstreams` is empty, and its search domains are those of pods where `search` is. One that names nobody, as it is
    /// while somebody writes it, changes nothing.
    pub resolv_conf: Option<PathBuf>,
    /// The time to live of the zone's records, in seconds; also of negative answers.
    pub ttl_s: u32,
    /// Names of pods by address.
    pub pod_records: PodRecords,
    /// Address ranges whose reverse names are ours to deny, such as the Service ranges. The nodes' pod ranges need not be
    /// named. The reverse names of other addresses that are not known go upstream.
    pub reverse: Vec<IpNet>,
    /// Zones in which what the cluster does not have is asked for upstream instead of denied, where there is an upstream for
    /// it, as CoreDNS's `fallthrough` has it.
    pub fallthrough: Vec<String>,
    /// The namespaces whose names are answered; empty: all.
    pub namespaces: Vec<String>,
    /// Services with a ClusterIP and without a ready endpoint do not exist.
    pub ignore_empty_services: bool,
    /// Endpoints of headless Services have names by the topology zone that they are in, as CoreDNS's `zonal` has it:
    /// `ZONE.pin._zone.SERVICE…`, and `ZONE.prefer._zone.SERVICE…` for all of them where the zone has none.
    pub zonal: bool,
    /// Walk the search path for pods whose namespace is known, so that a name outside of the cluster costs one round trip.
    pub autopath: bool,
    /// Search domains that pods have after those of the cluster: those of their nodes, most likely.
    pub search: Vec<String>,
    /// A file with settings that is read at the start and whenever it changes, over what stands here: TOML, or a CoreDNS
    /// Corefile where its name does not end in `.toml`.
    pub file: Option<PathBuf>,
    /// Namespace and name of the Service by which pods reach the server; its addresses are those of the zone's name
    /// server.
    pub service: (String, String),
    /// UDP sockets per listen address; each has a thread of its own.
    pub sockets: usize,
    /// The memory that remembered answers may take, in bytes, about; per zone of the settings file.
    pub cache_bytes: usize,
    /// The longest that a positive answer from upstream is remembered.
    pub cache_ttl_max: Duration,
    /// The longest that a negative answer from upstream is remembered.
    pub cache_negative_ttl_max: Duration,
    /// Questions that may be under way to upstreams at once, of one source four fifths of them. Beyond it they are refused.
    pub forward_in_flight_max: usize,
    /// How long one upstream has for its answer before the next one is asked.
    pub forward_attempt_timeout: Duration,
    /// How long all upstreams together have. Clients give up after 5 s by default.
    pub forward_timeout: Duration,
    /// Questions that may wait while a socket's thread is busy. Beyond it the oldest of the source with the most go.
    pub queue_max: usize,
    /// Questions per second that one source (an IPv4 address, an IPv6 /64) may ask over UDP; `None`: as many as it likes.
    pub rate_limit: Option<u32>,
    /// How long nobody must have asked before a server that is told to stop does.
    pub drain_quiet: Duration,
    /// How long it may take at most until nobody asks.
    pub drain_max: Duration,
    /// TCP connections that may be open at once, per listen address. Beyond it the quietest of the source with the most ends.
    pub tcp_connections_max: usize,
    /// How long a TCP connection may be idle.
    pub tcp_idle_timeout: Duration,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            zone: "cluster.local".to_owned(),
            upstreams: Vec::new(),
            resolv_conf: None,
            ttl_s: 5,
            pod_records: PodRecords::default(),
            reverse: Vec::new(),
            fallthrough: Vec::new(),
            namespaces: Vec::new(),
            ignore_empty_services: false,
            zonal: false,
            autopath: true,
            search: Vec::new(),
            file: None,
            service: ("kube-system".to_owned(), "kube-dns".to_owned()),
            sockets: std::thread::available_parallelism().map_or(1, usize::from).min(8),
            cache_bytes: 8 << 20,
            cache_ttl_max: Duration::from_secs(3600),
            cache_negative_ttl_max: Duration::from_secs(1800),
            forward_in_flight_max: 1024,
            forward_attempt_timeout: Duration::from_millis(1500),
            forward_timeout: Duration::from_secs(4),
            queue_max: 4096,
            rate_limit: None,
            drain_quiet: Duration::from_millis(200),
            drain_max: Duration::from_secs(5),
            tcp_connections_max: 512,
            tcp_idle_timeout: Duration::from_secs(10),
        }
    }
}

/// How many files the process may have open.
pub(crate) fn open_files_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// The name servers that a `resolv.conf` names, on port 53. Addresses with a zone (`fe80::1%eth0`) are left out: their
/// interface need not be the same here.
pub(crate) fn upstreams_from(resolv_conf: &str) -> Vec<SocketAddr> {
    let mut upstreams = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
        upstreams.extend(
            server.map(|server| SocketAddr::new(server, 53)).filter(|server| !upstreams.contains(server)),
        );
    }
    upstreams
}

/// The search domains that a `resolv.conf` names: pods of the node have them after those of the cluster. Domains of the
/// cluster's own `zone` are left out: they differ from pod to pod.
pub(crate) fn search_from(resolv_conf: &str, zone: &str) -> Vec<String> {
    // As everywhere, the last line is the one that holds.
    let line = resolv_conf.lines().rfind(|line| line.split_whitespace().next() == Some("search"));
    let name = |text: &str| settings::domain(text).ok();
    let cluster = name(zone);
    let domains = line.unwrap_or_default().split_whitespace().skip(1).filter_map(name);
    let others = domains.filter(|domain| cluster.as_ref().is_none_or(|cluster| !cluster.zone_of(domain)));
    others.filter(|domain| !domain.is_root()).map(|domain| domain.to_ascii()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_domains_of_a_resolv_conf() {
        let text = "search old.example\nnameserver 192.0.2.1\n search shop.svc.Cluster.local cluster.local corp.example a..b . \
                    Lab.example.\noptions ndots:5\n";
        assert_eq!(search_from(text, "cluster.local"), ["corp.example.", "lab.example."]);
        assert!(search_from("nameserver 192.0.2.1\nsearch\n", "cluster.local").is_empty());
    }

    #[test]
    fn upstreams_of_a_resolv_conf() {
        let text = "# nameserver 192.0.2.9\nsearch x\nnameserver 192.0.2.1\n\tnameserver  2001:db8::1 # why\n\
                    nameserver fe80::1%eth0\nnameserver 192.0.2.1\nnameserver\nnameserver one\noptions ndots:2\n";
        assert_eq!(
            upstreams_from(text),
            ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse::<SocketAddr>().unwrap()]
        );
        assert!(upstreams_from("").is_empty());
    }
}
