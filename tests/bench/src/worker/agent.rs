//! The agent as the sync bench measures it: the real watch and the real proxy, in a process of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kube::api::ListParams;
use kube::core::Request;
use seaway_proxy::{Metrics, Mode, ProxyConfig};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::clock::now_ns;

/// As the watch pages its lists.
const PAGE_SIZE: u32 = 1000;
/// How exactly the moment of being in sync is known.
const POLL: Duration = Duration::from_micros(500);

/// What the agent is told.
#[derive(Args)]
pub struct Options {
    /// The API server
    #[arg(long)]
    server: String,
    /// What to do with what it says
    #[arg(long, value_enum)]
    work: Work,
    /// The own Node
    #[arg(long)]
    node: String,
    /// The cgroup that is served
    #[arg(long)]
    cgroup: PathBuf,
    /// Where maps and links are pinned
    #[arg(long)]
    bpffs: PathBuf,
}

/// What is done with the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Read them, and make nothing of them
    List,
    /// Program the kernel with the eBPF backend
    Ebpf,
    /// Program the kernel with the nftables backend
    Nftables,
}

/// What the agent says, a line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Said {
    /// Everything is read, and programmed where that is the work.
    Done {
        /// When ([`now_ns`]).
        at_ns: u64,
        /// When everything was read.
        synced_at_ns: u64,
        /// Services that are served.
        services: usize,
        /// Frontends in the kernel.
        frontends: usize,
        /// What the last sync took.
        sync_us: u64,
    },
}

/// Watches until it is killed.
pub fn run(options: &Options) -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::new("warn"))
        .init();
    // TLS is not used here, but the client wants a provider before it knows.
    rustls::crypto::ring::default_provider().install_default().ok();
    // As every long-lived part of Seaway does.
    seaway_ebpf_loader::share_arenas();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let config = kube::Config::new(options.server.parse().context("the server's URL")?);
        let client = kube::Client::try_from(config)?;
        match options.work {
            Work::List => list(&client).await,
            Work::Ebpf => proxy(options, Mode::Ebpf, client).await,
            Work::Nftables => proxy(options, Mode::Nftables, client).await,
        }
    })
}

fn say(said: &Said) -> Result<()> {
    println!("{}", serde_json::to_string(said)?);
    Ok(())
}

/// The same lists, page after page as the watch reads them, with nothing made of the objects: what no client can do without.
async fn list(client: &kube::Client) -> Result<()> {
    let all = ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices", "/api/v1/nodes"];
    futures::future::try_join_all(all.map(|path| pages(client.clone(), path))).await?;
    let at_ns = now_ns();
    say(&Said::Done { synced_at_ns: at_ns, at_ns, services: 0, frontends: 0, sync_us: 0 })?;
    std::future::pending::<()>().await;
    Ok(())
}

async fn pages(client: kube::Client, path: &str) -> Result<()> {
    /// What tells whether there is more. The objects are passed over.
    #[derive(Deserialize)]
    struct Page {
        metadata: kube::core::ListMeta,
    }
    let mut params = ListParams::default().limit(PAGE_SIZE);
    loop {
        let text = client.request_text(Request::new(path).list(&params)?).await?;
        let page: Page = serde_json::from_str(&text)?;
        let Some(token) = page.metadata.continue_.filter(|token| !token.is_empty()) else { return Ok(()) };
        params.continue_token = Some(token);
    }
}

async fn proxy(options: &Options, mode: Mode, client: kube::Client) -> Result<()> {
    let mut config = ProxyConfig::new(&options.node, &options.cgroup, &options.bpffs);
    config.mode = mode;
    config.announce_load_balancers = false;
    let (status, shutdown) = (config.status.clone(), CancellationToken::new());
    let (snapshots, watching) = seaway_watch::spawn(client, shutdown.clone());
    let observed = snapshots.clone();
    let metrics = Metrics::new(&prometheus::Registry::new());
    let serving = tokio::spawn(seaway_proxy::run(config, snapshots, metrics, shutdown));
    let mut synced_at_ns = None;
    loop {
        let expected = {
            let snapshot: Arc<_> = Arc::clone(&observed.borrow());
            snapshot.synced.then_some(snapshot.services.len())
        };
        if expected.is_some() {
            synced_at_ns.get_or_insert_with(now_ns);
        }
        let now = status.status();
        if now.synced && expected == Some(now.services) {
            say(&Said::Done {
                at_ns: now_ns(),
                synced_at_ns: synced_at_ns.unwrap_or_default(),
                services: now.services,
                frontends: now.frontends,
                sync_us: now.last_sync_us.unwrap_or(0),
            })?;
            break;
        }
        if serving.is_finished() {
            return serving.await?.context("the proxy ended");
        }
        tokio::time::sleep(POLL).await;
    }
    watching.await?;
    Ok(())
}
