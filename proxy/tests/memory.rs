//! The battery over the data planes that live in memory, and what the desired state must fulfil by itself.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "battery/laws.rs"]
mod laws;
#[path = "battery/world.rs"]
mod world;

use laws::dataplane_battery;
use proptest::prelude::*;
use seaway_proxy::dataplane::Dataplane as _;
use seaway_proxy::dataplane::ebpf::{Ebpf, Memory};
use seaway_proxy::dataplane::fake::Fake;
use seaway_proxy::dataplane::faulty::Faulty;
use seaway_proxy::desired::{Computation, NodeView, desired};
use seaway_proxy::plan::{Host, diff};

fn ebpf_in_memory() -> Ebpf<Memory> {
    Ebpf::new(Memory::new(4096, 4096), 1024..=29_999, 1)
}

dataplane_battery!(fake, 48, Fake::default);
dataplane_battery!(ebpf_maps_in_memory, 48, ebpf_in_memory);

#[test]
fn faulty_fake_converges() {
    laws::it_converges(|| Faulty::new(Fake::default(), 30, 7), 48);
}

#[test]
fn faulty_ebpf_converges() {
    laws::it_converges(|| Faulty::new(ebpf_in_memory(), 10, 11), 48);
}

fn view() -> NodeView {
    NodeView {
        name: world::NODE.into(),
        zone: Some("z1".into()),
        node_port_addresses: vec!["172.30.0.11".parse().unwrap(), "fd00:10:30::11".parse().unwrap()],
        node_port_loopback: true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// The desired state depends on the last snapshot only: not on the order of events, not on what was before.
    #[test]
    fn the_past_does_not_matter(past in prop::collection::vec(world::snapshot(), 0..4), now in world::snapshot()) {
        let mut computation = Computation::default();
        for snapshot in past.iter().chain([&now]) {
            computation.update(snapshot, &view());
        }
        let fresh = desired(&now, &view());
        prop_assert_eq!(&computation.desired().frontends, &fresh.frontends);
        prop_assert_eq!(computation.desired().conflicts(), fresh.conflicts());
        prop_assert_eq!(computation.desired().backend_count(), fresh.backend_count());
        prop_assert_eq!(computation.desired().service_count(), fresh.service_count());
        prop_assert_eq!(computation.desired().no_local_endpoints(), fresh.no_local_endpoints());
    }

    /// Backends are ordered, without copies, of the frontend's family; a frontend that says "elsewhere" has none.
    #[test]
    fn frontends_are_well_formed(snapshot in world::snapshot()) {
        for (key, entry) in &desired(&snapshot, &view()).frontends {
            let backends = &entry.frontend.backends;
            prop_assert!(backends.windows(2).all(|pair| (pair[0].addr, pair[0].port) < (pair[1].addr, pair[1].port)));
            prop_assert!(backends.iter().all(|b| b.addr.is_ipv4() == key.addr.is_ipv4()));
            prop_assert!(!entry.frontend.elsewhere || backends.is_empty());
            if entry.frontend.preserve_source {
                prop_assert!(backends.iter().all(|b| b.local));
            }
        }
    }

    /// A process that starts anew finds what the former one left, and has nothing to do.
    #[test]
    fn a_restart_adopts(snapshot in world::snapshot(), next in world::snapshot()) {
        let mut former = ebpf_in_memory();
        let wanted = desired(&snapshot, &view());
        let plan = diff(&wanted, &Host::default(), &former.read().unwrap());
        former.apply(&plan).unwrap();
        let mut successor = Ebpf::new(former.kernel().clone(), 1024..=29_999, 1);
        let actual = successor.read().unwrap();
        prop_assert!(diff(&wanted, &Host::default(), &actual).is_empty());
        let writes = successor.kernel().maps.writes;
        prop_assert_eq!(writes, former.kernel().maps.writes, "reading writes nothing");
        let changed = desired(&next, &view());
        successor.apply(&diff(&changed, &Host::default(), &actual)).unwrap();
        prop_assert!(diff(&changed, &Host::default(), &successor.read().unwrap()).is_empty());
    }
}
