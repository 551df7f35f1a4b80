//! Loads Seaway's eBPF programs, pins and attaches them, and offers their maps in user terms.
//!
//! The object is built by `cargo xtask ebpf` and checked in; building this crate needs no eBPF toolchain.
//!
//! A node's agent calls [`Dataplane::open`], then [`Dataplane::attach_cgroup`] and [`Dataplane::attach_devices`] as
//! often as it likes: all three are level-triggered. A restart adopts the pinned maps, loads its own programs against
//! them and replaces the pinned links atomically; [`remove_all`] takes everything away.
//!
//! # Order of writes
//!
//! The programs may run between any two writes. User space therefore writes, with [`ServiceMaps`]:
//! 1. source ranges of new services ([`ServiceMaps::put_source_ranges`]),
//! 2. new backend slices and Maglev tables to *unused* places of their arrays ([`ServiceMaps::put_backends`],
//!    [`ServiceMaps::put_maglev`]),
//! 3. services that point to them ([`ServiceMaps::put_services`]): the moment of the switch, one element each,
//! 4. removals: services, then source ranges, then connections and sockets whose backend or service is gone: a flow
//!    goes on as it began until it is forgotten ([`ServiceMaps::remove_connections`]), however the service changes.
//!
//! The place of a slice that no service points to any more may be reused for the next but one write, so rotate
//! through the free places instead of taking the last one freed: programs notice a replaced slice by the service id
//! in it and look the service up again, but only once.
#![allow(unsafe_code, reason = "bpf(2) and the byte view of map elements")]

mod capacities;
mod dataplane;
mod entry;
mod error;
mod exchange;
mod fake;
mod kernel_maps;
mod links;
pub mod maglev;
mod maps;
mod masquerade;
mod migrate;
mod mounts;
mod netdev;
mod node_config;
mod object;
mod sys;
mod traffic;
mod xdp;

pub use capacities::Capacities;
pub use dataplane::{Attached, Dataplane, Direction, PacketRun, netns_cookie, remove_all};
pub use entry::{
    Affinity, AffinityClient, BackendEntry, ClusterNet, ClusterNetKind, Connection, Frontend, Protocol,
    Scope, ServiceEntry, SocketFlow, SourceRange,
};
pub use error::LoadError;
pub use fake::FakeMaps;
pub use kernel_maps::KernelMaps;
pub use links::Role;
pub use maps::{MaglevTable, MapError, MapUsage, ServiceMaps, maglev_chunks};
pub use masquerade::{MasqueradeNet, MasqueradeSource, Masquerading};
pub use mounts::cgroup2_mount;
pub use node_config::NodeConfig;
pub use seaway_ebpf_abi::{Counter, DropReason};
pub use sys::{share_arenas, trim_memory};
pub use traffic::Traffic;
pub use xdp::{XdpDevice, XdpMode};
