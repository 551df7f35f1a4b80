//! What the eBPF data plane needs of a kernel, the real one and one in memory.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

use seaway_ebpf_loader as loader;
use seaway_ebpf_loader::{DropReason, FakeMaps, KernelMaps, ServiceMaps};
use seaway_model::Protocol;

use crate::dataplane::{DataplaneError, SocketTable};
use crate::sockets::Translation;
use crate::status::DropCount;

/// Maps, and links that programs are attached to.
pub trait Kernel: Send {
    /// Its maps.
    type Maps: ServiceMaps;

    /// The maps.
    fn maps(&mut self) -> &mut Self::Maps;

    /// Makes exactly these links carry the packet programs. Returns those that do not exist.
    fn attach(&mut self, devices: &[String]) -> Result<Vec<String>, DataplaneError>;

    /// The links that carry them.
    fn attached(&self) -> Result<BTreeSet<String>, DataplaneError>;

    /// Packets dropped, by reason.
    fn drops(&self) -> Vec<DropCount>;

    /// The table of translated sockets, for another thread.
    fn sockets(&self) -> Option<Box<dyn SocketTable>> {
        None
    }
}

impl SocketTable for KernelMaps {
    fn translated(&self) -> Result<Vec<Translation>, DataplaneError> {
        let failed = |source| DataplaneError::Loader {
            action: "cannot list the sockets that were translated",
            source: Box::new(source),
        };
        let flows = self.socket_flows().map_err(failed)?;
        let connected = flows.into_iter().filter(|flow| !flow.sticky);
        let translation = |flow: loader::SocketFlow| Translation {
            cookie: flow.cookie,
            protocol: match flow.protocol {
                loader::Protocol::Tcp => Protocol::Tcp,
                loader::Protocol::Udp => Protocol::Udp,
            },
            frontend: flow.frontend,
            backend: flow.backend,
        };
        Ok(connected.map(translation).collect())
    }
}

/// The kernel that this process runs on, with the programs loaded.
#[derive(Debug)]
pub struct Loaded {
    dataplane: loader::Dataplane,
    maps: KernelMaps,
}

impl Loaded {
    /// Loads the programs, adopts the maps, attaches the socket hooks.
    pub(super) fn open(bpffs: &Path, cgroup: &Path) -> Result<Self, DataplaneError> {
        let mut dataplane = loader::Dataplane::open(bpffs, &loader::Capacities::default())
            .map_err(failed("cannot load the eBPF programs"))?;
        dataplane.attach_cgroup(cgroup).map_err(failed("cannot attach the socket programs to the cgroup"))?;
        let maps = dataplane.maps();
        Ok(Self { dataplane, maps })
    }
}

impl Kernel for Loaded {
    type Maps = KernelMaps;

    fn maps(&mut self) -> &mut KernelMaps {
        &mut self.maps
    }

    fn attach(&mut self, devices: &[String]) -> Result<Vec<String>, DataplaneError> {
        self.dataplane.attach_devices(devices).map_err(failed("cannot attach the packet programs"))
    }

    fn attached(&self) -> Result<BTreeSet<String>, DataplaneError> {
        let attached =
            self.dataplane.attached().map_err(failed("cannot list what the programs are attached to"))?;
        Ok(attached.into_iter().map(|link| link.target).collect())
    }

    fn drops(&self) -> Vec<DropCount> {
        drops_of(&self.maps)
    }

    fn sockets(&self) -> Option<Box<dyn SocketTable>> {
        Some(Box::new(self.maps.clone()))
    }
}

/// A kernel in memory, with the map limits of the real one.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Its maps.
    pub maps: FakeMaps,
    /// Links that programs are attached to.
    pub devices: BTreeSet<String>,
}

impl Memory {
    /// Empty maps with room for this much.
    pub fn new(service_capacity: u32, backend_capacity: u32) -> Self {
        Self { maps: FakeMaps::new(service_capacity, backend_capacity), devices: BTreeSet::new() }
    }
}

impl Kernel for Memory {
    type Maps = FakeMaps;

    fn maps(&mut self) -> &mut FakeMaps {
        &mut self.maps
    }

    fn attach(&mut self, devices: &[String]) -> Result<Vec<String>, DataplaneError> {
        self.devices = devices.iter().cloned().collect();
        Ok(Vec::new())
    }

    fn attached(&self) -> Result<BTreeSet<String>, DataplaneError> {
        Ok(self.devices.clone())
    }

    fn drops(&self) -> Vec<DropCount> {
        drops_of(&self.maps)
    }
}

fn drops_of(maps: &impl ServiceMaps) -> Vec<DropCount> {
    let counters = maps.counters().unwrap_or_default();
    let drops =
        counters.into_iter().filter_map(|(counter, packets)| Some((DropReason::of(counter)?, packets)));
    drops
        .filter(|(_, packets)| *packets > 0)
        .map(|(reason, packets)| DropCount { reason: reason.name().to_owned(), packets })
        .collect()
}

/// The cookie of the network namespace that this thread is in.
pub(super) fn netns_cookie() -> Result<u64, DataplaneError> {
    loader::netns_cookie().map_err(failed("cannot read the cookie of the network namespace"))
}

/// Removes everything below `bpffs`.
pub(crate) fn remove_all(bpffs: &Path) -> Result<(), DataplaneError> {
    loader::remove_all(bpffs).map_err(failed("cannot remove the eBPF programs and maps"))
}

fn failed(action: &'static str) -> impl Fn(loader::LoadError) -> DataplaneError {
    move |source| DataplaneError::Loader { action, source: Box::new(source) }
}

/// The NodePort range of the API server by default.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Below are the ports of well-known services.
const FIRST_PORT: u16 = 1024;

/// The ports of source NAT: the longest run that holds neither NodePorts nor ports that the node's own processes use
/// when they connect.
pub(super) fn snat_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().map(str::parse::<u16>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(first)), Some(Ok(last))) => longest_free_run(&[NODE_PORTS, first..=last]),
        _ => longest_free_run(&[NODE_PORTS, 32_768..=60_999]),
    }
}

fn longest_free_run(taken: &[RangeInclusive<u16>]) -> RangeInclusive<u16> {
    let mut best = FIRST_PORT..=FIRST_PORT;
    let mut start = None;
    for port in FIRST_PORT..=u16::MAX {
        if taken.iter().any(|range| range.contains(&port)) {
            start = None;
            continue;
        }
        let first = *start.get_or_insert(port);
        if port - first > best.end() - best.start() {
            best = first..=port;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_nat_keeps_off_node_ports_and_ephemeral_ports() {
        assert_eq!(longest_free_run(&[NODE_PORTS, 32_768..=60_999]), 1024..=29_999);
        assert_eq!(longest_free_run(&[NODE_PORTS, 1024..=29_999]), 32_768..=65_535);
    }
}
