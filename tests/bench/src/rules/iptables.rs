//! The shape of the iptables mode: one rule per Service in one chain, a chain per Service port, a chain per endpoint.

use std::fmt::Write as _;

use super::{MASQUERADE_MARK, hashed};
use crate::cluster::{NAMESPACE, POD_CIDR, Port, Spec};

/// Input of `iptables-restore`.
pub fn rules(specs: &[Spec]) -> String {
    let mut nat = Nat::default();
    for spec in specs {
        for port in &spec.ports {
            nat.service_port(spec, port);
        }
    }
    format!("{FILTER}{}", nat.finish())
}

const FILTER: &str = "\
*filter
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

/// The nat table while it grows.
#[derive(Default)]
struct Nat {
    chains: String,
    services: String,
    node_ports: String,
    ports: String,
}

impl Nat {
    fn service_port(&mut self, spec: &Spec, port: &Port) {
        let name = format!("{NAMESPACE}/{}:{}", spec.name, port.name);
        let id = hashed(&[&name]);
        let (ip, number) = (spec.cluster_ip, port.port);
        writeln!(self.chains, ":KUBE-SVC-{id} - [0:0]").ok();
        writeln!(
            self.services,
            "-A KUBE-SERVICES -d {ip}/32 -p tcp -m comment --comment \"{name} cluster IP\" -m tcp --dport \
             {number} -j KUBE-SVC-{id}"
        )
        .ok();
        writeln!(
            self.ports,
            "-A KUBE-SVC-{id} ! -s {POD_CIDR} -d {ip}/32 -p tcp -m comment --comment \"{name} cluster IP\" -m tcp \
             --dport {number} -j KUBE-MARK-MASQ"
        )
        .ok();
        self.external(spec, port, &name, &id);
        for (index, addr) in spec.endpoints.iter().enumerate() {
            let target = format!("{addr}:{}", port.target);
            let endpoint = hashed(&[&name, &target]);
            let comment = format!("-m comment --comment \"{name} -> {target}\"");
            let left = spec.endpoints.len() - index;
            let choice = if left > 1 {
                format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64)
            } else {
                String::new()
            };
            writeln!(self.chains, ":KUBE-SEP-{endpoint} - [0:0]").ok();
            writeln!(self.ports, "-A KUBE-SVC-{id} {comment}{choice} -j KUBE-SEP-{endpoint}").ok();
            writeln!(self.ports, "-A KUBE-SEP-{endpoint} -s {addr}/32 {comment} -j KUBE-MARK-MASQ").ok();
            writeln!(
                self.ports,
                "-A KUBE-SEP-{endpoint} -p tcp {comment} -m tcp -j DNAT --to-destination {target}"
            )
            .ok();
        }
    }

    fn external(&mut self, spec: &Spec, port: &Port, name: &str, id: &str) {
        if spec.vip.is_none() && port.node_port.is_none() {
            return;
        }
        writeln!(self.chains, ":KUBE-EXT-{id} - [0:0]").ok();
        writeln!(
            self.ports,
            "-A KUBE-EXT-{id} -m comment --comment \"masquerade traffic for {name} external destinations\" -j \
             KUBE-MARK-MASQ\n-A KUBE-EXT-{id} -j KUBE-SVC-{id}"
        )
        .ok();
        if let Some(vip) = spec.vip {
            writeln!(
                self.services,
                "-A KUBE-SERVICES -d {vip}/32 -p tcp -m comment --comment \"{name} loadbalancer IP\" -m tcp --dport \
                 {} -j KUBE-EXT-{id}",
                port.port
            )
            .ok();
        }
        if let Some(node_port) = port.node_port {
            writeln!(
                self.node_ports,
                "-A KUBE-NODEPORTS -p tcp -m comment --comment \"{name}\" -m tcp --dport {node_port} -j KUBE-EXT-{id}"
            )
            .ok();
        }
    }

    fn finish(self) -> String {
        let mark = MASQUERADE_MARK;
        format!(
            "*nat\n\
             :KUBE-SERVICES - [0:0]\n\
             :KUBE-NODEPORTS - [0:0]\n\
             :KUBE-POSTROUTING - [0:0]\n\
             :KUBE-MARK-MASQ - [0:0]\n\
             {chains}\
             -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
             -A KUBE-POSTROUTING -m mark ! --mark {mark}/{mark} -j RETURN\n\
             -A KUBE-POSTROUTING -j MARK --xor-mark {mark}\n\
             -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
             -A KUBE-MARK-MASQ -j MARK --or-mark {mark}\n\
             {services}\
             -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
             {node_ports}\
             {ports}\
             COMMIT\n",
            chains = self.chains,
            services = self.services,
            node_ports = self.node_ports,
            ports = self.ports,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Place, services};

    fn matching<'a>(text: &'a str, part: &str) -> Vec<&'a str> {
        text.lines().filter(|line| line.contains(part)).collect()
    }

    #[test]
    fn a_service_has_one_rule_in_the_list_and_a_chain_per_endpoint() {
        let text = rules(&services(1000, Place(1)));
        // 1000 Services, of which one has two ports; of 500 the first 499 and the real one have more addresses.
        assert_eq!(matching(&text, "cluster IP\" -m tcp --dport 80 -j KUBE-SVC").len(), 1000);
        assert_eq!(matching(&text, "DNAT").len(), 1001 * 4);
        assert_eq!(matching(&text, ":KUBE-SEP").len(), 1001 * 4);
        assert_eq!(matching(&text, "-A KUBE-NODEPORTS").len(), 502);
        assert_eq!(matching(&text, "--dport 30080 -j KUBE-EXT").len(), 1);
    }

    #[test]
    fn endpoints_are_equally_probable() {
        let text = rules(&services(1, Place(1)));
        let shares: Vec<&str> = matching(&text, "bench/svc-00000:http ->")
            .iter()
            .filter_map(|line| line.split_once("--probability ")?.1.split(' ').next())
            .collect();
        assert_eq!(shares, ["0.2500000000", "0.3333333333", "0.5000000000"]);
    }

    #[test]
    fn the_jump_to_the_node_ports_comes_after_all_services() {
        let text = rules(&services(10, Place(1)));
        let of_list = matching(&text, "-A KUBE-SERVICES");
        assert!(of_list.last().unwrap().ends_with("--dst-type LOCAL -j KUBE-NODEPORTS"));
    }
}
