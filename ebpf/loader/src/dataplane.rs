//! The loaded programs of one node: opened, attached, replaced, removed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::ScopedJoinHandle;

use aya::programs::{CgroupSock, CgroupSockAddr, Program, ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use seaway_ebpf_abi::maps as names;

use crate::kernel_maps::{KernelMap, KernelMaps, Maps, PodLinkEntry};
use crate::links::{self, Hook, Kind, Role};
use crate::xdp::{XdpDevice, XdpMode};
use crate::{Capacities, LoadError, exchange, migrate, mounts, object, sys, xdp};

/// Where a program is attached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attached {
    /// The program's name.
    pub program: &'static str,
    /// The device's name, or "cgroup" for the socket programs.
    pub target: String,
    /// What the device is to the node.
    pub role: Option<Role>,
    /// The id of the program that runs there.
    pub program_id: u32,
}

/// What a packet program did with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketRun {
    /// `TC_ACT_*`: -1 not touched, 0 passed on translated, 2 dropped, 7 sent elsewhere. Of [`Direction::Xdp`]: `XDP_*`: 1
    /// dropped, 2 passed on, 3 sent back by the same device, 4 sent elsewhere.
    pub verdict: i32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// Nanoseconds per run.
    pub duration_ns: u32,
}

/// The packet hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Packets that arrive on an uplink.
    Ingress,
    /// Packets that leave by an uplink.
    Egress,
    /// Packets that come from a pod.
    PodIngress,
    /// Packets that go to a pod.
    PodEgress,
    /// Packets that arrive on an uplink, before the kernel has made buffers of them. Only with the program switched on
    /// ([`Dataplane::set_xdp`]) and attached to the device.
    Xdp,
}

/// The programs and maps of one node.
#[derive(Debug)]
pub struct Dataplane {
    bpffs: PathBuf,
    object: Cow<'static, [u8]>,
    ebpf: Ebpf,
    maps: KernelMaps,
    xdp_mode: XdpMode,
    /// The uplinks, once they are known, and what they run of XDP.
    uplinks: Option<Vec<(String, u32)>>,
    xdp: Vec<XdpDevice>,
}

/// Where each map is pinned.
type Pins<'a> = &'a dyn Fn(&'static str) -> PathBuf;

impl Dataplane {
    /// Mounts a BPF file system if there is none above `bpffs`, adopts or creates the maps that are pinned there, and
    /// loads the programs. Programs that are attached go on running until the `attach_*` calls replace them.
    ///
    /// # Errors
    /// Without privilege (root, or CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN for the mount), on kernels
    /// before 6.6 (tcx), and when `bpffs` cannot be a BPF file system.
    pub fn open(bpffs: &Path, capacities: &Capacities) -> Result<Self, LoadError> {
        Self::open_with(bpffs, capacities, Cow::Borrowed(object::EMBEDDED))
    }

    /// [`Dataplane::open`] with an object other than the one that this crate carries.
    pub fn open_object(bpffs: &Path, capacities: &Capacities, object: &[u8]) -> Result<Self, LoadError> {
        Self::open_with(bpffs, capacities, Cow::Owned(object.to_vec()))
    }

    fn open_with(
        bpffs: &Path,
        capacities: &Capacities,
        object: Cow<'static, [u8]>,
    ) -> Result<Self, LoadError> {
        mounts::ensure_bpffs(bpffs)?;
        let pins = bpffs.join("maps");
        for directory in [&pins, &bpffs.join("links")] {
            std::fs::create_dir_all(directory).map_err(|e| LoadError::io("create", directory, e))?;
        }
        exchange::discard(&pins)?;
        let former = migrate::Former::find(&pins)?;
        let capacities = former.at_least(capacities);
        let pin = |name: &'static str| pins.join(name);
        let mut ebpf = load(bpffs, &capacities, &object, &pin)?;
        let maps = open_maps(&pin)?;
        let carried = former.convert(&maps)?;
        maps.note_kernel()?;
        if carried {
            // Whoever is attached goes over to the new maps; then nobody needs the former ones.
            replace_attached(bpffs, &mut ebpf)?;
            former.remove()?;
        }
        let (maps, xdp_mode) = (KernelMaps::new(Arc::new(maps)), XdpMode::Off);
        let (uplinks, xdp) = (None, Vec::new());
        Ok(Self { bpffs: bpffs.into(), object, ebpf, maps, xdp_mode, uplinks, xdp })
    }

    /// Exchanges the maps that user space writes for ones with at least so many entries, where they have fewer:
    /// larger ones are made and filled, programs loaded against them and put in place link by link. Every look-up
    /// finds what it would have found; whoever holds [`KernelMaps`] writes to the new ones afterwards. Nobody may
    /// write meanwhile. Connections, sockets and affinities stay. False: all were large enough.
    ///
    /// # Errors
    /// The former maps then stay in use.
    pub fn grow(&mut self, wanted: &Capacities) -> Result<bool, LoadError> {
        let pins = self.bpffs.join("maps");
        let now = self.maps.now();
        exchange::discard(&pins)?;
        let grown = exchange::enlarge(&pins, &now, wanted)?;
        if grown.is_empty() {
            return Ok(false);
        }
        let pin = |name: &'static str| {
            if grown.contains(&name) { exchange::fresh(&pins, name) } else { pins.join(name) }
        };
        let mut ebpf = load(&self.bpffs, wanted, &self.object, &pin)?;
        let maps = open_maps(&pin)?;
        replace_attached(&self.bpffs, &mut ebpf)?;
        self.ebpf = ebpf;
        self.maps.exchange(Arc::new(maps));
        exchange::settle(&pins, &grown)?;
        Ok(true)
    }

    /// The maps. May be cloned and sent to another thread.
    pub fn maps(&self) -> KernelMaps {
        self.maps.clone()
    }

    /// Makes the socket programs run for a cgroup2 directory and all below it; replaces those that already do.
    pub fn attach_cgroup(&mut self, cgroup: &Path) -> Result<(), LoadError> {
        let directory = std::fs::File::open(cgroup).map_err(|e| LoadError::io("open", cgroup, e))?;
        // A cgroup's id is its directory's inode.
        let id = directory.metadata().map_err(|e| LoadError::io("inspect", cgroup, e))?.ino();
        for hook in Hook::ALL.iter().filter(|hook| hook.role.is_none()) {
            let target = links::Target::Cgroup { fd: directory.as_raw_fd().cast_unsigned(), id };
            links::attach(&self.bpffs, hook, program_fd(&self.ebpf, hook)?, target).map_err(|source| {
                LoadError::Attach { program: hook.program, target: cgroup.display().to_string(), source }
            })?;
        }
        Ok(())
    }

    /// Makes exactly these devices (of the calling thread's network namespace) carry the packet programs of their
    /// roles: attaches to new ones, also to ones that were deleted and came back, replaces on those that have them,
    /// detaches from all others. Returns the names of those that do not exist, or that are no Ethernet devices, which
    /// the programs cannot read.
    pub fn attach_devices(&mut self, devices: &[(String, Role)]) -> Result<Vec<String>, LoadError> {
        let mut missing = Vec::new();
        let mut indices = Vec::new();
        let mut pods = Vec::new();
        for (device, role) in devices {
            let Some(ifindex) = sys::ifindex(device).filter(|_| sys::is_ethernet(device)) else {
                missing.push(device.clone());
                continue;
            };
            indices.push((ifindex, *role));
            let had_programs = self.attach_device(device, ifindex, *role)?;
            if *role == Role::Pod && sys::has_peer(device) {
                pods.push(PodLinkEntry { ifindex, may_translate: had_programs });
            }
        }
        // Packets go straight to a pod only while its link runs the programs.
        let maps = self.maps.now();
        maps.retain_pod_links(&pods)?;
        links::detach_devices_except(&self.bpffs, &indices)?;
        maps.add_pod_links(&pods)?;
        let uplinks =
            devices.iter().filter(|(device, role)| *role == Role::Uplink && !missing.contains(device));
        let uplinks: Vec<String> = uplinks.map(|(device, _)| device.clone()).collect();
        self.attach_xdp(&uplinks)?;
        Ok(missing)
    }

    /// Whether uplinks are to carry the XDP program as well, from the next [`Dataplane::attach_devices`] on.
    pub fn set_xdp(&mut self, mode: XdpMode) {
        self.xdp_mode = mode;
    }

    /// Makes exactly these devices run the XDP program, if it is switched on, and leaves the other programs alone.
    pub fn attach_xdp(&mut self, devices: &[String]) -> Result<(), LoadError> {
        let known = |device: &String| Some((device.clone(), sys::ifindex(device)?));
        self.uplinks = Some(devices.iter().filter_map(known).collect());
        self.renew_xdp()
    }

    /// What the uplinks run of XDP. Empty: it is switched off.
    pub fn xdp(&self) -> &[XdpDevice] {
        &self.xdp
    }

    /// Looks anew at what XDP the uplinks can and may run, and has them run that: drivers, the far ends of virtual links
    /// and other people's programs change. What a device cannot is no error: the other programs do it all.
    pub fn renew_xdp(&mut self) -> Result<(), LoadError> {
        let maps = self.maps.now();
        // What a former process has attached stays until it is known what is to run it.
        let Some(uplinks) = &self.uplinks else { return Ok(()) };
        let Some(hook) = self.xdp_mode.hook() else {
            maps.set_xdp_links(&[])?;
            self.xdp.clear();
            return xdp::detach(&self.bpffs);
        };
        let program = load_xdp(&mut self.ebpf, hook).and_then(|()| program_fd(&self.ebpf, hook));
        self.xdp = xdp::attach(&self.bpffs, uplinks, (self.xdp_mode, hook), program)?;
        Ok(maps.set_xdp_links(&xdp::links(&self.xdp))?)
    }

    /// Attaches the programs of `role`. Returns whether it had them.
    fn attach_device(&self, device: &str, ifindex: u32, role: Role) -> Result<bool, LoadError> {
        let mut had_programs = false;
        let of_role = |hook: &&Hook| hook.kind == Kind::Packet && hook.role == Some(role.programs());
        for hook in Hook::ALL.iter().filter(of_role) {
            let target = links::Target::Device { ifindex };
            had_programs |= links::attach(&self.bpffs, hook, program_fd(&self.ebpf, hook)?, target).map_err(
                |source| LoadError::Attach { program: hook.program, target: device.to_owned(), source },
            )?;
        }
        Ok(had_programs)
    }

    /// Takes the socket programs away from their cgroup.
    pub fn detach_cgroup(&mut self) -> Result<(), LoadError> {
        links::detach_cgroup(&self.bpffs)
    }

    /// What is attached now, as the pinned links say.
    pub fn attached(&self) -> Result<Vec<Attached>, LoadError> {
        links::attached(&self.bpffs)
    }

    /// Runs a packet (from its Ethernet header on) through a packet program without sending it, `repeat` times: what
    /// would happen to it, and how long that takes. Maps change as they would. `ifindex`: the device that it is at.
    pub fn run_packet(
        &self,
        direction: Direction,
        packet: &[u8],
        ifindex: u32,
        repeat: u32,
    ) -> Result<PacketRun, LoadError> {
        let hook = match direction {
            Direction::Ingress => &Hook::INGRESS,
            Direction::Egress => &Hook::EGRESS,
            Direction::PodIngress => &Hook::POD_INGRESS,
            Direction::PodEgress => &Hook::POD_EGRESS,
            Direction::Xdp => self.xdp_mode.hook().unwrap_or(&Hook::XDP),
        };
        let context = context(hook, packet, ifindex);
        let (verdict, packet, duration_ns) =
            sys::test_run(program_fd(&self.ebpf, hook)?, packet, &context, repeat)
                .map_err(|source| LoadError::Run { program: hook.program, source })?;
        Ok(PacketRun { verdict, packet, duration_ns })
    }
}

/// What a packet program is given beside the packet, of which only a few members may be set.
fn context(hook: &Hook, packet: &[u8], ifindex: u32) -> Vec<u32> {
    if hook.kind == Kind::Xdp {
        // struct xdp_md { data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex }
        return vec![0, u32::try_from(packet.len()).unwrap_or(u32::MAX), 0, ifindex, 0, 0];
    }
    // struct __sk_buff: ifindex is the eleventh word.
    let mut context = vec![0; 48];
    context[10] = ifindex;
    context
}

/// Lets everything that is attached run the programs of `ebpf`.
fn replace_attached(bpffs: &Path, ebpf: &mut Ebpf) -> Result<(), LoadError> {
    for (hook, _) in links::pinned(bpffs, Kind::Xdp)? {
        load_xdp(ebpf, hook)?;
    }
    links::update_all(bpffs, &|hook| program_fd(ebpf, hook))
}

/// Loads an XDP program, unless that is done: most nodes have no use for one.
fn load_xdp(ebpf: &mut Ebpf, hook: &Hook) -> Result<(), LoadError> {
    let missing = LoadError::Missing { kind: "program", name: hook.program };
    let program = ebpf.program_mut(hook.program).ok_or(missing)?;
    if program.fd().is_ok() { Ok(()) } else { load_program(program, hook) }
}

/// Creates the maps that are not pinned yet, and loads the programs.
fn load(bpffs: &Path, capacities: &Capacities, object: &[u8], pin: Pins<'_>) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    for (name, entries) in capacities.entries() {
        loader.map_max_entries(name, entries);
    }
    for name in names::ALL {
        loader.map_pin_path(name, pin(name));
    }
    let mut ebpf = loader
        .load(object)
        .map_err(|source| LoadError::Object { bpffs: bpffs.into(), source: Box::new(source) })?;
    load_programs(&mut ebpf)?;
    Ok(ebpf)
}

/// Loads the programs. The verifier takes its time with some of them, on one core each.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let mut waiting: HashMap<&str, &mut Program> = ebpf.programs_mut().collect();
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for hook in Hook::ALL.iter().filter(|hook| hook.kind != Kind::Xdp) {
            let missing = LoadError::Missing { kind: "program", name: hook.program };
            let program = waiting.remove(hook.program).ok_or(missing)?;
            running.push(scope.spawn(move || load_program(program, hook)));
        }
        let ended =
            |thread: ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        running.into_iter().try_for_each(ended)
    })
}

/// Loads a program. The verifier gives up when a signal comes (a child of the agent ends, say): then it is asked again.
fn load_program(program: &mut Program, hook: &Hook) -> Result<(), LoadError> {
    const ATTEMPTS: usize = 20;
    for attempt in 1.. {
        match try_load(program, hook) {
            Err(LoadError::Program { source, .. }) if attempt < ATTEMPTS && interrupted(&source) => {}
            done => return done,
        }
    }
    Ok(())
}

fn interrupted(e: &ProgramError) -> bool {
    matches!(e, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EAGAIN))
}

fn try_load(program: &mut Program, hook: &Hook) -> Result<(), LoadError> {
    let loaded = match hook.kind {
        Kind::Address => <&mut CgroupSockAddr>::try_from(program).and_then(CgroupSockAddr::load),
        Kind::Socket => <&mut CgroupSock>::try_from(program).and_then(CgroupSock::load),
        Kind::Packet => <&mut SchedClassifier>::try_from(program).and_then(SchedClassifier::load),
        Kind::Xdp => <&mut Xdp>::try_from(program).and_then(Xdp::load),
    };
    loaded.map_err(|source| LoadError::Program { program: hook.program, source: Box::new(source) })
}

fn program_fd<'a>(ebpf: &'a Ebpf, hook: &Hook) -> Result<BorrowedFd<'a>, LoadError> {
    let fd = match ebpf.program(hook.program) {
        Some(Program::CgroupSockAddr(program)) => program.fd(),
        Some(Program::CgroupSock(program)) => program.fd(),
        Some(Program::SchedClassifier(program)) => program.fd(),
        Some(Program::Xdp(program)) => program.fd(),
        Some(_) | None => return Err(LoadError::Missing { kind: "program", name: hook.program }),
    };
    fd.map(AsFd::as_fd)
        .map_err(|source| LoadError::Program { program: hook.program, source: Box::new(source) })
}

/// Opens the maps by their pins, where the loader has put or found them.
fn open_maps(pin: Pins<'_>) -> Result<Maps, LoadError> {
    let open = |name: &'static str| KernelMap::open(&pin(name), name);
    let cpus = aya::util::nr_cpus().map_err(|(path, e)| LoadError::Io {
        op: "read",
        path: path.into(),
        source: e,
    })?;
    Ok(Maps {
        services: open(names::SERVICES)?,
        backends: open(names::BACKENDS)?,
        maglev: open(names::MAGLEV)?,
        source_ranges: open(names::SOURCE_RANGES)?,
        affinity: open(names::AFFINITY)?,
        sockets: open(names::SOCKETS)?,
        flows: open(names::FLOWS)?,
        fragments: open(names::FRAGMENTS)?,
        counters: open(names::COUNTERS)?,
        stats: open(names::STATS)?,
        config: open(names::CONFIG)?,
        pod_links: open(names::POD_LINKS)?,
        cluster_nets: open(names::CLUSTER_NETS)?,
        xdp_links: open(names::XDP_LINKS)?,
        masquerade: open(names::MASQUERADE)?,
        sources: open(names::SOURCES)?,
        cpus,
        csum_flags_v6: csum_flags_v6(),
    })
}

/// `BPF_F_IPV6` of `bpf_l4_csum_replace`: kernels from 6.16 on know it, and without it get the checksum wrong that a
/// network card has computed over a whole IPv6 packet.
fn csum_flags_v6() -> u32 {
    const BPF_F_IPV6: u32 = 1 << 7;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if kernel_version(&release) >= (6, 16) { BPF_F_IPV6 } else { 0 }
}

fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Detaches all programs of the node whose bpffs directory this is, and removes pins and directory. Nothing there is
/// fine. A BPF file system that was mounted stays.
pub fn remove_all(bpffs: &Path) -> Result<(), LoadError> {
    links::detach_cgroup(bpffs)?;
    links::detach_devices_except(bpffs, &[])?;
    match std::fs::remove_dir_all(bpffs) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // The directory is the mount point itself.
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        Err(e) => Err(LoadError::io("remove", bpffs, e)),
    }
}

/// The cookie of the calling thread's network namespace, for [`crate::NodeConfig::netns_cookie`].
pub fn netns_cookie() -> Result<u64, LoadError> {
    sys::netns_cookie().map_err(LoadError::NetnsCookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_kernel_versions() {
        assert_eq!(kernel_version("6.18.44-fc-v669\n"), (6, 18));
        assert_eq!(kernel_version("5.10"), (5, 10));
        assert_eq!(kernel_version(""), (0, 0));
    }
}
