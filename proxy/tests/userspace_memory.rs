//! The battery over the userspace data plane with sockets in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "battery/laws.rs"]
mod laws;
#[path = "battery/world.rs"]
mod world;

use laws::dataplane_battery;
use seaway_proxy::dataplane::Dataplane as _;
use seaway_proxy::dataplane::faulty::Faulty;
use seaway_proxy::dataplane::userspace::{Memory, Userspace};

fn make() -> Userspace<Memory> {
    Userspace::new(Memory::default())
}

dataplane_battery!(userspace, 64, make);

#[test]
fn faulty_userspace_converges() {
    laws::it_converges(|| Faulty::new(make(), 10, 9), 32);
}

/// What does not listen any more is not read back, so that it is opened anew.
#[test]
fn a_socket_that_died_is_missed() {
    use proptest::strategy::{Strategy as _, ValueTree as _};
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut dataplane = make();
    loop {
        let snapshot = world::snapshot().new_tree(&mut runner).unwrap().current();
        laws::bring(&mut dataplane, &snapshot).unwrap();
        let lost = dataplane.network().open.lock().unwrap().pop_last();
        let Some(((key, _), _)) = lost else { continue };
        let held = dataplane.read().unwrap();
        assert!(
            !held
                .frontends
                .keys()
                .any(|f| (f.addr, f.port, f.protocol) == (key.addr, key.port, key.protocol))
        );
        laws::bring(&mut dataplane, &snapshot).unwrap();
        break;
    }
}
