//! Which ports source NAT may take. The kernel's own search knows no reserved ports and no NodePorts: without a range it
//! takes any port from 1024 on, and an answer that arrives at a NodePort would be taken for a request.

use std::ops::RangeInclusive;

/// The NodePort range of the API server by default.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Below are the ports of well-known services.
const FIRST_PORT: u16 = 1024;

/// The ports that a text such as `8080,9000-9100` names, as the kernel writes `ip_local_reserved_ports`. What is no port
/// is passed over.
pub fn port_ranges(text: &str) -> Vec<RangeInclusive<u16>> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).collect()
}

/// The longest run of ports that holds neither NodePorts nor any of `taken`: a rule can give one range.
pub fn snat_ports(taken: &[RangeInclusive<u16>]) -> RangeInclusive<u16> {
    let mut taken: Vec<RangeInclusive<u16>> = taken.to_vec();
    taken.push(NODE_PORTS);
    taken.sort_by_key(|range| *range.start());
    let (mut best, mut start) = (FIRST_PORT..=FIRST_PORT, u32::from(FIRST_PORT));
    let bounds = taken.iter().map(|range| (u32::from(*range.start()), u32::from(*range.end())));
    let behind_the_last = u32::from(u16::MAX) + 1;
    for (first, last) in bounds.chain([(behind_the_last, behind_the_last)]) {
        let length = |run: &RangeInclusive<u16>| u32::from(run.end() - run.start());
        if let (Ok(from), Ok(to)) = (u16::try_from(start), u16::try_from(first.saturating_sub(1)))
            && from <= to
            && u32::from(to - from) > length(&best)
        {
            best = from..=to;
        }
        start = start.max(last + 1);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beside(reserved: &str) -> RangeInclusive<u16> {
        snat_ports(&port_ranges(reserved))
    }

    #[test]
    fn source_nat_keeps_off_node_ports_and_reserved_ports() {
        assert_eq!(beside(""), 32_768..=65_535);
        assert_eq!(beside("8080,9148\n"), 32_768..=65_535);
        assert_eq!(beside("40000-65000"), 1024..=29_999);
        assert_eq!(beside("40000-65000,1500,1024-1030"), 1501..=29_999);
        assert_eq!(beside("50000"), 1024..=29_999);
        assert_eq!(beside("65535"), 32_768..=65_534);
        assert_eq!(beside("1-29999"), 32_768..=65_535);
    }

    #[test]
    fn what_is_no_port_is_passed_over() {
        assert_eq!(port_ranges("x,70000, 80 ,-,9000-9100\n"), [80..=80, 9000..=9100]);
        assert_eq!(beside("0-65535"), 1024..=1024);
    }

    #[test]
    fn source_nat_keeps_off_the_ports_of_the_nodes_own_connections_where_it_must() {
        let ephemeral = |reserved: &str| {
            let mut taken = port_ranges(reserved);
            taken.push(32_768..=60_999);
            snat_ports(&taken)
        };
        assert_eq!(ephemeral("\n"), 1024..=29_999);
        assert_eq!(ephemeral("5000\n"), 5001..=29_999);
        assert_eq!(ephemeral("2000,9000-9100,20000-29999\n"), 9101..=19_999);
        assert_eq!(snat_ports(&[1024..=29_999]), 32_768..=65_535);
    }
}
