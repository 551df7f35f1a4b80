//! What to do so that the kernel holds what is desired: a pure difference of two values.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;

use crate::desired::Desired;
use crate::frontend::{Frontend, FrontendKey};

/// What a data plane holds, as read back from it or as known from what was applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// All frontends.
    pub frontends: OrdMap<FrontendKey, Arc<Frontend>>,
    /// The links that it is attached to.
    pub devices: BTreeSet<Device>,
}

/// A link of this node that packets pass.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// Its index: a link that was deleted and made again has the same name and another index.
    pub index: u32,
    /// Its name.
    pub name: Arc<str>,
    /// What arrives there.
    pub role: DeviceRole,
}

/// What arrives at a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceRole {
    /// Packets from outside of the node.
    Uplink,
    /// Packets of a pod (the host side of its veth).
    Pod,
}

/// Ordered steps: links first, so that frontends are reachable as soon as they exist; new and changed frontends
/// before those that go, so that nothing is missing in between.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Links to attach to.
    pub attach: Vec<Device>,
    /// Frontends to write, by key.
    pub upserts: Vec<(FrontendKey, Arc<Frontend>)>,
    /// Frontends to remove, by key.
    pub removals: Vec<FrontendKey>,
    /// Links to detach from.
    pub detach: Vec<Device>,
}

impl Plan {
    /// There is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of steps.
    pub fn len(&self) -> usize {
        self.attach.len() + self.upserts.len() + self.removals.len() + self.detach.len()
    }
}

/// Everything that differs between `desired` and `actual`. Nothing is pruned while `desired` is incomplete.
pub fn diff(desired: &Desired, devices: &BTreeSet<Device>, actual: &Actual) -> Plan {
    let keys: BTreeSet<FrontendKey> =
        desired.frontends.keys().chain(actual.frontends.keys()).copied().collect();
    diff_of(keys, desired, devices, actual)
}

/// As [`diff`], looking only at `keys`.
pub fn diff_of(
    keys: impl IntoIterator<Item = FrontendKey>,
    desired: &Desired,
    devices: &BTreeSet<Device>,
    actual: &Actual,
) -> Plan {
    let mut plan = Plan { attach: devices.difference(&actual.devices).cloned().collect(), ..Plan::default() };
    for key in keys {
        match (desired.frontends.get(&key), actual.frontends.get(&key)) {
            (Some(wanted), held) if held != Some(&wanted.frontend) => {
                plan.upserts.push((key, Arc::clone(&wanted.frontend)));
            }
            (None, Some(_)) if desired.complete => plan.removals.push(key),
            _ => {}
        }
    }
    if desired.complete {
        plan.detach = actual.devices.difference(devices).cloned().collect();
    }
    plan
}
