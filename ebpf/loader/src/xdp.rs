//! The XDP program at uplinks: attached where it is wanted and the device can, beside the tc programs, which do all that
//! it does not. A program of somebody else keeps its place.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use seaway_ebpf_abi::{XDP_LINK_ACCEPTS, XDP_LINK_ANSWERS, XdpLink};

use crate::links::{self, Hook, Kind, Target};
use crate::{LoadError, netdev, sys};

/// How uplinks run the XDP program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// Not at all.
    #[default]
    Off,
    /// In the driver, before the kernel makes a buffer of a packet. Not every driver can.
    Native,
    /// At every device, when that is done: for trying out.
    Generic,
}

impl XdpMode {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// `None`: none.
    pub(crate) const fn hook(self) -> Option<&'static Hook> {
        match self {
            Self::Off => None,
            Self::Native => Some(&Hook::XDP),
            Self::Generic => Some(&Hook::XDP_GENERIC),
        }
    }
}

/// What an uplink runs of XDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpDevice {
    /// Its name.
    pub device: String,
    /// How it runs the program; [`XdpMode::Off`]: it does not.
    pub mode: XdpMode,
    /// Why it does not, or what it cannot.
    pub note: Option<String>,
    ifindex: u32,
    link: XdpLink,
}

/// Lets exactly these devices run the program. `program`: or why there is none.
pub(crate) fn attach(
    bpffs: &Path,
    devices: &[(String, u32)],
    (mode, hook): (XdpMode, &Hook),
    program: Result<BorrowedFd<'_>, LoadError>,
) -> Result<Vec<XdpDevice>, LoadError> {
    detach_except(bpffs, devices, Some(hook))?;
    let program = program.map_err(|error| error.to_string());
    let run = |(device, ifindex): &(String, u32)| {
        let mut run = XdpDevice {
            device: device.clone(),
            mode: XdpMode::Off,
            note: None,
            ifindex: *ifindex,
            link: XdpLink::default(),
        };
        match program.clone().and_then(|program| attach_one(bpffs, device, *ifindex, hook, program)) {
            Ok(mac) => {
                run.mode = mode;
                (run.link, run.note) = abilities(device, *ifindex, mode, mac);
            }
            Err(reason) => run.note = Some(reason),
        }
        run
    };
    Ok(devices.iter().map(run).collect())
}

/// Takes the program away from all devices.
pub(crate) fn detach(bpffs: &Path) -> Result<(), LoadError> {
    detach_except(bpffs, &[], None)
}

/// Takes the program away from all devices but these, and from these if they run it in another form.
fn detach_except(bpffs: &Path, devices: &[(String, u32)], keep: Option<&Hook>) -> Result<(), LoadError> {
    for (hook, ifindex) in links::pinned(bpffs, Kind::Xdp)? {
        let kept = keep.is_some_and(|keep| keep.program == hook.program);
        if !kept || !devices.iter().any(|(_, held)| *held == ifindex) {
            links::detach(bpffs, hook, ifindex)?;
        }
    }
    Ok(())
}

/// What the program is told of the devices that run it.
pub(crate) fn links(devices: &[XdpDevice]) -> Vec<(u32, XdpLink)> {
    let running = devices.iter().filter(|device| device.mode != XdpMode::Off);
    running.map(|device| (device.ifindex, device.link)).collect()
}

/// Attaches the program to a device, whose MAC address is returned. An error is a reason for people.
fn attach_one(
    bpffs: &Path,
    device: &str,
    ifindex: u32,
    hook: &Hook,
    program: BorrowedFd<'_>,
) -> Result<[u8; 6], String> {
    let mac = sys::mac(device).ok_or("it has no MAC address")?;
    if !links::holds(bpffs, hook, ifindex)
        && let Some(id) = netdev::running(ifindex)
            .map_err(|error| format!("the kernel does not say what it runs: {error}"))?
    {
        let name = sys::program_name(id).unwrap_or_default();
        return Err(format!("somebody else's program {name:?} (id {id}) is attached there"));
    }
    links::attach(bpffs, hook, program, Target::Device { ifindex }).map_err(|error| refusal(&error))?;
    Ok(mac)
}

/// What the program may do with frames at a device.
fn abilities(device: &str, ifindex: u32, mode: XdpMode, mac: [u8; 6]) -> (XdpLink, Option<String>) {
    let all = XDP_LINK_ANSWERS | XDP_LINK_ACCEPTS;
    let sends = mode == XdpMode::Generic || netdev::sends(ifindex).unwrap_or(false);
    match (sends, sys::has_peer(device)) {
        (true, _) => (XdpLink::new(mac, all), None),
        // The far end takes frames only with a program of its own, or GRO.
        (false, true) => {
            let note = "its far end takes no frames (neither GRO nor a program): tc sends what leaves there";
            (XdpLink::new(mac, 0), Some(note.to_owned()))
        }
        (false, false) => {
            let note = "its driver takes no frames from other devices: tc sends them";
            (XdpLink::new(mac, XDP_LINK_ANSWERS), Some(note.to_owned()))
        }
    }
}

/// Why the kernel does not attach the program.
fn refusal(error: &io::Error) -> String {
    /// `ENOTSUPP`, which drivers let out.
    const ENOTSUPP: i32 = 524;
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | ENOTSUPP) => "its driver has no XDP".to_owned(),
        Some(libc::EBUSY | libc::EEXIST) => "somebody else's program is attached there".to_owned(),
        _ => format!("its driver refuses the program: {error}"),
    }
}
