//! Maps of a former layout: read, converted, replaced, removed.
//!
//! A map's name ends in the version of its layout, so the former one and the new one stand side by side while the
//! programs change over. A new version adds its conversion here, and keeps those from all versions that it can meet.
//! Maps that only the programs write keep their layout, or begin empty.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use seaway_ebpf_abi as abi;

use crate::kernel_maps::{KernelMap, Maps, NO_KEY};
use crate::sys::{self, Plain};
use crate::{Capacities, LoadError};

/// `sw_services_1`: without Maglev tables.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ServiceV1 {
    id: u32,
    base: u32,
    count: u32,
    flags: u32,
    affinity_timeout_s: u32,
    generation: u32,
}

/// `sw_config_1`: without the pods' networks and switches.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ConfigV1 {
    node_v4: abi::Addr,
    node_v6: abi::Addr,
    netns_cookie: u64,
    snat_port_min: u16,
    snat_port_max: u16,
    csum_flags_v6: u32,
}

/// `sw_config_2`: without the tunnel.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ConfigV2 {
    node_v4: abi::Addr,
    node_v6: abi::Addr,
    pods: [abi::Addr; 4],
    netns_cookie: u64,
    snat_port_min: u16,
    snat_port_max: u16,
    csum_flags_v6: u32,
    flags: u32,
    rejects_per_s: u32,
}

// SAFETY: `repr(C)`, integers only, no padding (24 bytes).
unsafe impl Plain for ServiceV1 {}
// SAFETY: as above (48 bytes).
unsafe impl Plain for ConfigV1 {}

// SAFETY: as above (120 bytes).
unsafe impl Plain for ConfigV2 {}

const _: () = assert!(size_of::<ServiceV1>() == 24);
const _: () = assert!(size_of::<ConfigV1>() == 48 && size_of::<ConfigV2>() == 120);

/// The maps of former layouts that are still pinned.
#[derive(Debug)]
pub(crate) struct Former {
    services_1: Option<KernelMap>,
    config_1: Option<KernelMap>,
    config_2: Option<KernelMap>,
    pins: PathBuf,
}

impl Former {
    /// Looks for them.
    pub(crate) fn find(pins: &Path) -> Result<Self, LoadError> {
        let open = |name: &'static str| {
            let path = pins.join(name);
            if path.exists() { KernelMap::open(&path, name).map(Some) } else { Ok(None) }
        };
        let (services_1, pins) = (open("sw_services_1")?, pins.into());
        Ok(Self { services_1, config_1: open("sw_config_1")?, config_2: open("sw_config_2")?, pins })
    }

    /// Capacities that take what is there.
    pub(crate) fn at_least(&self, wanted: &Capacities) -> Capacities {
        let held = self.services_1.as_ref().map_or(0, |map| map.capacity);
        Capacities { services: wanted.services.max(held), ..*wanted }
    }

    /// Writes what they hold to the maps of this version. False: there are none.
    pub(crate) fn convert(&self, maps: &Maps) -> Result<bool, LoadError> {
        if let Some(map) = &self.services_1 {
            let held = map.all((NO_KEY, ServiceV1::default()))?;
            let (keys, values): (Vec<_>, Vec<_>) = held.into_iter().map(|(k, v)| (k, service(&v))).unzip();
            maps.services.put(&keys, &values)?;
        }
        if let Some(map) = &self.config_1 {
            let mut held = ConfigV1::default();
            sys::lookup(map.fd.as_fd(), &0_u32, &mut held).map_err(|e| map.error("read", e))?;
            maps.config.put(&[0_u32], &[config(&held)])?;
        }
        if let Some(map) = &self.config_2 {
            let mut held = ConfigV2::default();
            sys::lookup(map.fd.as_fd(), &0_u32, &mut held).map_err(|e| map.error("read", e))?;
            maps.config.put(&[0_u32], &[config_of_2(&held)])?;
        }
        Ok(self.maps().next().is_some())
    }

    fn maps(&self) -> impl Iterator<Item = &KernelMap> {
        [&self.services_1, &self.config_1, &self.config_2].into_iter().flatten()
    }

    /// Removes their pins: with the last program that uses them, they go.
    pub(crate) fn remove(&self) -> Result<(), LoadError> {
        for map in self.maps() {
            let path = self.pins.join(map.name);
            std::fs::remove_file(&path).map_err(|e| LoadError::io("remove", &path, e))?;
        }
        Ok(())
    }
}

fn service(v1: &ServiceV1) -> abi::Service {
    abi::Service {
        id: v1.id,
        base: v1.base,
        count: v1.count,
        flags: v1.flags,
        affinity_timeout_s: v1.affinity_timeout_s,
        generation: v1.generation,
        maglev_base: 0,
        maglev_size: 0,
    }
}

fn config(v1: &ConfigV1) -> abi::Config {
    abi::Config {
        node_v4: v1.node_v4,
        node_v6: v1.node_v6,
        netns_cookie: v1.netns_cookie,
        snat_port_min: v1.snat_port_min,
        snat_port_max: v1.snat_port_max,
        csum_flags_v6: v1.csum_flags_v6,
        ..abi::Config::default()
    }
}

fn config_of_2(v2: &ConfigV2) -> abi::Config {
    let [pods_v4, pods_v4_mask, pods_v6, pods_v6_mask] = v2.pods;
    abi::Config {
        node_v4: v2.node_v4,
        node_v6: v2.node_v6,
        pods_v4,
        pods_v4_mask,
        pods_v6,
        pods_v6_mask,
        netns_cookie: v2.netns_cookie,
        snat_port_min: v2.snat_port_min,
        snat_port_max: v2.snat_port_max,
        csum_flags_v6: v2.csum_flags_v6,
        flags: v2.flags,
        rejects_per_s: v2.rejects_per_s,
        ..abi::Config::default()
    }
}
