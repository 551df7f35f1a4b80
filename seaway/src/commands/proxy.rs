//! `seaway proxy`: the service proxy alone, where kube-proxy stood. It is `seaway node` without everything else, told in
//! kube-proxy's words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use seaway_node::NodeConfig;
use seaway_node::conntrack::Conntrack;
use seaway_node::kube_proxy::{
    Effective, KubeProxyConfiguration, parse_duration, parse_listen, parse_node_port_addresses,
};

use super::node::{WORKER_THREADS, host_name};
use super::{Usage, install_crypto, serve};
use crate::cli::{Balancing, Forwarding, Proxy};
use crate::cluster::preflight;

const HEALTHZ_PORT: u16 = 10_256;
const METRICS_PORT: u16 = 10_249;

/// Runs the proxy, or cleans up after one.
pub fn run(args: Proxy) -> Result<ExitCode> {
    install_crypto();
    args.place.enter()?;
    let file = match &args.config {
        Some(path) => read(path)?,
        None => KubeProxyConfiguration::default(),
    };
    let config = config(&args, &file).context(Usage)?;
    if args.cleanup {
        seaway_node::cleanup_proxy(&config)?;
        return Ok(ExitCode::SUCCESS);
    }
    let oom_score_adj = args.oom_score_adj.or(file.oom_score_adj());
    if let Some(path) = &args.write_config_to {
        let text = effective(&config, oom_score_adj).to_yaml().context("cannot write the configuration")?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (field, instead) in file.without_effect() {
        tracing::warn!(field, "this setting has no effect here: {instead}");
    }
    for (flag, instead) in args.unneeded.given() {
        tracing::warn!(flag, "this flag has no effect here: {instead}");
    }
    if let Some(score) = oom_score_adj {
        adjust_oom_score(score);
    }
    if args.init_only {
        seaway_node::initialise_proxy(&config);
        return Ok(ExitCode::SUCCESS);
    }
    serve(WORKER_THREADS, |shutdown| seaway_node::run(config, shutdown))
}

fn read(path: &Path) -> Result<KubeProxyConfiguration> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    KubeProxyConfiguration::parse(&text).with_context(|| format!("{}", path.display()))
}

/// Whoever may not set it goes on without.
fn adjust_oom_score(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!(score, %error, "the OOM killer cannot be told; its score stays as it is");
    }
}

/// What flags and file have come to.
fn effective(config: &NodeConfig, oom_score_adj: Option<i32>) -> Effective<'_> {
    let metrics = config.metrics_address.unwrap_or(config.bind_address);
    Effective {
        node_name: &config.name,
        kubeconfig: config.kubeconfig.to_str().unwrap_or_default(),
        mode: config.proxy_mode,
        healthz: SocketAddr::new(config.bind_address, config.healthz_port),
        metrics: SocketAddr::new(metrics, config.metrics_port),
        node_port_addresses: &config.node_port_addresses,
        localhost_node_ports: config.localhost_node_ports,
        masquerade_all: config.masquerade_all,
        sync_period: config.sync_period,
        min_sync_period: config.min_sync_period,
        conntrack: config.conntrack.unwrap_or_default(),
        oom_score_adj,
    }
}

/// The flags over the file over the defaults.
fn config(args: &Proxy, file: &KubeProxyConfiguration) -> Result<NodeConfig> {
    let name = args.hostname_override.as_deref().or(file.node_name());
    let name = name.map_or_else(host_name, |name| Ok(name.trim().to_lowercase()))?;
    let kubeconfig = args.kubeconfig.clone().or_else(|| file.kubeconfig().map(Into::into));
    let mut config = NodeConfig::new(&name, kubeconfig.unwrap_or_default(), Vec::new(), &args.state_dir);
    (config.register, config.run_pods, config.cni, config.dns) = (false, false, false, false);
    config.cgroup = match &args.cgroup {
        Some(dir) => dir.clone(),
        None => preflight::cgroup2_mount()?,
    };
    config.bpffs.clone_from(&args.bpffs);
    config.devices.clone_from(&args.device);
    config.maglev = args.balance.load_balancing == Balancing::Maglev;
    config.dsr = args.balance.north_south == Forwarding::Dsr;
    config.pod_hand_over = args.balance.pod_hand_over.into();
    config.xdp = args.balance.xdp.into();
    config.traffic_metrics = args.balance.traffic_metrics;
    config.pod_link_prefixes.clone_from(&args.pod_link_prefix);
    let prefix = args.pod_interface_name_prefix.as_deref().or(file.pod_link_prefix());
    config.pod_link_prefixes.extend(prefix.map(str::to_owned));
    config.api_server.clone_from(&args.master);
    config.masquerade_all = args.masquerade_all.unwrap_or(file.masquerade_all());
    // Load balancers of the cluster's own kind announce their addresses themselves.
    config.announce_load_balancers = false;
    config.proxy_mode = match args.proxy_mode.as_deref() {
        None | Some("") => file.mode()?,
        Some(mode) => mode.parse().map_err(|reason| anyhow!("--proxy-mode {mode:?}: {reason}"))?,
    };
    config.node_port_addresses = if args.nodeport_addresses.is_empty() {
        file.node_port_addresses()?
    } else {
        parse_node_port_addresses(&args.nodeport_addresses)
            .map_err(|(value, reason)| anyhow!("--nodeport-addresses {value:?}: {reason}"))?
    };
    // As in kube-proxy, addresses that are named and leave loopback out leave it out.
    config.localhost_node_ports = args.localhost_node_ports.or(file.localhost_node_ports()).unwrap_or(true)
        && config.node_port_addresses.loopback().unwrap_or(true);
    config.sync_period = period("--sync-period", args.sync_period.as_deref())?.or(file.sync_period());
    config.min_sync_period =
        period("--min-sync-period", args.min_sync_period.as_deref())?.or(file.min_sync_period());
    config.conntrack = Some(conntrack(args, file.conntrack())?);
    let healthz = address(
        "--healthz-bind-address",
        args.healthz_bind_address.as_deref(),
        file.healthz()?,
        HEALTHZ_PORT,
    )?;
    let healthz_port = args.healthz_port.unwrap_or(HEALTHZ_PORT);
    let v6 = args.bind_address.or(file.bind_address()?).is_some_and(|addr| addr.is_ipv6());
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let healthz = healthz.unwrap_or_else(|| SocketAddr::new(any, healthz_port));
    (config.bind_address, config.healthz_port) = (healthz.ip(), healthz.port());
    let metrics = address(
        "--metrics-bind-address",
        args.metrics_bind_address.as_deref(),
        file.metrics()?,
        METRICS_PORT,
    )?;
    let metrics_port = args.metrics_port.unwrap_or(METRICS_PORT);
    let own: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let metrics = metrics.unwrap_or_else(|| SocketAddr::new(own, metrics_port));
    (config.metrics_address, config.metrics_port) = (Some(metrics.ip()), metrics.port());
    Ok(config)
}

/// What the flags say over what the file says. As in kube-proxy, 0 leaves a setting of the kernel as it is.
fn conntrack(args: &Proxy, file: Conntrack) -> Result<Conntrack> {
    let over = |flag: &str, text: &Option<String>, file: Option<Duration>| match text {
        None => Ok(file),
        Some(text) => period(flag, Some(text)),
    };
    Ok(Conntrack {
        max_per_core: args.conntrack_max_per_core.unwrap_or(file.max_per_core),
        min: args.conntrack_min.unwrap_or(file.min),
        tcp_established: over(
            "--conntrack-tcp-timeout-established",
            &args.conntrack_tcp_timeout_established,
            file.tcp_established,
        )?,
        tcp_close_wait: over(
            "--conntrack-tcp-timeout-close-wait",
            &args.conntrack_tcp_timeout_close_wait,
            file.tcp_close_wait,
        )?,
        tcp_be_liberal: args.conntrack_tcp_be_liberal.unwrap_or(file.tcp_be_liberal),
        udp: over("--conntrack-udp-timeout", &args.conntrack_udp_timeout, file.udp)?,
        udp_stream: over(
            "--conntrack-udp-timeout-stream",
            &args.conntrack_udp_timeout_stream,
            file.udp_stream,
        )?,
    })
}

/// Port 0: nothing is served.
fn address(
    flag: &str,
    text: Option<&str>,
    of_file: Option<SocketAddr>,
    port: u16,
) -> Result<Option<SocketAddr>> {
    match text {
        None => Ok(of_file),
        Some("") => Ok(Some(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0))),
        Some(text) => {
            parse_listen(text, port).map(Some).map_err(|reason| anyhow!("{flag} {text:?}: {reason}"))
        }
    }
}

fn period(flag: &str, text: Option<&str>) -> Result<Option<Duration>> {
    let period = text.map(parse_duration).transpose().map_err(|reason| anyhow!("{flag}: {reason}"))?;
    Ok(period.filter(|period| !period.is_zero()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use seaway_node::{PodHandOver, XdpMode};

    use super::*;
    use crate::cli::{Cli, Command};

    fn flags(flags: &str, file: &str) -> Result<NodeConfig> {
        let all = ["seaway", "proxy", "--cgroup=/cg"].into_iter().chain(flags.split_whitespace());
        let Command::Proxy(args) = Cli::try_parse_from(all)?.command else { unreachable!() };
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        config(&args, &KubeProxyConfiguration::parse(&format!("{head}{file}"))?)
    }

    #[test]
    fn as_a_daemon_set_of_kube_proxy_calls_it() {
        let file = "hostnameOverride: other\nclientConnection: {kubeconfig: /k}\nmetricsBindAddress: 0.0.0.0:10249\n";
        let config = flags("--hostname-override=Node1 --v=2 --cluster-cidr=10.244.0.0/16", file).unwrap();
        assert_eq!((config.name.as_str(), config.kubeconfig.to_str()), ("node1", Some("/k")));
        assert!(config.proxy && !config.cni && !config.dns && !config.run_pods && !config.register);
        assert_eq!((config.bind_address.to_string().as_str(), config.healthz_port), ("0.0.0.0", 10_256));
        assert_eq!(config.metrics_address.unwrap().to_string(), "0.0.0.0");
        assert!(config.localhost_node_ports);
    }

    /// The command lines of kubeadm, of kops and of a test grid, and a flag that nobody knows.
    #[test]
    fn command_lines_of_others_are_understood() {
        let line = "--config-sync-period=15m --conntrack-max-per-core=131072 --conntrack-tcp-timeout-established=0 \
                    --conntrack-udp-timeout=30s --conntrack-tcp-be-liberal --detect-local-mode=ClusterCIDR \
                    --cluster-cidr=10.0.0.0/8 --feature-gates=A=true --ipvs-scheduler=rr --kube-api-qps=10 \
                    --log-flush-frequency=5s --masquerade-all --oom-score-adj=-998 --profiling=false \
                    --healthz-port=0 --metrics-port=9 --vmodule=a=1 --ipvs-strict-arp";
        let config = flags(line, "conntrack: {tcpCloseWaitTimeout: 30m}\n").unwrap();
        let conntrack = config.conntrack.unwrap();
        assert_eq!((conntrack.max_per_core, conntrack.tcp_established), (131_072, None));
        assert_eq!(conntrack.tcp_close_wait, Some(Duration::from_secs(1800)));
        assert_eq!((conntrack.udp, conntrack.tcp_be_liberal), (Some(Duration::from_secs(30)), true));
        assert_eq!((config.healthz_port, config.metrics_port), (0, 9));
        let all = ["seaway", "proxy", "--cgroup=/cg"].into_iter().chain(line.split_whitespace());
        let Command::Proxy(args) = Cli::try_parse_from(all).unwrap().command else { unreachable!() };
        let given = args.unneeded.given();
        let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
        assert!(names.contains(&"--cluster-cidr") && names.len() == 10, "{given:?}");
        assert!(given.iter().all(|(_, instead)| !instead.is_empty()), "{given:?}");
        assert!(config.masquerade_all);
        assert_eq!(args.oom_score_adj, Some(-998));
        assert!(flags("--no-such-flag=1", "").unwrap_err().to_string().contains("--no-such-flag"));
    }

    #[test]
    fn loopback_is_served_where_nothing_says_otherwise() {
        for (line, served) in [
            ("", true),
            ("--nodeport-addresses=192.0.2.0/24", false),
            ("--nodeport-addresses=primary", false),
            ("--nodeport-addresses=primary,localhost", true),
            ("--nodeport-addresses=all", true),
            ("--nodeport-addresses=all --iptables-localhost-nodeports=false", false),
        ] {
            assert_eq!(flags(line, "").unwrap().localhost_node_ports, served, "{line}");
        }
    }

    #[test]
    fn an_address_of_version_6_has_health_and_metrics_served_there() {
        let config = flags("--bind-address=::", "").unwrap();
        assert_eq!(
            (config.bind_address.to_string(), config.metrics_address.unwrap().to_string()),
            ("::".into(), "::1".into())
        );
        let config = flags("", "bindAddress: fd00::1\n").unwrap();
        assert_eq!(config.bind_address.to_string(), "::");
        assert!(flags("--bind-address=eth0", "").is_err());
    }

    /// What is written says the same as what was read, whatever it came from.
    #[test]
    fn a_written_configuration_says_what_flags_and_file_said() {
        let file = "iptables: {masqueradeAll: true, syncPeriod: 10s}\nclientConnection: {kubeconfig: /k}\n";
        let line = "--hostname-override=n1 --proxy-mode=iptables --nodeport-addresses=primary,localhost \
                    --conntrack-udp-timeout=30s --metrics-bind-address=";
        let config = flags(line, file).unwrap();
        let text = effective(&config, None).to_yaml().unwrap();
        let all = ["seaway", "proxy", "--cgroup=/cg"];
        let Command::Proxy(args) = Cli::try_parse_from(all).unwrap().command else { unreachable!() };
        let again = super::config(&args, &KubeProxyConfiguration::parse(&text).unwrap()).unwrap();
        assert_eq!(format!("{config:?}"), format!("{again:?}"));
    }

    #[test]
    fn master_and_init_only_are_flags() {
        let config = flags("--master=https://192.0.2.1:6443 --init-only", "").unwrap();
        assert_eq!(config.api_server.as_deref(), Some("https://192.0.2.1:6443"));
    }

    #[test]
    fn balancing_and_counting_are_switches() {
        let config = flags("--load-balancing=maglev --north-south=dsr --traffic-metrics", "").unwrap();
        assert!(config.maglev && config.dsr && config.traffic_metrics);
        let config = flags("", "").unwrap();
        assert!(!config.maglev && !config.dsr && !config.traffic_metrics);
        assert_eq!(config.pod_hand_over, PodHandOver::Auto);
        assert_eq!(flags("--pod-hand-over=never", "").unwrap().pod_hand_over, PodHandOver::Never);
        assert_eq!(config.xdp, XdpMode::Off);
        assert_eq!(flags("--xdp=native", "").unwrap().xdp, XdpMode::Native);
        assert_eq!(flags("--xdp=generic", "").unwrap().xdp, XdpMode::Generic);
    }

    #[test]
    fn a_flag_counts_more_than_the_file() {
        let file = "iptables: {localhostNodePorts: true, syncPeriod: 10s}\nhealthzBindAddress: 1.2.3.4:5\n";
        let config = flags(
            "--iptables-localhost-nodeports=false --iptables-sync-period=1m --healthz-bind-address= \
             --nodeport-addresses=192.0.2.0/24,fd00::/8 --proxy-mode=ebpf",
            file,
        );
        let config = config.unwrap();
        assert!(!config.localhost_node_ports);
        assert_eq!(config.sync_period, Some(Duration::from_secs(60)));
        assert_eq!((config.healthz_port, config.node_port_addresses.ranges.len()), (0, 2));
        let error = flags("--proxy-mode=ipvs", "").unwrap_err().to_string();
        assert!(
            error.starts_with("--proxy-mode \"ipvs\": there is no such mode; want one of auto, ebpf"),
            "{error}"
        );
    }
}
