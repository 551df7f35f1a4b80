//! What a process takes: its own memory, and that of the eBPF maps that it holds.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// Bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// Resident now.
    pub resident: u64,
    /// Resident at most so far.
    pub peak: u64,
    /// Of all maps together.
    pub maps: u64,
    /// Of each map, by its number: bytes and entries at most.
    by_map: BTreeMap<u64, (u64, u64)>,
}

impl Footprint {
    /// Of a process.
    pub fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
        let kib = |name| field(&status, name).with_context(|| format!("no {name} in its status"));
        let mut by_map = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
            if let (Some(id), Some(bytes)) = (field(&info, "map_id"), field(&info, "memlock")) {
                by_map.insert(id, (bytes, field(&info, "max_entries").unwrap_or(0)));
            }
        }
        Ok(Self {
            resident: kib("VmRSS")? * 1024,
            peak: kib("VmHWM")? * 1024,
            maps: by_map.values().map(|(bytes, _)| bytes).sum(),
            by_map,
        })
    }

    /// The largest maps, for people.
    pub fn largest(&self) -> String {
        let mut maps: Vec<&(u64, u64)> = self.by_map.values().collect();
        maps.sort_unstable_by(|a, b| b.cmp(a));
        let shown = maps
            .iter()
            .take(4)
            .map(|(bytes, entries)| format!("{:.1} MB of at most {entries} entries", *bytes as f64 / 1e6));
        format!("the largest: {}", shown.collect::<Vec<_>>().join(", "))
    }
}

/// The number behind `name:`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "VmHWM:\t  900 kB\nVmRSS:\t  123 kB\nmap_id:\t7\nmap_id_of_btf:\t9\n";
        assert_eq!(field(text, "VmRSS"), Some(123));
        assert_eq!(field(text, "map_id"), Some(7));
        assert_eq!(field(text, "memlock"), None);
    }

    #[test]
    fn a_process_without_maps_has_none() {
        let own = Footprint::of(std::process::id()).unwrap();
        assert_eq!(own.maps, 0);
        assert!(own.resident > 0 && own.peak >= own.resident);
    }
}
