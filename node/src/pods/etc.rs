//! The texts of a pod's /etc/hosts and /etc/resolv.conf. Pure.

use std::fmt::Write;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

/// What name resolution in pods is made from.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterDns {
    /// The cluster's DNS servers.
    pub(crate) servers: Vec<IpAddr>,
    /// The cluster's zone.
    pub(crate) zone: String,
    /// The node's own resolv.conf.
    pub(crate) node: String,
}

/// /etc/hosts.
pub(crate) fn hosts(
    hostname: &str,
    fqdn: Option<&str>,
    ips: &[IpAddr],
    aliases: &[(String, Vec<String>)],
) -> String {
    let mut text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
                    ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                    fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
        .to_owned();
    let names = fqdn.map_or_else(|| hostname.to_owned(), |fqdn| format!("{fqdn}\t{hostname}"));
    // Writing to a String cannot fail.
    for ip in ips {
        let _infallible = writeln!(text, "{ip}\t{names}");
    }
    for (ip, names) in aliases {
        let _infallible = writeln!(text, "{ip}\t{}", names.join("\t"));
    }
    text
}

/// The host name of a pod, and its full name when it has a subdomain.
pub(crate) fn hostname(pod: &Pod, zone: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let hostname = spec.and_then(|s| s.hostname.as_deref()).filter(|h| !h.is_empty()).unwrap_or(name);
    let hostname: String = hostname.chars().take(63).collect();
    let hostname = hostname.trim_end_matches(['-', '.']).to_owned();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let subdomain = spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty());
    let fqdn = subdomain.map(|subdomain| format!("{hostname}.{subdomain}.{namespace}.svc.{zone}"));
    (hostname, fqdn)
}

/// /etc/resolv.conf, by the pod's `dnsPolicy` and `dnsConfig`.
pub(crate) fn resolv_conf(pod: &Pod, dns: &ClusterDns) -> String {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let mut servers: Vec<String> = Vec::new();
    let mut searches: Vec<String> = Vec::new();
    let mut options: Vec<String> = Vec::new();
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    };
    if policy != "None" {
        for line in dns.node.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") if !cluster => servers.extend(words.next().map(str::to_owned)),
                Some("search") => searches = words.map(str::to_owned).collect(),
                Some("options") if !cluster => options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
    }
    if cluster {
        let zone = &dns.zone;
        servers = dns.servers.iter().map(ToString::to_string).collect();
        let first = [format!("{namespace}.svc.{zone}"), format!("svc.{zone}"), zone.clone()];
        searches.splice(0..0, first);
        options.push("ndots:5".to_owned());
    }
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        amend(config, &mut servers, &mut searches, &mut options);
    }
    servers.truncate(3);
    let mut text = String::new();
    if !searches.is_empty() {
        let _infallible = writeln!(text, "search {}", searches.join(" "));
    }
    for server in &servers {
        let _infallible = writeln!(text, "nameserver {server}");
    }
    if !options.is_empty() {
        let _infallible = writeln!(text, "options {}", options.join(" "));
    }
    text
}

fn amend(
    config: &PodDNSConfig,
    servers: &mut Vec<String>,
    searches: &mut Vec<String>,
    options: &mut Vec<String>,
) {
    servers.extend(config.nameservers.iter().flatten().cloned());
    searches.extend(config.searches.iter().flatten().cloned());
    for option in config.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        let text = option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}"));
        options.retain(|o| o.split(':').next() != Some(name));
        options.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec,
        }))
        .unwrap()
    }

    fn dns() -> ClusterDns {
        ClusterDns {
            servers: vec!["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()],
            zone: "cluster.local".into(),
            node: "search corp.example\nnameserver 192.0.2.53\noptions rotate\n".into(),
        }
    }

    #[test]
    fn cluster_first_asks_the_cluster() {
        expect_test::expect![[r"
            search shop.svc.cluster.local svc.cluster.local cluster.local corp.example
            nameserver 10.96.0.10
            nameserver fd00::a
            options ndots:5
        "]]
        .assert_eq(&resolv_conf(&pod(serde_json::json!({"containers": []})), &dns()));
    }

    #[test]
    fn host_network_and_default_ask_the_node() {
        for spec in [
            serde_json::json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirst"}),
            serde_json::json!({"containers": [], "dnsPolicy": "Default"}),
        ] {
            expect_test::expect![[r"
                search corp.example
                nameserver 192.0.2.53
                options rotate
            "]]
            .assert_eq(&resolv_conf(&pod(spec), &dns()));
        }
    }

    #[test]
    fn dns_config_is_merged() {
        let spec = serde_json::json!({"containers": [], "dnsPolicy": "ClusterFirst", "dnsConfig": {
            "nameservers": ["192.0.2.1"], "searches": ["extra"],
            "options": [{"name": "ndots", "value": "1"}, {"name": "edns0"}]}});
        expect_test::expect![[r"
            search shop.svc.cluster.local svc.cluster.local cluster.local corp.example extra
            nameserver 10.96.0.10
            nameserver fd00::a
            nameserver 192.0.2.1
            options ndots:1 edns0
        "]]
        .assert_eq(&resolv_conf(&pod(spec), &dns()));
    }

    #[test]
    fn a_subdomain_gives_a_full_name() {
        let with = pod(serde_json::json!({"containers": [], "hostname": "db", "subdomain": "data"}));
        let (name, fqdn) = hostname(&with, "cluster.local");
        assert_eq!((name.as_str(), fqdn.as_deref()), ("db", Some("db.data.shop.svc.cluster.local")));
        let text = hosts(&name, fqdn.as_deref(), &["10.0.0.1".parse().unwrap()], &[]);
        assert!(text.ends_with("10.0.0.1\tdb.data.shop.svc.cluster.local\tdb\n"), "{text}");
    }
}
