//! `seaway dns`: cluster DNS alone, for clusters whose nodes run something else.

use std::process::ExitCode;

use anyhow::{Context, Result};
use seaway_dns::DnsConfig;
use tokio_util::sync::CancellationToken;

use super::{install_crypto, serve};
use crate::cli::Dns;

const WORKER_THREADS: usize = 2;

/// Runs the server.
pub fn run(args: Dns) -> Result<ExitCode> {
    install_crypto();
    serve(WORKER_THREADS, |shutdown| answer(args, shutdown))
}

async fn answer(args: Dns, shutdown: CancellationToken) -> Result<()> {
    let config = DnsConfig {
        listen: args.listen,
        zone: args.cluster_domain,
        upstreams: args.upstream,
        resolv_conf: Some("/etc/resolv.conf".into()),
        reverse: args.service_cidr,
        autopath: args.autopath,
        file: args.config,
        ..DnsConfig::default()
    };
    let registry = prometheus::Registry::new();
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    let metrics = seaway_dns::Metrics::new(&registry)?;
    let credentials = crate::cluster::bringup::client_config(&args.kubeconfig).await?;
    let client = seaway_watch::observed_client(credentials, seaway_node::counting_requests(metrics.clone()))?;
    let (pods, all_pods) = seaway_dns::PodsWanted::new(&config, true);
    let watched = seaway_watch::Options {
        all_pods: Some(all_pods),
        namespaces: true,
        ..seaway_watch::Options::default()
    };
    let (snapshots, watching) = seaway_watch::spawn_for(client, watched, shutdown.clone());
    let watched = seaway_dns::Watched { snapshots, pods: Some(pods) };
    let serve = seaway_dns::run(config, watched, metrics.clone(), shutdown.clone());
    let done = match args.http {
        // Its end is the server's: a probe is to see that it is draining.
        Some(address) => tokio::select! {
            done = serve => done,
            ended = seaway_dns::serve_admin(address, metrics, registry, CancellationToken::new()) => ended,
        },
        None => serve.await,
    };
    shutdown.cancel();
    watching.await.context("the watch panicked")?;
    done.map_err(Into::into)
}
