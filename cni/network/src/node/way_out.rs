//! Who masquerades what leaves the cluster: the proxy's programs, where they reach every way out, and else tables.
//!
//! Tables cost every packet of the node, and those between nodes twice: as soon as one exists the kernel tracks all of
//! them. Where programs do it there is none. Both together do no harm: what a table has masqueraded is no pod's packet any
//! more when it comes to the programs. So a table comes at once when it is needed, and when it is not it first loses its
//! pods, and goes when the last connection that it has masqueraded has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use seaway_model::{Family, Masquerade};
use seaway_nft::conntrack::{self, Flow};
use tokio::sync::watch;
use tracing::info;

use super::masquerade::{self, NftError};
use crate::netlink::{Route, RouteKind};

/// For so long the programs of a former agent are trusted to go on, before the proxy says so.
const SILENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether connections have ended, at most: the kernel goes through its whole table.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The proxy may masquerade: what it is asked for, and what it says.
#[derive(Debug, Clone)]
pub struct MasqueradeOffer {
    /// What is to be masqueraded; none until that is known.
    pub wanted: watch::Sender<Option<Arc<Masquerade>>>,
    /// Links by index, and the family of packets that are masqueraded where they leave by them; none until that is known.
    pub done: watch::Receiver<Option<BTreeSet<(u32, Family)>>>,
}

/// What becomes of a family's table.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// It is not known yet who masquerades.
    Wait,
    /// It is needed, for this reason.
    Table(String),
    /// The programs reach every way out.
    Programs,
}

/// What is remembered between rounds.
#[derive(Debug, Default)]
pub(super) struct WayOut {
    offer: Option<MasqueradeOffer>,
    silent_since: Option<Instant>,
    looked: BTreeMap<Family, Instant>,
    /// What was said last.
    said: Vec<(Family, Verdict)>,
}

impl WayOut {
    pub(super) fn new(offer: Option<MasqueradeOffer>) -> Self {
        Self { offer, ..Self::default() }
    }

    /// Brings it about that what `wanted` says is masqueraded on every way out of `routes`.
    pub(super) fn ensure(
        &mut self,
        wanted: Option<&Masquerade>,
        routes: &[Route],
        now: Instant,
    ) -> Result<(), NftError> {
        self.ask(wanted);
        let Some(wanted) = wanted else {
            self.said.clear();
            return masquerade::remove_all();
        };
        let verdicts: Vec<_> =
            Family::ALL.map(|family| (family, self.judge(family, wanted, routes, now))).into();
        self.say(&verdicts);
        let mut outcome = Ok(());
        for (family, verdict) in verdicts {
            outcome = outcome.and(match verdict {
                Verdict::Wait => Ok(()),
                Verdict::Table(_) => masquerade::ensure(family, wanted),
                Verdict::Programs => self.retire(family, wanted, now),
            });
        }
        outcome
    }

    /// How many families have a table that they need.
    pub(super) fn tables(&self) -> usize {
        self.said.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Table(_))).count()
    }

    fn ask(&self, wanted: Option<&Masquerade>) {
        let Some(offer) = &self.offer else { return };
        let wanted = wanted.cloned().unwrap_or_default();
        offer.wanted.send_if_modified(|held| {
            let changed = held.as_deref() != Some(&wanted);
            if changed {
                *held = Some(Arc::new(wanted));
            }
            changed
        });
    }

    fn judge(&mut self, family: Family, wanted: &Masquerade, routes: &[Route], now: Instant) -> Verdict {
        let Some(offer) = &self.offer else { return Verdict::Table("no programs do it".to_owned()) };
        let Some(done) = offer.done.borrow().clone() else {
            let since = *self.silent_since.get_or_insert(now);
            let silent = now.saturating_duration_since(since) >= SILENCE;
            return if silent { Verdict::Table("the proxy says nothing".to_owned()) } else { Verdict::Wait };
        };
        self.silent_since = None;
        let at: BTreeSet<u32> = done.iter().filter(|(_, of)| *of == family).map(|(link, _)| *link).collect();
        if at.is_empty() {
            return Verdict::Table("no programs do it".to_owned());
        }
        match routes.iter().find(|route| leaves(route, family, wanted) && !goes_by(route, &at)) {
            Some(route) => Verdict::Table(format!("{route} goes by no link with programs")),
            None => Verdict::Programs,
        }
    }

    /// The table masquerades nothing new from here on, and goes with the last connection that it holds.
    fn retire(&mut self, family: Family, wanted: &Masquerade, now: Instant) -> Result<(), NftError> {
        if !masquerade::is_there(family)? {
            return Ok(());
        }
        masquerade::clear(family)?;
        let looked = self.looked.get(&family);
        if looked.is_some_and(|looked| now.saturating_duration_since(*looked) < LOOK_INTERVAL) {
            return Ok(());
        }
        self.looked.insert(family, now);
        if conntrack::count(masquerade::number(family), |flow| is_held(flow, &wanted.pods))? > 0 {
            return Ok(());
        }
        masquerade::remove(family)
    }

    fn say(&mut self, verdicts: &[(Family, Verdict)]) {
        if self.said == verdicts {
            return;
        }
        for (family, verdict) in verdicts {
            match verdict {
                Verdict::Wait => {}
                Verdict::Table(reason) => {
                    info!(?family, %reason, "pods' packets to the world are masqueraded by a table");
                }
                Verdict::Programs => info!(?family, "pods' packets to the world are masqueraded by programs"),
            }
        }
        self.said = verdicts.to_vec();
    }
}

/// Whether packets that are to be masqueraded may take a route.
fn leaves(route: &Route, family: Family, wanted: &Masquerade) -> bool {
    route.kind == RouteKind::Unicast
        && Family::of(route.destination.addr()) == family
        // Most routes are those to the own pods, which are few networks.
        && !wanted.pods.iter().chain(&wanted.kept).any(|kept| kept.contains(&route.destination))
}

fn goes_by(route: &Route, links: &BTreeSet<u32>) -> bool {
    route.link.is_some_and(|link| links.contains(&link))
}

/// Whether a connection is one that a table masquerades, and goes on.
fn is_held(flow: &Flow, pods: &[IpNet]) -> bool {
    const TCP: u8 = 6;
    let source = flow.original.source.ip();
    flow.reply.destination.ip() != source
        && pods.iter().any(|net| net.contains(&source))
        && (flow.protocol != TCP || flow.is_open())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use seaway_nft::conntrack::Tuple;

    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split(' ').map(|net| net.parse().unwrap()).collect()
    }

    fn wanted() -> Masquerade {
        Masquerade::new(nets("10.244.1.0/24"), &nets("10.244.0.0/16"))
    }

    fn route(destination: &str, link: u32) -> Route {
        Route::to(destination.parse().unwrap()).on(link)
    }

    /// A way out that has been told `done`.
    fn told(done: Option<&[(u32, Family)]>) -> WayOut {
        let done = watch::Sender::new(done.map(|done| done.iter().copied().collect())).subscribe();
        WayOut::new(Some(MasqueradeOffer { wanted: watch::Sender::new(None), done }))
    }

    #[test]
    fn programs_do_when_they_reach_every_way_out() {
        let held = [
            route("0.0.0.0/0", 2),
            route("192.0.2.0/24", 2),
            // To pods, to the link itself, and of the other family.
            route("10.244.7.0/24", 9),
            route("169.254.0.0/16", 9),
            route("127.0.0.0/8", 1),
            route("::/0", 9),
            Route { kind: RouteKind::Unreachable, ..Route::to("10.0.0.0/8".parse().unwrap()) },
        ];
        let now = Instant::now();
        let verdict = |done: &[(u32, Family)], more: Option<Route>| {
            let routes: Vec<Route> = held.iter().cloned().chain(more).collect();
            told(Some(done)).judge(Family::V4, &wanted(), &routes, now)
        };
        assert_eq!(verdict(&[(2, Family::V4)], None), Verdict::Programs);
        let reasons = [
            (verdict(&[(2, Family::V6)], None), "no programs do it"),
            (verdict(&[(3, Family::V4)], None), "route to 0.0.0.0/0 on link 2 goes by no link with programs"),
            (
                verdict(&[(2, Family::V4)], Some(route("172.17.0.0/16", 4))),
                "route to 172.17.0.0/16 on link 4 goes by no link with programs",
            ),
            // Of several next hops none is known.
            (
                verdict(&[(2, Family::V4)], Some(Route::to("198.51.100.0/24".parse().unwrap()))),
                "route to 198.51.100.0/24 goes by no link with programs",
            ),
        ];
        for (verdict, reason) in reasons {
            assert_eq!(verdict, Verdict::Table(reason.to_owned()));
        }
    }

    #[test]
    fn a_former_agents_programs_are_trusted_for_a_while() {
        let (mut way_out, now) = (told(None), Instant::now());
        let mut verdict = |after: Duration| way_out.judge(Family::V4, &wanted(), &[], now + after);
        assert_eq!(verdict(Duration::ZERO), Verdict::Wait);
        assert_eq!(verdict(SILENCE / 2), Verdict::Wait);
        assert!(matches!(verdict(SILENCE), Verdict::Table(_)));
        let alone = WayOut::default().judge(Family::V4, &wanted(), &[], now);
        assert_eq!(alone, Verdict::Table("no programs do it".to_owned()));
    }

    #[test]
    fn a_table_is_held_by_what_it_masquerades_and_by_nothing_else() {
        let flow = |source: &str, seen: &str, protocol, tcp_state| {
            let at = |addr: &str, port| SocketAddr::new(addr.parse().unwrap(), port);
            let there = at("198.51.100.7", 443);
            Flow {
                protocol,
                zone: 0,
                original: Tuple { source: at(source, 4000), destination: there },
                reply: Tuple { source: there, destination: at(seen, 2000) },
                id: None,
                tcp_state,
            }
        };
        let cases = [
            (flow("10.244.1.5", "192.0.2.1", 6, Some(3)), true),
            (flow("10.244.1.5", "192.0.2.1", 6, Some(7)), false),
            (flow("10.244.1.5", "192.0.2.1", 17, None), true),
            (flow("10.244.1.5", "10.244.1.5", 17, None), false),
            (flow("172.17.0.2", "192.0.2.1", 17, None), false),
        ];
        for (flow, expected) in cases {
            assert_eq!(is_held(&flow, &wanted().pods), expected, "{flow:?}");
        }
    }
}
