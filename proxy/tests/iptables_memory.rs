//! The battery over the iptables data plane with tables in memory, the rules themselves, and what becomes of packets
//! that meet them.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "battery/laws.rs"]
mod laws;
#[path = "battery/world.rs"]
mod world;

use laws::dataplane_battery;
use seaway_proxy::dataplane::faulty::Faulty;
use seaway_proxy::dataplane::iptables::{Iptables, Memory};

fn make() -> Iptables<Memory> {
    Iptables::new(Memory::new()).unwrap()
}

dataplane_battery!(iptables, 64, make);

#[test]
fn faulty_iptables_converges() {
    laws::it_converges(|| Faulty::new(make(), 10, 7), 32);
}
