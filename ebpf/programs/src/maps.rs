//! The maps. Names and layouts are `seaway-ebpf-abi`'s; the loader finds and pins them by name.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_fib_lookup};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap};
use seaway_ebpf_abi::maps::capacity;
use seaway_ebpf_abi::{
    Addr, AffinityKey, AffinityValue, Backend, CLUSTER_NET_PODS, COUNTERS as COUNTER_SLOTS, Config,
    FlowTuple, FlowValue, FragmentKey, FragmentValue, MaglevChunk, MasqueradeSource, PodLink, Service,
    ServiceKey, SocketKey, SocketValue, Stats, StatsKey, XdpLink,
};

use crate::parse::Packet;

#[map(name = "sw_services_2")]
pub(crate) static SERVICES: HashMap<ServiceKey, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);

#[map(name = "sw_backends_1")]
pub(crate) static BACKENDS: Array<Backend> = Array::with_max_entries(capacity::BACKENDS, 0);

#[map(name = "sw_maglev_1")]
pub(crate) static MAGLEV: Array<MaglevChunk> = Array::with_max_entries(capacity::MAGLEV, 0);

/// The key's data is the service id and the address, one after the other.
#[map(name = "sw_src_range_1")]
pub(crate) static SOURCE_RANGES: LpmTrie<[u32; 5], u32> =
    LpmTrie::with_max_entries(capacity::SOURCE_RANGES, BPF_F_NO_PREALLOC);

#[map(name = "sw_affinity_1")]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, AffinityValue> =
    LruHashMap::with_max_entries(capacity::AFFINITY, 0);

#[map(name = "sw_sockets_1")]
pub(crate) static SOCKETS: LruHashMap<SocketKey, SocketValue> =
    LruHashMap::with_max_entries(capacity::SOCKETS, 0);

#[map(name = "sw_flows_1")]
pub(crate) static FLOWS: LruHashMap<FlowTuple, FlowValue> = LruHashMap::with_max_entries(capacity::FLOWS, 0);

#[map(name = "sw_fragments_1")]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue> =
    LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);

#[map(name = "sw_counters_1")]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_SLOTS, 0);

/// Not preallocated: that would be a block per element and CPU.
#[map(name = "sw_stats_1")]
pub(crate) static STATS: PerCpuHashMap<StatsKey, Stats> =
    PerCpuHashMap::with_max_entries(capacity::STATS, BPF_F_NO_PREALLOC);

#[map(name = "sw_config_3")]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

#[map(name = "sw_pod_links_1")]
pub(crate) static POD_LINKS: HashMap<u32, PodLink> =
    HashMap::with_max_entries(capacity::POD_LINKS, BPF_F_NO_PREALLOC);

/// The key's data is the address.
#[map(name = "sw_cluster_nets_1")]
pub(crate) static CLUSTER_NETS: LpmTrie<[u32; 4], u32> =
    LpmTrie::with_max_entries(capacity::CLUSTER_NETS, BPF_F_NO_PREALLOC);

#[map(name = "sw_xdp_links_1")]
static XDP_LINKS: HashMap<u32, XdpLink> = HashMap::with_max_entries(capacity::XDP_LINKS, BPF_F_NO_PREALLOC);

/// The key's data is the address.
#[map(name = "sw_masquerade_1")]
static MASQUERADE: LpmTrie<[u32; 4], u32> =
    LpmTrie::with_max_entries(capacity::MASQUERADE, BPF_F_NO_PREALLOC);

#[map(name = "sw_sources_1")]
static SOURCES: HashMap<u32, MasqueradeSource> =
    HashMap::with_max_entries(capacity::SOURCES, BPF_F_NO_PREALLOC);

/// Room that the 512 bytes of stack do not offer. The packet programs run with bottom halves off, so each CPU uses
/// its own at most once at a time.
#[repr(C)]
pub(crate) struct Scratch {
    /// The packet at hand.
    pub(crate) packet: Packet,
    /// The other direction's key, while a flow is made.
    pub(crate) reply_key: FlowTuple,
    /// The other direction's value.
    pub(crate) reply: FlowValue,
    /// This direction's value.
    pub(crate) forward: FlowValue,
    /// A route that is looked up.
    pub(crate) fib: bpf_fib_lookup,
    /// Headers that are read or made.
    pub(crate) words: [u32; 32],
    /// Headers that are read.
    pub(crate) old: [u32; 12],
    /// The same, rewritten.
    pub(crate) new: [u32; 12],
    /// Bytes between an IPv6 header that is quoted and its ports: a fragment header.
    pub(crate) quoted_gap: u32,
    /// The second in which the last refused packet was answered.
    pub(crate) reject_s: u32,
    /// How many were in it.
    pub(crate) rejects: u32,
}

#[map(name = "sw_scratch")]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's scratch room.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: bottom halves are off, nobody else on this CPU has it; it is not handed out twice by one program.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// The node's configuration.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// The pod's link with this index, if it has one that runs the programs.
#[inline(always)]
pub(crate) fn pod_link(ifindex: u32) -> Option<&'static mut PodLink> {
    // SAFETY: the map is not preallocated: an element that is removed meanwhile stays valid; whoever writes, sets bits.
    POD_LINKS.get_ptr_mut(&ifindex).map(|link| unsafe { &mut *link })
}

/// The uplink with this index, if the XDP program may use it.
#[inline(always)]
pub(crate) fn xdp_link(ifindex: u32) -> Option<&'static XdpLink> {
    // SAFETY: the map is not preallocated: an element that is replaced meanwhile stays readable.
    unsafe { XDP_LINKS.get(&ifindex) }
}

/// Whether an address is in a pod subnet.
#[inline(always)]
pub(crate) fn is_pod(addr: &Addr) -> bool {
    cluster_net(addr) == CLUSTER_NET_PODS
}

/// What in the cluster an address belongs to: one of `CLUSTER_NET_*`, or 0: it is outside.
#[inline(always)]
pub(crate) fn cluster_net(addr: &Addr) -> u32 {
    CLUSTER_NETS.get(Key::new(128, addr.words)).copied().unwrap_or(0)
}

/// What an address is to masquerading: `MASQUERADE_*`.
#[inline(always)]
pub(crate) fn masquerade(addr: &Addr) -> u32 {
    MASQUERADE.get(Key::new(128, addr.words)).copied().unwrap_or(0)
}

/// The address that packets of a family get which leave by this link.
#[inline(always)]
pub(crate) fn masquerade_source(ifindex: u32, v4: bool) -> Option<Addr> {
    // SAFETY: the map is not preallocated: an element that is replaced meanwhile stays readable.
    let source = unsafe { SOURCES.get(&ifindex) }?;
    let addr = if v4 { source.v4 } else { source.v6 };
    if addr.same(&Addr::NONE) { None } else { Some(addr) }
}

/// Seconds of `CLOCK_MONOTONIC`, as of its last tick: reading the clock itself is dear.
#[inline(always)]
pub(crate) fn now_s() -> u32 {
    // SAFETY: the helper has no arguments.
    (unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}
