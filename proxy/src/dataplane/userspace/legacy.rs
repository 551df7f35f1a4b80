//! What one worker leaves to the next: the frontends, the sockets that listen, the UDP clients with their backends, and
//! who has which backend by session affinity. TCP connections stay with the former one until they end.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::pick::Affinity;
use super::site::{Place, Site, SiteKey};
use super::udp::Target;
use super::wire::Line;
use super::worker::garbled;
use super::{Network, Userspace};
use crate::dataplane::Dataplane as _;
use crate::frontend::{Frontend, FrontendKey, Group};
use crate::plan::Host;

/// A UDP client, and the socket towards its backend.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) client: SocketAddr,
    pub(super) target: Target,
    pub(super) upstream: OwnedFd,
}

/// A socket that listens.
#[derive(Debug)]
struct Inherited {
    key: SiteKey,
    place: Place,
    socket: OwnedFd,
    flows: Vec<Flow>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    host: Host,
    frontends: Vec<(FrontendKey, Arc<Frontend>)>,
    listeners: Vec<Inherited>,
    affinities: Vec<Affinity>,
}

impl Legacy {
    /// Asks for it.
    pub(super) fn receive(channel: &mut Channel) -> io::Result<Self> {
        channel.send(&Line::HandOver)?;
        let mut legacy = Self::default();
        // The answer has two parts: what is served, and the sockets.
        for _ in 0..2 {
            loop {
                match channel.get()? {
                    Line::Done { .. } => break,
                    line => legacy.take(line, channel)?,
                }
            }
        }
        Ok(legacy)
    }

    fn take(&mut self, line: Line, channel: &mut Channel) -> io::Result<()> {
        match line {
            Line::Host(host) => self.host = host.into(),
            Line::Frontend(key, frontend) => {
                let frontend = frontend.try_into().map_err(garbled)?;
                self.frontends.push(((&key).try_into().map_err(garbled)?, frontend));
            }
            Line::Listener(place) => {
                let (key, place) = place.try_into().map_err(garbled)?;
                let socket = channel.descriptor()?;
                self.listeners.push(Inherited { key, place, socket, flows: Vec::new() });
            }
            Line::Flow { client, target: (group, addr, port) } => {
                let (target, upstream) = ((Group::from_bits(group), addr, port), channel.descriptor()?);
                if let Some(listener) = self.listeners.last_mut() {
                    listener.flows.push(Flow { client, target, upstream });
                }
            }
            Line::Affinity { group, client, backend, ago_ms } => {
                let at = Instant::now().checked_sub(Duration::from_millis(ago_ms));
                let (group, at) = (Group::from_bits(group), at.unwrap_or_else(Instant::now));
                self.affinities.push(Affinity { group, client, backend, at });
            }
            _ => {}
        }
        Ok(())
    }
}

/// What is served, up to `Done`.
pub(super) fn tell(channel: &mut Channel, userspace: &mut Userspace<Network>) -> io::Result<()> {
    let actual = userspace.read().map_err(io::Error::other)?;
    channel.put(&Line::Host((&actual.host).into()))?;
    for (key, frontend) in &actual.frontends {
        channel.put(&Line::Frontend(key.into(), (&**frontend).into()))?;
    }
    let drops = userspace.drops().into_iter().map(|drop| (drop.reason, drop.packets)).collect();
    channel.send(&Line::Done { count: actual.frontends.len(), of_ipv6: 0, drops })
}

/// What is served, and then the sockets.
pub(super) fn hand_over(channel: &mut Channel, userspace: &mut Userspace<Network>) -> io::Result<()> {
    tell(channel, userspace)?;
    for (key, places) in &userspace.listeners {
        for (place, listener) in places {
            let Some(socket) = listener.socket() else { continue };
            channel.send_with(&Line::Listener((key, place).into()), socket.as_fd())?;
            for association in listener.associations() {
                let (group, addr, port) = association.target;
                let flow = Line::Flow { client: association.client, target: (group.bits(), addr, port) };
                channel.send_with(&flow, association.upstream.as_fd())?;
            }
        }
    }
    let now = Instant::now();
    for held in userspace.network.shared().picker.affinities() {
        let ago_ms = u64::try_from(now.duration_since(held.at).as_millis()).unwrap_or(u64::MAX);
        let (group, client, backend) = (held.group.bits(), held.client, held.backend);
        channel.put(&Line::Affinity { group, client, backend, ago_ms })?;
    }
    channel.send(&Line::Done { count: userspace.listeners.len(), of_ipv6: 0, drops: Vec::new() })
}

impl Userspace<Network> {
    /// Goes on with what another one left. What cannot be used is opened anew by the next plan.
    pub(super) fn inherit(&mut self, legacy: Legacy) {
        self.host = legacy.host;
        for (key, frontend) in legacy.frontends {
            self.sites.entry(SiteKey::of(&key)).or_default().set(key.scope, Some(frontend));
        }
        self.network.shared().picker.recall(legacy.affinities);
        for Inherited { key, place, socket, flows } in legacy.listeners {
            let places = self.sites.get(&key).map(|site: &Site| site.places(&key, &self.host));
            let Some(serve) = places.as_ref().and_then(|places| places.get(&place)) else { continue };
            match self.network.adopt(&key, socket, flows, Arc::clone(serve)) {
                Ok(listener) => {
                    self.listeners.entry(key).or_default().insert(place, listener);
                }
                Err(error) => {
                    let error = crate::reconcile::chain(&error);
                    tracing::warn!(%key, error, "a socket of the former worker is of no use");
                }
            }
        }
    }
}
