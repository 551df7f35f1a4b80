//! One network probe: what to try ([`ProbeRequest`]), and what came of it ([`ProbeResult`]), both as JSON, so that the
//! same probe can run in a pod, on a node and outside of the cluster.

mod attempt;
mod connect;
mod dns;
mod hold;
mod http;
mod request;
mod resolv_conf;
mod result;
mod tcp;
mod udp;

pub use request::{Kind, ProbeRequest};
pub use result::{Attempt, ErrorKind, LatencyUs, ProbeResult};

/// Executes a probe. Never fails as such: what goes wrong stands in the result.
pub async fn execute(request: ProbeRequest) -> ProbeResult {
    attempt::execute(request).await
}

/// [`execute`] for callers without a runtime: makes a small one of one thread.
pub fn execute_blocking(request: ProbeRequest) -> ProbeResult {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(execute(request)),
        Err(error) => ProbeResult::not_run(ErrorKind::Other, format!("cannot start the runtime: {error}")),
    }
}
