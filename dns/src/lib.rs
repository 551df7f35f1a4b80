//! Cluster DNS: names of Services, endpoints and pods from the model, every other name from the node's own resolvers.
//!
//! [`zone`] decides (pure: snapshot and question in, answer out). Around it: `server` has the sockets, `wire` reads and writes
//! packets, `handler` knows whom to ask, `forward` asks upstreams, `cache` remembers what they said.

mod admin;
mod autopath;
mod cache;
mod config;
mod error;
mod forward;
mod handler;
mod hosts;
mod metrics;
mod pods;
mod responder;
mod rewrite;
mod server;
mod settings;
mod source;
mod standby;
mod wire;
pub mod zone;

use tokio_util::sync::CancellationToken;

pub use admin::{serve_admin, watch_health};
pub use config::{DnsConfig, PodRecords};
pub use error::DnsError;
pub use metrics::Metrics;
pub use pods::{PodsWanted, Watched};
pub use responder::Responder;
pub use server::Server;
pub use settings::Problem;
pub use standby::{StandbyConfig, StandbyError, run_beside_standby, serve_as_standby};

/// Serves DNS at every address of `config.listen`, over UDP and TCP, until `shutdown`; then answers what has arrived
/// and returns. Before the first list of everything it answers SERVFAIL for the cluster's zone, and forwards.
///
/// # Errors
/// When an address cannot be listened at, or the configuration contradicts itself.
pub async fn run(
    config: DnsConfig,
    watched: impl Into<Watched>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), DnsError> {
    Server::bind(&config)?.serve(watched, metrics, shutdown).await
}
