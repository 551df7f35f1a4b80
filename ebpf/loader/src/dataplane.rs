//! The loaded programs of one node: opened, attached, replaced, removed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::programs::{CgroupSock, CgroupSockAddr, Program, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use seaway_ebpf_abi::maps::{self as names, capacity};
use thiserror::Error;

use crate::kernel_maps::{KernelMap, KernelMaps, Maps};
use crate::links::{self, Hook, Kind};
use crate::{MapError, mounts, object, sys};

/// How many entries the maps take. Applies to maps that are created; pinned ones keep their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacities {
    /// Frontends.
    pub services: u32,
    /// Backends of all slices.
    pub backends: u32,
    /// Source ranges.
    pub source_ranges: u32,
    /// Clients of services with session affinity.
    pub affinity: u32,
    /// Sockets.
    pub sockets: u32,
    /// Connection entries, two per connection.
    pub flows: u32,
    /// Fragmented datagrams.
    pub fragments: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            services: capacity::SERVICES,
            backends: capacity::BACKENDS,
            source_ranges: capacity::SOURCE_RANGES,
            affinity: capacity::AFFINITY,
            sockets: capacity::SOCKETS,
            flows: capacity::FLOWS,
            fragments: capacity::FRAGMENTS,
        }
    }
}

impl Capacities {
    fn entries(&self) -> [(&'static str, u32); 7] {
        [
            (names::SERVICES, self.services),
            (names::BACKENDS, self.backends),
            (names::SOURCE_RANGES, self.source_ranges),
            (names::AFFINITY, self.affinity),
            (names::SOCKETS, self.sockets),
            (names::FLOWS, self.flows),
            (names::FRAGMENTS, self.fragments),
        ]
    }
}

/// What went wrong while loading or attaching.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file or directory operation failed.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        #[source]
        source: io::Error,
    },
    /// No cgroup2 hierarchy.
    #[error("no cgroup2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")]
    NoCgroup2,
    /// The object could not be loaded: too old a kernel, a lack of privilege (CAP_BPF, CAP_NET_ADMIN), or maps of
    /// another shape under our names.
    #[error("cannot load the eBPF object with maps at {}", bpffs.display())]
    Object {
        /// Where the maps are pinned.
        bpffs: PathBuf,
        /// aya's answer.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// The object lacks a program or map, or it is of another type.
    #[error("the eBPF object has no {kind} {name:?}")]
    Missing {
        /// "program" or "map".
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The kernel refused a program.
    #[error("cannot load program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// aya's answer, with the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("cannot attach {program} to {target}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup's path, or the device's name.
        target: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The network namespace would not tell its cookie.
    #[error("cannot read the network namespace's cookie (SO_NETNS_COOKIE)")]
    NetnsCookie(#[source] io::Error),
    /// A packet could not be run through a program.
    #[error("cannot run a packet through {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A map operation failed.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl LoadError {
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { op, path: path.into(), source }
    }
}

/// Where a program is attached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attached {
    /// The program's name.
    pub program: &'static str,
    /// The device's name, or "cgroup" for the socket programs.
    pub target: String,
    /// The id of the program that runs there.
    pub program_id: u32,
}

/// What a packet program did with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketRun {
    /// `TC_ACT_*`: -1 not touched, 0 passed on translated, 2 dropped, 7 sent elsewhere.
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
}

/// The programs and maps of one node.
#[derive(Debug)]
pub struct Dataplane {
    bpffs: PathBuf,
    ebpf: Ebpf,
    maps: KernelMaps,
}

impl Dataplane {
    /// Mounts a BPF file system if there is none above `bpffs`, adopts or creates the maps that are pinned there, and
    /// loads the programs. Programs that are attached go on running until the `attach_*` calls replace them.
    ///
    /// # Errors
    /// Without privilege (root, or CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN for the mount), on kernels
    /// before 6.6 (tcx), and when `bpffs` cannot be a BPF file system.
    pub fn open(bpffs: &Path, capacities: &Capacities) -> Result<Self, LoadError> {
        Self::open_object(bpffs, capacities, object::EMBEDDED)
    }

    /// [`Dataplane::open`] with an object other than the one that this crate carries.
    pub fn open_object(bpffs: &Path, capacities: &Capacities, object: &[u8]) -> Result<Self, LoadError> {
        mounts::ensure_bpffs(bpffs)?;
        let pins = bpffs.join("maps");
        for directory in [&pins, &bpffs.join("links")] {
            std::fs::create_dir_all(directory).map_err(|e| LoadError::io("create", directory, e))?;
        }
        let mut loader = EbpfLoader::new();
        for (name, entries) in capacities.entries() {
            loader.map_max_entries(name, entries);
        }
        for name in names::ALL {
            loader.map_pin_path(name, pins.join(name));
        }
        let mut ebpf = loader
            .load(object)
            .map_err(|source| LoadError::Object { bpffs: bpffs.into(), source: Box::new(source) })?;
        for hook in Hook::ALL {
            load_program(&mut ebpf, &hook)?;
        }
        let maps = KernelMaps { maps: Arc::new(open_maps(&pins)?) };
        maps.maps.note_kernel()?;
        Ok(Self { bpffs: bpffs.into(), ebpf, maps })
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
        for hook in Hook::ALL.iter().filter(|hook| hook.kind != Kind::Packet) {
            let target = links::Target::Cgroup { fd: directory.as_raw_fd().cast_unsigned(), id };
            links::attach(&self.bpffs, hook, program_fd(&self.ebpf, hook)?, target).map_err(|source| {
                LoadError::Attach { program: hook.program, target: cgroup.display().to_string(), source }
            })?;
        }
        Ok(())
    }

    /// Makes exactly these devices (of the calling thread's network namespace) carry the packet programs: attaches to
    /// new ones, also to ones that were deleted and came back, replaces on those that have them, detaches from all
    /// others. Returns the names of those that do not exist, or that are no Ethernet devices, which the programs cannot
    /// read.
    pub fn attach_devices(&mut self, devices: &[String]) -> Result<Vec<String>, LoadError> {
        let mut missing = Vec::new();
        let mut indices = Vec::new();
        for device in devices {
            let Some(ifindex) = sys::ifindex(device).filter(|_| sys::is_ethernet(device)) else {
                missing.push(device.clone());
                continue;
            };
            indices.push(ifindex);
            for hook in Hook::ALL.iter().filter(|hook| hook.kind == Kind::Packet) {
                let target = links::Target::Device { ifindex };
                links::attach(&self.bpffs, hook, program_fd(&self.ebpf, hook)?, target).map_err(
                    |source| LoadError::Attach { program: hook.program, target: device.clone(), source },
                )?;
            }
        }
        links::detach_devices_except(&self.bpffs, &indices)?;
        Ok(missing)
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
        };
        let (verdict, packet, duration_ns) =
            sys::test_run(program_fd(&self.ebpf, hook)?, packet, ifindex, repeat)
                .map_err(|source| LoadError::Run { program: hook.program, source })?;
        Ok(PacketRun { verdict, packet, duration_ns })
    }
}

/// Loads a program. The verifier gives up when a signal comes (a child of the agent ends, say): then it is asked again.
fn load_program(ebpf: &mut Ebpf, hook: &Hook) -> Result<(), LoadError> {
    const ATTEMPTS: usize = 20;
    for attempt in 1.. {
        match try_load(ebpf, hook) {
            Err(LoadError::Program { source, .. }) if attempt < ATTEMPTS && interrupted(&source) => {}
            done => return done,
        }
    }
    Ok(())
}

fn interrupted(e: &ProgramError) -> bool {
    matches!(e, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EAGAIN))
}

fn try_load(ebpf: &mut Ebpf, hook: &Hook) -> Result<(), LoadError> {
    let missing = LoadError::Missing { kind: "program", name: hook.program };
    let Some(program) = ebpf.program_mut(hook.program) else { return Err(missing) };
    let loaded = match hook.kind {
        Kind::Address => <&mut CgroupSockAddr>::try_from(program).and_then(CgroupSockAddr::load),
        Kind::Socket => <&mut CgroupSock>::try_from(program).and_then(CgroupSock::load),
        Kind::Packet => <&mut SchedClassifier>::try_from(program).and_then(SchedClassifier::load),
    };
    loaded.map_err(|source| LoadError::Program { program: hook.program, source: Box::new(source) })
}

fn program_fd<'a>(ebpf: &'a Ebpf, hook: &Hook) -> Result<BorrowedFd<'a>, LoadError> {
    let fd = match ebpf.program(hook.program) {
        Some(Program::CgroupSockAddr(program)) => program.fd(),
        Some(Program::CgroupSock(program)) => program.fd(),
        Some(Program::SchedClassifier(program)) => program.fd(),
        Some(_) | None => return Err(LoadError::Missing { kind: "program", name: hook.program }),
    };
    fd.map(AsFd::as_fd)
        .map_err(|source| LoadError::Program { program: hook.program, source: Box::new(source) })
}

/// Opens the maps by their pins, where the loader has put or found them.
fn open_maps(pins: &Path) -> Result<Maps, LoadError> {
    let open = |name: &'static str| {
        let path = pins.join(name);
        let fd = sys::open_pin(&path).map_err(|e| LoadError::io("open", &path, e))?;
        let capacity = sys::map_capacity(fd.as_fd()).map_err(|e| LoadError::io("inspect", &path, e))?;
        Ok::<_, LoadError>(KernelMap { fd, name, capacity })
    };
    let cpus = aya::util::nr_cpus().map_err(|(path, e)| LoadError::Io {
        op: "read",
        path: path.into(),
        source: e,
    })?;
    Ok(Maps {
        services: open(names::SERVICES)?,
        backends: open(names::BACKENDS)?,
        source_ranges: open(names::SOURCE_RANGES)?,
        affinity: open(names::AFFINITY)?,
        sockets: open(names::SOCKETS)?,
        flows: open(names::FLOWS)?,
        fragments: open(names::FRAGMENTS)?,
        counters: open(names::COUNTERS)?,
        config: open(names::CONFIG)?,
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
