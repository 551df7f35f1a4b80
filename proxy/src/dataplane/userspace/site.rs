//! Which sockets an address needs. Clients of this node and clients outside may be served differently at one address:
//! they are told apart by the link that they come through, and a socket that is bound to a link has the precedence.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use seaway_model::Protocol;

use super::serve::Serve;
use crate::frontend::{Frontend, FrontendKey, Scope};
use crate::plan::{Device, Host};

/// An address at which clients arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteKey {
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl fmt::Display for SiteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.addr, self.port), self.protocol)
    }
}

impl SiteKey {
    pub(super) fn of(key: &FrontendKey) -> Self {
        Self { addr: key.addr, port: key.port, protocol: key.protocol }
    }

    pub(super) fn frontend(&self, scope: Scope) -> FrontendKey {
        FrontendKey { addr: self.addr, port: self.port, protocol: self.protocol, scope }
    }
}

/// Where a socket listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Wherever packets come from.
    Anywhere,
    /// At one link.
    Link(Device),
}

/// What is served at an address.
#[derive(Debug, Clone, Default)]
pub(super) struct Site {
    internal: Option<Arc<Frontend>>,
    external: Option<Arc<Frontend>>,
}

impl Site {
    pub(super) fn set(&mut self, scope: Scope, frontend: Option<Arc<Frontend>>) {
        match scope {
            Scope::Internal => self.internal = frontend,
            Scope::External => self.external = frontend,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.internal.is_none() && self.external.is_none()
    }

    pub(super) fn frontends(&self, key: &SiteKey) -> Vec<(FrontendKey, Arc<Frontend>)> {
        let both = [(Scope::Internal, &self.internal), (Scope::External, &self.external)];
        let held = both.into_iter().filter_map(|(scope, frontend)| Some((scope, frontend.as_ref()?)));
        held.map(|(scope, frontend)| (key.frontend(scope), Arc::clone(frontend))).collect()
    }

    /// The sockets that it needs. Where there is none, the kernel refuses.
    pub(super) fn places(&self, key: &SiteKey, host: &Host) -> BTreeMap<Place, Arc<Serve>> {
        let serves = |frontend: &&Arc<Frontend>| !frontend.backends.is_empty();
        let inside = self.internal.as_ref().filter(serves);
        let outside = self.external.as_ref().filter(serves);
        let mut places = BTreeMap::new();
        if let Some(frontend) = inside {
            places.insert(Place::Anywhere, Arc::new(Serve::of(frontend)));
        }
        let outside = match (inside, outside) {
            (None, None) => None,
            (Some(inside), Some(outside)) if Serve::of(inside) == Serve::of(outside) => None,
            (_, Some(outside)) => Some(Arc::new(Serve::of(outside))),
            (Some(_), None) => Some(Arc::new(Serve::Refuse)),
        };
        if let Some(serve) = outside.filter(|_| !key.addr.is_loopback()) {
            places.extend(host.uplinks.iter().map(|link| (Place::Link(link.clone()), Arc::clone(&serve))));
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use crate::frontend::{Backend, FrontendKind, Group};

    use super::*;

    fn frontend(backends: &[&str]) -> Arc<Frontend> {
        let backend = |addr: &&str| Backend { addr: addr.parse().unwrap(), port: 80, local: true };
        Arc::new(Frontend {
            group: Group::from_bits(1),
            kind: FrontendKind::NodePort,
            backends: backends.iter().map(backend).collect(),
            affinity: None,
            source_ranges: [].into(),
            preserve_source: false,
            elsewhere: false,
            maglev: false,
            dsr: false,
            masquerade: false,
        })
    }

    #[test]
    fn clients_outside_get_a_socket_of_their_own_only_where_they_are_served_otherwise() {
        let key = SiteKey { addr: "172.30.0.11".parse().unwrap(), port: 30_000, protocol: Protocol::Tcp };
        let host = Host { uplinks: [Device { name: "eth0".into(), index: 2 }].into(), ..Host::default() };
        let count = |internal, external| {
            let places = Site { internal, external }.places(&key, &host);
            let refused = places.values().filter(|serve| ***serve == Serve::Refuse).count();
            (places.contains_key(&Place::Anywhere), places.len(), refused)
        };
        let (none, one, two) = (frontend(&[]), frontend(&["10.0.0.1"]), frontend(&["10.0.0.1", "10.0.0.2"]));
        let some = |frontend: &Arc<Frontend>| Some(Arc::clone(frontend));
        assert_eq!(count(some(&one), some(&one)), (true, 1, 0));
        assert_eq!(count(some(&two), some(&one)), (true, 2, 0));
        assert_eq!(count(some(&one), some(&none)), (true, 2, 1));
        assert_eq!(count(some(&one), None), (true, 2, 1));
        assert_eq!(count(None, some(&one)), (false, 1, 0));
        assert_eq!(count(some(&none), some(&none)), (false, 0, 0));
    }
}
