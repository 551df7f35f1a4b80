//! Files as clusters have them, and files that make no sense.

use super::*;

/// As kubeadm writes it: every field, with defaults.
const KUBEADM: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  networkName: ""
"#;

fn with(fields: &str) -> KubeProxyConfiguration {
    KubeProxyConfiguration::parse(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{fields}")).unwrap()
}

fn refused(fields: &str) -> String {
    let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{fields}");
    KubeProxyConfiguration::parse(&text).unwrap_err().to_string()
}

#[test]
fn a_file_of_kubeadm() {
    let read = KubeProxyConfiguration::parse(KUBEADM).unwrap();
    assert_eq!(read.mode().unwrap(), Mode::Auto);
    assert_eq!(read.kubeconfig(), Some("/var/lib/kube-proxy/kubeconfig.conf"));
    assert_eq!((read.node_name(), read.healthz().unwrap(), read.metrics().unwrap()), (None, None, None));
    assert_eq!(read.cluster_cidrs().unwrap().len(), 2);
    assert_eq!(read.node_port_addresses().unwrap(), NodePortAddresses::default());
    assert_eq!((read.sync_period(), read.min_sync_period(), read.localhost_node_ports()), (None, None, None));
    assert_eq!(read.conntrack(), Conntrack::kube_proxy());
    assert_eq!(read.without_effect(), []);
    assert_eq!((read.bind_address().unwrap(), read.pod_link_prefix()), (Some([0, 0, 0, 0].into()), None));
}

#[test]
fn a_file_that_says_something() {
    let read = with(
        "hostnameOverride: node1\nmode: ebpf\nhealthzBindAddress: 127.0.0.1:1234\nmetricsBindAddress: '::'\n\
         nodePortAddresses: [192.0.2.0/24, 'fd00::/8']\niptables: {syncPeriod: 1m30s, minSyncPeriod: 250ms, localhostNodePorts: false}\n\
         conntrack: {maxPerCore: 0, tcpCloseWaitTimeout: 1h, udpTimeout: 30s, tcpBeLiberal: true}\n\
         featureGates: {SomeGate: true}\nportRange: 1-2\n",
    );
    assert_eq!((read.mode().unwrap(), read.node_name()), (Mode::Ebpf, Some("node1")));
    assert_eq!(read.healthz().unwrap(), Some("127.0.0.1:1234".parse().unwrap()));
    assert_eq!(read.metrics().unwrap(), Some("[::]:10249".parse().unwrap()));
    assert_eq!(read.node_port_addresses().unwrap().ranges.len(), 2);
    assert_eq!(read.sync_period(), Some(Duration::from_secs(90)));
    assert_eq!(read.min_sync_period(), Some(Duration::from_millis(250)));
    assert_eq!(read.localhost_node_ports(), Some(false));
    let conntrack = read.conntrack();
    assert_eq!(
        (conntrack.max_per_core, conntrack.udp, conntrack.tcp_be_liberal),
        (0, Some(Duration::from_secs(30)), true)
    );
    let without_effect = read.without_effect();
    let names: Vec<&str> = without_effect.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["featureGates.SomeGate", "portRange"]);
}

#[test]
fn what_makes_no_sense_is_named() {
    assert!(refused("portrange: 1-2").starts_with("unknown field `portrange`, expected one of"));
    assert!(refused("iptables: {masquerade: true}").starts_with("iptables: unknown field `masquerade`"));
    assert!(refused("iptables: {syncPeriod: soon}").contains("\"soon\" is not a duration"));
    assert!(refused("mode: [a]").starts_with("mode: invalid type"));
    let text = "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration";
    let error = KubeProxyConfiguration::parse(text).unwrap_err().to_string();
    assert_eq!(
        error,
        "apiVersion is \"kubeproxy.config.k8s.io/v1\": want \"kubeproxy.config.k8s.io/v1alpha1\""
    );
    assert!(
        with("mode: ipvs")
            .mode()
            .unwrap_err()
            .to_string()
            .starts_with("mode is \"ipvs\": there is no such mode")
    );
    let error = with("nodePortAddresses: [192.0.2.1, primary]").node_port_addresses().unwrap_err();
    assert!(error.to_string().starts_with("nodePortAddresses is \"192.0.2.1\": want a CIDR"), "{error}");
    let error = with("bindAddress: eth0").bind_address().unwrap_err();
    assert_eq!(error.to_string(), "bindAddress is \"eth0\": want an IP");
    let error = with("healthzBindAddress: localhost:1").healthz().unwrap_err();
    assert_eq!(error.to_string(), "healthzBindAddress is \"localhost:1\": want IP:PORT");
}

#[test]
fn durations_as_go_writes_them() {
    for (text, seconds) in
        [("0s", 0.0), ("0", 0.0), ("30s", 30.0), ("1m0s", 60.0), ("1h30m", 5400.0), ("1.5s", 1.5)]
    {
        assert_eq!(parse_duration(text).unwrap(), Duration::from_secs_f64(seconds), "{text}");
    }
    for text in ["", "5", "s", "1x", "-1s", "1s2", ".", "é"] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
}

#[test]
fn node_port_addresses_are_ranges_and_words() {
    let read = |list: &str| with(&format!("nodePortAddresses: {list}")).node_port_addresses().unwrap();
    assert_eq!(read("[]").loopback(), None);
    assert_eq!((read("[primary]").primary, read("[primary]").loopback()), (true, Some(false)));
    assert_eq!(read("[192.0.2.0/24]").loopback(), Some(false));
    let mixed = read("[primary, localhost, 192.0.2.0/24]");
    assert_eq!((mixed.primary, mixed.ranges.len(), mixed.loopback()), (true, 3, Some(true)));
    assert_eq!((read("[all]").ranges.len(), read("[all]").loopback()), (2, Some(true)));
}

/// Everything that the format has and we do not follow is told of, with what happens instead; defaults are not.
#[test]
fn what_is_not_followed_is_told() {
    let read = with(
        "clientConnection: {qps: 5, burst: 10, contentType: application/vnd.kubernetes.protobuf}\nconfigSyncPeriod: 15m\n\
         iptables: {masqueradeBit: 3, snatNodeInternalIP: false}\nnftables: {masqueradeBit: 3}\nenableProfiling: true\n\
         showHiddenMetricsForVersion: '1.30'\nbindAddressHardFail: true\nwindowsRunAsService: true\n\
         detectLocalMode: BridgeInterface\nlogging: {format: json}\nportRange: 1-2\nfeatureGates: {A: true}\n",
    );
    let told = read.without_effect();
    assert_eq!(told.len(), 15, "{told:?}");
    assert!(told.iter().all(|(_, instead)| !instead.is_empty()));
    let prefix = with("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: lxc}\n");
    assert_eq!(prefix.pod_link_prefix(), Some("lxc"));
    assert_eq!(with("oomScoreAdj: -998").oom_score_adj(), Some(-998));
}

#[test]
fn what_is_in_effect_is_written_and_read_again() {
    let addresses = NodePortAddresses { primary: true, ranges: vec!["192.0.2.0/24".parse().unwrap()] };
    let effective = Effective {
        node_name: "node1",
        kubeconfig: "/k",
        mode: Mode::Nftables,
        healthz: "[::]:10256".parse().unwrap(),
        metrics: "127.0.0.1:0".parse().unwrap(),
        node_port_addresses: &addresses,
        localhost_node_ports: false,
        masquerade_all: true,
        sync_period: Some(Duration::from_secs(90)),
        min_sync_period: Some(Duration::from_millis(250)),
        conntrack: Conntrack { udp: Some(Duration::from_secs(30)), ..Conntrack::kube_proxy() },
        oom_score_adj: Some(-998),
    };
    let read = KubeProxyConfiguration::parse(&effective.to_yaml().unwrap()).unwrap();
    assert_eq!((read.node_name(), read.kubeconfig()), (Some("node1"), Some("/k")));
    assert_eq!(read.mode().unwrap(), Mode::Nftables);
    assert_eq!(read.healthz().unwrap(), Some(effective.healthz));
    assert_eq!(read.metrics().unwrap(), Some(effective.metrics));
    assert_eq!(read.node_port_addresses().unwrap(), addresses);
    assert_eq!((read.localhost_node_ports(), read.masquerade_all()), (Some(false), true));
    assert_eq!(
        (read.sync_period(), read.min_sync_period()),
        (effective.sync_period, effective.min_sync_period)
    );
    assert_eq!((read.conntrack(), read.oom_score_adj()), (effective.conntrack, Some(-998)));
    assert_eq!(read.without_effect(), []);
}
