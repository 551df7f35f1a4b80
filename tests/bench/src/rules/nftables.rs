//! The shape of the nftables mode: one verdict map from address and port to a chain per Service port, which chooses
//! one of a chain per endpoint.

use std::fmt::Write as _;

use super::{MASQUERADE_MARK, hashed};
use crate::cluster::{NAMESPACE, POD_CIDR, Port, Spec};

/// Input of `nft -f`.
pub fn rules(specs: &[Spec]) -> String {
    let mut tables = Tables::default();
    for spec in specs {
        for port in &spec.ports {
            tables.service_port(spec, port);
        }
    }
    tables.finish()
}

/// The parts of the table while it grows.
#[derive(Default)]
struct Tables {
    chains: String,
    service_ips: Vec<String>,
    node_ports: Vec<String>,
}

impl Tables {
    fn service_port(&mut self, spec: &Spec, port: &Port) {
        let name = format!("{NAMESPACE}/{}:{}", spec.name, port.name);
        let id = hashed(&[&name]);
        let mut choices = Vec::new();
        for (index, addr) in spec.endpoints.iter().enumerate() {
            let target = format!("{addr}:{}", port.target);
            let endpoint = format!("endpoint-{}", hashed(&[&name, &target]));
            writeln!(
                self.chains,
                "chain {endpoint} {{ ip saddr {addr} jump mark-for-masquerade; meta l4proto tcp dnat to {target}; }}"
            )
            .ok();
            choices.push(format!("{index} : goto {endpoint}"));
        }
        let (ip, number, count) = (spec.cluster_ip, port.port, choices.len());
        writeln!(
            self.chains,
            "chain service-{id} {{ ip daddr {ip} tcp dport {number} ip saddr != {POD_CIDR} jump mark-for-masquerade; \
             numgen random mod {count} vmap {{ {} }}; }}",
            choices.join(", ")
        )
        .ok();
        self.service_ips.push(format!("{ip} . tcp . {number} : goto service-{id}"));
        if spec.vip.is_some() || port.node_port.is_some() {
            writeln!(self.chains, "chain external-{id} {{ jump mark-for-masquerade; goto service-{id}; }}")
                .ok();
        }
        if let Some(vip) = spec.vip {
            self.service_ips.push(format!("{vip} . tcp . {number} : goto external-{id}"));
        }
        if let Some(node_port) = port.node_port {
            self.node_ports.push(format!("tcp . {node_port} : goto external-{id}"));
        }
    }

    fn finish(self) -> String {
        let mark = MASQUERADE_MARK;
        let elements = |all: &[String]| {
            if all.is_empty() { String::new() } else { format!("elements = {{ {} }}", all.join(",\n")) }
        };
        format!(
            "table ip kube-proxy {{\n\
             chain mark-for-masquerade {{ meta mark set meta mark or {mark}; }}\n\
             {chains}\
             map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; {services} }}\n\
             map service-nodeports {{ type inet_proto . inet_service : verdict; {node_ports} }}\n\
             chain services {{\n\
             ip daddr . meta l4proto . th dport vmap @service-ips;\n\
             fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports;\n\
             }}\n\
             chain masquerading {{\n\
             meta mark and {mark} == 0 return;\n\
             meta mark set meta mark xor {mark};\n\
             masquerade fully-random;\n\
             }}\n\
             chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
             chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
             chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}\n\
             }}\n",
            chains = self.chains,
            services = elements(&self.service_ips),
            node_ports = elements(&self.node_ports),
        )
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::cluster::{Place, services};

    #[test]
    fn the_real_service_is_found_by_address_and_by_node_port() {
        let text = rules(&services(1, Place(1)));
        let shown: Vec<&str> =
            text.lines().filter(|l| l.contains(" : goto") && !l.contains("chain")).collect();
        expect![[r"
            map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.97.0.1 . tcp . 80 : goto service-TVDJPBYOHFCJ,"]]
        .assert_eq(shown[0]);
        assert_eq!(shown.iter().map(|line| line.matches(" : goto").count()).sum::<usize>(), 6);
    }

    #[test]
    fn every_chain_that_is_named_exists() {
        let text = rules(&services(20, Place(1)));
        let made = |name: &str| text.contains(&format!("chain {name} {{"));
        let named = text.split("goto ").skip(1).filter_map(|rest| rest.split([' ', ',', ';']).next());
        let missing: Vec<&str> = named.map(str::trim).filter(|name| !made(name)).collect();
        assert_eq!(missing, Vec::<&str>::new());
    }
}
