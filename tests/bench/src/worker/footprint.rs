//! The memory of a snapshot and of the zone that answers from it, in a process that has nothing else.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use seaway_dns::DnsConfig;
use seaway_dns::zone::Zone;
use seaway_model::{Endpoint, EndpointPort, EndpointSet, Protocol, ServiceKey};
use serde::{Deserialize, Serialize};

use crate::dns::records::{NAMESPACE, snapshot};
use crate::sync::footprint::Footprint;

/// One Service in so many is headless.
const HEADLESS_EVERY: usize = 5;

/// How large the cluster is.
#[derive(Args)]
pub struct Options {
    /// Services
    #[arg(long)]
    services: usize,
    /// Pods, each an endpoint of one of them
    #[arg(long)]
    pods: usize,
}

/// What the process says.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Said {
    /// Of the snapshot.
    pub model_mb: f64,
    /// Of snapshot and zone.
    pub total_mb: f64,
}

/// Makes them and says what they take.
pub fn run(options: &Options) -> Result<()> {
    let resident = || Footprint::of(std::process::id()).map(|footprint| footprint.resident as f64 / 1e6);
    let before = resident()?;
    let mut snapshot = snapshot(options.services);
    let ports: Arc<[EndpointPort]> =
        vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into();
    for n in 0..options.services {
        let key = ServiceKey::new(NAMESPACE, &format!("s{n}"));
        let places = options.pods * n / options.services..options.pods * (n + 1) / options.services;
        let endpoints = places.map(|pod| endpoint(pod, &ports)).collect();
        if n % HEADLESS_EVERY == 0
            && let Some(service) = snapshot.services.get_mut(&key)
        {
            let service = Arc::make_mut(service);
            service.headless = true;
            service.cluster_ips.clear();
        }
        snapshot.endpoints.insert(key, Arc::new(EndpointSet { endpoints }));
    }
    let snapshot = Arc::new(snapshot);
    let model_mb = resident()? - before;
    let mut zone = Zone::new(&DnsConfig::default())?;
    zone.update(&snapshot);
    println!("{}", serde_json::to_string(&Said { model_mb, total_mb: resident()? - before })?);
    drop(zone);
    Ok(())
}

fn endpoint(pod: usize, ports: &Arc<[EndpointPort]>) -> Endpoint {
    Endpoint {
        node: Some("node".into()),
        ..Endpoint::new(
            Ipv4Addr::from_bits(Ipv4Addr::new(10, 244, 0, 0).to_bits() + pod as u32).into(),
            Arc::clone(ports),
        )
    }
}
