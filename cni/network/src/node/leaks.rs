//! Addresses whose pod is gone without a DEL: candidate, confirmed after a grace period, looked at again, released.
//!
//! The wiring of a pod ends with its namespace, whoever ends that; its reservation does not. A reservation without
//! wiring is either such a leak or an ADD or DEL that is under way. What is in use is never released: as long as the
//! node's end of a pod's link exists, or a route leads to one of its addresses, it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::info;

use super::NodeNetworkError;
use super::install::NETWORK;
use crate::ipam::{Ipam, Owner, Reservation};
use crate::netlink::{Netlink, NetlinkError, RouteQuery};
use crate::pod::Attachment;

/// Reservations without wiring, since when.
#[derive(Debug, Default)]
pub(super) struct Leaks {
    candidates: BTreeMap<Owner, (Reservation, Instant)>,
}

impl Leaks {
    /// Takes in what is held now, and returns what has been without wiring for at least `grace`.
    fn observe(
        &mut self,
        now: Instant,
        grace: Duration,
        held: Vec<(Owner, Reservation)>,
        in_use: impl Fn(&Owner, &Reservation) -> bool,
    ) -> Vec<(Owner, Reservation)> {
        let before = std::mem::take(&mut self.candidates);
        for (owner, reservation) in held {
            if in_use(&owner, &reservation) {
                continue;
            }
            // One that was given anew in between is another one.
            let since = match before.get(&owner) {
                Some((same, since)) if *same == reservation => *since,
                _ => now,
            };
            self.candidates.insert(owner, (reservation, since));
        }
        let confirmed = self.candidates.iter().filter(|(owner, (_, since))| {
            before.contains_key(*owner) && now.saturating_duration_since(*since) >= grace
        });
        confirmed.map(|(owner, (reservation, _))| (owner.clone(), reservation.clone())).collect()
    }

    /// How many are being watched.
    pub(super) fn candidates(&self) -> usize {
        self.candidates.len()
    }
}

/// What a look at the reservations has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) held: usize,
    pub(super) released: usize,
}

/// Looks at all reservations, and releases those that are confirmed to be leaked.
pub(super) fn reconcile(
    leaks: &mut Leaks,
    netlink: &mut Netlink,
    data_dir: &Path,
    now: Instant,
    grace: Duration,
) -> Result<Found, NodeNetworkError> {
    let Some(ipam) = Ipam::open_if_there(data_dir, NETWORK)? else { return Ok(Found::default()) };
    let held = ipam.owners()?;
    drop(ipam);
    let count = held.len();
    let used = InUse::read(netlink)?;
    let confirmed = leaks.observe(now, grace, held, |owner, held| used.contains(owner, held));
    if confirmed.is_empty() {
        return Ok(Found { held: count, released: 0 });
    }
    // Looked at again, now that nobody can change it.
    let Some(mut ipam) = Ipam::open_if_there(data_dir, NETWORK)? else { return Ok(Found::default()) };
    let used = InUse::read(netlink)?;
    let mut released = 0;
    for (owner, reservation) in confirmed {
        if ipam.reservation(&owner)?.as_ref() == Some(&reservation) && !used.contains(&owner, &reservation) {
            ipam.release(&owner)?;
            info!(%owner, addresses = ?reservation.addresses, "addresses of a pod that is gone were freed");
            released += 1;
        }
    }
    Ok(Found { held: count - released, released })
}

/// What the kernel says about use.
struct InUse {
    links: BTreeSet<String>,
    routes: BTreeSet<IpAddr>,
}

impl InUse {
    fn read(netlink: &mut Netlink) -> Result<Self, NetlinkError> {
        let links = netlink.links()?.into_iter().map(|link| link.name).collect();
        let routes = netlink.routes(RouteQuery::default())?.into_iter();
        let whole =
            routes.map(|route| route.destination).filter(|net| net.prefix_len() == net.max_prefix_len());
        Ok(Self { links, routes: whole.map(|net| net.addr()).collect() })
    }

    fn contains(&self, owner: &Owner, held: &Reservation) -> bool {
        let link = Attachment::new(NETWORK, &owner.container_id, &owner.ifname).host_link();
        self.links.contains(&link) || held.addresses.iter().any(|addr| self.routes.contains(addr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(names: &[(&str, &str)]) -> Vec<(Owner, Reservation)> {
        let one = |(name, addr): &(&str, &str)| {
            let reservation =
                Reservation { addresses: vec![addr.parse().unwrap()], ..Reservation::default() };
            (Owner::new(name, "eth0"), reservation)
        };
        names.iter().map(one).collect()
    }

    #[test]
    fn only_what_stays_without_wiring_for_the_whole_time_is_a_leak() {
        const GRACE: Duration = Duration::from_secs(60);
        let start = Instant::now();
        let mut leaks = Leaks::default();
        let mut look = |seconds: u64, names: &[(&str, &str)], used: &[&str]| -> String {
            let now = start + Duration::from_secs(seconds);
            let in_use = |owner: &Owner, _: &Reservation| used.contains(&owner.container_id.as_str());
            let confirmed = leaks.observe(now, GRACE, held(names), in_use);
            confirmed.iter().map(|(owner, _)| owner.container_id.as_str()).collect::<Vec<_>>().join(" ")
        };
        let all = [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3"), ("d", "10.0.0.4")];
        assert_eq!(look(0, &all, &["d"]), "");
        assert_eq!(look(30, &all, &["b", "d"]), "", "b has got its wiring");
        let moved = [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.9"), ("d", "10.0.0.4")];
        assert_eq!(look(59, &moved, &[]), "");
        assert_eq!(look(60, &moved, &["d"]), "a", "c is another reservation, b and d were in use in between");
        assert_eq!(look(119, &moved, &["d"]), "a b c");
        assert_eq!(look(500, &moved, &["a", "b", "c", "d"]), "");
        // After a long pause (the machine slept) there is one more look.
        assert_eq!(look(5000, &moved, &[]), "");
    }
}
