//! Places for TCP connections: bounded, and not to be kept by one client from the others.
//!
//! **Invariant:** at most the bound of connections have a seat. Where one is too many, the one goes of the source with the
//! most that has been quiet the longest: clients open another when they need it (RFC 7766, 6.2.3).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::source::source_of;

/// The seats of a listener.
#[derive(Debug)]
pub(super) struct Seats {
    max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    count: usize,
    /// Goes up with all that happens, so that it tells what came before what.
    clock: u64,
    /// Connections by source and by when they were last heard of.
    sources: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
}

/// A connection's seat, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    source: IpAddr,
    heard_at: u64,
    /// Cancelled when somebody else needs the seat.
    pub(super) given_away: CancellationToken,
}

impl Seats {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), held: Mutex::default() })
    }

    /// A seat for a connection from `client`, be it another one's.
    pub(super) fn take(self: &Arc<Self>, client: IpAddr) -> Seat {
        let (source, given_away) = (source_of(client), CancellationToken::new());
        let mut held = self.lock();
        if held.count >= self.max {
            held.give_away(source);
        }
        let heard_at = held.put(source, given_away.clone());
        Seat { seats: Arc::clone(self), source, heard_at, given_away }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn put(&mut self, source: IpAddr, given_away: CancellationToken) -> u64 {
        self.clock += 1;
        self.count += 1;
        self.sources.entry(source).or_default().insert(self.clock, given_away);
        self.clock
    }

    fn remove(&mut self, source: IpAddr, heard_at: u64) -> Option<CancellationToken> {
        let connections = self.sources.get_mut(&source)?;
        let given_away = connections.remove(&heard_at)?;
        if connections.is_empty() {
            self.sources.remove(&source);
        }
        self.count -= 1;
        Some(given_away)
    }

    /// Ends the connection that is quiet the longest of the source with the most, the one that comes counted with it.
    fn give_away(&mut self, coming: IpAddr) {
        let quietest = self.sources.iter().filter_map(|(source, connections)| {
            let heard_at = *connections.keys().next()?;
            let count = connections.len() + usize::from(*source == coming);
            Some((count, std::cmp::Reverse(heard_at), *source))
        });
        let Some((_, std::cmp::Reverse(heard_at), source)) = quietest.max() else { return };
        if let Some(given_away) = self.remove(source, heard_at) {
            given_away.cancel();
        }
    }
}

impl Seat {
    /// Something has come over the connection.
    pub(super) fn heard(&mut self) {
        let mut held = self.seats.lock();
        // Whoever has been given away stays so.
        if let Some(given_away) = held.remove(self.source, self.heard_at) {
            self.heard_at = held.put(self.source, given_away);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        drop(self.seats.lock().remove(self.source, self.heard_at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn given_away(seats: &[Seat]) -> Vec<bool> {
        seats.iter().map(|seat| seat.given_away.is_cancelled()).collect()
    }

    #[test]
    fn the_one_with_the_most_gives_its_quietest() {
        let seats = Seats::new(4);
        let mut greedy: Vec<Seat> = (0..3).map(|_| seats.take(client(1))).collect();
        let other = seats.take(client(2));
        greedy[0].heard();
        let third = seats.take(client(3));
        assert_eq!(given_away(&greedy), [false, true, false]);
        // Whoever has the most with the one that comes gives one of its own.
        greedy.push(seats.take(client(1)));
        assert_eq!(given_away(&greedy), [false, true, true, false]);
        drop(greedy);
        // All have the same: the quietest of all.
        let more: Vec<Seat> = (4..7).map(|n| seats.take(client(n))).collect();
        assert_eq!(given_away(&[other, third]), [true, false]);
        assert_eq!(given_away(&more), [false; 3]);
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let seats = Seats::new(2);
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        let (one, two) = (seats.take(addr("2001:db8::1")), seats.take(addr("2001:db8:0:1::1")));
        let _third = seats.take(addr("2001:db8::2"));
        assert_eq!(given_away(&[one, two]), [true, false]);
    }

    proptest! {
        #[test]
        fn never_more_than_the_bound(steps in proptest::collection::vec((0_u8..5, any::<prop::sample::Index>(), 0_u8..3), 0..200)) {
            let (seats, mut taken) = (Seats::new(6), Vec::<Seat>::new());
            for (n, which, what) in steps {
                match what {
                    0 if !taken.is_empty() => drop(taken.swap_remove(which.index(taken.len()))),
                    1 if !taken.is_empty() => { let at = which.index(taken.len()); taken[at].heard(); }
                    _ => taken.push(seats.take(client(n))),
                }
                let seated = taken.iter().filter(|seat| !seat.given_away.is_cancelled()).count();
                let held = seats.lock();
                prop_assert!(seated <= 6);
                prop_assert_eq!(held.count, seated);
                prop_assert_eq!(held.sources.values().map(BTreeMap::len).sum::<usize>(), seated);
            }
            drop(taken);
            prop_assert!(seats.lock().sources.is_empty());
        }
    }
}
