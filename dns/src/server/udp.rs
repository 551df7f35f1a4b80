//! UDP: a thread per socket that waits in the kernel, takes what has arrived, answers it and waits again; what has to wait for
//! an upstream goes on in a task of its own. While more arrives than is answered, the sources take turns.
//!
//! A thread, not a task: between a packet and its answer there is then nothing but two system calls, where a task needs a
//! third to learn that there is a packet and a fourth to learn that there is none left.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::batch::{BATCH, Intake, Outgoing};
use super::datagram::{Datagrams, Peer};
use super::exchange::{Outcome, View, answer_later, answer_now};
use super::guard::{self, Guard};
use super::queue::Queue;
use crate::metrics::{Meter, Tally, Transport};
use crate::wire::glance;

/// Batches that are taken out of the socket for each that is answered when there are too many. Taking a packet costs a tenth
/// of answering it: more of them, and sources would take turns more fairly, at the cost of answers to all.
const INTAKE: usize = 2;

/// The threads of a server. They end when it closes, and when this is dropped.
pub(super) struct Listeners {
    close: CancellationToken,
    sockets: Vec<Arc<Datagrams>>,
}

impl Listeners {
    pub(super) fn new(close: CancellationToken) -> Self {
        Self { close, sockets: Vec::new() }
    }

    /// Serves `socket` in a thread. The future ends with it, and panics if it did.
    pub(super) fn start(
        &mut self,
        socket: UdpSocket,
        shared: &Arc<Shared>,
        meter: &Arc<Meter>,
    ) -> io::Result<impl Future<Output = ()> + use<>> {
        let socket = Arc::new(Datagrams::new(socket)?);
        self.sockets.push(Arc::clone(&socket));
        let (shared, meter) = (Arc::clone(shared), Arc::clone(meter));
        let (tell, ended) = oneshot::channel();
        let runtime = Handle::current();
        thread::Builder::new().name("dns-udp".to_owned()).spawn(move || {
            // Questions for upstreams become tasks.
            let _runtime = runtime.enter();
            Listener::new(socket, shared, meter).serve();
            // Nobody may be left to hear it.
            tell.send(()).ok();
        })?;
        Ok(async move {
            // Dropped without a word: it panicked, and the panic has been printed there.
            assert!(ended.await.is_ok(), "a thread of the DNS server panicked");
        })
    }

    pub(super) fn stop(&self) {
        self.close.cancel();
        for socket in &self.sockets {
            socket.wake();
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Listener {
    intake: Intake,
    waiting: Queue<Peer>,
    guard: Guard,
    /// Not everything is let in.
    filtering: bool,
    answering: Answering,
}

/// What turns packets into answers.
struct Answering {
    socket: Arc<Datagrams>,
    shared: Arc<Shared>,
    tally: Tally,
    view: View,
    outgoing: Outgoing,
}

impl Listener {
    fn new(socket: Arc<Datagrams>, shared: Arc<Shared>, meter: Arc<Meter>) -> Self {
        let (intake, outgoing) = (Intake::new(&socket), Outgoing::new(&socket));
        let (view, waiting) = (View::new(&shared.states), Queue::new(shared.queue_max));
        Self {
            intake,
            waiting,
            guard: Guard::default(),
            filtering: false,
            answering: Answering { socket, shared, tally: Tally::new(meter), view, outgoing },
        }
    }

    fn serve(&mut self) {
        while !self.answering.socket.is_woken() {
            match self.intake.wait(&self.answering.socket) {
                Ok(count) => {
                    self.answer();
                    if count == BATCH {
                        self.work_off();
                    }
                }
                Err(error) if is_idle(&error) => self.answering.tally.tell(),
                // Nothing that a single packet could cause: do not spin on it.
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
        // As long as the socket is open the kernel puts questions into it.
        while self.intake.take(&self.answering.socket).is_ok() && self.intake.packets().next().is_some() {
            self.answer();
        }
    }

    /// Answers what has been taken in.
    fn answer(&mut self) {
        self.answering.prepare(&self.intake);
        for (packet, peer) in self.intake.packets() {
            self.answering.take(packet, peer);
        }
        self.answering.flush();
    }

    /// Goes on with all that has arrived, the sources in turn, until nothing is left.
    fn work_off(&mut self) {
        loop {
            for _ in 0..INTAKE {
                let Ok(count) = self.intake.take(&self.answering.socket) else { break };
                self.guard.taken(count);
                // What waits is answered soon, or there is more at stake than this.
                self.answering.prepare(&self.intake);
                for (packet, peer) in self.intake.packets() {
                    let shed = self.waiting.push(peer.address.ip(), packet, *peer);
                    if shed > 0 {
                        self.answering.shared.metrics.shed("queue", shed);
                    }
                }
                if count < BATCH {
                    break;
                }
            }
            for _ in 0..BATCH {
                let Some((packet, peer)) = self.waiting.pop() else {
                    self.let_all_in();
                    return self.answering.flush();
                };
                self.answering.take(packet, peer);
            }
            self.answering.flush();
            if self.guard.answered(BATCH) {
                self.let_in();
            }
        }
    }

    /// Tells the kernel how much to let in of the greediest sources.
    fn let_in(&mut self) {
        let Some(part) = self.guard.decide(self.waiting.is_behind()) else { return self.let_all_in() };
        let sources = self.waiting.greediest(guard::SOURCES_MAX);
        let filter = guard::filter(&sources, part);
        // Without it the others get less than they might.
        self.answering.socket.filter(Some(&filter)).ok();
        self.filtering = true;
    }

    fn let_all_in(&mut self) {
        self.guard = Guard::default();
        if std::mem::take(&mut self.filtering) {
            self.answering.socket.filter(None).ok();
        }
    }
}

impl Answering {
    /// Has the zone fetch what the answers to these packets lie in.
    fn prepare(&mut self, intake: &Intake) {
        let packets = intake.packets().map(|(packet, _)| packet);
        // One alone would wait here as long as there.
        if packets.clone().nth(1).is_none() {
            return;
        }
        self.view.newest().zone.fetch(packets.map(glance));
    }

    fn take(&mut self, packet: &[u8], peer: &Peer) {
        // Port 0 cannot be answered.
        if peer.address.port() == 0 || !self.admits(peer) {
            return;
        }
        let client = peer.address.ip();
        let reply = self.outgoing.buffer();
        let from = (Transport::Udp, client);
        match answer_now(&self.shared, &mut self.view, &mut self.tally, from, packet, reply) {
            Outcome::Reply => {
                if self.outgoing.push(peer) {
                    self.flush();
                }
            }
            Outcome::Silence => {}
            Outcome::Later(later) => {
                let (meter, socket, peer) = (Arc::clone(self.tally.meter()), Arc::clone(&self.socket), *peer);
                self.shared.pending.spawn(async move {
                    let reply = answer_later(&meter, *later).await;
                    // A full send buffer or a client that has gone: the client asks again if it has to.
                    socket.send(&reply, &peer).ok();
                });
            }
        }
    }

    fn flush(&mut self) {
        self.outgoing.send(&self.socket);
        self.tally.tell_sometimes();
    }

    fn admits(&mut self, peer: &Peer) -> bool {
        let Some(rate) = self.view.newest().rate_limit else { return true };
        let admits = self.shared.limiter.admits(peer.address.ip(), rate, Instant::now());
        if !admits {
            self.shared.metrics.shed("rate", 1);
        }
        admits
    }
}

/// Nobody asked for a while, or a signal came in between.
fn is_idle(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
