//! What the eBPF data plane needs of a kernel, the real one and one in memory.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use seaway_ebpf_loader as loader;
use seaway_ebpf_loader::{DropReason, FakeMaps, KernelMaps, Role, ServiceMaps};
use seaway_model::Protocol;
use seaway_nft::conntrack::Flow;

use super::codec;
use crate::dataplane::{DataplaneError, SocketTable};
use crate::frontend::Group;
use crate::sockets::Translation;
use crate::status::{DropCount, Xdp, XdpUplink};
use crate::traffic::{Traffic, TrafficTable};

/// Entries of the maps that this process writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// Frontends and guards.
    pub services: u32,
    /// Backends of all slices.
    pub backends: u32,
    /// Source ranges.
    pub source_ranges: u32,
    /// Chunks of Maglev tables.
    pub maglev: u32,
}

impl Room {
    /// What there is.
    pub(super) fn of(maps: &impl ServiceMaps) -> Self {
        Self {
            services: maps.service_capacity(),
            backends: maps.backend_capacity(),
            source_ranges: maps.source_range_capacity(),
            maglev: maps.maglev_capacity(),
        }
    }

    /// What there should be when `needed` is used: no map is more than four fifths full. One that is larger already
    /// stays as it is.
    #[must_use]
    pub(super) fn for_use(self, needed: Self) -> Self {
        // Exchanging a map costs a run of the verifier, and room that nobody uses memory.
        let one = |room: u32, needed: u32| {
            if needed <= room / 5 * 4 { room } else { needed.saturating_add(needed / 2) }
        };
        Self {
            services: one(self.services, needed.services),
            backends: one(self.backends, needed.backends),
            source_ranges: one(self.source_ranges, needed.source_ranges),
            maglev: one(self.maglev, needed.maglev),
        }
    }
}

/// Maps, and links that programs are attached to.
pub trait Kernel: Send {
    /// Its maps.
    type Maps: ServiceMaps;

    /// The maps.
    fn maps(&mut self) -> &mut Self::Maps;

    /// Exchanges maps for ones with at least so much room, where that is possible. The content stays.
    fn grow(&mut self, room: &Room) -> Result<(), DataplaneError>;

    /// Makes exactly these links carry the packet programs of their roles, while `work` is done on the maps: at each
    /// link the kernel waits for the packets that are on their way there. Returns the links that do not exist, and what
    /// `work` returned.
    fn attach_during<R>(
        &mut self,
        devices: &[(String, Role)],
        work: impl FnOnce(&mut Self::Maps) -> R,
    ) -> (Result<Vec<String>, DataplaneError>, R);

    /// The links that carry them, with the role whose programs they are.
    fn attached(&self) -> Result<BTreeSet<(String, Role)>, DataplaneError>;

    /// Looks anew at which of the links can run the XDP program, where it is switched on.
    fn renew_xdp(&mut self) -> Result<(), DataplaneError> {
        Ok(())
    }

    /// What XDP does, where it is switched on.
    fn xdp(&self) -> Xdp {
        Xdp::default()
    }

    /// Packets dropped, by reason.
    fn drops(&self) -> Vec<DropCount>;

    /// TCP connections that the kernel's connection tracking translates.
    fn tracked(&self) -> Vec<Flow> {
        Vec::new()
    }

    /// Has the kernel's connection tracking forget those of `tracked` that have ended. Sockets of the node now reach
    /// backends by themselves; under a port that tracking has not given back yet the kernel would choose another for
    /// them, perhaps one that source NAT of the programs has.
    fn forget_ended(&self, tracked: &[Flow]) {
        let _ = tracked;
    }

    /// TCP connections that end at sockets of the node itself.
    fn accepted(&self) -> Vec<loader::Connection> {
        Vec::new()
    }

    /// Waits until no packet is on its way any more that has met the maps as they were before.
    fn settle(&self) {}

    /// The table of what is counted per backend, for another thread.
    fn traffic(&self) -> Option<Box<dyn TrafficTable>> {
        None
    }

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

impl TrafficTable for KernelMaps {
    fn traffic(&self) -> Result<Vec<Traffic>, DataplaneError> {
        named_traffic(self).map_err(|source| DataplaneError::Loader {
            action: "cannot read what was counted per backend",
            source: Box::new(source),
        })
    }
}

/// What was counted, by the groups that the entries of the maps belong to.
fn named_traffic(maps: &impl ServiceMaps) -> Result<Vec<Traffic>, loader::MapError> {
    let services = maps.services()?;
    let group = |(key, entry): &(loader::Frontend, loader::ServiceEntry)| {
        let (frontend, _) = codec::frontend(&codec::frontend_key(key)?, entry)?;
        Some((entry.id, frontend.group))
    };
    let groups: HashMap<u32, Group> = services.iter().filter_map(group).collect();
    let named = |counted: loader::Traffic| {
        let group = *groups.get(&counted.service)?;
        let loader::Traffic { backend, connections, packets_in, bytes_in, packets_out, bytes_out, .. } =
            counted;
        Some(Traffic { group, backend, connections, packets_in, bytes_in, packets_out, bytes_out })
    };
    Ok(maps.traffic()?.into_iter().filter_map(named).collect())
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

    /// Has uplinks run the XDP program from the next attachment on.
    pub(super) fn set_xdp(&mut self, mode: loader::XdpMode) {
        self.dataplane.set_xdp(mode);
    }
}

impl Kernel for Loaded {
    type Maps = KernelMaps;

    fn maps(&mut self) -> &mut KernelMaps {
        &mut self.maps
    }

    fn grow(&mut self, room: &Room) -> Result<(), DataplaneError> {
        let wanted = loader::Capacities {
            services: room.services,
            backends: room.backends,
            source_ranges: room.source_ranges,
            maglev: room.maglev,
            ..loader::Capacities::default()
        };
        if self.dataplane.grow(&wanted).map_err(failed("cannot exchange the maps for larger ones"))? {
            tracing::info!(?room, "exchanged maps for larger ones");
        }
        Ok(())
    }

    fn attach_during<R>(
        &mut self,
        devices: &[(String, Role)],
        work: impl FnOnce(&mut KernelMaps) -> R,
    ) -> (Result<Vec<String>, DataplaneError>, R) {
        let Self { dataplane, maps } = self;
        let (attached, done) = std::thread::scope(|scope| {
            let attaching = scope.spawn(|| dataplane.attach_devices(devices));
            let done = work(maps);
            (attaching.join().unwrap_or_else(|panic| resume_unwind(panic)), done)
        });
        (attached.map_err(failed("cannot attach the packet programs")), done)
    }

    fn attached(&self) -> Result<BTreeSet<(String, Role)>, DataplaneError> {
        let attached =
            self.dataplane.attached().map_err(failed("cannot list what the programs are attached to"))?;
        // Whether it runs the XDP program does not make a link one that carries the others.
        let packets = attached.into_iter().filter(|link| !link.program.starts_with("sw_xdp"));
        Ok(packets.filter_map(|link| Some((link.target, link.role?))).collect())
    }

    fn renew_xdp(&mut self) -> Result<(), DataplaneError> {
        self.dataplane.renew_xdp().map_err(failed("cannot attach the XDP program"))
    }

    fn xdp(&self) -> Xdp {
        let uplink = |device: &loader::XdpDevice| XdpUplink {
            device: device.device.clone(),
            mode: device.mode.name(),
            note: device.note.clone(),
        };
        let uplinks: Vec<XdpUplink> = self.dataplane.xdp().iter().map(uplink).collect();
        let counted = |counters: Vec<(loader::Counter, u64)>| {
            counters.into_iter().find(|(counter, _)| *counter == loader::Counter::XdpForwarded)
        };
        let packets = if uplinks.is_empty() { None } else { self.maps.counters().ok().and_then(counted) };
        Xdp { uplinks, packets: packets.map_or(0, |(_, packets)| packets) }
    }

    fn drops(&self) -> Vec<DropCount> {
        drops_of(&self.maps)
    }

    fn sockets(&self) -> Option<Box<dyn SocketTable>> {
        Some(Box::new(self.maps.clone()))
    }

    fn traffic(&self) -> Option<Box<dyn TrafficTable>> {
        Some(Box::new(self.maps.clone()))
    }

    fn tracked(&self) -> Vec<Flow> {
        crate::dataplane::translated_tcp()
    }

    fn forget_ended(&self, tracked: &[Flow]) {
        crate::dataplane::forget_ended(tracked);
    }

    fn accepted(&self) -> Vec<loader::Connection> {
        let open = crate::sockets::open_tcp().unwrap_or_default();
        let inbound = |(own, other)| loader::Connection::untouched(loader::Protocol::Tcp, other, own);
        open.into_iter().map(inbound).collect()
    }

    fn settle(&self) {
        // The kernel waits for a grace period of RCU; the programs, and the stack behind them, run within one.
        if let Err(error) = rustix::thread::membarrier(rustix::thread::MembarrierCommand::Global) {
            tracing::debug!(%error, "cannot wait for packets on their way");
        }
    }
}

/// A kernel in memory, with the map limits of the real one.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Its maps.
    pub maps: FakeMaps,
    /// Links that programs are attached to.
    pub devices: BTreeSet<(String, Role)>,
    /// Maps are exchanged for larger ones when that is asked for.
    pub grows: bool,
    /// Connections that somebody else translates.
    pub tracked: Vec<Flow>,
    /// How many of them were forgotten.
    pub forgotten: std::cell::Cell<usize>,
    /// Connections that end at sockets of the node.
    pub accepted: Vec<loader::Connection>,
    /// Whether the programs left connections to others when [`Kernel::settle`] was called.
    pub settled_while_taking_over: std::cell::Cell<Option<bool>>,
}

impl Memory {
    /// Empty maps with room for this much.
    pub fn new(service_capacity: u32, backend_capacity: u32) -> Self {
        Self {
            maps: FakeMaps::new(service_capacity, backend_capacity),
            devices: BTreeSet::new(),
            grows: false,
            tracked: Vec::new(),
            forgotten: std::cell::Cell::new(0),
            accepted: Vec::new(),
            settled_while_taking_over: std::cell::Cell::new(None),
        }
    }
}

impl Kernel for Memory {
    type Maps = FakeMaps;

    fn maps(&mut self) -> &mut FakeMaps {
        &mut self.maps
    }

    fn grow(&mut self, room: &Room) -> Result<(), DataplaneError> {
        if self.grows {
            self.maps.grow(room.services, room.backends, room.maglev);
        }
        Ok(())
    }

    fn attach_during<R>(
        &mut self,
        devices: &[(String, Role)],
        work: impl FnOnce(&mut FakeMaps) -> R,
    ) -> (Result<Vec<String>, DataplaneError>, R) {
        self.devices = devices.iter().cloned().collect();
        (Ok(Vec::new()), work(&mut self.maps))
    }

    fn attached(&self) -> Result<BTreeSet<(String, Role)>, DataplaneError> {
        Ok(self.devices.iter().map(|(name, role)| (name.clone(), role.programs())).collect())
    }

    fn drops(&self) -> Vec<DropCount> {
        drops_of(&self.maps)
    }

    fn traffic(&self) -> Option<Box<dyn TrafficTable>> {
        Some(Box::new(InMemory(self.maps.clone())))
    }

    fn tracked(&self) -> Vec<Flow> {
        self.tracked.clone()
    }

    fn forget_ended(&self, tracked: &[Flow]) {
        let ended = tracked.iter().filter(|flow| !flow.is_open()).count();
        self.forgotten.set(self.forgotten.get() + ended);
    }

    fn accepted(&self) -> Vec<loader::Connection> {
        self.accepted.clone()
    }

    fn settle(&self) {
        self.settled_while_taking_over.set(Some(self.maps.config.taking_over));
    }
}

/// Maps in memory as they are at a moment.
struct InMemory(FakeMaps);

impl TrafficTable for InMemory {
    fn traffic(&self) -> Result<Vec<Traffic>, DataplaneError> {
        Ok(named_traffic(&self.0).unwrap_or_default())
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

/// A connection that has been silent for so long keeps nobody from removing the programs.
const TCP_SILENT: Duration = Duration::from_secs(900);
const UDP_SILENT: Duration = Duration::from_secs(30);

/// Programs that translate no new connection, and go once those that they translate have ended.
pub(crate) struct Retiring {
    maps: KernelMaps,
    bpffs: PathBuf,
}

impl Retiring {
    /// `None`: there are none.
    pub(crate) fn begin(bpffs: &Path) -> Result<Option<Self>, DataplaneError> {
        if !bpffs.join("links").exists() {
            remove_all(bpffs)?;
            return Ok(None);
        }
        // What is attached goes on running: this only reaches for the maps.
        let dataplane = loader::Dataplane::open(bpffs, &loader::Capacities::default())
            .map_err(failed("cannot reach the maps of the eBPF programs"))?;
        Ok(Some(Self { maps: dataplane.maps(), bpffs: bpffs.to_owned() }))
    }

    /// False: some connections are still open.
    pub(crate) fn end(&mut self) -> Result<bool, DataplaneError> {
        if end_services(&mut self.maps).map_err(failed_map)? > 0 {
            return Ok(false);
        }
        remove_all(&self.bpffs)?;
        Ok(true)
    }
}

/// Removes all services. Returns how many connections are still open.
fn end_services(maps: &mut impl ServiceMaps) -> Result<usize, loader::MapError> {
    let frontends = guards_first(maps.services()?.into_iter().map(|(frontend, _)| frontend).collect());
    if !frontends.is_empty() {
        maps.remove_services(&frontends)?;
    }
    let silent = |flow: &loader::Connection| match flow.protocol {
        loader::Protocol::Tcp => TCP_SILENT,
        loader::Protocol::Udp => UDP_SILENT,
    };
    let flows = maps.connections()?;
    // What stays as it is does so without programs, too.
    let translated = flows.iter().filter(|flow| flow.from != flow.to);
    Ok(translated.filter(|flow| !flow.closing && flow.idle < silent(flow)).count())
}

/// An address first stops to refuse its other ports: it would refuse its own one as soon as that is removed.
fn guards_first(mut frontends: Vec<loader::Frontend>) -> Vec<loader::Frontend> {
    frontends.sort_by_key(|frontend| frontend.port != 0);
    frontends
}

fn failed_map(source: loader::MapError) -> DataplaneError {
    DataplaneError::Loader { action: "the maps of the eBPF data plane failed", source: Box::new(source) }
}

fn failed(action: &'static str) -> impl Fn(loader::LoadError) -> DataplaneError {
    move |source| DataplaneError::Loader { action, source: Box::new(source) }
}

/// The ports of source NAT: beside the reserved ones, those that the node's own processes use when they connect are not
/// for it, since nothing tracks these.
pub(super) fn snat_ports() -> RangeInclusive<u16> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let mut taken = seaway_model::port_ranges(&read("ip_local_reserved_ports"));
    taken.push(ephemeral(&read("ip_local_port_range")));
    seaway_model::snat_ports(&taken)
}

fn ephemeral(text: &str) -> RangeInclusive<u16> {
    let mut bounds = text.split_whitespace().map(str::parse::<u16>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => 32_768..=60_999,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_of_the_nodes_own_connections_are_known() {
        assert_eq!(ephemeral("20000\t40000\n"), 20_000..=40_000);
        assert_eq!(ephemeral(""), 32_768..=60_999);
    }

    #[test]
    fn maps_that_fill_are_to_be_larger() {
        let room = Room { services: 1000, backends: 1000, source_ranges: 1000, maglev: 1000 };
        let needed = Room { services: 800, backends: 801, source_ranges: 0, maglev: 60_000 };
        let larger = Room { services: 1000, backends: 1201, source_ranges: 1000, maglev: 90_000 };
        assert_eq!(room.for_use(needed), larger);
        assert_eq!(larger.for_use(needed), larger);
    }

    #[test]
    fn an_address_refuses_nothing_while_its_services_go() {
        let addr = "10.96.0.1".parse().unwrap();
        let web = loader::Frontend::new(addr, 80, loader::Protocol::Tcp, loader::Scope::Internal);
        let guard = loader::Frontend::any_port(addr, loader::Scope::Internal);
        assert_eq!(guards_first(vec![web, guard, web]), [guard, web, web]);
    }
}
