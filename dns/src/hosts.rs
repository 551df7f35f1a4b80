//! Addresses that the settings give to names, as /etc/hosts does.

use std::collections::HashMap;
use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::settings::HostsSettings;
use crate::zone::{Answer, address_of_reverse};

/// The table.
#[derive(Debug)]
pub(crate) struct Hosts {
    names: HashMap<Name, Vec<IpAddr>>,
    addrs: HashMap<IpAddr, Vec<Name>>,
    zones: Vec<Name>,
    ttl_s: u32,
    fallthrough: Vec<Name>,
    passes_other_types: bool,
}

impl Hosts {
    pub(crate) fn new(settings: &HostsSettings) -> Self {
        let mut hosts = Self {
            names: HashMap::new(),
            addrs: HashMap::new(),
            zones: settings.zones.clone(),
            ttl_s: settings.ttl_s,
            fallthrough: settings.fallthrough.clone(),
            passes_other_types: settings.passes_other_types,
        };
        for (addr, name) in &settings.entries {
            let name = name.to_lowercase();
            if settings.reverse && !is_wildcard(&name) {
                hosts.addrs.entry(*addr).or_default().push(name.clone());
            }
            hosts.names.entry(name).or_default().push(*addr);
        }
        hosts
    }

    /// What the table says; `None`: somebody else is to be asked.
    pub(crate) fn answer(&self, name: &Name, kind: RecordType) -> Option<Answer> {
        if self.names.is_empty() {
            return None;
        }
        let record = |data| Record::from_rdata(name.clone(), self.ttl_s, data);
        let mut answer = Answer::new(ResponseCode::NoError);
        if kind == RecordType::PTR {
            let names = self.addrs.get(&address_of_reverse(name)?)?;
            answer.answers = names.iter().map(|name| record(RData::PTR(PTR(name.clone())))).collect();
            return Some(answer);
        }
        if !self.zones.is_empty() && !self.zones.iter().any(|zone| zone.zone_of(name)) {
            return None;
        }
        let falls_through = self.fallthrough.iter().any(|zone| zone.zone_of(name));
        let Some(addrs) = self.addresses(name) else {
            return (!falls_through).then(|| Answer::new(ResponseCode::NXDomain));
        };
        for addr in addrs {
            match (addr, kind) {
                (IpAddr::V4(addr), RecordType::A) => answer.answers.push(record(RData::A((*addr).into()))),
                (IpAddr::V6(addr), RecordType::AAAA) => {
                    answer.answers.push(record(RData::AAAA((*addr).into())));
                }
                _ => {}
            }
        }
        // The other family of a name that is ours is not to be asked for elsewhere: it would be another machine.
        let passes = falls_through && self.passes_other_types;
        let ours = matches!(kind, RecordType::A | RecordType::AAAA) || !passes;
        ours.then_some(answer)
    }

    /// The addresses of a name: its own, or those of `*` in its place.
    fn addresses(&self, name: &Name) -> Option<&Vec<IpAddr>> {
        let name = name.to_lowercase();
        self.names.get(&name).or_else(|| {
            let wildcard = name.base_name().prepend_label("*").ok().filter(|_| !name.is_root())?;
            self.names.get(&wildcard)
        })
    }
}

fn is_wildcard(name: &Name) -> bool {
    name.iter().next() == Some(b"*")
}

/// The entries of a text in the form of /etc/hosts. Lines that make no sense are passed over, as everywhere.
pub(crate) fn parse(text: &str) -> Vec<(IpAddr, Name)> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(addr) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        for name in words.filter_map(|word| Name::from_ascii(word).ok()) {
            let mut name = name;
            name.set_fqdn(true);
            entries.push((addr, name));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let entries = parse("192.0.2.1 db.example db # the old one\n2001:db8::1 six.example\nbogus x\n");
        assert_eq!(entries.len(), 3);
        let strict = HostsSettings {
            entries: entries.clone(),
            fallthrough: vec![Name::from_ascii("far.").unwrap()],
            ..HostsSettings::default()
        };
        let (loose, strict) =
            (Hosts::new(&HostsSettings { entries, ..HostsSettings::default() }), Hosts::new(&strict));
        let ask = |hosts: &Hosts, name: &str, kind| {
            let answer = hosts.answer(&Name::from_ascii(name).unwrap(), kind)?;
            let data: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
            Some(format!("{:?} {}", answer.code, data.join(" ")))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(ask(&loose, "DB.example.", RecordType::A), some("NoError 192.0.2.1"));
        assert_eq!(ask(&loose, "db.example.", RecordType::AAAA), some("NoError "));
        assert_eq!(ask(&loose, "db.example.", RecordType::TXT), None);
        assert_eq!(ask(&strict, "db.example.", RecordType::TXT), some("NoError "));
        assert_eq!(ask(&loose, "other.example.", RecordType::A), None);
        assert_eq!(ask(&strict, "other.example.", RecordType::A), some("NXDomain "));
        assert_eq!(ask(&strict, "other.Far.", RecordType::A), None);
        assert_eq!(ask(&loose, "1.2.0.192.in-addr.arpa.", RecordType::PTR), some("NoError db.example. db."));
        assert_eq!(ask(&loose, "2.2.0.192.in-addr.arpa.", RecordType::PTR), None);
        let wild = HostsSettings {
            entries: parse("192.0.2.9 *.wild.example\n192.0.2.8 one.wild.example"),
            zones: vec![Name::from_ascii("wild.example.").unwrap()],
            fallthrough: vec![Name::root()],
            passes_other_types: false,
            ..HostsSettings::default()
        };
        let wild = Hosts::new(&wild);
        assert_eq!(ask(&wild, "any.Wild.example.", RecordType::A), some("NoError 192.0.2.9"));
        assert_eq!(ask(&wild, "one.wild.example.", RecordType::A), some("NoError 192.0.2.8"));
        assert_eq!(ask(&wild, "one.wild.example.", RecordType::TXT), some("NoError "));
        assert_eq!(ask(&wild, "deep.any.wild.example.", RecordType::A), None);
        assert_eq!(ask(&wild, "wild.example.", RecordType::A), None);
        assert_eq!(ask(&wild, "other.example.", RecordType::A), None);
        assert_eq!(ask(&wild, "9.2.0.192.in-addr.arpa.", RecordType::PTR), None);
        assert_eq!(ask(&wild, "8.2.0.192.in-addr.arpa.", RecordType::PTR), some("NoError one.wild.example."));
        assert_eq!(ask(&Hosts::new(&HostsSettings::default()), "db.example.", RecordType::A), None);
    }
}
