//! bpf(2), as far as aya does not offer it: batches, links of every kind that can be updated, test runs.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const MAP_CREATE: libc::c_int = 0;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_TEST_RUN: libc::c_int = 10;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;
const MAP_DELETE_BATCH: libc::c_int = 27;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// A type whose values are plain bytes.
///
/// # Safety
///
/// `repr(C)` or a primitive, no padding, every bit pattern valid.
pub(crate) unsafe trait Plain: Copy + Sync {}

// SAFETY: all are `repr(C)`, made of integers only, with padding spelt out; their sizes are asserted where they are.
unsafe impl Plain for seaway_ebpf_abi::ServiceKey {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::Service {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::Backend {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::SourceRangeKey {}
// SAFETY: see above.
unsafe impl Plain for seaway_ebpf_abi::ClusterNetKey {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::FlowTuple {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::FlowValue {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::SocketKey {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::SocketValue {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::AffinityKey {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::AffinityValue {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::FragmentKey {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::FragmentValue {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::Config {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::PodLink {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::XdpLink {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::MasqueradeSource {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::MaglevChunk {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::StatsKey {}
// SAFETY: as above.
unsafe impl Plain for seaway_ebpf_abi::Stats {}
// SAFETY: a primitive.
unsafe impl Plain for u32 {}
// SAFETY: a primitive.
unsafe impl Plain for u64 {}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    prog_or_link_fd: u32,
    target: u32,
    attach_type_or_flags: u32,
    flags: u32,
    extra: [u64; 4],
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// The first bytes of `struct bpf_link_info`, as far as cgroup, tcx and XDP links go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) prog_id: u32,
    pad: u32,
    /// cgroup: id (low word); tcx, XDP: ifindex.
    pub(crate) target: u32,
    /// cgroup: id (high word); tcx: attach type.
    pub(crate) target_high: u32,
    rest: [u64; 12],
}

fn call<A>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: every attribute struct of this file is `repr(C)`, and the pointers in it are those of live buffers of
    // the sizes that go with them.
    let code = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(code: libc::c_long) -> io::Result<OwnedFd> {
    let fd = libc::c_int::try_from(code).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn at<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

/// Reads one element. `None`: there is none.
pub(crate) fn lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &mut V) -> io::Result<bool> {
    let mut attr = ElementAttr { map_fd: raw(map), key: at(key), value: at(value), ..ElementAttr::default() };
    found(call(MAP_LOOKUP_ELEM, &mut attr))
}

/// Reads one element of a per-CPU map, whose values are multiples of 8 bytes; `values` has one for each CPU.
pub(crate) fn lookup_per_cpu<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    key: &K,
    values: &mut [V],
) -> io::Result<bool> {
    let value = values.as_mut_ptr() as u64;
    let mut attr = ElementAttr { map_fd: raw(map), key: at(key), value, ..ElementAttr::default() };
    found(call(MAP_LOOKUP_ELEM, &mut attr))
}

fn found(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Inserts or replaces one element.
pub(crate) fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr = ElementAttr { map_fd: raw(map), key: at(key), value: at(value), ..ElementAttr::default() };
    call(MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Inserts an element that is not there; false: it is, and stays as it was.
pub(crate) fn insert<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<bool> {
    const BPF_NOEXIST: u64 = 1;
    let (key, value) = (at(key), at(value));
    let mut attr = ElementAttr { map_fd: raw(map), key, value, flags: BPF_NOEXIST, ..ElementAttr::default() };
    match call(MAP_UPDATE_ELEM, &mut attr) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        other => other.map(|_| true),
    }
}

/// Deletes one element; false: there was none.
pub(crate) fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = ElementAttr { map_fd: raw(map), key: at(key), ..ElementAttr::default() };
    found(call(MAP_DELETE_ELEM, &mut attr))
}

/// The key after `key` (the first, without one); false: it was the last.
pub(crate) fn next_key<K: Plain>(map: BorrowedFd<'_>, key: Option<&K>, next: &mut K) -> io::Result<bool> {
    let key = key.map_or(0, at);
    let mut attr = ElementAttr { map_fd: raw(map), key, value: at(next), ..ElementAttr::default() };
    found(call(MAP_GET_NEXT_KEY, &mut attr))
}

/// Where a batched walk stands. Opaque to us: hashes keep a bucket there, others a key.
pub(crate) type Position = [u64; 8];

/// Reads elements; returns how many, and whether these were the last. `start`: none at the beginning.
pub(crate) fn lookup_batch<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    start: Option<&Position>,
    end: &mut Position,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, bool)> {
    let room = keys.len().min(values.len());
    let mut attr = BatchAttr {
        in_batch: start.map_or(0, at),
        out_batch: at(end),
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(room).unwrap_or(u32::MAX),
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    match call(MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => Ok((attr.count as usize, false)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count as usize, true)),
        Err(e) => Err(e),
    }
}

/// Inserts or replaces elements; on an error, says how many were written.
pub(crate) fn update_batch<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    let count = u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX);
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    call(MAP_UPDATE_BATCH, &mut attr).map(drop).map_err(|e| (attr.count as usize, e))
}

/// Deletes elements; on an error, says how many were deleted.
pub(crate) fn delete_batch<K: Plain>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), (usize, io::Error)> {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    call(MAP_DELETE_BATCH, &mut attr).map(drop).map_err(|e| (attr.count as usize, e))
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Pins an object.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 };
    call(OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, ..ObjectAttr::default() };
    owned(call(OBJ_GET, &mut attr)?)
}

/// Attaches a program to a cgroup directory (by descriptor) or to a device (by index).
pub(crate) fn create_link(
    prog: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        prog_or_link_fd: raw(prog),
        target,
        attach_type_or_flags: attach_type,
        flags,
        ..LinkAttr::default()
    };
    owned(call(LINK_CREATE, &mut attr)?)
}

/// Replaces a link's program atomically.
pub(crate) fn update_link(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkAttr { prog_or_link_fd: raw(link), target: raw(prog), ..LinkAttr::default() };
    call(LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link's program now; without this, it goes a moment after the last descriptor and pin.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkAttr { prog_or_link_fd: raw(link), ..LinkAttr::default() };
    call(LINK_DETACH, &mut attr).map(drop)
}

/// What a link is attached to.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let len = u32::try_from(size_of::<LinkInfo>()).unwrap_or_default();
    let mut attr = InfoAttr { fd: raw(link), len, info: std::ptr::from_mut(&mut info) as u64 };
    call(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// The name of a program that is loaded.
pub(crate) fn program_name(id: u32) -> io::Result<String> {
    let program = owned(call(PROG_GET_FD_BY_ID, &mut [id, 0, 0, 0])?)?;
    // struct bpf_prog_info, of which the name is the bytes from 64 to 80.
    let mut info = [0_u64; 10];
    let len = u32::try_from(size_of_val(&info)).unwrap_or_default();
    let mut attr = InfoAttr { fd: raw(program.as_fd()), len, info: info.as_mut_ptr() as u64 };
    call(OBJ_GET_INFO_BY_FD, &mut attr)?;
    let name = [info[8].to_ne_bytes(), info[9].to_ne_bytes()].concat();
    Ok(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned())
}

/// What a map is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapShape {
    /// `enum bpf_map_type`.
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) capacity: u32,
    pub(crate) flags: u32,
}

/// `struct bpf_attr` of `BPF_MAP_CREATE`, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
    rest: u32,
}

/// Creates a map.
pub(crate) fn create_map(name: &str, shape: MapShape) -> io::Result<OwnedFd> {
    let MapShape { kind, key_size, value_size, capacity: max_entries, flags } = shape;
    let mut attr = CreateAttr { kind, key_size, value_size, max_entries, flags, ..CreateAttr::default() };
    for (to, from) in attr.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    owned(call(MAP_CREATE, &mut attr)?)
}

/// What a map is made of, from its descriptor.
pub(crate) fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    // struct bpf_map_info { type, id, key_size, value_size, max_entries, map_flags, … }
    let mut info = [0_u32; 64];
    let len = u32::try_from(size_of_val(&info)).unwrap_or_default();
    let mut attr = InfoAttr { fd: raw(map), len, info: info.as_mut_ptr() as u64 };
    call(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(MapShape { kind: info[0], key_size: info[2], value_size: info[3], capacity: info[4], flags: info[5] })
}

/// Runs a packet program on `packet` and its context, `repeat` times; returns verdict, resulting packet and nanoseconds
/// per run.
pub(crate) fn test_run(
    prog: BorrowedFd<'_>,
    packet: &[u8],
    context: &[u32],
    repeat: u32,
) -> io::Result<(i32, Vec<u8>, u32)> {
    let mut out = vec![0_u8; packet.len() + 512];
    let size = |len: usize| u32::try_from(len).unwrap_or_default();
    let mut attr = TestRunAttr {
        prog_fd: raw(prog),
        data_size_in: size(packet.len()),
        data_size_out: size(out.len()),
        data_in: packet.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        ctx_size_in: size(size_of_val(context)),
        ctx_in: context.as_ptr() as u64,
        ..TestRunAttr::default()
    };
    call(PROG_TEST_RUN, &mut attr)?;
    out.truncate(attr.data_size_out as usize);
    Ok((attr.retval.cast_signed(), out, attr.duration))
}

/// The cookie of the calling thread's network namespace.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    // SAFETY: the option is 8 bytes, as is the buffer.
    let code = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Whether a path lies on a BPF file system. `None`: it does not exist.
pub(crate) fn is_bpffs(path: &Path) -> io::Result<Option<bool>> {
    let path = c_path(path)?;
    // SAFETY: an all-zero `statfs` is valid; the call fills it.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: path is a C string, stat lives.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } == 0 {
        return Ok(Some(stat.f_type == libc::BPF_FS_MAGIC as libc::c_long));
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::NotFound => Ok(None),
        e => Err(e),
    }
}

/// Mounts a BPF file system.
pub(crate) fn mount_bpffs(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: all are C strings.
    let code = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            path.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A device's index, in the calling thread's network namespace.
pub(crate) fn ifindex(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: a C string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}

/// Whether a device's packets begin with an Ethernet header (the loopback device's do, tunnels' may not).
pub(crate) fn is_ethernet(name: &str) -> bool {
    hardware_address(name)
        .is_some_and(|(kind, _)| kind == libc::ARPHRD_ETHER || kind == libc::ARPHRD_LOOPBACK)
}

/// A device's MAC address; the loopback device has none.
pub(crate) fn mac(name: &str) -> Option<[u8; 6]> {
    hardware_address(name).filter(|(kind, _)| *kind == libc::ARPHRD_ETHER).map(|(_, mac)| mac)
}

/// The kind of a device, and its hardware address as far as it may be a MAC address.
fn hardware_address(name: &str) -> Option<(u16, [u8; 6])> {
    let (socket, mut request) = device_request(name)?;
    // SAFETY: the call reads the name and fills the hardware address, which is then the union's member in use.
    let addr = unsafe {
        if libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) != 0 {
            return None;
        }
        request.ifr_ifru.ifru_hwaddr
    };
    let bytes = addr.sa_data.first_chunk::<6>()?;
    Some((addr.sa_family, bytes.map(i8::cast_unsigned)))
}

/// Whether a device is one of a pair, the other end of which packets can be handed to (`bpf_redirect_peer`).
pub(crate) fn has_peer(name: &str) -> bool {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_GDRVINFO: u32 = 3;
    /// `struct ethtool_drvinfo`.
    #[repr(C)]
    struct DriverInfo {
        cmd: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    let Some((socket, mut request)) = device_request(name) else { return false };
    let mut info = DriverInfo { cmd: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the call reads the name, and reads and fills what the data points to, which has its size.
    if unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCETHTOOL, &raw mut request) } != 0 {
        return false;
    }
    [&b"veth\0"[..], &b"netkit\0"[..]].iter().any(|driver| info.driver.starts_with(driver))
}

/// A socket for ioctl(2) about a device, and a request with its name.
fn device_request(name: &str) -> Option<(std::os::unix::net::UnixDatagram, libc::ifreq)> {
    let socket = std::os::unix::net::UnixDatagram::unbound().ok()?;
    // SAFETY: an all-zero request is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= libc::IF_NAMESIZE {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Some((socket, request))
}

/// A device's name, in the calling thread's network namespace.
pub(crate) fn ifname(index: u32) -> Option<String> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call wants.
    let got = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    if got.is_null() {
        return None;
    }
    let end = name.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// Has the threads of this process share memory that is free: glibc gives each of many threads a heap of its own, and
/// what one has freed is of no use to the others. What is large, such as the text of a list or a vector that has grown,
/// is left to the kernel: it grows where it stands, and once freed it is gone, where a heap keeps a hole of its size.
/// To be called before there are threads.
pub fn share_arenas() {
    // SAFETY: the allocator's own function, which takes numbers: two heaps for all threads, and what they keep.
    #[cfg(target_env = "gnu")]
    unsafe {
        /// Untold, glibc moves this on to the largest piece that was ever freed.
        const LARGE_BYTES: libc::c_int = 256 * 1024;
        /// What is free at the end of a heap, for what comes next.
        const SPARE_BYTES: libc::c_int = 1024 * 1024;
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, SPARE_BYTES);
    }
}

/// Gives memory of this process that nobody uses back to the kernel: glibc keeps what a large change has needed on its way.
pub fn trim_memory() {
    // SAFETY: the allocator's own function, which any thread may call at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Seconds of the clock that the programs use.
pub(crate) fn monotonic_s() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills `now`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u32::try_from(now.tv_sec).unwrap_or_default()
}
