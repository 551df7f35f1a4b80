//! TCP: accept, connect to a backend, hand bytes on until both sides are done.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::limits::{Reason, Shared};
use super::pick::Client;
use super::serve::Serve;
use crate::dataplane::out_of_files;

/// Bytes on their way, for each direction of a connection.
const BUFFER_BYTES: usize = 16 * 1024;
/// A peer that vanished without a word is noticed.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What a socket does, while it changes.
pub(super) type Route = Arc<Mutex<Arc<Serve>>>;

pub(super) fn now(route: &Route) -> Arc<Serve> {
    Arc::clone(&route.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Accepts until it is told to stop; those who have been accepted by the kernel by then are still served.
pub(super) async fn run(
    listener: Arc<TcpListener>,
    route: Route,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, peer)) => take_in(client, peer, &route, &shared),
            Err(error) if out_of_files(&error) && shared.turn_one_away(&*listener) => {}
            // No more files can be opened, or the client has gone already: it passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    while let Ok((client, peer)) = SockRef::from(&*listener).accept() {
        let client = client.set_nonblocking(true).and_then(|()| TcpStream::from_std(client.into()));
        if let (Ok(client), Some(peer)) = (client, peer.as_socket()) {
            take_in(client, peer, &route, &shared);
        }
    }
}

fn take_in(client: TcpStream, peer: SocketAddr, route: &Route, shared: &Arc<Shared>) {
    let serve = now(route);
    let reason = match &*serve {
        Serve::Refuse => Some(Reason::NoBackend),
        serve if !serve.admits(peer.ip()) => Some(Reason::SourceRange),
        Serve::HandOn { .. } => None,
    };
    let permit = Arc::clone(&shared.room).try_acquire_owned();
    match (reason, permit) {
        (None, Ok(permit)) => {
            tokio::spawn(hand_on(client, peer, serve, Arc::clone(shared), permit));
        }
        (reason, _) => {
            shared.turned_away(reason.unwrap_or(Reason::Full));
            reset(&client);
        }
    }
}

async fn hand_on(
    mut client: TcpStream,
    peer: SocketAddr,
    serve: Arc<Serve>,
    shared: Arc<Shared>,
    permit: OwnedSemaphorePermit,
) {
    let mut backend = match connect(peer, &serve, &shared).await {
        Ok(backend) => backend,
        Err(reason) => {
            shared.turned_away(reason);
            reset(&client);
            return;
        }
    };
    for side in [&client, &backend] {
        let socket = SockRef::from(side);
        // Neither can fail on a TCP socket; and if so, the connection still works.
        let _set = socket.set_tcp_nodelay(true);
        let _set = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
    }
    let copied = copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER_BYTES, BUFFER_BYTES).await;
    if copied.is_err() {
        // One side was reset: so is the other.
        reset(&client);
        reset(&backend);
    }
    drop(permit);
}

/// A connection to the first backend that accepts one.
async fn connect(peer: SocketAddr, serve: &Serve, shared: &Shared) -> Result<TcpStream, Reason> {
    let Serve::HandOn { group, backends, affinity, hashed, .. } = serve else {
        return Err(Reason::NoBackend);
    };
    let client = Client { from: peer, affinity: *affinity, hashed: *hashed };
    for backend in shared.picker.order(*group, &client, backends, Instant::now()) {
        let to = SocketAddr::new(backend.addr, backend.port);
        let attempt: Result<io::Result<TcpStream>, _> =
            tokio::time::timeout(shared.limits.connect_timeout, TcpStream::connect(to)).await;
        match attempt {
            Ok(Ok(stream)) => {
                shared.picker.remember(*group, &client, &backend, Instant::now());
                return Ok(stream);
            }
            Ok(Err(error)) if out_of_files(&error) => return Err(Reason::OutOfFiles),
            Ok(Err(_)) | Err(_) => {}
        }
    }
    Err(Reason::Unreachable)
}

/// Has the connection end with RST when it is dropped.
fn reset(stream: &TcpStream) {
    let _set = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
