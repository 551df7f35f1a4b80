//! What proxy and pod network are told by the agent: its own configuration, and how they speak to each other.

use std::sync::Arc;

use seaway_cni_network::MasqueradeOffer;
use seaway_proxy::MasqueradeOrder;

use super::{Agent, worker};
use crate::config::Overlay;
use crate::proxy_events::ProxyEvents;

impl Agent {
    pub(super) fn proxy_config(&self) -> seaway_proxy::ProxyConfig {
        let config = &self.config;
        let mut proxy = seaway_proxy::ProxyConfig::new(&config.name, &config.cgroup, &config.bpffs);
        proxy.mode = config.proxy_mode;
        proxy.node_port_addresses.clone_from(&config.node_port_addresses);
        proxy.node_port_loopback = config.localhost_node_ports;
        proxy.resync_interval = config.sync_period.unwrap_or(proxy.resync_interval);
        proxy.min_sync_interval = config.min_sync_period.unwrap_or(proxy.min_sync_interval);
        proxy.conntrack = config.conntrack;
        proxy.worker = Some(worker(config));
        proxy.reporter = Some(Arc::new(ProxyEvents(self.recorder.clone())));
        proxy.devices.clone_from(&config.devices);
        proxy.masquerade_all = config.masquerade_all;
        proxy.maglev = config.maglev;
        proxy.dsr = config.dsr;
        proxy.pod_hand_over = config.pod_hand_over;
        proxy.xdp = config.xdp;
        if let Overlay::Vxlan { port, .. } | Overlay::VxlanAcrossLinks { port, .. } = config.overlay {
            proxy.tunnels = vec![config.vxlan_device.clone()];
            proxy.tunnel_port = Some(port);
        }
        proxy.count_traffic = config.traffic_metrics;
        proxy.pod_link_prefixes.clone_from(&config.pod_link_prefixes);
        proxy.own_pod_links = config.cni;
        proxy.masquerade =
            config.cni.then(|| MasqueradeOrder::new(self.masquerade.subscribe(), self.masqueraded.clone()));
        proxy.announce_load_balancers = config.announce_load_balancers;
        proxy.status = self.proxy.clone();
        proxy
    }

    pub(super) fn network_config(&self) -> seaway_cni_network::NodeNetworkConfig {
        let config = &self.config;
        let overlay = match config.overlay {
            Overlay::None => seaway_cni_network::Overlay::None,
            Overlay::Vxlan { vni, port } => seaway_cni_network::Overlay::Vxlan { vni, port },
            Overlay::VxlanAcrossLinks { vni, port } => {
                seaway_cni_network::Overlay::VxlanAcrossLinks { vni, port }
            }
        };
        seaway_cni_network::NodeNetworkConfig {
            uplink: config.uplink.clone(),
            cni_conf_dir: config.cni_conf_dir.clone(),
            cni_bin_dir: config.cni_bin_dir.clone(),
            data_dir: config.state_dir.join("cni"),
            masquerade: config.masquerade,
            ..seaway_cni_network::NodeNetworkConfig::new(&config.name, overlay, &config.plugin_source)
        }
    }

    pub(super) fn network_options(&self) -> seaway_cni_network::NodeNetworkOptions {
        seaway_cni_network::NodeNetworkOptions {
            not_masqueraded: self.config.not_masqueraded.clone(),
            vxlan_device: self.config.vxlan_device.clone(),
            masquerade: Some(MasqueradeOffer {
                wanted: self.masquerade.clone(),
                done: self.masqueraded.subscribe(),
            }),
            ..seaway_cni_network::NodeNetworkOptions::default()
        }
    }
}
