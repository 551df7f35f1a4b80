//! What every data plane must do. The macro makes one test of each law for one data plane.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use seaway_model::Snapshot;
use seaway_proxy::dataplane::{Applied, Dataplane, DataplaneError, Subject};
use seaway_proxy::desired::{Computation, Desired, NodeView, desired};
use seaway_proxy::frontend::FrontendKey;
use seaway_proxy::links::Link;
use seaway_proxy::plan::{Actual, Host, Plan, diff, diff_of};
use seaway_proxy::{ProxyConfig, reconcile};

use crate::world::{self, NODE};

/// What the node asks for in `snapshot`. There are no links: those are the business of the privileged tests.
fn wanted(snapshot: &Snapshot, offered: (bool, bool)) -> (Desired, Host) {
    let (view, host) = seen(snapshot, offered);
    (desired(snapshot, &view), host)
}

fn seen(snapshot: &Snapshot, (maglev_offered, dsr_offered): (bool, bool)) -> (NodeView, Host) {
    let config = ProxyConfig::new(NODE, "", "");
    let node = snapshot.nodes.get(NODE).map(AsRef::as_ref);
    let links: [Link; 0] = [];
    let view = NodeView { maglev_offered, dsr_offered, ..reconcile::view(&config, node, &links) };
    (view, reconcile::host(&config, node, &links))
}

fn held(desired: &Desired, host: &Host) -> Actual {
    let frontends = desired.frontends.iter().map(|(key, entry)| (*key, entry.frontend.clone())).collect();
    Actual { frontends, host: host.clone(), stale: 0 }
}

/// The frontends that it cannot serve and says so; these it does not have to hold. Nothing else may fail.
fn refused(applied: &Applied) -> Result<BTreeSet<FrontendKey>, TestCaseError> {
    let mut keys = BTreeSet::new();
    for failure in &applied.failed {
        match (&failure.subject, &failure.error) {
            (Subject::Frontend(key), DataplaneError::Unsupported { .. }) => _ = keys.insert(*key),
            _ => prop_assert!(false, "{:?}", failure),
        }
    }
    Ok(keys)
}

fn without(mut actual: Actual, refused: &BTreeSet<FrontendKey>) -> Actual {
    for key in refused {
        actual.frontends.remove(key);
    }
    actual
}

fn run<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    runner.run(strategy, test).unwrap();
}

/// Carries out what differs and checks that it is held then.
pub(crate) fn bring(
    dataplane: &mut dyn Dataplane,
    snapshot: &Snapshot,
) -> Result<BTreeSet<FrontendKey>, TestCaseError> {
    let (desired, host) = wanted(snapshot, (dataplane.offers_maglev(), dataplane.offers_dsr()));
    let plan = diff(&desired, &host, &dataplane.read().unwrap());
    let applied = dataplane.apply(&plan).unwrap();
    let refused = refused(&applied)?;
    prop_assert_eq!(dataplane.read().unwrap(), without(held(&desired, &host), &refused));
    Ok(refused)
}

/// `apply(diff(d, read()))` makes `read() == d`, from whatever state, and applying twice changes nothing.
pub(crate) fn what_is_applied_is_read_back<D: Dataplane>(make: impl Fn() -> D, cases: u32) {
    run(cases, &prop::collection::vec(world::snapshot(), 1..4), |snapshots| {
        let mut dataplane = make();
        for snapshot in &snapshots {
            let refused = bring(&mut dataplane, snapshot)?;
            let (desired, host) = wanted(snapshot, (dataplane.offers_maglev(), dataplane.offers_dsr()));
            let mut again = diff(&desired, &host, &dataplane.read().unwrap());
            again.upserts.retain(|(key, _)| !refused.contains(key));
            prop_assert_eq!(&again, &Plan::default());
            dataplane.apply(&again).unwrap();
            prop_assert_eq!(dataplane.read().unwrap(), without(held(&desired, &host), &refused));
        }
        Ok(())
    });
}

/// Step by step, looking only at what changed, leads to the same as reading back and comparing all.
pub(crate) fn steps_lead_to_the_same<D: Dataplane>(make: impl Fn() -> D, cases: u32) {
    run(cases, &prop::collection::vec(world::snapshot(), 1..5), |snapshots| {
        let mut dataplane = make();
        let mut computation = Computation::default();
        let mut actual = dataplane.read().unwrap();
        for snapshot in &snapshots {
            let (view, host) = seen(snapshot, (dataplane.offers_maglev(), dataplane.offers_dsr()));
            let changed: BTreeSet<_> = computation.update(snapshot, &view);
            let plan = diff_of(&changed, computation.desired(), &host, &actual);
            let applied = dataplane.apply(&plan).unwrap();
            actual = without(actual.after(&plan), &refused(&applied)?);
            prop_assert_eq!(&dataplane.read().unwrap(), &actual);
        }
        let (desired, host) =
            wanted(snapshots.last().unwrap(), (dataplane.offers_maglev(), dataplane.offers_dsr()));
        let again = diff(&desired, &host, &actual);
        let refused = refused(&dataplane.apply(&again).unwrap())?;
        prop_assert_eq!(again.len(), refused.len());
        prop_assert_eq!(dataplane.read().unwrap(), without(held(&desired, &host), &refused));
        Ok(())
    });
}

/// An empty desired state leaves nothing behind; an incomplete one takes nothing away.
pub(crate) fn nothing_is_left<D: Dataplane>(make: impl Fn() -> D, cases: u32) {
    run(cases, &world::snapshot(), |snapshot| {
        let mut dataplane = make();
        bring(&mut dataplane, &snapshot)?;
        let before = dataplane.read().unwrap();
        let unsynced = diff(&desired(&Snapshot::default(), &NodeView::default()), &before.host, &before);
        prop_assert_eq!(unsynced, Plan::default());
        let empty = Snapshot { synced: true, ..Snapshot::default() };
        bring(&mut dataplane, &empty)?;
        prop_assert_eq!(dataplane.read().unwrap(), Actual::default());
        Ok(())
    });
}

/// However often it fails: read, compare, apply, and in the end what is desired is held.
pub(crate) fn it_converges<D: Dataplane>(make: impl Fn() -> D, cases: u32) {
    run(cases, &prop::collection::vec(world::snapshot(), 1..3), |snapshots| {
        let mut dataplane = make();
        for snapshot in &snapshots {
            let (desired, host) = wanted(snapshot, (dataplane.offers_maglev(), dataplane.offers_dsr()));
            let mut wanted = held(&desired, &host);
            let mut rounds = 0;
            loop {
                if let Ok(actual) = dataplane.read() {
                    if actual == wanted {
                        break;
                    }
                    // Whatever else comes of it: the next round reads.
                    let applied = dataplane.apply(&diff(&desired, &host, &actual)).unwrap_or_default();
                    for failure in applied.failed {
                        if let (Subject::Frontend(key), DataplaneError::Unsupported { .. }) =
                            (failure.subject, failure.error)
                        {
                            wanted.frontends.remove(&key);
                        }
                    }
                }
                rounds += 1;
                prop_assert!(rounds < 500, "does not converge");
            }
        }
        Ok(())
    });
}

macro_rules! dataplane_battery {
    ($name:ident, $cases:expr, $make:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn what_is_applied_is_read_back() {
                laws::what_is_applied_is_read_back($make, $cases);
            }

            #[test]
            fn steps_lead_to_the_same() {
                laws::steps_lead_to_the_same($make, $cases);
            }

            #[test]
            fn nothing_is_left() {
                laws::nothing_is_left($make, $cases);
            }

            #[test]
            fn it_converges() {
                laws::it_converges($make, $cases);
            }
        }
    };
}
pub(crate) use dataplane_battery;
