//! Maps are exchanged for larger ones: the kernel cannot resize one.
//!
//! The larger map is pinned beside its pin as `<name>_new`, and takes its place only when every link runs programs
//! that use it. If this process dies in between, the former map has the same content, and the next start begins from
//! it.

use std::io;
use std::path::{Path, PathBuf};

use seaway_ebpf_abi as abi;
use seaway_ebpf_abi::maps as names;

use crate::kernel_maps::{KernelMap, Maps, NO_KEY, NO_RANGE};
use crate::sys::Plain;
use crate::{Capacities, LoadError};

/// Where the larger map waits.
pub(crate) fn fresh(pins: &Path, name: &str) -> PathBuf {
    pins.join(format!("{name}_new"))
}

/// Removes what a process that died has left waiting.
pub(crate) fn discard(pins: &Path) -> Result<(), LoadError> {
    for name in names::ALL {
        let path = fresh(pins, name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(LoadError::io("remove", &path, e)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Makes and fills larger maps for those that are smaller than wanted. Returns their names.
pub(crate) fn enlarge(pins: &Path, maps: &Maps, wanted: &Capacities) -> Result<Vec<&'static str>, LoadError> {
    let mut grown = Vec::new();
    for (name, capacity) in wanted.written_by_user() {
        let done = match name {
            names::SERVICES => larger(pins, &maps.services, capacity, (NO_KEY, abi::Service::default())),
            names::BACKENDS => larger(pins, &maps.backends, capacity, (0_u32, abi::Backend::default())),
            names::MAGLEV => larger(pins, &maps.maglev, capacity, (0_u32, abi::MaglevChunk::default())),
            _ => larger(pins, &maps.source_ranges, capacity, (NO_RANGE, 0_u32)),
        };
        if done? {
            grown.push(name);
        }
    }
    Ok(grown)
}

fn larger<K: Plain, V: Plain>(
    pins: &Path,
    map: &KernelMap,
    capacity: u32,
    zero: (K, V),
) -> Result<bool, LoadError> {
    if map.capacity >= capacity {
        return Ok(false);
    }
    let larger = map.create_alike(&fresh(pins, map.name), capacity)?;
    let (keys, values): (Vec<K>, Vec<V>) = map.all(zero)?.into_iter().unzip();
    larger.put(&keys, &values)?;
    Ok(true)
}

/// Lets the larger maps take their places.
pub(crate) fn settle(pins: &Path, grown: &[&str]) -> Result<(), LoadError> {
    for name in grown {
        let path = fresh(pins, name);
        std::fs::rename(&path, pins.join(name)).map_err(|e| LoadError::io("rename", &path, e))?;
    }
    Ok(())
}
