//! The maps in memory, with the kernel's limits: for tests of what writes them.

use std::collections::{BTreeMap, BTreeSet};

use seaway_ebpf_abi::maps as names;

use crate::maps::check_slice;
use crate::{
    Affinity, BackendEntry, ClusterNet, Connection, Counter, Frontend, MaglevTable, MapError, MapUsage,
    Masquerading, NodeConfig, ServiceEntry, ServiceMaps, SocketFlow, SourceRange, Traffic,
};

/// In-memory [`ServiceMaps`]. Connections, sockets and affinities are what the test puts there.
#[derive(Debug, Clone)]
pub struct FakeMaps {
    /// Services as written.
    pub services: BTreeMap<Frontend, ServiceEntry>,
    /// The backend array.
    pub backends: Vec<Option<BackendEntry>>,
    /// The Maglev array.
    pub maglev: Vec<Vec<u16>>,
    /// Source ranges as written.
    pub source_ranges: BTreeSet<SourceRange>,
    /// Pod subnets.
    pub cluster_nets: BTreeSet<ClusterNet>,
    /// Masquerading as set.
    pub masquerading: Masquerading,
    /// Connections that the programs would have remembered.
    pub connections: Vec<Connection>,
    /// Sockets that the programs would have remembered.
    pub socket_flows: Vec<SocketFlow>,
    /// Affinities that the programs would have remembered.
    pub affinities: Vec<Affinity>,
    /// Traffic that the programs would have counted.
    pub traffic: Vec<Traffic>,
    /// The configuration.
    pub config: NodeConfig,
    /// How many services fit.
    pub service_capacity: u32,
    /// Calls that wrote something, for tests that count operations.
    pub writes: usize,
}

impl FakeMaps {
    /// Empty maps with these capacities.
    pub fn new(service_capacity: u32, backend_capacity: u32) -> Self {
        Self {
            services: BTreeMap::new(),
            backends: vec![None; backend_capacity as usize],
            maglev: vec![Vec::new(); 1024],
            source_ranges: BTreeSet::new(),
            cluster_nets: BTreeSet::new(),
            masquerading: Masquerading::default(),
            connections: Vec::new(),
            socket_flows: Vec::new(),
            affinities: Vec::new(),
            traffic: Vec::new(),
            config: NodeConfig::default(),
            service_capacity,
            writes: 0,
        }
    }

    /// The backends that a frontend leads to, as a program would find them. `None`: no such frontend.
    pub fn resolve(&self, frontend: &Frontend) -> Option<Vec<BackendEntry>> {
        let service = self.services.get(frontend)?;
        let slice = (service.base as usize)..(service.base as usize + service.count as usize);
        Some(
            self.backends.get(slice)?.iter().flatten().filter(|b| b.service == service.id).copied().collect(),
        )
    }
}

impl FakeMaps {
    /// Makes room, as an exchange for larger maps does.
    pub fn grow(&mut self, services: u32, backends: u32, maglev: u32) {
        self.service_capacity = self.service_capacity.max(services);
        self.backends.resize(self.backends.len().max(backends as usize), None);
        self.maglev.resize(self.maglev.len().max(maglev as usize), Vec::new());
    }

    /// The position in its slice that the service's Maglev table gives a hash, as a program would find it.
    pub fn maglev_position(&self, service: &ServiceEntry, hash: u32) -> Option<u16> {
        let slot = hash.checked_rem(service.maglev_size)?;
        let chunk = service.maglev_base + slot / seaway_ebpf_abi::CHUNK_SLOTS;
        let slots = self.maglev.get(chunk as usize)?;
        let position = slots.get((slot % seaway_ebpf_abi::CHUNK_SLOTS) as usize)?;
        (u32::from(*position) < service.count).then_some(*position)
    }
}

impl ServiceMaps for FakeMaps {
    fn services(&self) -> Result<Vec<(Frontend, ServiceEntry)>, MapError> {
        Ok(self.services.iter().map(|(frontend, entry)| (*frontend, *entry)).collect())
    }

    fn put_services(&mut self, entries: &[(Frontend, ServiceEntry)]) -> Result<(), MapError> {
        for (frontend, entry) in entries {
            let full = self.services.len() >= self.service_capacity as usize;
            if full && !self.services.contains_key(frontend) {
                return Err(MapError::Full { map: names::SERVICES, capacity: self.service_capacity });
            }
            self.services.insert(*frontend, *entry);
            self.writes += 1;
        }
        Ok(())
    }

    fn remove_services(&mut self, frontends: &[Frontend]) -> Result<(), MapError> {
        for frontend in frontends {
            self.services.remove(frontend);
            self.writes += 1;
        }
        Ok(())
    }

    fn service_capacity(&self) -> u32 {
        self.service_capacity
    }

    fn source_range_capacity(&self) -> u32 {
        u32::MAX
    }

    fn backend_capacity(&self) -> u32 {
        u32::try_from(self.backends.len()).unwrap_or(u32::MAX)
    }

    fn backends(&self, base: u32, count: u32) -> Result<Vec<BackendEntry>, MapError> {
        let end = u64::from(base) + u64::from(count);
        let capacity = self.backend_capacity();
        if end > u64::from(capacity) {
            return Err(MapError::OutOfBounds { map: names::BACKENDS, base, end, capacity });
        }
        let zero = BackendEntry::from_value(&seaway_ebpf_abi::Backend::default());
        let slice = &self.backends[base as usize..base as usize + count as usize];
        Ok(slice.iter().map(|backend| backend.unwrap_or(zero)).collect())
    }

    fn put_backends(&mut self, slices: &[(u32, Vec<BackendEntry>)]) -> Result<(), MapError> {
        for (base, slice) in slices {
            check_slice(*base, slice, self.backend_capacity(), names::BACKENDS)?;
            for (place, backend) in self.backends[*base as usize..].iter_mut().zip(slice) {
                *place = Some(*backend);
                self.writes += 1;
            }
        }
        Ok(())
    }

    fn maglev_capacity(&self) -> u32 {
        u32::try_from(self.maglev.len()).unwrap_or(u32::MAX)
    }

    fn put_maglev(&mut self, tables: &[MaglevTable]) -> Result<(), MapError> {
        for table in tables {
            table.check(self.maglev_capacity())?;
            let chunks = table.slots.chunks(seaway_ebpf_abi::CHUNK_SLOTS as usize);
            for (place, slots) in self.maglev[table.base as usize..].iter_mut().zip(chunks) {
                *place = slots.to_vec();
                self.writes += 1;
            }
        }
        Ok(())
    }

    fn cluster_nets(&self) -> Result<Vec<ClusterNet>, MapError> {
        Ok(self.cluster_nets.iter().copied().collect())
    }

    fn put_cluster_nets(&mut self, nets: &[ClusterNet]) -> Result<(), MapError> {
        self.remove_cluster_nets(nets)?;
        self.cluster_nets.extend(nets);
        Ok(())
    }

    fn remove_cluster_nets(&mut self, nets: &[ClusterNet]) -> Result<(), MapError> {
        let keys: BTreeSet<_> = nets.iter().map(|net| (net.addr, net.prefix)).collect();
        self.cluster_nets.retain(|net| !keys.contains(&(net.addr, net.prefix)));
        Ok(())
    }

    fn masquerading(&self) -> Result<Masquerading, MapError> {
        Ok(self.masquerading.clone())
    }

    fn set_masquerading(&mut self, wanted: &Masquerading) -> Result<(), MapError> {
        self.masquerading = wanted.clone();
        self.writes += 1;
        Ok(())
    }

    fn source_ranges(&self) -> Result<Vec<SourceRange>, MapError> {
        Ok(self.source_ranges.iter().copied().collect())
    }

    fn put_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapError> {
        self.source_ranges.extend(ranges);
        self.writes += ranges.len();
        Ok(())
    }

    fn remove_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<(), MapError> {
        for range in ranges {
            self.source_ranges.remove(range);
            self.writes += 1;
        }
        Ok(())
    }

    fn connections(&self) -> Result<Vec<Connection>, MapError> {
        Ok(self.connections.clone())
    }

    fn put_connections(&mut self, connections: &[Connection]) -> Result<(), MapError> {
        for connection in connections {
            if !self.connections.iter().any(|held| held.tuple() == connection.tuple()) {
                self.connections.push(*connection);
            }
        }
        Ok(())
    }

    fn remove_connections(&mut self, connections: &[Connection]) -> Result<(), MapError> {
        self.connections.retain(|held| !connections.iter().any(|gone| gone.tuple() == held.tuple()));
        Ok(())
    }

    fn socket_flows(&self) -> Result<Vec<SocketFlow>, MapError> {
        Ok(self.socket_flows.clone())
    }

    fn remove_socket_flows(&mut self, flows: &[SocketFlow]) -> Result<(), MapError> {
        self.socket_flows.retain(|held| !flows.iter().any(|gone| gone.key() == held.key()));
        Ok(())
    }

    fn affinities(&self) -> Result<Vec<Affinity>, MapError> {
        Ok(self.affinities.clone())
    }

    fn remove_affinities(&mut self, affinities: &[Affinity]) -> Result<(), MapError> {
        self.affinities.retain(|held| !affinities.iter().any(|gone| gone.key() == held.key()));
        Ok(())
    }

    fn config(&self) -> Result<NodeConfig, MapError> {
        Ok(self.config.clone())
    }

    fn set_config(&mut self, config: &NodeConfig) -> Result<(), MapError> {
        self.config = config.clone();
        Ok(())
    }

    fn counters(&self) -> Result<Vec<(Counter, u64)>, MapError> {
        Ok(Counter::ALL.iter().map(|counter| (*counter, 0)).collect())
    }

    fn traffic(&self) -> Result<Vec<Traffic>, MapError> {
        Ok(self.traffic.clone())
    }

    fn remove_traffic(&mut self, gone: &[Traffic]) -> Result<(), MapError> {
        self.traffic.retain(|held| !gone.iter().any(|gone| gone.key() == held.key()));
        Ok(())
    }

    fn usage(&self) -> Result<Vec<MapUsage>, MapError> {
        let used = u32::try_from(self.services.len()).ok();
        Ok(vec![
            MapUsage { map: names::SERVICES, capacity: self.service_capacity, used },
            MapUsage { map: names::BACKENDS, capacity: self.backend_capacity(), used: None },
            MapUsage { map: names::MAGLEV, capacity: self.maglev_capacity(), used: None },
        ])
    }
}
