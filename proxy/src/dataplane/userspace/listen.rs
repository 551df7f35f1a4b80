//! Opens the sockets, and keeps the threads that serve them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use seaway_model::Protocol;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::legacy::Flow;
use super::limits::{Limits, Shared};
use super::serve::Serve;
use super::site::{Place, SiteKey};
use super::{tcp, udp};
use crate::dataplane::DataplaneError;
use crate::stale::{Forgotten, Targets};
use crate::status::DropCount;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Lets connections that wait at a socket that is closed go over to one of a successor.
const MIGRATE: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// Something that opens sockets.
pub trait Sockets: Send {
    /// An open socket; it is closed when it is dropped.
    type Listener: Listener;

    /// Whether packets to `addr` end in this network namespace.
    fn is_local(&self, addr: IpAddr) -> bool;

    /// Listens, and serves those who come.
    fn listen(
        &mut self,
        key: &SiteKey,
        place: &Place,
        serve: Arc<Serve>,
    ) -> Result<Self::Listener, DataplaneError>;

    /// Ends UDP associations whose backend is not in `serving`.
    fn forget_udp(&mut self, serving: &Targets) -> Forgotten;

    /// Clients turned away, by reason.
    fn drops(&self) -> Vec<DropCount>;
}

/// An open socket.
pub trait Listener: Send {
    /// From now on those who come are served so.
    fn serve(&self, serve: Arc<Serve>);

    /// It still listens.
    fn is_alive(&self) -> bool;
}

/// The sockets of a network namespace.
#[derive(Debug)]
pub struct Network {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

/// A socket and the task that serves it.
#[derive(Debug)]
pub struct Open {
    route: tcp::Route,
    task: JoinHandle<()>,
    stop: CancellationToken,
    socket: Held,
    clients: udp::Clients,
}

/// The socket, while its task lives.
#[derive(Debug)]
enum Held {
    Tcp(Weak<TcpListener>),
    Udp(Weak<UdpSocket>),
}

impl Open {
    /// The socket.
    pub(super) fn socket(&self) -> Option<Arc<dyn AsFd + Send + Sync>> {
        match &self.socket {
            Held::Tcp(socket) => Some(socket.upgrade()?),
            Held::Udp(socket) => Some(socket.upgrade()?),
        }
    }

    /// The UDP clients that have a backend.
    pub(super) fn associations(&self) -> Vec<Arc<udp::Association>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Network {
    /// The sockets of the calling thread's network namespace.
    pub(super) fn new(limits: Limits) -> Result<Self, DataplaneError> {
        let mut builder = Builder::new_multi_thread();
        let builder = builder.worker_threads(2).thread_name("userspace-proxy").enable_all();
        let runtime = builder.build().map_err(|source| DataplaneError::Io {
            action: "cannot start the threads of the userspace data plane".into(),
            source,
        })?;
        let_waiting_connections_migrate();
        let shared = Arc::new(Shared::new(limits));
        Ok(Self { runtime: Some(runtime), shared, stop: CancellationToken::new() })
    }

    /// Connections and associations that are open.
    pub fn busy(&self) -> usize {
        self.shared.busy()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Serves at a socket that another process opened, and for whom it did.
    pub(super) fn adopt(
        &mut self,
        key: &SiteKey,
        socket: OwnedFd,
        flows: Vec<Flow>,
        serve: Arc<Serve>,
    ) -> Result<Open, DataplaneError> {
        let failed = |source| DataplaneError::Io { action: format!("cannot go on at {key}"), source };
        self.open(key, socket.into(), flows, serve).map_err(failed)
    }

    fn open(&self, key: &SiteKey, socket: Socket, flows: Vec<Flow>, serve: Arc<Serve>) -> io::Result<Open> {
        let runtime = self.runtime.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let _entered = runtime.enter();
        let route: tcp::Route = Arc::new(Mutex::new(serve));
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.child_token());
        let clients = udp::Clients::default();
        let (task, socket) = if key.protocol == Protocol::Tcp {
            let listener = Arc::new(TcpListener::from_std(socket.into())?);
            let socket = Held::Tcp(Arc::downgrade(&listener));
            (runtime.spawn(tcp::run(listener, Arc::clone(&route), shared, stop.clone())), socket)
        } else {
            let socket = Arc::new(UdpSocket::from_std(socket.into())?);
            let held = Held::Udp(Arc::downgrade(&socket));
            let (clients, stop) = (Arc::clone(&clients), stop.clone());
            let listening = udp::Listening { socket, clients, shared, stop };
            go_on(&listening, flows)?;
            (runtime.spawn(udp::run(listening, Arc::clone(&route))), held)
        };
        Ok(Open { route, task, stop, socket, clients })
    }
}

/// Goes on with clients that have a backend.
fn go_on(listening: &udp::Listening, flows: Vec<Flow>) -> io::Result<()> {
    for Flow { client, target, upstream } in flows {
        let Ok(permit) = Arc::clone(&listening.shared.room).try_acquire_owned() else { break };
        let socket = UdpSocket::from_std(std::net::UdpSocket::from(upstream))?;
        listening.associate(client, udp::Upstream { socket, target, permit });
    }
    Ok(())
}

/// Without privilege it stays as it is.
pub(super) fn let_waiting_connections_migrate() {
    if let Err(error) = std::fs::write(MIGRATE, "1") {
        tracing::debug!(%error, "connections that wait at a socket that is closed are lost");
    }
}

impl Sockets for Network {
    type Listener = Open;

    fn is_local(&self, addr: IpAddr) -> bool {
        crate::links::is_local(addr).unwrap_or(false)
    }

    fn listen(&mut self, key: &SiteKey, place: &Place, serve: Arc<Serve>) -> Result<Open, DataplaneError> {
        let link = match place {
            Place::Anywhere => String::new(),
            Place::Link(device) => format!(" on link {}", device.name),
        };
        let failed = |source| DataplaneError::Io { action: format!("cannot listen at {key}{link}"), source };
        let socket = bound(key, place).map_err(failed)?;
        self.open(key, socket, Vec::new(), serve).map_err(failed)
    }

    fn forget_udp(&mut self, serving: &Targets) -> Forgotten {
        self.shared.associations.forget(serving)
    }

    fn drops(&self) -> Vec<DropCount> {
        self.shared.drops()
    }
}

impl Drop for Network {
    /// What was accepted is served for a while; nobody waits for it.
    fn drop(&mut self) {
        self.stop.cancel();
        let Some(runtime) = self.runtime.take() else { return };
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || {
            let deadline = Instant::now() + shared.limits.linger;
            // The sockets are closed, and what waited at them is taken in, before the first look.
            std::thread::sleep(Duration::from_millis(100));
            while shared.busy() > 0 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
            runtime.shutdown_background();
        });
    }
}

impl Listener for Open {
    fn serve(&self, serve: Arc<Serve>) {
        let mut route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        if *route != serve {
            *route = serve;
        }
    }

    fn is_alive(&self) -> bool {
        !self.task.is_finished()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn bound(key: &SiteKey, place: &Place) -> io::Result<Socket> {
    let kind = if key.protocol == Protocol::Tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(SocketAddr::new(key.addr, key.port)), kind, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    if key.addr.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    if let Place::Link(device) = place {
        socket.bind_device(Some(device.name.as_bytes()))?;
    }
    socket.bind(&SocketAddr::new(key.addr, key.port).into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

/// A network in memory, for tests: every address is local but those that are named.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Addresses of someone else.
    pub foreign: BTreeSet<IpAddr>,
    /// No more files can be opened.
    pub out_of_files: bool,
    /// What listens, and the how-manieth socket it is.
    pub open: OpenInMemory,
    opened: u64,
}

type OpenInMemory = Arc<Mutex<BTreeMap<(SiteKey, Place), u64>>>;

/// A socket in memory.
#[derive(Debug)]
pub struct InMemory {
    place: (SiteKey, Place),
    id: u64,
    open: OpenInMemory,
}

impl Sockets for Memory {
    type Listener = InMemory;

    fn is_local(&self, addr: IpAddr) -> bool {
        !self.foreign.contains(&addr)
    }

    fn listen(
        &mut self,
        key: &SiteKey,
        place: &Place,
        _serve: Arc<Serve>,
    ) -> Result<InMemory, DataplaneError> {
        if self.out_of_files {
            let source = rustix::io::Errno::MFILE.into();
            return Err(DataplaneError::Io { action: format!("cannot listen at {key}"), source });
        }
        let place = (*key, place.clone());
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(place.clone(), self.opened);
        self.opened += 1;
        Ok(InMemory { place, id: self.opened - 1, open: Arc::clone(&self.open) })
    }

    fn forget_udp(&mut self, _serving: &Targets) -> Forgotten {
        Forgotten::default()
    }

    fn drops(&self) -> Vec<DropCount> {
        Vec::new()
    }
}

impl Listener for InMemory {
    fn serve(&self, _serve: Arc<Serve>) {}

    fn is_alive(&self) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&self.place) == Some(&self.id)
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.get(&self.place) == Some(&self.id) {
            open.remove(&self.place);
        }
    }
}
