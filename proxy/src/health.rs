//! Answers the health checks of load balancers: one small HTTP server per `healthCheckNodePort`, which tells whether
//! this node has a ready endpoint of the Service.
//!
//! The answers are kube-proxy's: 200 with endpoints, 503 without, a JSON body with the count, and the count as the
//! weight header.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use seaway_model::{Lookup, Service, ServiceKey, ServiceKind, Snapshot, TrafficPolicy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::StatusHandle;
use crate::desired::is_served;

/// What one port answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: ServiceKey,
    /// Its ready endpoints on this node.
    pub local_endpoints: usize,
}

/// The ports to answer on. Where two Services claim a port, the first by name has it.
pub fn checks(snapshot: &Snapshot, node_name: &str) -> BTreeMap<u16, HealthCheck> {
    let mut checks = BTreeMap::new();
    for service in snapshot.services.values().filter(|service| is_checked(service)) {
        let Some(port) = service.health_check_node_port else { continue };
        checks.entry(port).or_insert_with(|| HealthCheck {
            service: service.key.clone(),
            local_endpoints: local_endpoints(snapshot, service, node_name),
        });
    }
    checks
}

fn is_checked(service: &Service) -> bool {
    is_served(service)
        && service.kind == ServiceKind::LoadBalancer
        && service.external_policy == TrafficPolicy::Local
}

/// Whether a Service that is checked is among what changed. Most changes are about others, of which there are many.
fn concerned(former: &Snapshot, snapshot: &Snapshot) -> bool {
    if former.services.is_empty() {
        return true;
    }
    let changes = snapshot.changes_since(former);
    [former, snapshot].into_iter().any(|snapshot| {
        let mut services = Lookup::new(&snapshot.services, changes.services.len());
        changes.services.iter().any(|key| services.get(key).is_some_and(|service| is_checked(service)))
    })
}

/// Ready endpoints of `service` on the node. Terminating ones do not count: the load balancer should go elsewhere.
fn local_endpoints(snapshot: &Snapshot, service: &Service, node_name: &str) -> usize {
    let Some(endpoints) = snapshot.endpoints.get(&service.key) else { return 0 };
    let local = endpoints.endpoints.iter().filter(|e| e.node.as_deref() == Some(node_name));
    let ready = local.filter(|e| e.ready || service.publish_not_ready);
    ready.map(|e| e.addr).collect::<BTreeSet<IpAddr>>().len()
}

const READ_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_MAX: usize = 8 * 1024;
const CONNECTIONS_MAX: usize = 64;
const REBIND_INTERVAL: Duration = Duration::from_secs(5);

/// Serves health checks until `shutdown`.
pub async fn run(
    node_name: String,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    status: StatusHandle,
    shutdown: CancellationToken,
) {
    let (sender, _) = watch::channel(BTreeMap::new());
    let mut servers: HashMap<u16, CancellationToken> = HashMap::new();
    let mut former = Arc::new(Snapshot::default());
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        // Before everything is known it would be said of each Service that it has no endpoint here.
        if snapshot.synced && concerned(&former, &snapshot) {
            let wanted = checks(&snapshot, &node_name);
            servers.retain(|port, server| {
                let keep = wanted.contains_key(port);
                if !keep {
                    server.cancel();
                }
                keep
            });
            let ports: Vec<u16> = wanted.keys().copied().collect();
            sender.send_replace(wanted);
            for port in ports {
                servers.entry(port).or_insert_with(|| {
                    let stop = shutdown.child_token();
                    tokio::spawn(serve(port, sender.subscribe(), status.clone(), stop.clone()));
                    stop
                });
            }
        }
        if snapshot.synced {
            former = snapshot;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = snapshots.changed() => if changed.is_err() {
                shutdown.cancelled().await;
                return;
            }
        }
    }
}

type Checks = watch::Receiver<BTreeMap<u16, HealthCheck>>;

async fn serve(port: u16, checks: Checks, status: StatusHandle, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut complained = false;
    let listeners = loop {
        match listen(port) {
            Ok(listeners) => break listeners,
            Err(error) if !complained => {
                complained = true;
                tracing::warn!(port, %error, "cannot serve the health check; trying again");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REBIND_INTERVAL) => {}
        }
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept(&listeners) => accepted,
        };
        let Ok(connection) = accepted else { continue };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        let answer = checks.borrow().get(&port).map(|check| answer(check, status.healthy()));
        let Some(answer) = answer else { continue };
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = respond(connection, &answer).await {
                tracing::debug!(port, %error, "a health check was not answered");
            }
        });
    }
}

/// Listeners on every address, of whichever families the node has.
fn listen(port: u16) -> std::io::Result<Vec<TcpListener>> {
    let bind = |addr: IpAddr| {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if addr.is_ipv6() {
            socket2::SockRef::from(&socket).set_only_v6(true)?;
        }
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(addr, port))?;
        socket.listen(128)
    };
    let v4 = bind(Ipv4Addr::UNSPECIFIED.into());
    let v6 = bind(Ipv6Addr::UNSPECIFIED.into());
    match (v4, v6) {
        (Err(error), Err(_)) => Err(error),
        (v4, v6) => Ok([v4, v6].into_iter().flatten().collect()),
    }
}

async fn accept(listeners: &[TcpListener]) -> std::io::Result<TcpStream> {
    let accepts = listeners.iter().map(|listener| Box::pin(listener.accept()));
    let (accepted, _, _) = futures::future::select_all(accepts).await;
    accepted.map(|(connection, _)| connection)
}

/// The whole HTTP answer.
pub(crate) fn answer(check: &HealthCheck, proxy_healthy: bool) -> String {
    let count = check.local_endpoints;
    let state = if count > 0 && proxy_healthy { "200 OK" } else { "503 Service Unavailable" };
    let body = serde_json::json!({
        "service": {"namespace": &*check.service.namespace, "name": &*check.service.name},
        "localEndpoints": count,
        "serviceProxyHealthy": proxy_healthy,
    })
    .to_string();
    format!(
        "HTTP/1.1 {state}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {count}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len(),
    )
}

/// Reads a request to its end, whatever it asks, and answers.
async fn respond(mut connection: TcpStream, answer: &str) -> std::io::Result<()> {
    let exchange = async {
        let mut request = Vec::new();
        let mut chunk = [0; 1024];
        while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_MAX {
            let read = connection.read(&mut chunk).await?;
            if read == 0 {
                return Ok(());
            }
            request.extend_from_slice(chunk.get(..read).unwrap_or_default());
        }
        connection.write_all(answer.as_bytes()).await?;
        connection.shutdown().await
    };
    tokio::time::timeout(READ_TIMEOUT, exchange).await.map_err(std::io::Error::from)?
}

#[cfg(test)]
mod tests;
