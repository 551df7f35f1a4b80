//! The battery over the nftables data plane, in memory (any user) and in the real kernel, in a network namespace of its
//! own (root).
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "battery/laws.rs"]
mod laws;
#[path = "support/netns.rs"]
mod netns;
#[path = "battery/world.rs"]
mod world;

use std::cell::OnceCell;
use std::sync::{Arc, Mutex};

use laws::dataplane_battery;
use netns::Netns;
use seaway_proxy::dataplane::faulty::Faulty;
use seaway_proxy::dataplane::nftables::{Memory, Netlink, Nftables};
use seaway_proxy::dataplane::{Applied, Dataplane, DataplaneError};
use seaway_proxy::plan::{Actual, Plan};

fn in_memory() -> Nftables<Memory> {
    Nftables::new(Memory::default())
}

dataplane_battery!(in_memory_battery, 48, in_memory);

#[test]
fn faulty_memory_converges() {
    laws::it_converges(|| Faulty::new(in_memory(), 10, 11), 48);
}

/// Reads as a successor would every time: a new process that knows nothing.
#[derive(Clone, Default)]
struct Forgetful(Arc<Mutex<Memory>>);

impl Forgetful {
    fn with<R>(&self, call: impl FnOnce(&mut Nftables<Memory>) -> R) -> R {
        let mut held = self.0.lock().unwrap();
        let mut dataplane = Nftables::new(held.clone());
        let result = call(&mut dataplane);
        *held = dataplane.kernel().clone();
        result
    }
}

impl Dataplane for Forgetful {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn read(&mut self) -> Result<Actual, DataplaneError> {
        self.with(Dataplane::read)
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        self.with(|dataplane| dataplane.apply(plan))
    }
}

dataplane_battery!(adopting_battery, 48, Forgetful::default);

/// The data plane in a network namespace that the test's thread has entered.
struct InKernel {
    inner: Nftables<Netlink>,
}

impl Dataplane for InKernel {
    fn name(&self) -> &'static str {
        "nftables"
    }

    /// Always from the kernel, as a successor would.
    fn read(&mut self) -> Result<Actual, DataplaneError> {
        self.inner = Nftables::open()?;
        self.inner.read()
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        self.inner.apply(plan)
    }
}

fn in_kernel() -> impl Fn() -> InKernel {
    let namespace: OnceCell<Netns> = OnceCell::new();
    move || {
        let namespace = namespace.get_or_init(|| Netns::enter("battery"));
        namespace.nft("flush ruleset");
        InKernel { inner: Nftables::open().unwrap() }
    }
}

dataplane_battery!(kernel_battery, 16, in_kernel());

#[test]
fn faulty_kernel_converges() {
    let make = in_kernel();
    laws::it_converges(|| Faulty::new(make(), 10, 5), 8);
}
