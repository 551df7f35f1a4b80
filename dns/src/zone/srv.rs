//! SRV records: which ports there are where, and the addresses of these places.

use std::net::IpAddr;

use hashbrown::HashSet;
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData};
use smallvec::SmallVec;

use super::lookup::{Part, Port};
use super::service::{ServiceRecords, Targets};
use super::{Answer, Window, Zone, address, extend};

/// As CoreDNS has it: each address and port has the same part of a hundred.
fn weight(count: usize) -> u16 {
    u16::try_from(100 / count.max(1)).unwrap_or(1).max(1)
}

impl Zone {
    /// SRV records of one port of a Service, or of all, of all endpoints or of a part, and the addresses that they lead to.
    pub(super) fn push_srv(
        &self,
        answer: &mut Answer,
        owner: &Name,
        records: &ServiceRecords,
        (port, within): (Option<&Port<'_>>, Option<&Part>),
        window: Window,
    ) {
        let Some(service) = self.name_of(&records.namespace, &records.name) else { return };
        if records.is_headless() {
            let within = within.and_then(|part| records.meant(part));
            let targets = records.targets(port, within);
            self.push_targets(answer, (owner, &service), records, (&targets, port, within), window);
        } else {
            self.push_ports(answer, owner, &service, (records, port), window);
        }
    }

    /// SRV records of all ports of one endpoint, whose name is `owner`.
    pub(super) fn push_endpoint_srv(
        &self,
        answer: &mut Answer,
        owner: &Name,
        records: &ServiceRecords,
        window: Window,
    ) {
        let Some(service) = self.name_of(&records.namespace, &records.name) else { return };
        let Some(label) = owner.iter().next().and_then(|label| str::from_utf8(label).ok()) else { return };
        let targets = records.targets_of(&label.to_ascii_lowercase());
        self.push_targets(answer, (owner, &service), records, (&targets, None, None), window);
    }

    /// Of a Service with a ClusterIP: each leads to the Service itself.
    fn push_ports(
        &self,
        answer: &mut Answer,
        owner: &Name,
        service: &Name,
        (records, port): (&ServiceRecords, Option<&Port<'_>>),
        window: Window,
    ) {
        let ports = records.cluster_ports(port);
        if ports.is_empty() {
            return;
        }
        let addrs: SmallVec<[IpAddr; 2]> = records.cluster_ips().collect();
        let weight = weight(ports.len() * addrs.len());
        let srv = |port| RData::SRV(SRV::new(0, weight, port, service.clone()));
        extend(&mut answer.answers, window.of(ports).map(|port| self.record(owner, srv(port))));
        let glue = addrs.into_iter().map(|addr| self.record(service, address(addr)));
        extend(&mut answer.additionals, glue);
    }

    /// Of a headless one. Endpoints that share a host name are one target with several addresses.
    fn push_targets(
        &self,
        answer: &mut Answer,
        (owner, service): (&Name, &Name),
        records: &ServiceRecords,
        (targets, port, within): (&Targets, Option<&Port<'_>>, Option<&Part>),
        window: Window,
    ) {
        let weight = weight(targets.places);
        // An endpoint of several ports has its address told once.
        let repeated = targets.list.windows(2).any(|pair| pair[0].at == pair[1].at);
        let mut told = HashSet::new();
        for target in window.of_slice(&targets.list) {
            let Some((label, addrs)) = records.told(*target, (port, within)) else { continue };
            let Ok(name) = service.prepend_label(label.as_bytes()) else { continue };
            let srv = SRV::new(0, weight, target.port, name.clone());
            answer.answers.push(self.record(owner, RData::SRV(srv)));
            let new = addrs.into_iter().filter(|addr| !repeated || told.insert((target.at, *addr)));
            answer.additionals.extend(new.map(|addr| self.record(&name, address(addr))));
        }
    }
}
