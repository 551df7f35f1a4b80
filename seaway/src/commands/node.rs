//! `seaway node`: the agent of one node.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use seaway_node::{NodeConfig, Overlay, kube_proxy};

use super::{Usage, install_crypto, serve};
use crate::cli::{Balancing, Forwarding, Node, NodeOverlay};
use crate::cluster::preflight;
use crate::plugin;

pub(super) const WORKER_THREADS: usize = 2;

/// Runs the agent.
pub fn run(args: Node) -> Result<ExitCode> {
    install_crypto();
    args.place.enter()?;
    let config = config(args)?;
    serve(WORKER_THREADS, |shutdown| seaway_node::run(config, shutdown))
}

/// What a Node is called when nobody says.
pub(super) fn host_name() -> Result<String> {
    let uname = rustix::system::uname();
    Ok(uname.nodename().to_str().context("the host's name is not UTF-8")?.to_lowercase())
}

fn config(args: Node) -> Result<NodeConfig> {
    let name = args.name.map_or_else(host_name, Ok)?;
    if let Some(file) = args.kubeconfig.as_ref().filter(|file| !file.exists()) {
        bail!("no kubeconfig at {}", file.display());
    }
    let kubeconfig = args.kubeconfig.unwrap_or_default();
    let mut config = NodeConfig::new(&name, kubeconfig, args.node_ip, &args.state_dir);
    config.api_server = args.api_server;
    if !args.no_cni
        && let Some(plugin) = plugin::unpack(&args.state_dir)?
    {
        config.plugin_source = plugin;
    }
    if let Some(dir) = args.cgroup {
        config.cgroup = dir;
    } else if args.run_pods || !args.no_proxy {
        config.cgroup = preflight::cgroup2_mount()?;
    }
    config.bpffs = args.bpffs;
    config.cni_conf_dir = args.cni_conf_dir;
    config.cni_bin_dir = args.cni_bin_dir;
    config.run_pods = args.run_pods;
    config.register = args.run_pods;
    config.proxy = !args.no_proxy;
    config.cni = !args.no_cni;
    config.dns = !args.no_dns;
    config.proxy_mode = args.proxy_mode;
    config.node_port_addresses = kube_proxy::parse_node_port_addresses(&args.nodeport_addresses)
        .map_err(|(value, reason)| anyhow::anyhow!("--nodeport-addresses {value:?}: {reason}"))
        .context(Usage)?;
    config.localhost_node_ports = args.localhost_node_ports;
    config.maglev = args.balance.load_balancing == Balancing::Maglev;
    config.dsr = args.balance.north_south == Forwarding::Dsr;
    config.pod_hand_over = args.balance.pod_hand_over.into();
    config.xdp = args.balance.xdp.into();
    config.traffic_metrics = args.balance.traffic_metrics;
    config.announce_load_balancers = !args.no_announce;
    config.devices = args.device;
    config.pod_link_prefixes = args.pod_link_prefix;
    config.overlay = match args.overlay {
        NodeOverlay::None => Overlay::None,
        NodeOverlay::Vxlan => Overlay::Vxlan { vni: args.vxlan_vni, port: args.vxlan_port },
        NodeOverlay::VxlanAcrossLinks => {
            Overlay::VxlanAcrossLinks { vni: args.vxlan_vni, port: args.vxlan_port }
        }
    };
    config.vxlan_device = args.vxlan_device;
    config.uplink = args.uplink;
    config.masquerade = !args.no_masquerade;
    config.not_masqueraded = args.no_masquerade_to;
    config.cluster_domain = args.cluster_domain;
    config.dns_upstreams = args.dns_upstream;
    config.dns_config = args.dns_config;
    config.service_cidrs = args.service_cidr;
    config.zone = args.zone;
    Ok(config)
}
