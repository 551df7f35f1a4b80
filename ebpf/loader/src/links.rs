//! Links: what attaches a program, outlives this process by its pin, and changes its program atomically.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::{Attached, LoadError, sys};

/// The types of programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
    Address,
    /// `BPF_PROG_TYPE_CGROUP_SOCK`.
    Socket,
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    Packet,
    /// `BPF_PROG_TYPE_XDP`, which runs where that is wanted and possible (`xdp`).
    Xdp,
}

/// A program and where it goes.
#[derive(Debug)]
pub(crate) struct Hook {
    pub(crate) program: &'static str,
    pub(crate) kind: Kind,
    /// `enum bpf_attach_type`.
    attach_type: u32,
    /// Of `BPF_LINK_CREATE`.
    flags: u32,
    /// On which devices, of packet programs.
    pub(crate) role: Option<Role>,
}

/// What a device is to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Traffic from outside arrives on it: the node's own links, and its tunnels to other nodes.
    Uplink,
    /// The host's end of a pod's link.
    Pod,
    /// The same, where something limits or filters packets: what goes to the pod passes the node's stack and that.
    ShapedPod,
}

impl Role {
    /// The role whose programs such a device carries, as links and their pins tell.
    #[must_use]
    pub const fn programs(self) -> Self {
        match self {
            Self::Uplink => Self::Uplink,
            Self::Pod | Self::ShapedPod => Self::Pod,
        }
    }
}

impl Hook {
    const fn new(program: &'static str, kind: Kind, attach_type: u32) -> Self {
        Self { program, kind, attach_type, flags: 0, role: None }
    }

    const fn packet(program: &'static str, attach_type: u32, role: Role) -> Self {
        Self { program, kind: Kind::Packet, attach_type, flags: 0, role: Some(role) }
    }

    const fn xdp(program: &'static str, flags: u32) -> Self {
        Self { program, kind: Kind::Xdp, attach_type: 37, flags, role: Some(Role::Uplink) }
    }

    pub(crate) const INGRESS: Self = Self::packet("sw_ingress", 46, Role::Uplink);
    pub(crate) const EGRESS: Self = Self::packet("sw_egress", 47, Role::Uplink);
    pub(crate) const POD_INGRESS: Self = Self::packet("sw_pod_ingress", 46, Role::Pod);
    pub(crate) const POD_EGRESS: Self = Self::packet("sw_pod_egress", 47, Role::Pod);

    /// `XDP_FLAGS_DRV_MODE`.
    pub(crate) const XDP: Self = Self::xdp("sw_xdp", 1 << 2);
    /// `XDP_FLAGS_SKB_MODE`.
    pub(crate) const XDP_GENERIC: Self = Self::xdp("sw_xdp_generic", 1 << 1);

    /// All hooks, in the order in which they are attached: what translates answers comes before what makes them
    /// necessary.
    pub(crate) const ALL: &'static [Self] = &[
        Self::new("sw_recvmsg4", Kind::Address, 19),
        Self::new("sw_recvmsg6", Kind::Address, 20),
        Self::new("sw_peername4", Kind::Address, 29),
        Self::new("sw_peername6", Kind::Address, 30),
        Self::new("sw_sendmsg4", Kind::Address, 14),
        Self::new("sw_sendmsg6", Kind::Address, 15),
        Self::new("sw_connect4", Kind::Address, 10),
        Self::new("sw_connect6", Kind::Address, 11),
        Self::new("sw_release", Kind::Socket, 34),
        Self::new("sw_bind4", Kind::Socket, 12),
        Self::new("sw_bind6", Kind::Socket, 13),
        Self::EGRESS,
        Self::INGRESS,
        Self::POD_EGRESS,
        Self::POD_INGRESS,
        Self::XDP,
        Self::XDP_GENERIC,
    ];
}

/// What a program is attached to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// A cgroup: an open descriptor of its directory, and its id.
    Cgroup { fd: u32, id: u64 },
    /// A device.
    Device { ifindex: u32 },
}

impl Target {
    fn pin(self, bpffs: &Path, hook: &Hook) -> PathBuf {
        let links = bpffs.join("links");
        match self {
            Self::Cgroup { .. } => links.join(hook.program),
            Self::Device { ifindex } => links.join(format!("{}-{ifindex}", hook.program)),
        }
    }

    /// Whether a link is attached here still: the kernel takes it off when the target goes.
    fn holds(self, info: &sys::LinkInfo) -> bool {
        match self {
            Self::Cgroup { id, .. } => u64::from(info.target) | u64::from(info.target_high) << 32 == id,
            Self::Device { ifindex } => info.target == ifindex,
        }
    }
}

/// Attaches a program, or replaces the one that is attached, without a moment in between. Returns whether there was one.
pub(crate) fn attach(bpffs: &Path, hook: &Hook, program: BorrowedFd<'_>, target: Target) -> io::Result<bool> {
    let pin = target.pin(bpffs, hook);
    match sys::open_pin(&pin) {
        Ok(link) => {
            if target.holds(&sys::link_info(link.as_fd())?) {
                return sys::update_link(link.as_fd(), program).map(|()| true);
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let to = match target {
        Target::Cgroup { fd, .. } => fd,
        Target::Device { ifindex } => ifindex,
    };
    let link = sys::create_link(program, to, hook.attach_type, hook.flags)?;
    // A name that nobody else uses, then over the old pin: a link that is not pinned dies with this process.
    let fresh = pin.with_file_name(format!("{}_new", pin.file_name().unwrap_or_default().to_string_lossy()));
    match std::fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    sys::pin(link.as_fd(), &fresh)?;
    std::fs::rename(&fresh, &pin).map(|()| false)
}

/// A pinned link, by its name.
struct Pin {
    path: PathBuf,
    program: &'static str,
    role: Option<Role>,
    /// The device's index, of packet programs.
    ifindex: Option<u32>,
}

fn pins(bpffs: &Path) -> Result<Vec<Pin>, LoadError> {
    let directory = bpffs.join("links");
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(LoadError::io("list", &directory, e)),
    };
    let mut pins = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| LoadError::io("list", &directory, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (program, ifindex) = match name.split_once('-') {
            Some((program, index)) => (program, index.parse().ok()),
            None => (name.as_str(), None),
        };
        if let Some(hook) = Hook::ALL.iter().find(|hook| hook.program == program) {
            pins.push(Pin { path, program: hook.program, role: hook.role, ifindex });
        }
    }
    Ok(pins)
}

/// Detaches a pinned link, and removes the pin.
fn unpin(path: &Path) -> Result<(), LoadError> {
    match sys::open_pin(path).and_then(|link| sys::detach_link(link.as_fd())) {
        // Its target is gone, or the pin is.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOLINK)) => {}
        Err(e) => return Err(LoadError::io("detach", path, e)),
        Ok(()) => {}
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(LoadError::io("remove", path, e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Detaches the packet programs from all devices but these in these roles.
pub(crate) fn detach_devices_except(bpffs: &Path, keep: &[(u32, Role)]) -> Result<(), LoadError> {
    for pin in pins(bpffs)? {
        let kept =
            |index| keep.iter().any(|(held, role)| *held == index && Some(role.programs()) == pin.role);
        if pin.ifindex.is_some_and(|index| !kept(index)) {
            unpin(&pin.path)?;
        }
    }
    Ok(())
}

/// The hooks of a kind that have pinned links, with their devices.
pub(crate) fn pinned(bpffs: &Path, kind: Kind) -> Result<Vec<(&'static Hook, u32)>, LoadError> {
    let hook = |pin: Pin| {
        let hook = Hook::ALL.iter().find(|hook| hook.kind == kind && hook.program == pin.program)?;
        Some((hook, pin.ifindex?))
    };
    Ok(pins(bpffs)?.into_iter().filter_map(hook).collect())
}

/// Detaches a program from a device.
pub(crate) fn detach(bpffs: &Path, hook: &Hook, ifindex: u32) -> Result<(), LoadError> {
    unpin(&Target::Device { ifindex }.pin(bpffs, hook))
}

/// Whether a program is attached to a device by a pinned link.
pub(crate) fn holds(bpffs: &Path, hook: &Hook, ifindex: u32) -> bool {
    let target = Target::Device { ifindex };
    let link = sys::open_pin(&target.pin(bpffs, hook));
    link.and_then(|link| sys::link_info(link.as_fd())).is_ok_and(|info| target.holds(&info))
}

/// Detaches the socket programs.
pub(crate) fn detach_cgroup(bpffs: &Path) -> Result<(), LoadError> {
    // In the opposite order: no new translations before their answers are no longer translated.
    let pins = pins(bpffs)?;
    for hook in Hook::ALL.iter().rev() {
        for pin in &pins {
            if pin.program == hook.program && pin.ifindex.is_none() {
                unpin(&pin.path)?;
            }
        }
    }
    Ok(())
}

/// Lets every link run the program of its name that `program` gives.
pub(crate) fn update_all<'a>(
    bpffs: &Path,
    program: &dyn Fn(&Hook) -> Result<BorrowedFd<'a>, LoadError>,
) -> Result<(), LoadError> {
    let pins = pins(bpffs)?;
    for hook in Hook::ALL {
        for pin in pins.iter().filter(|pin| pin.program == hook.program) {
            let link = sys::open_pin(&pin.path).map_err(|e| LoadError::io("open", &pin.path, e))?;
            match sys::update_link(link.as_fd(), program(hook)?) {
                // Its cgroup or device is gone.
                Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(e) => return Err(LoadError::io("update", &pin.path, e)),
                Ok(()) => {}
            }
        }
    }
    Ok(())
}

/// What the pinned links are attached to; ones whose target is gone are left out.
pub(crate) fn attached(bpffs: &Path) -> Result<Vec<Attached>, LoadError> {
    let mut attached = Vec::new();
    for Pin { path, program, ifindex, role } in pins(bpffs)? {
        let link = sys::open_pin(&path).map_err(|e| LoadError::io("open", &path, e))?;
        let info = sys::link_info(link.as_fd()).map_err(|e| LoadError::io("inspect", &path, e))?;
        if info.target == 0 && info.target_high == 0 {
            continue;
        }
        let target = match ifindex {
            Some(index) if info.target != index => continue,
            Some(index) => sys::ifname(index).unwrap_or_else(|| format!("device {index}")),
            None => "cgroup".to_owned(),
        };
        attached.push(Attached { program, target, role, program_id: info.prog_id });
    }
    attached.sort();
    Ok(attached)
}
