//! Between the words of the proxy and the entries of the maps.
//!
//! The programs do not look at an entry's `generation`. It carries what they have no use for and a restart does: the
//! kind of the frontend (2 bits), whether the source is preserved (1), how often the id was moved on because another
//! group had it (3), and the part of the group's number that is not in the id (26).

use std::sync::Arc;

use seaway_ebpf_loader as loader;
use seaway_model::{Family, Protocol};

use crate::frontend::{Backend, Frontend, FrontendKey, FrontendKind, Group, Scope};

/// How often an id may be moved on: what three bits hold.
pub(super) const PROBES: u32 = 8;

/// The id of `group` at the `probe`th try. 0 belongs to the guards.
pub(super) fn id_of(group: Group, probe: u32) -> Option<u32> {
    let low = u32::try_from(group.bits() & u64::from(u32::MAX)).ok()?;
    Some(low.wrapping_add(probe)).filter(|id| *id != 0)
}

/// Where the Maglev table begins of a frontend that wants one and has too few backends for it. The programs look at no
/// table without a size.
const NO_TABLE: u32 = u32::MAX;

/// The key of a frontend. `None`: the programs do not know the protocol.
pub(super) fn key(key: &FrontendKey) -> Option<loader::Frontend> {
    let scope = match key.scope {
        Scope::Internal => loader::Scope::Internal,
        Scope::External => loader::Scope::External,
    };
    Some(loader::Frontend::new(key.addr, key.port, protocol(key.protocol)?, scope))
}

/// The frontend of a key. `None`: it is a guard.
pub(super) fn frontend_key(frontend: &loader::Frontend) -> Option<FrontendKey> {
    if frontend.addr.is_unspecified() {
        return None;
    }
    let scope = match frontend.scope {
        loader::Scope::Internal => Scope::Internal,
        loader::Scope::External => Scope::External,
    };
    let protocol = match frontend.protocol? {
        loader::Protocol::Tcp => Protocol::Tcp,
        loader::Protocol::Udp => Protocol::Udp,
    };
    Some(FrontendKey { addr: frontend.addr, port: frontend.port, protocol, scope })
}

fn protocol(protocol: Protocol) -> Option<loader::Protocol> {
    match protocol {
        Protocol::Tcp => Some(loader::Protocol::Tcp),
        Protocol::Udp => Some(loader::Protocol::Udp),
        Protocol::Sctp => None,
    }
}

/// The entry of `frontend`, whose group has the id of try `probe`, whose slice begins at `base`, and whose Maglev table
/// lies at `table` and has so many slots.
pub(super) fn entry(
    key: &FrontendKey,
    frontend: &Frontend,
    id: u32,
    probe: u32,
    base: u32,
    table: Option<(u32, u32)>,
) -> loader::ServiceEntry {
    let no_table = if frontend.maglev { (NO_TABLE, 0) } else { (0, 0) };
    let (maglev_base, maglev_size) = table.filter(|_| frontend.maglev).unwrap_or(no_table);
    let kind = match frontend.kind {
        FrontendKind::ClusterIP => 0,
        FrontendKind::LoadBalancer => 1,
        FrontendKind::ExternalIP => 2,
        FrontendKind::NodePort => 3,
    };
    let high = u32::try_from(frontend.group.bits() >> 32).unwrap_or(0);
    loader::ServiceEntry {
        id,
        base,
        count: u32::try_from(frontend.backends.len()).unwrap_or(u32::MAX),
        affinity: frontend.affinity,
        generation: kind | u32::from(frontend.preserve_source) << 2 | (probe % PROBES) << 3 | high << 6,
        source_ranges: !frontend.source_ranges.is_empty(),
        drop_when_empty: frontend.elsewhere,
        node_port: frontend.kind == FrontendKind::NodePort,
        host_only: key.addr.is_loopback(),
        dsr: frontend.dsr,
        masquerade: frontend.masquerade,
        maglev_base,
        maglev_size,
    }
}

/// The entry's frontend, without backends and source ranges, and its probe. `None`: it is not of our making.
pub(super) fn frontend(key: &FrontendKey, entry: &loader::ServiceEntry) -> Option<(Frontend, u32)> {
    let kind = match entry.generation & 3 {
        0 => FrontendKind::ClusterIP,
        1 => FrontendKind::LoadBalancer,
        2 => FrontendKind::ExternalIP,
        _ => FrontendKind::NodePort,
    };
    let probe = entry.generation >> 3 & (PROBES - 1);
    let low = entry.id.wrapping_sub(probe);
    let frontend = Frontend {
        group: Group::from_bits(u64::from(entry.generation >> 6) << 32 | u64::from(low)),
        kind,
        backends: Arc::default(),
        affinity: entry.affinity,
        source_ranges: Arc::default(),
        preserve_source: entry.generation & 4 != 0,
        elsewhere: entry.drop_when_empty,
        maglev: entry.maglev_size > 0 || entry.maglev_base == NO_TABLE,
        dsr: entry.dsr,
        masquerade: entry.masquerade,
    };
    let sound = entry.node_port == (kind == FrontendKind::NodePort)
        && entry.host_only == key.addr.is_loopback()
        && id_of(frontend.group, probe) == Some(entry.id)
        && table_size(&frontend, entry.count) == (entry.maglev_size > 0).then_some(entry.maglev_size);
    sound.then_some((frontend, probe))
}

/// How many slots the Maglev table of a frontend with so many backends has. `None`: it has no table.
pub(super) fn table_size(frontend: &Frontend, backends: u32) -> Option<u32> {
    loader::maglev::table_size(backends as usize).filter(|_| frontend.maglev)
}

/// A slice as the array holds it.
pub(super) fn slice(backends: &[Backend], id: u32) -> Vec<loader::BackendEntry> {
    let entry =
        |b: &Backend| loader::BackendEntry { addr: b.addr, port: b.port, service: id, local: b.local };
    backends.iter().map(entry).collect()
}

/// The backends of a slice. `None`: it is not the slice of `id`.
pub(super) fn backends(slice: &[loader::BackendEntry], id: u32) -> Option<Vec<Backend>> {
    let backend = |e: &loader::BackendEntry| {
        (e.service == id).then_some(Backend { addr: e.addr, port: e.port, local: e.local })
    };
    slice.iter().map(backend).collect()
}

/// The entries that a frontend needs beside its own: undefined ports of a ClusterIP refuse, and nobody on the node
/// binds a NodePort away.
pub(super) fn guard(
    key: &FrontendKey,
    frontend: &Frontend,
) -> Option<(loader::Frontend, loader::ServiceEntry)> {
    match (frontend.kind, key.scope) {
        (FrontendKind::ClusterIP, Scope::Internal) => Some((
            loader::Frontend::any_port(key.addr, loader::Scope::Internal),
            loader::ServiceEntry::default(),
        )),
        (FrontendKind::NodePort, _) => Some((
            loader::Frontend::node_port_guard(
                Family::of(key.addr) == Family::V4,
                key.port,
                protocol(key.protocol)?,
            ),
            loader::ServiceEntry { node_port: true, ..loader::ServiceEntry::default() },
        )),
        _ => None,
    }
}
