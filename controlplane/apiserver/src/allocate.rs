//! Which Service holds which address and port: pure bookkeeping. Finding something free changes nothing; what was found
//! is taken when the write that carries it has succeeded.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::IpNet;

/// What one Service holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) cluster_ips: BTreeSet<IpAddr>,
    pub(crate) load_balancer_ips: BTreeSet<IpAddr>,
    /// Node ports, health check node ports among them.
    pub(crate) ports: BTreeSet<u16>,
}

/// Why a wanted address or port cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Another Service has it.
    Taken,
    /// It is in none of the ranges.
    OutOfRange,
}

/// A range of addresses to give out.
#[derive(Debug)]
pub(crate) struct AddressRange {
    net: IpNet,
    /// Offsets of the first and the last address given out.
    first: u128,
    last: u128,
    /// Offsets below this are given out last, because people ask for such addresses by name.
    reserved: u128,
    next: u128,
}

impl AddressRange {
    /// The range for ClusterIPs: its begin is kept for addresses that are asked for.
    pub(crate) fn services(net: IpNet) -> Self {
        let mut range = Self::pool(net);
        let size = range.last - range.first + 1;
        range.reserved = if size < 32 { 0 } else { (size / 16).clamp(16, 256) + 1 };
        range
    }

    /// The range of a pool, given out evenly.
    pub(crate) fn pool(net: IpNet) -> Self {
        let host_bits = u32::from(net.max_prefix_len() - net.prefix_len());
        let size = 1u128.checked_shl(host_bits).unwrap_or(u128::MAX);
        let v4 = net.addr().is_ipv4();
        // The first address names the subnet; the last one of IPv4 is the broadcast address.
        let first = u128::from(size > 2);
        let last = if v4 && size > 2 { size - 2 } else { size - 1 };
        Self { net, first, last, reserved: 0, next: 0 }
    }

    pub(crate) fn is_ipv4(&self) -> bool {
        self.net.addr().is_ipv4()
    }

    pub(crate) fn net(&self) -> IpNet {
        self.net
    }

    /// The address at an offset.
    pub(crate) fn at(&self, offset: u128) -> IpAddr {
        match self.net.network() {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).unwrap_or(0);
                Ipv4Addr::from(u32::from(base).wrapping_add(offset)).into()
            }
            IpAddr::V6(base) => Ipv6Addr::from(u128::from(base).wrapping_add(offset)).into(),
        }
    }

    fn offset(&self, address: IpAddr) -> Option<u128> {
        if !self.net.contains(&address) {
            return None;
        }
        match (self.net.network(), address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => Some(u128::from(u32::from(address) - u32::from(base))),
            (IpAddr::V6(base), IpAddr::V6(address)) => Some(u128::from(address) - u128::from(base)),
            _ => None,
        }
    }

    pub(crate) fn gives_out(&self, address: IpAddr) -> bool {
        self.offset(address).is_some_and(|offset| (self.first..=self.last).contains(&offset))
    }

    /// An address that nobody has, going round so that one just freed is not given out next.
    fn free(&mut self, taken: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let first_band = self.reserved.max(self.first)..=self.last;
        let start = self.next.clamp(*first_band.start(), *first_band.end());
        let offsets =
            (start..=self.last).chain(*first_band.start()..start).chain(self.first..*first_band.start());
        for offset in offsets {
            let address = self.at(offset);
            if !taken(&address) {
                self.next = if offset < self.last { offset + 1 } else { 0 };
                return Some(address);
            }
        }
        None
    }
}

/// Everything that Services hold.
#[derive(Debug)]
pub(crate) struct Allocations {
    pub(crate) services: Vec<AddressRange>,
    pub(crate) pools: Vec<AddressRange>,
    pub(crate) ports: RangeInclusive<u16>,
    next_port: u16,
    cluster_ips: HashMap<IpAddr, Arc<str>>,
    load_balancer_ips: HashMap<IpAddr, Arc<str>>,
    taken_ports: HashMap<u16, Arc<str>>,
    by_service: HashMap<Arc<str>, Claims>,
}

impl Allocations {
    pub(crate) fn new(services: &[IpNet], pools: &[IpNet], ports: RangeInclusive<u16>) -> Self {
        Self {
            services: services.iter().copied().map(AddressRange::services).collect(),
            pools: pools.iter().copied().map(AddressRange::pool).collect(),
            next_port: 0,
            ports,
            cluster_ips: HashMap::new(),
            load_balancer_ips: HashMap::new(),
            taken_ports: HashMap::new(),
            by_service: HashMap::new(),
        }
    }

    /// What the Service at `key` holds.
    pub(crate) fn held(&self, key: &str) -> Option<&Claims> {
        self.by_service.get(key)
    }

    /// From now on the Service at `key` holds exactly this. Returns what another one held already.
    pub(crate) fn set(&mut self, key: &str, claims: Claims) -> Vec<String> {
        if let Some(old) = self.by_service.remove(key) {
            old.cluster_ips.iter().for_each(|ip| release(&mut self.cluster_ips, ip, key));
            old.load_balancer_ips.iter().for_each(|ip| release(&mut self.load_balancer_ips, ip, key));
            old.ports.iter().for_each(|port| release(&mut self.taken_ports, port, key));
        }
        if claims == Claims::default() {
            return Vec::new();
        }
        let key: Arc<str> = key.into();
        let mut doubles = Vec::new();
        claims.cluster_ips.iter().for_each(|ip| take(&mut self.cluster_ips, *ip, &key, &mut doubles));
        claims
            .load_balancer_ips
            .iter()
            .for_each(|ip| take(&mut self.load_balancer_ips, *ip, &key, &mut doubles));
        claims.ports.iter().for_each(|port| take(&mut self.taken_ports, *port, &key, &mut doubles));
        self.by_service.insert(key, claims);
        doubles
    }

    /// Whether the Service at `key` may have this ClusterIP.
    pub(crate) fn check_cluster_ip(&self, key: &str, ip: IpAddr) -> Result<(), Refusal> {
        let in_range = self.services.iter().any(|range| range.gives_out(ip));
        check(&self.cluster_ips, &ip, key, in_range)
    }

    pub(crate) fn check_load_balancer_ip(&self, key: &str, ip: IpAddr) -> Result<(), Refusal> {
        let in_range = self.pools.iter().any(|range| range.gives_out(ip));
        check(&self.load_balancer_ips, &ip, key, in_range)
    }

    /// Why the Service at `key` gets no load balancer address of the family, or not the one that it wants.
    pub(crate) fn why_no_load_balancer_ip(&self, key: &str, wanted: Option<IpAddr>, ipv4: bool) -> String {
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        let pools = self.pools.iter().filter(|pool| pool.is_ipv4() == ipv4);
        let pools: Vec<String> = pools.map(|pool| pool.net().to_string()).collect();
        if pools.is_empty() {
            return format!("there is no pool of {family} addresses");
        }
        let pools = pools.join(", ");
        match wanted.map(|ip| (ip, self.check_load_balancer_ip(key, ip))) {
            Some((ip, Err(Refusal::OutOfRange))) => format!("{ip} is in none of the pools ({pools})"),
            Some((ip, Err(Refusal::Taken))) => {
                let holder =
                    self.load_balancer_ips.get(&ip).map(|holder| holder.rsplit('/').take(2).collect());
                let mut holder: Vec<&str> = holder.unwrap_or_default();
                holder.reverse();
                format!("{ip} is taken by the Service {}", holder.join("/"))
            }
            _ => format!("no {family} address is free in the pools ({pools})"),
        }
    }

    pub(crate) fn check_port(&self, key: &str, port: u16) -> Result<(), Refusal> {
        check(&self.taken_ports, &port, key, self.ports.contains(&port))
    }

    /// A free ClusterIP of the family.
    pub(crate) fn free_cluster_ip(&mut self, ipv4: bool) -> Option<IpAddr> {
        let taken = &self.cluster_ips;
        let mut ranges = self.services.iter_mut().filter(|range| range.is_ipv4() == ipv4);
        ranges.find_map(|range| range.free(|ip| taken.contains_key(ip)))
    }

    /// A free address of the family from the pools.
    pub(crate) fn free_load_balancer_ip(&mut self, ipv4: bool) -> Option<IpAddr> {
        let taken = &self.load_balancer_ips;
        let mut ranges = self.pools.iter_mut().filter(|range| range.is_ipv4() == ipv4);
        ranges.find_map(|range| range.free(|ip| taken.contains_key(ip)))
    }

    /// A free port that is not among `also_taken`; the begin of the range is given out last.
    pub(crate) fn free_port(&mut self, also_taken: &BTreeSet<u16>) -> Option<u16> {
        let (first, last) = (*self.ports.start(), *self.ports.end());
        let size = last.saturating_sub(first);
        let band = first + if size < 32 { 0 } else { (size / 32).clamp(16, 128) };
        let start = self.next_port.clamp(band, last);
        let mut candidates = (start..=last).chain(band..start).chain(first..band);
        let port =
            candidates.find(|port| !self.taken_ports.contains_key(port) && !also_taken.contains(port))?;
        self.next_port = if port < last { port + 1 } else { 0 };
        Some(port)
    }
}

fn check<K: std::hash::Hash + Eq>(
    taken: &HashMap<K, Arc<str>>,
    wanted: &K,
    key: &str,
    in_range: bool,
) -> Result<(), Refusal> {
    match taken.get(wanted) {
        // What it has it keeps, even if the ranges were changed since.
        Some(owner) if **owner == *key => Ok(()),
        Some(_) => Err(Refusal::Taken),
        None if in_range => Ok(()),
        None => Err(Refusal::OutOfRange),
    }
}

fn take<K: std::hash::Hash + Eq + std::fmt::Display>(
    taken: &mut HashMap<K, Arc<str>>,
    wanted: K,
    key: &Arc<str>,
    doubles: &mut Vec<String>,
) {
    if let Some(owner) = taken.get(&wanted).filter(|owner| *owner != key) {
        doubles.push(format!("{wanted} of {key} is already held by {owner}"));
        return;
    }
    taken.insert(wanted, Arc::clone(key));
}

fn release<K: std::hash::Hash + Eq>(taken: &mut HashMap<K, Arc<str>>, held: &K, key: &str) {
    if taken.get(held).is_some_and(|owner| **owner == *key) {
        taken.remove(held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocations(services: &str, pool: &str) -> Allocations {
        Allocations::new(&[services.parse().unwrap()], &[pool.parse().unwrap()], 30_000..=30_003)
    }

    fn claim(allocations: &mut Allocations, key: &str, ip: IpAddr) {
        let claims = Claims { cluster_ips: [ip].into(), ..Claims::default() };
        assert_eq!(allocations.set(key, claims), Vec::<String>::new());
    }

    #[test]
    fn every_address_once_and_none_twice() {
        for (net, count) in
            [("10.0.0.0/29", 6), ("10.0.0.0/24", 254), ("fd00::/120", 255), ("10.0.0.0/31", 2)]
        {
            let mut allocations = allocations(net, "192.0.2.0/29");
            let ipv4 = !net.contains(':');
            let mut seen = BTreeSet::new();
            while let Some(ip) = allocations.free_cluster_ip(ipv4) {
                assert!(seen.insert(ip), "{ip} twice");
                claim(&mut allocations, &ip.to_string(), ip);
            }
            assert_eq!(seen.len(), count, "{net}");
            let freed = *seen.iter().next().unwrap();
            allocations.set(&freed.to_string(), Claims::default());
            assert_eq!(allocations.free_cluster_ip(ipv4), Some(freed));
        }
    }

    #[test]
    fn low_addresses_are_kept_for_those_who_ask() {
        let mut allocations = allocations("10.96.0.0/16", "192.0.2.0/29");
        let first = allocations.free_cluster_ip(true).unwrap();
        assert_eq!(first, "10.96.1.1".parse::<IpAddr>().unwrap());
        let dns: IpAddr = "10.96.0.10".parse().unwrap();
        assert_eq!(allocations.check_cluster_ip("a", dns), Ok(()));
        claim(&mut allocations, "a", dns);
        assert_eq!(allocations.check_cluster_ip("a", dns), Ok(()));
        assert_eq!(allocations.check_cluster_ip("b", dns), Err(Refusal::Taken));
        for outside in ["10.96.0.0", "10.96.255.255", "10.97.0.1", "fd00::1"] {
            assert_eq!(allocations.check_cluster_ip("b", outside.parse().unwrap()), Err(Refusal::OutOfRange));
        }
    }

    #[test]
    fn ports_run_out_and_come_back() {
        let mut allocations = allocations("10.96.0.0/16", "192.0.2.0/29");
        for number in 0..4 {
            let port = allocations.free_port(&BTreeSet::new()).unwrap();
            allocations.set(&format!("s{number}"), Claims { ports: [port].into(), ..Claims::default() });
        }
        assert_eq!(allocations.free_port(&BTreeSet::new()), None);
        assert_eq!(allocations.check_port("new", 30_000), Err(Refusal::Taken));
        assert_eq!(allocations.check_port("new", 80), Err(Refusal::OutOfRange));
        allocations.set("s2", Claims::default());
        assert_eq!(allocations.free_port(&BTreeSet::new()), Some(30_002));
        assert_eq!(allocations.free_port(&[30_002].into()), None);
    }

    #[test]
    fn a_double_is_reported() {
        let mut allocations = allocations("10.96.0.0/16", "192.0.2.0/29");
        let claims = Claims { ports: [30_001].into(), ..Claims::default() };
        allocations.set("a", claims.clone());
        assert_eq!(allocations.set("b", claims), ["30001 of b is already held by a"]);
        // Releasing the second one does not free what the first one holds.
        allocations.set("b", Claims::default());
        assert_eq!(allocations.check_port("c", 30_001), Err(Refusal::Taken));
    }
}
