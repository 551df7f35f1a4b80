//! `seaway dns`: cluster DNS alone, for clusters whose nodes run something else.

use std::process::ExitCode;

use anyhow::{Context, Result};
use seaway_dns::DnsConfig;
use tokio_util::sync::CancellationToken;

use super::{install_crypto, kube_client, serve};
use crate::cli::Dns;

const WORKER_THREADS: usize = 2;

/// Runs the server.
pub fn run(args: Dns) -> Result<ExitCode> {
    install_crypto();
    serve(WORKER_THREADS, |shutdown| answer(args, shutdown))
}

async fn answer(args: Dns, shutdown: CancellationToken) -> Result<()> {
    let upstreams = if args.upstream.is_empty() {
        let text = std::fs::read_to_string("/etc/resolv.conf").context("cannot read /etc/resolv.conf")?;
        seaway_dns::upstreams_from(&text)
    } else {
        args.upstream
    };
    let config =
        DnsConfig { listen: args.listen, zone: args.cluster_domain, upstreams, ..DnsConfig::default() };
    let client = kube_client(&args.kubeconfig).await?;
    let (snapshots, watching) = seaway_watch::spawn(client, shutdown.clone());
    let metrics = seaway_dns::Metrics::new(&prometheus::Registry::new())?;
    let done = seaway_dns::run(config, snapshots, metrics, shutdown.clone()).await;
    shutdown.cancel();
    watching.await.context("the watch panicked")?;
    done.map_err(Into::into)
}
