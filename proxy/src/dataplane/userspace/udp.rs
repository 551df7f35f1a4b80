//! UDP: one association per client, with a socket of its own towards its backend.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::limits::{Reason, Shared};
use super::pick::Client;
use super::serve::Serve;
use super::tcp::{Route, now};
use crate::dataplane::out_of_files;
use crate::frontend::Group;
use crate::stale::{Forgotten, Targets};

/// No datagram is longer.
const DATAGRAM_MAX: usize = 65_535;
/// After so many datagrams others get their turn.
const BURST: usize = 64;

thread_local! {
    /// One datagram on its way: sockets need none of their own.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; DATAGRAM_MAX]);
}

/// Whom an association is with.
pub(super) type Target = (Group, IpAddr, u16);

/// All associations, to be ended when their backend is gone.
#[derive(Debug, Default)]
pub(super) struct Associations {
    next: AtomicU64,
    all: Mutex<HashMap<u64, (Target, CancellationToken)>>,
}

impl Associations {
    fn add(&self, target: Target, stop: CancellationToken) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.all.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (target, stop));
        id
    }

    fn remove(&self, id: u64) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Ends those whose backend does not serve any more. Returns how many.
    pub(super) fn forget(&self, serving: &Targets) -> Forgotten {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = all.values().filter(|(target, _)| !serving.contains(target));
        let end = |(target, stop): &(Target, CancellationToken)| {
            stop.cancel();
            target.1
        };
        stale.map(end).collect()
    }
}

/// A client and its backend.
#[derive(Debug)]
pub(super) struct Association {
    id: u64,
    pub(super) upstream: UdpSocket,
    pub(super) client: SocketAddr,
    pub(super) target: Target,
    /// When the last datagram passed, as time since `born`.
    last_ms: AtomicU64,
    born: Instant,
    stop: CancellationToken,
}

impl Association {
    fn touch(&self) {
        self.last_ms
            .store(u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long it may still wait for a datagram.
    fn left(&self, idle: Duration) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        (last + idle).saturating_sub(self.born.elapsed())
    }
}

/// The associations of one socket.
pub(super) type Clients = Arc<Mutex<HashMap<SocketAddr, Arc<Association>>>>;

fn known(clients: &Clients, client: SocketAddr) -> Option<Arc<Association>> {
    let clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
    clients.get(&client).filter(|held| !held.stop.is_cancelled()).cloned()
}

/// A socket that datagrams arrive at, and whom they came from.
#[derive(Debug, Clone)]
pub(super) struct Listening {
    pub(super) socket: Arc<UdpSocket>,
    pub(super) clients: Clients,
    pub(super) shared: Arc<Shared>,
    pub(super) stop: CancellationToken,
}

impl Listening {
    /// Begins to pass answers back to `client`.
    pub(super) fn associate(&self, client: SocketAddr, upstream: Upstream) -> Arc<Association> {
        let Upstream { socket: upstream, target, permit } = upstream;
        let stop = self.stop.child_token();
        let id = self.shared.associations.add(target, stop.clone());
        let (last_ms, born) = (AtomicU64::new(0), Instant::now());
        let association = Arc::new(Association { id, upstream, client, target, last_ms, born, stop });
        self.clients().insert(client, Arc::clone(&association));
        tokio::spawn(self.clone().answer(Arc::clone(&association), permit));
        association
    }

    /// Passes answers back for as long as there are some.
    async fn answer(self, association: Arc<Association>, permit: OwnedSemaphorePermit) {
        if answer(&association, &self.socket, self.shared.limits.udp_idle).await.is_err() {
            self.shared.picker.forget(association.target.0, association.client.ip());
        }
        self.shared.associations.remove(association.id);
        let mut clients = self.clients();
        if clients.get(&association.client).is_some_and(|held| held.id == association.id) {
            clients.remove(&association.client);
        }
        drop(permit);
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Association>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands datagrams on until it is told to stop; its associations end with it, and the port is free.
pub(super) async fn run(listening: Listening, route: Route) {
    loop {
        tokio::select! {
            biased;
            () = listening.stop.cancelled() => return,
            ready = listening.socket.readable() => if ready.is_err() { return },
        }
        let Some((first, client)) = pass_on(&listening.socket, &listening.clients) else { continue };
        let upstream = connect(client, &route, &listening.shared).await;
        let Some(upstream) = upstream else { continue };
        let _sent = listening.associate(client, upstream).upstream.try_send(&first);
    }
}

/// Passes on what known clients sent. Returns the first datagram of one that is not known.
fn pass_on(socket: &UdpSocket, clients: &Clients) -> Option<(Vec<u8>, SocketAddr)> {
    BUFFER.with_borrow_mut(|buffer| {
        for _ in 0..BURST {
            // Nothing is there any more, or an answer to someone could not be delivered.
            let (length, client) = socket.try_recv_from(buffer).ok()?;
            let Some(association) = known(clients, client) else {
                return Some((buffer[..length].to_vec(), client));
            };
            association.touch();
            // Where there is no room for it, a datagram is lost, as on any link.
            let _sent = association.upstream.try_send(&buffer[..length]);
        }
        None
    })
}

/// A socket towards a backend.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) socket: UdpSocket,
    pub(super) target: Target,
    pub(super) permit: OwnedSemaphorePermit,
}

/// A socket towards a backend for a new client.
async fn connect(client: SocketAddr, route: &Route, shared: &Arc<Shared>) -> Option<Upstream> {
    let serve = now(route);
    let Serve::HandOn { group, backends, affinity, hashed, .. } = &*serve else {
        shared.turned_away(Reason::NoBackend);
        return None;
    };
    if !serve.admits(client.ip()) {
        shared.turned_away(Reason::SourceRange);
        return None;
    }
    let Ok(permit) = Arc::clone(&shared.room).try_acquire_owned() else {
        shared.turned_away(Reason::Full);
        return None;
    };
    let who = Client { from: client, affinity: *affinity, hashed: *hashed };
    for backend in shared.picker.order(*group, &who, backends, Instant::now()) {
        let any = if backend.addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = match UdpSocket::bind(any).await {
            Ok(socket) => socket,
            Err(error) if out_of_files(&error) => {
                shared.turned_away(Reason::OutOfFiles);
                return None;
            }
            Err(_) => continue,
        };
        // Before it is known to be writable nothing can be sent without waiting.
        if socket.connect((backend.addr, backend.port)).await.is_ok() && socket.writable().await.is_ok() {
            shared.picker.remember(*group, &who, &backend, Instant::now());
            return Some(Upstream { socket, target: (*group, backend.addr, backend.port), permit });
        }
    }
    shared.turned_away(Reason::Unreachable);
    None
}

/// Passes answers back until nothing has come for a while, the backend refuses, or it is told to stop.
async fn answer(association: &Association, socket: &UdpSocket, idle: Duration) -> io::Result<()> {
    loop {
        let left = association.left(idle);
        if left.is_zero() {
            return Ok(());
        }
        tokio::select! {
            () = association.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(left) => continue,
            ready = association.upstream.readable() => ready?,
        }
        association.touch();
        BUFFER.with_borrow_mut(|buffer| {
            for _ in 0..BURST {
                match association.upstream.try_recv(buffer) {
                    Ok(length) => drop(socket.try_send_to(&buffer[..length], association.client)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })?;
    }
}
