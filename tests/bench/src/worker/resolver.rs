//! The DNS server as its bench measures it: with made-up Services, or with the real watch, in a process of its own.

use std::io::BufRead as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use prometheus::proto::MetricFamily;
use seaway_dns::{DnsConfig, Metrics, Server};
use seaway_model::Snapshot;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::dns::records::snapshot;

/// How often it is looked whether the lists are there.
const POLL: Duration = Duration::from_millis(1);

/// What the server is told.
#[derive(Args)]
pub struct Options {
    /// Made-up Services
    #[arg(long, default_value_t = 0)]
    services: usize,
    /// The API server to watch instead
    #[arg(long)]
    server: Option<String>,
    /// UDP sockets
    #[arg(long)]
    sockets: usize,
}

/// What the server says, a line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Said {
    /// It answers.
    Listening {
        /// At 127.0.0.1.
        port: u16,
    },
    /// What it has counted: the answer to `count`.
    Counted {
        /// Answers.
        answers: u64,
        /// Questions that were dropped.
        shed: u64,
    },
}

/// Serves until standard input ends.
pub fn run(options: &Options) -> Result<()> {
    // TLS is not used here, but the watch's client wants a provider before it knows.
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let registry = prometheus::Registry::new();
    let (stop, metrics) = (CancellationToken::new(), Metrics::new(&registry)?);
    let _stop = stop.clone().drop_guard();
    runtime.block_on(async {
        let snapshots = snapshots(options, &stop)?;
        let config = DnsConfig {
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            sockets: options.sockets,
            ..DnsConfig::default()
        };
        let server = Server::bind(&config)?;
        let port = server.local_addrs().first().context("no address")?.port();
        let serving = tokio::spawn(server.serve(snapshots, metrics.clone(), stop.clone()));
        while !metrics.ready() {
            if serving.is_finished() {
                bail!("the server ended: {:?}", serving.await?);
            }
            tokio::time::sleep(POLL).await;
        }
        say(&Said::Listening { port })?;
        let (stopping, told) = (stop.clone(), registry.clone());
        std::thread::spawn(move || {
            listen(&told).ok();
            stopping.cancel();
        });
        serving.await?.context("the server ended")
    })
}

fn snapshots(options: &Options, stop: &CancellationToken) -> Result<watch::Receiver<Arc<Snapshot>>> {
    let Some(url) = &options.server else {
        // Without its writer the last one serves on.
        return Ok(watch::channel(Arc::new(snapshot(options.services))).1);
    };
    let client = kube::Client::try_from(kube::Config::new(url.parse().context("the server's URL")?))?;
    let (snapshots, watching) = seaway_watch::spawn(client, stop.clone());
    // It ends with the process.
    drop(watching);
    Ok(snapshots)
}

/// Answers `count` until standard input ends.
fn listen(registry: &prometheus::Registry) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        if line?.trim() == "count" {
            let answers = total(registry, "coredns_dns_responses_total");
            say(&Said::Counted { answers, shed: total(registry, "seaway_dns_shed_total") })?;
        }
    }
    Ok(())
}

/// The sum over all labels of a counter.
fn total(registry: &prometheus::Registry, name: &str) -> u64 {
    let families = registry.gather();
    let counted = families.iter().filter(|family| family.name() == name).flat_map(MetricFamily::get_metric);
    counted.map(|metric| metric.get_counter().get_value()).sum::<f64>() as u64
}

fn say(said: &Said) -> Result<()> {
    println!("{}", serde_json::to_string(said)?);
    Ok(())
}
