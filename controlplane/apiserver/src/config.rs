//! What a server is started with.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

/// The default range of node ports.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// The settings of one API server.
#[derive(Debug)]
pub struct ServerConfig {
    /// Where store, keys and the admin kubeconfig live.
    pub data_dir: PathBuf,
    /// Bound sockets to serve on; all of them speak TLS.
    pub listeners: Vec<TcpListener>,
    /// Addresses under which pods and nodes reach the server: the endpoints of Service `default/kubernetes`.
    pub advertise_addresses: Vec<IpAddr>,
    /// The port at the advertised addresses.
    pub advertise_port: u16,
    /// More names and addresses for the serving certificate.
    pub sans: Vec<String>,
    /// One range for ClusterIPs per family; the first one's family is the primary one.
    pub service_cidrs: Vec<IpNet>,
    /// The range of node ports.
    pub node_port_range: RangeInclusive<u16>,
    /// Where LoadBalancer addresses come from; none are given when empty.
    pub load_balancer_pools: Vec<IpNet>,
    /// The domain of cluster DNS, for the serving certificate.
    pub cluster_domain: String,
    /// How often an idle watch that allows bookmarks gets one.
    pub bookmark_interval: Duration,
    /// How many past events watches and paged lists can go back.
    pub history_events: usize,
    /// How long requests may take to finish at shutdown.
    pub drain_timeout: Duration,
    /// The URL in `admin.kubeconfig`; the first advertised address when absent, else the first listener's.
    pub admin_server_url: Option<String>,
}

impl ServerConfig {
    /// A server on `listeners` with its data in `data_dir`; everything else as `seaway server` has it by default.
    pub fn new(data_dir: impl Into<PathBuf>, listeners: Vec<TcpListener>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listeners,
            advertise_addresses: Vec::new(),
            advertise_port: 6443,
            sans: Vec::new(),
            service_cidrs: vec![IpNet::new_assert([10, 96, 0, 0].into(), 16)],
            node_port_range: NODE_PORTS,
            load_balancer_pools: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            bookmark_interval: Duration::from_secs(60),
            history_events: 20_000,
            drain_timeout: Duration::from_secs(10),
            admin_server_url: None,
        }
    }

    /// The URL that the admin kubeconfig names.
    pub(crate) fn server_url(&self) -> String {
        if let Some(url) = &self.admin_server_url {
            return url.clone();
        }
        let advertised =
            self.advertise_addresses.first().map(|address| SocketAddr::new(*address, self.advertise_port));
        let bound = self.listeners.iter().find_map(|listener| listener.local_addr().ok());
        let local =
            SocketAddr::new([127, 0, 0, 1].into(), bound.map_or(self.advertise_port, |bound| bound.port()));
        let bound = bound.filter(|address| !address.ip().is_unspecified());
        let address = advertised.or(bound).unwrap_or(local);
        format!("https://{address}")
    }
}
