//! The eBPF data plane: socket hooks for traffic that starts on this node, tcx for what arrives from outside.
//!
//! Backends of a frontend are a slice of one big array. To change them, the new slice is written to unused room, then
//! the frontend's entry is pointed to it in one write, then the old slice is given back: a lookup never meets a
//! half-written one. All knowledge about the maps is rebuilt from the maps at start; nothing is flushed.

mod alloc;
mod cluster;
mod codec;
mod flows;
mod kernel;
mod layout;
mod masquerade;

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use seaway_ebpf_loader as loader;
use seaway_ebpf_loader::{MapError, Role, ServiceMaps};
use seaway_nft::conntrack::Flow;

pub use kernel::{Kernel, Loaded, Memory, Room};
pub(crate) use kernel::{Retiring, remove_all};

use super::{Applied, Dataplane, DataplaneError, Failure, SocketTable, Subject};
use crate::frontend::FrontendKey;
use crate::masquerade::PORTS_MIN;
use crate::plan::{Actual, ClusterNets, Device, Host, Masquerading, Plan};
use crate::stale::{Forgotten, Targets};
use crate::status::{DropCount, Xdp};
use crate::traffic::TrafficTable;
use layout::{Contents, Layout, Ops};

/// Frontends that are compiled and written together. What a first sync needs on its way stays small beside what is
/// kept.
const PART: usize = 2048;

/// The eBPF data plane of one node.
#[derive(Debug)]
pub struct Ebpf<K> {
    kernel: K,
    /// Ports of source NAT.
    snat_ports: RangeInclusive<u16>,
    netns_cookie: u64,
    /// Traffic is counted per Service and backend.
    counting: bool,
    take_over: TakeOver,
    /// `None`: not known, the maps have to be read first.
    layout: Option<Layout>,
    /// The networks that the maps hold, as they were read or written last: they are thousands on a large cluster, and come
    /// along with each change of the node's links. `None`: not known, they are read before they are written.
    nets: Option<Nets>,
    /// Links that this process has attached its own programs to.
    uplinks: BTreeSet<Device>,
    pod_links: BTreeSet<Device>,
    shaped_links: BTreeSet<Device>,
}

/// What addresses are to the node.
type Nets = (Arc<ClusterNets>, Masquerading);

/// How far this process has come with taking over from another mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TakeOver {
    /// Nothing was written yet.
    Ahead,
    /// Services are being written. TCP connections of which the programs have not seen the beginning are not theirs.
    Underway,
    /// Connections of another mode are known one by one, or there was none.
    Over,
}

impl<K: Kernel> Ebpf<K> {
    /// The data plane that is kept in `kernel`. Nothing is written before the first plan.
    pub fn new(kernel: K, snat_ports: RangeInclusive<u16>, netns_cookie: u64) -> Self {
        let (counting, take_over, layout, nets) = (false, TakeOver::Ahead, None, None);
        let none = BTreeSet::new;
        let (uplinks, pod_links, shaped_links) = (none(), none(), none());
        Self {
            kernel,
            snat_ports,
            netns_cookie,
            counting,
            take_over,
            layout,
            nets,
            uplinks,
            pod_links,
            shaped_links,
        }
    }

    /// Where it is kept.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    fn read_layout(&mut self) -> Result<Layout, DataplaneError> {
        let maps = self.kernel.maps();
        let services = maps.services().map_err(map_error)?;
        let ranges = maps.source_ranges().map_err(map_error)?;
        let (capacity, maglev_capacity) = (maps.backend_capacity(), maps.maglev_capacity());
        let ends = services.iter().map(|(_, entry)| entry.base.saturating_add(entry.count));
        let end = ends.filter(|end| *end <= capacity).max().unwrap_or(0);
        let backends = maps.backends(0, end).map_err(map_error)?;
        Ok(Layout::adopt(&Contents { services, ranges, backends, capacity, maglev_capacity }))
    }

    /// The layout as it is known, or else as it is read.
    fn take_layout(&mut self) -> Result<Layout, DataplaneError> {
        self.layout.take().map_or_else(|| self.read_layout(), Ok)
    }

    fn read_host(&mut self) -> Result<Host, DataplaneError> {
        let held = self.kernel.maps().config().map_err(map_error)?;
        let config = self.own_settings(held.clone());
        if config != held {
            self.kernel.maps().set_config(&config).map_err(map_error)?;
        }
        self.kernel.renew_xdp()?;
        let attached = self.kernel.attached()?;
        let held = [
            (&mut self.uplinks, Role::Uplink),
            (&mut self.pod_links, Role::Pod),
            (&mut self.shaped_links, Role::Pod),
        ];
        for (held, role) in held {
            held.retain(|device| attached.contains(&(device.name.to_string(), role)));
        }
        self.nets = None;
        let cluster = Arc::new(cluster::read(&self.kernel.maps().cluster_nets().map_err(map_error)?));
        let masquerading = masquerade::read(&self.kernel.maps().masquerading().map_err(map_error)?);
        // What a crash has left half-written is not there.
        let whole = cluster::around(&cluster.pods, config.clone()) == config;
        self.nets = whole.then(|| (Arc::clone(&cluster), masquerading.clone()));
        Ok(Host {
            node_v4: config.node_v4,
            node_v6: config.node_v6,
            uplinks: self.uplinks.clone(),
            pod_links: self.pod_links.clone(),
            shaped_links: self.shaped_links.clone(),
            cluster: if whole { cluster } else { Arc::default() },
            hand_over: config.hand_over,
            tunnel_port: config.tunnel_port,
            masquerading,
        })
    }

    /// `config` with what this process decides.
    fn own_settings(&self, config: loader::NodeConfig) -> loader::NodeConfig {
        loader::NodeConfig {
            snat_ports: self.snat_ports.clone(),
            netns_cookie: self.netns_cookie,
            stats: self.counting,
            taking_over: self.take_over == TakeOver::Underway,
            ..config
        }
    }

    /// Connections of a former mode are left to it: in the middle of one, packets look to the programs like those of a
    /// new one. From here until the last Service is written no connection counts as new whose beginning was not seen;
    /// only then it is certain that no more of them begin, and all can be listed.
    fn begin_take_over(&mut self, plan: &Plan) -> Result<(), DataplaneError> {
        if self.take_over != TakeOver::Ahead || plan.upserts.is_empty() {
            return Ok(());
        }
        let layout = self.take_layout()?;
        let is_first = layout.is_empty();
        self.layout = Some(layout);
        let tracked = self.kernel.tracked();
        let others = self.others(plan, &tracked);
        self.take_over = if is_first || !others.is_empty() { TakeOver::Underway } else { TakeOver::Over };
        if self.take_over == TakeOver::Underway {
            self.write_settings()?;
            self.kernel.forget_ended(&tracked);
        }
        self.kernel.maps().put_connections(&others).map_err(map_error)
    }

    /// Every new connection has come to the programs for a while.
    fn end_take_over(&mut self, plan: &Plan) -> Result<(), DataplaneError> {
        if self.take_over != TakeOver::Underway {
            return Ok(());
        }
        self.kernel.settle();
        let tracked = self.kernel.tracked();
        self.kernel.forget_ended(&tracked);
        let others = self.others(plan, &tracked);
        self.kernel.maps().put_connections(&others).map_err(map_error)?;
        self.take_over = TakeOver::Over;
        self.write_settings()
    }

    /// The open connections that another mode translates, or that its process has accepted.
    fn others(&self, plan: &Plan, tracked: &[Flow]) -> Vec<loader::Connection> {
        let mut all = self.kernel.accepted();
        // There are more frontends than connections.
        let ends: HashSet<(IpAddr, u16)> = all.iter().map(|connection| connection.from.1).collect();
        let frontends = plan.upserts.iter().map(|(key, _)| (key.addr, key.port));
        let contested: HashSet<(IpAddr, u16)> = frontends.filter(|end| ends.contains(end)).collect();
        all.retain(|connection| contested.contains(&connection.from.1));
        let open = tracked.iter().filter(|flow| flow.zone == 0 && flow.is_open());
        let ends = |end: SocketAddr| (end.ip(), end.port());
        all.extend(open.map(|Flow { original, .. }| {
            let (source, destination) = (ends(original.source), ends(original.destination));
            loader::Connection::untouched(loader::Protocol::Tcp, source, destination)
        }));
        all
    }

    fn write_settings(&mut self) -> Result<(), DataplaneError> {
        let held = self.kernel.maps().config().map_err(map_error)?;
        let config = self.own_settings(held);
        self.kernel.maps().set_config(&config).map_err(map_error)
    }

    /// Gives back what was counted for backends that are gone, or for nobody.
    fn prune_traffic(&mut self) -> Result<(), DataplaneError> {
        let Some(layout) = &self.layout else { return Ok(()) };
        let mut gone = self.kernel.maps().traffic().map_err(map_error)?;
        if self.counting && !gone.is_empty() {
            let serving = layout.backends_by_id();
            gone.retain(|counted| !serving.contains(&(counted.service, counted.backend)));
        }
        if !gone.is_empty() {
            self.kernel.maps().remove_traffic(&gone).map_err(map_error)?;
        }
        Ok(())
    }

    fn prune_flows(&mut self) -> Result<(), DataplaneError> {
        let ended = flows::ended(&self.kernel.maps().connections().map_err(map_error)?);
        if ended.is_empty() {
            return Ok(());
        }
        self.kernel.maps().remove_connections(&ended).map_err(map_error)
    }

    /// Tells the programs of the node. Its links are another matter.
    fn write_host(&mut self, host: &Host) -> Result<(), DataplaneError> {
        let held = self.kernel.maps().config().map_err(map_error)?;
        let config = self.own_settings(loader::NodeConfig {
            node_v4: host.node_v4,
            node_v6: host.node_v6,
            hand_over: host.hand_over,
            tunnel_port: host.tunnel_port,
            ..held
        });
        let config = cluster::around(&host.cluster.pods, config);
        let maps = self.kernel.maps();
        let wanted = (Arc::clone(&host.cluster), host.masquerading.clone());
        if self.nets.as_ref() == Some(&wanted) {
            return maps.set_config(&config).map_err(map_error);
        }
        self.nets = None;
        let nets = cluster::difference(&maps.cluster_nets().map_err(map_error)?, &host.cluster);
        maps.put_cluster_nets(&nets.add).map_err(map_error)?;
        maps.set_config(&config).map_err(map_error)?;
        maps.remove_cluster_nets(&nets.remove).map_err(map_error)?;
        maps.set_masquerading(&masquerade::entries(&host.masquerading)).map_err(map_error)?;
        self.nets = Some(wanted);
        Ok(())
    }

    /// Whether exactly the links of `host` carry the programs.
    fn is_attached(&self, host: &Host) -> bool {
        let held = (&self.uplinks, &self.pod_links, &self.shaped_links);
        held == (&host.uplinks, &host.pod_links, &host.shaped_links)
    }

    /// The links of `host` carry the programs, but for those that do not exist.
    fn note_attached(&mut self, host: &Host, missing: &[String]) -> Result<(), DataplaneError> {
        let there = |devices: &BTreeSet<Device>| {
            devices.iter().filter(|d| !missing.iter().any(|m| **m == *d.name)).cloned().collect()
        };
        (self.uplinks, self.pod_links) = (there(&host.uplinks), there(&host.pod_links));
        self.shaped_links = there(&host.shaped_links);
        // A pod's link that is gone already has no need of programs.
        let missing = missing.iter().find(|name| host.uplinks.iter().any(|device| *device.name == ***name));
        match missing {
            None => Ok(()),
            Some(device) => Err(DataplaneError::Attach {
                device: device.clone(),
                source: "no such link; it is attached to when it appears".into(),
            }),
        }
    }

    /// Exchanges maps that `plan` would fill for larger ones. If that fails, what does not fit is reported frontend by
    /// frontend, as it is when there is no larger map to be had.
    fn make_room(&mut self, layout: &mut Layout, plan: &Plan) {
        let room = Room::of(self.kernel.maps());
        let wanted = room.for_use(layout.needs(plan));
        if wanted != room
            && let Err(error) = self.kernel.grow(&wanted)
        {
            tracing::warn!(error = %error, "maps are nearly full and could not be exchanged");
        }
        layout.extend(&Room::of(self.kernel.maps()));
    }
}

/// Frontends that were not written.
#[derive(Default)]
struct Unserved {
    /// They cannot be placed.
    unplaced: Vec<Failure>,
    /// There was no room in a map.
    unwritten: Vec<Failure>,
}

/// Brings `maps` from `layout` to `plan`, and `layout` with them.
fn write(maps: &mut impl ServiceMaps, layout: &mut Layout, plan: &Plan) -> Result<Unserved, DataplaneError> {
    if plan.len() <= PART {
        let compiled = layout.compile(plan, Instant::now());
        return carry_out(maps, std::iter::once(compiled));
    }
    // While one part is written, the next is compiled.
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel(1);
        scope.spawn(move || {
            let mut parts = plan.parts(PART).map(|part| layout.compile(&part, Instant::now()));
            parts.all(|compiled| sender.send(compiled).is_ok());
        });
        carry_out(maps, receiver.into_iter())
    })
}

/// Carries out what parts of a plan were compiled to.
fn carry_out(
    maps: &mut impl ServiceMaps,
    compiled: impl Iterator<Item = (Ops, Vec<Failure>)>,
) -> Result<Unserved, DataplaneError> {
    let mut unserved = Unserved::default();
    // An address refuses its other ports only once those that it has are there.
    let mut refusals = Ops::default();
    for (mut ops, failed) in compiled {
        refusals.put_services.append(&mut ops.take_refusals());
        unserved.unplaced.extend(failed);
        unserved.unwritten.extend(execute(maps, &ops)?);
    }
    unserved.unwritten.extend(execute(maps, &refusals)?);
    Ok(unserved)
}

/// Carries out `ops` in their order. Returns the frontends for which there was no room.
fn execute(maps: &mut impl ServiceMaps, ops: &Ops) -> Result<Vec<Failure>, DataplaneError> {
    let mut failed = Vec::new();
    if !ops.add_ranges.is_empty() {
        maps.put_source_ranges(&ops.add_ranges).map_err(map_error)?;
    }
    if !ops.put_slices.is_empty() {
        maps.put_backends(&ops.put_slices).map_err(map_error)?;
    }
    if !ops.put_tables.is_empty() {
        maps.put_maglev(&ops.put_tables).map_err(map_error)?;
    }
    if !ops.put_services.is_empty() {
        match maps.put_services(&ops.put_services) {
            Ok(()) => {}
            Err(MapError::Full { .. }) => failed = put_one_by_one(maps, ops)?,
            Err(error) => return Err(map_error(error)),
        }
    }
    if !ops.remove_services.is_empty() {
        maps.remove_services(&ops.remove_services).map_err(map_error)?;
    }
    if !ops.remove_ranges.is_empty() {
        maps.remove_source_ranges(&ops.remove_ranges).map_err(map_error)?;
    }
    Ok(failed)
}

/// Those that fit are served; removals go first, since room is what is missing.
fn put_one_by_one(maps: &mut impl ServiceMaps, ops: &Ops) -> Result<Vec<Failure>, DataplaneError> {
    maps.remove_services(&ops.remove_services).map_err(map_error)?;
    let mut failed = Vec::new();
    for entry in &ops.put_services {
        match maps.put_services(std::slice::from_ref(entry)) {
            Ok(()) => {}
            Err(error @ MapError::Full { .. }) => {
                let subject = codec::frontend_key(&entry.0).map_or(Subject::Sweep, Subject::Frontend);
                failed.push(Failure { subject, error: map_error(error) });
            }
            Err(error) => return Err(map_error(error)),
        }
    }
    Ok(failed)
}

impl Ebpf<Loaded> {
    /// Loads the programs, adopting the maps that are pinned below `bpffs`, and attaches the socket hooks to `cgroup`.
    pub fn open(bpffs: &std::path::Path, cgroup: &std::path::Path) -> Result<Self, DataplaneError> {
        let kernel = Loaded::open(bpffs, cgroup)?;
        let cookie = kernel::netns_cookie()?;
        Ok(Self::new(kernel, kernel::snat_ports(), cookie))
    }

    /// The same, with the XDP program at uplinks.
    #[must_use]
    pub fn with_xdp(mut self, mode: loader::XdpMode) -> Self {
        self.kernel.set_xdp(mode);
        self
    }
}

impl<K: Kernel> Dataplane for Ebpf<K> {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn read(&mut self) -> Result<Actual, DataplaneError> {
        self.layout = None;
        let host = self.read_host()?;
        let layout = self.read_layout()?;
        let layout = self.layout.insert(layout);
        let actual = Actual { frontends: layout.frontends(), host, stale: layout.stale() };
        self.prune_traffic()?;
        self.prune_flows()?;
        Ok(actual)
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        let mut told = plan.host.as_ref().map_or(Ok(()), |host| self.write_host(host));
        let mut layout = self.take_layout()?;
        self.make_room(&mut layout, plan);
        self.layout = Some(layout);
        self.begin_take_over(plan)?;
        let mut layout = self.take_layout()?;
        let moved = plan.host.as_ref().filter(|host| told.is_ok() && !self.is_attached(host));
        let written = match moved {
            None => write(self.kernel.maps(), &mut layout, plan),
            Some(host) => {
                let write = |maps: &mut K::Maps| write(maps, &mut layout, plan);
                let (attached, written) = self.kernel.attach_during(&roles(host), write);
                told = attached.and_then(|missing| self.note_attached(host, &missing));
                written
            }
        };
        let Unserved { unplaced, unwritten } = written?;
        // The layout counts on what did not fit; it has to be read again.
        self.layout = unwritten.is_empty().then_some(layout);
        let host = told.err().map(|error| Failure { subject: Subject::Host, error });
        let failed: Vec<Failure> = host.into_iter().chain(unplaced).chain(unwritten).collect();
        self.end_take_over(plan)?;
        Ok(Applied { done: plan.len().saturating_sub(failed.len()), failed })
    }

    fn forget_udp(&mut self, serving: &Targets) -> Result<Forgotten, DataplaneError> {
        let mut stale = self.kernel.maps().connections().map_err(map_error)?;
        stale.retain(|flow| flow.protocol == loader::Protocol::Udp && flow.service != 0);
        if stale.is_empty() {
            return Ok(Forgotten::default());
        }
        let layout = self.take_layout()?;
        let groups = self.layout.insert(layout).groups_by_id();
        stale.retain(|flow| {
            let (addr, port) = flow.backend();
            !groups.get(&flow.service).is_some_and(|group| serving.contains(&(*group, addr, port)))
        });
        if !stale.is_empty() {
            self.kernel.maps().remove_connections(&stale).map_err(map_error)?;
        }
        Ok(stale.iter().map(|flow| flow.backend().0).collect())
    }

    fn maglev_backends_max(&self) -> usize {
        seaway_ebpf_loader::maglev::BACKENDS_MAX
    }

    fn offers_maglev(&self) -> bool {
        true
    }

    fn count_traffic(&mut self) -> Option<Box<dyn TrafficTable>> {
        let table = self.kernel.traffic();
        self.counting = table.is_some();
        table
    }

    fn offers_dsr(&self) -> bool {
        true
    }

    fn serves_pod_links(&self) -> bool {
        true
    }

    fn offers_masquerade_all(&self) -> bool {
        true
    }

    fn offers_masquerade(&self) -> bool {
        let offered = self.snat_ports.len() >= PORTS_MIN;
        if !offered {
            tracing::warn!(ports = ?self.snat_ports, "too few ports are left for programs to masquerade pods with");
        }
        offered
    }

    fn sockets(&self) -> Option<Box<dyn SocketTable>> {
        self.kernel.sockets()
    }

    fn xdp(&self) -> Xdp {
        self.kernel.xdp()
    }

    fn drops(&self) -> Vec<DropCount> {
        self.kernel.drops()
    }
}

/// The links that carry programs, and what each is.
fn roles(host: &Host) -> Vec<(String, Role)> {
    let named = |device: &Device, role| (device.name.to_string(), role);
    let pod_role = |device| if host.shaped_links.contains(device) { Role::ShapedPod } else { Role::Pod };
    let uplinks = host.uplinks.iter().map(|device| named(device, Role::Uplink));
    uplinks.chain(host.pod_links.iter().map(|device| named(device, pod_role(device)))).collect()
}

/// A frontend key as the maps have it, for tests and for people.
pub fn map_key(key: &FrontendKey) -> Option<loader::Frontend> {
    codec::key(key)
}

fn map_error(error: MapError) -> DataplaneError {
    match error {
        MapError::Full { map, capacity } => {
            DataplaneError::Full { map, capacity, wanted: u64::from(capacity) + 1 }
        }
        other => DataplaneError::Loader {
            action: "the maps of the eBPF data plane failed",
            source: Box::new(other),
        },
    }
}
