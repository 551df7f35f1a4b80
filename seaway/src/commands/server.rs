//! `seaway server`: API server, scheduler and controllers in one process. Scheduler and controllers are clients like
//! any other: they reach the API over HTTPS, so that each can be switched off and upstream's be run instead.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use kube::config::{KubeConfigOptions, Kubeconfig};
use seaway_apiserver::ServerConfig;
use seaway_apiserver::pki::Pki;
use seaway_controllers::{ControllerName, ControllersConfig};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{Usage, install_crypto, serve};
use crate::cli::Server;
use crate::cluster::spec::{check_apart, one_per_family};
use crate::cluster::supervisor;

const WORKER_THREADS: usize = 2;

/// Runs the control plane.
pub fn run(args: Server) -> Result<ExitCode> {
    install_crypto();
    let node_port_range = port_range(&args.node_port_range).context(Usage)?;
    let disabled = disabled(&args.disable_controllers).context(Usage)?;
    check_ranges(&args).context(Usage)?;
    let mut listeners = listen(&args.host_listen)?;
    args.place.enter()?;
    let own = listen(&args.listen)?;
    let local = own.first().or(listeners.first()).context("no --listen address")?.local_addr()?;
    listeners.extend(own);
    if let Some(root) = &args.cluster_of {
        supervisor::guard(root);
    }
    let advertise =
        if args.advertise_address.is_empty() { vec![local.ip()] } else { args.advertise_address.clone() };
    let mut config = ServerConfig::new(args.data_dir.clone(), listeners);
    config.advertise_addresses = advertise;
    config.advertise_port = local.port();
    config.sans = args.san.clone();
    config.sans.extend(args.host_listen.iter().map(|addr| addr.ip().to_string()));
    config.service_cidrs = args.service_cidr.clone();
    config.node_port_range = node_port_range;
    config.load_balancer_pools = args.load_balancer_pool.clone();
    serve(WORKER_THREADS, |shutdown| control_plane(args, disabled, config, local, shutdown))
}

/// Services, pods and load balancers must not share addresses.
fn check_ranges(args: &Server) -> Result<()> {
    one_per_family("--service-cidr", &args.service_cidr)?;
    one_per_family("--cluster-cidr", &args.cluster_cidr)?;
    let named =
        |flag: &'static str, cidrs: &[IpNet]| cidrs.iter().map(|cidr| (flag, *cidr)).collect::<Vec<_>>();
    let ranges = [
        named("--service-cidr", &args.service_cidr),
        named("--cluster-cidr", &args.cluster_cidr),
        named("--load-balancer-pool", &args.load_balancer_pool),
    ];
    check_apart(&ranges.concat())
}

fn listen(addrs: &[SocketAddr]) -> Result<Vec<TcpListener>> {
    let open =
        |addr: &SocketAddr| TcpListener::bind(addr).with_context(|| format!("cannot listen at {addr}"));
    addrs.iter().map(open).collect()
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>> {
    let parsed =
        text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match parsed {
        Some((first, last)) if first > 0 && first <= last => Ok(first..=last),
        _ => bail!("--node-port-range {text:?} is not FIRST-LAST, such as 30000-32767"),
    }
}

/// The controllers that shall not run; `None` where none shall.
fn disabled(names: &[String]) -> Result<Option<BTreeSet<ControllerName>>> {
    if names.iter().any(|name| name == "*") {
        return Ok(None);
    }
    let parse = |name: &String| name.parse().map_err(anyhow::Error::from);
    names.iter().map(parse).collect::<Result<_>>().map(Some)
}

async fn control_plane(
    args: Server,
    disabled: Option<BTreeSet<ControllerName>>,
    config: ServerConfig,
    local: SocketAddr,
    shutdown: CancellationToken,
) -> Result<()> {
    let pki = Pki::open_or_create(args.data_dir.join("pki"))?;
    let url = format!("https://{}", reachable(local));
    if !args.no_scheduler {
        let client = component_client(&pki, &url, "system:kube-scheduler", "seaway-scheduler").await?;
        spawn(
            "scheduler",
            seaway_scheduler::run(client, seaway_scheduler::SchedulerConfig::default(), shutdown.clone()),
        );
    }
    if let Some(named) = disabled {
        let client =
            component_client(&pki, &url, "system:kube-controller-manager", "seaway-controllers").await?;
        let controllers = ControllersConfig {
            cluster_cidrs: args.cluster_cidr.clone(),
            service_cidrs: args.service_cidr.clone(),
            disabled: named,
            root_ca_pem: Some(pki.ca_pem().to_owned()),
            ..ControllersConfig::default()
        };
        spawn("controllers", seaway_controllers::run(client, controllers, shutdown.clone()));
    }
    seaway_apiserver::run(config, shutdown).await.map_err(Into::into)
}

/// An unspecified address is reached through loopback.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, addr.port())
}

async fn component_client(pki: &Pki, url: &str, user: &str, agent: &str) -> Result<kube::Client> {
    let yaml = pki.kubeconfig(url, user, &[])?;
    let kubeconfig = Kubeconfig::from_yaml(&yaml)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // Objects say in `managedFields` who wrote them, by this name.
    let agent = format!("{agent}/{}", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, agent.try_into()?));
    Ok(kube::Client::try_from(config)?)
}

fn spawn<E: std::error::Error + Send>(
    name: &'static str,
    part: impl Future<Output = std::result::Result<(), E>> + Send + 'static,
) {
    tokio::spawn(async move {
        if let Err(failure) = part.await {
            error!(part = name, error = %failure, "ended");
        }
    });
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn ranges_are_apart() {
        let refused = |more: &[&str]| {
            let words = ["seaway", "server"].iter().chain(more);
            let Command::Server(args) = Cli::try_parse_from(words).unwrap().command else {
                panic!("no server")
            };
            check_ranges(&args).err().map(|error| error.to_string())
        };
        assert_eq!(refused(&[]), None);
        assert_eq!(refused(&["--load-balancer-pool", "192.0.2.0/28,192.0.2.16/28"]), None);
        for (flags, wanted) in [
            (
                ["--service-cidr", "10.244.0.0/24"],
                "--service-cidr 10.244.0.0/24 overlaps --cluster-cidr 10.244.0.0/16",
            ),
            (["--load-balancer-pool", "10.96.3.0/24"], "overlaps --load-balancer-pool 10.96.3.0/24"),
            (["--service-cidr", "10.96.0.1/16"], "did you mean 10.96.0.0/16?"),
            (["--cluster-cidr", "10.1.0.0/16,10.2.0.0/16"], "twice for one address family"),
        ] {
            let message = refused(&flags).unwrap_or_default();
            assert!(message.contains(wanted), "{message:?} should contain {wanted:?}");
        }
    }

    #[test]
    fn a_port_range_has_two_ends_in_order() {
        assert_eq!(port_range("30000-32767").unwrap(), 30000..=32767);
        for wrong in ["", "30000", "5-1", "0-9", "1-70000"] {
            assert!(port_range(wrong).unwrap_err().to_string().contains("FIRST-LAST"), "{wrong:?}");
        }
    }
}
