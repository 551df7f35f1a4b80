//! Scenarios as text files: a cluster above the line, what one node serves below it. `UPDATE_EXPECT=1` writes what is
//! computed into the files.
//!
//! A file may go on in steps after a line of `====`: each changes the world of the former one, and is computed both from
//! there and from nothing, which must give the same.
//!
//! Above: `node NAME zone=Z addresses=A,B`, `service NS/NAME key=value …` and `endpoint NS/NAME ADDRESS key=value …`,
//! one per line, and `pod NS/NAME ADDRESS,… ports=8080/TCP@80` for host ports (`ip=` is hostIP); in later steps `gone
//! service|endpoints|pod NS/NAME`, and endpoints replace those of the Service. Below: a row per frontend; `*` marks a backend on this node (the client's address reaches it
//! unchanged), the last column says what else holds: `keep-source` (the source is never rewritten), `elsewhere`
//! (dropped, not refused), `affinity=…`, `from=…` (admitted sources), `dsr` (answered directly), `maglev` (chosen
//! by consistent hashing).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use expect_test::expect_file;
use seaway_model::{
    Balancing, Endpoint, EndpointPort, EndpointSet, Forwarding, Hints, HostPod, HostPort, IngressMode,
    LoadBalancerIngress, Service, ServiceKey, ServiceKind, ServicePort, Snapshot, TargetPod,
    TrafficDistribution, TrafficPolicy,
};
use seaway_proxy::dataplane::Dataplane as _;
use seaway_proxy::dataplane::ebpf::{Ebpf, Memory};
use seaway_proxy::desired::{Computation, Desired, Entry, NodeView, desired};
use seaway_proxy::frontend::{FrontendKey, FrontendKind, Scope};
use seaway_proxy::plan::{Host, diff};

const LINE: &str = "----";
const STEP: &str = "====";

#[test]
fn scenarios() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut world = (Snapshot { synced: true, ..Snapshot::default() }, NodeView::default());
        let mut computation = Computation::default();
        let mut steps = Vec::new();
        for step in text.split(&format!("{STEP}\n")) {
            let input = step.split(&format!("{LINE}\n")).next().unwrap().trim_end();
            parse(input, &mut world);
            computation.update(&world.0, &world.1);
            let output = render(computation.desired());
            assert_eq!(
                output,
                render(&desired(&world.0, &world.1)),
                "{} in steps and at once",
                path.display()
            );
            steps.push(format!("{input}\n{LINE}\n{output}"));
        }
        expect_file![&path].assert_eq(&steps.join(&format!("{STEP}\n")));
    }
}

/// What nobody should do and somebody will: the others are served, and so is this one.
#[test]
fn ten_thousand_endpoints_in_one_service() {
    let mut input =
        String::from("node a\nservice t/few ip=10.96.0.2 ports=http:80/TCP\nendpoint t/few 10.244.9.9\n");
    input.push_str("service t/many ip=10.96.0.1 ports=http:80/TCP\n");
    for index in 0..10_000 {
        writeln!(input, "endpoint t/many 10.{}.{}.{}", 100 + index / 65_536, index / 256 % 256, index % 256)
            .unwrap();
    }
    let mut world = (Snapshot { synced: true, ..Snapshot::default() }, NodeView::default());
    parse(&input, &mut world);
    let desired = desired(&world.0, &world.1);
    assert_eq!(desired.backend_count(), 2 * 10_001);
    let mut ebpf = Ebpf::new(Memory::new(64, 32_768), 1024..=29_999, 1);
    let plan = diff(&desired, &Host::default(), &ebpf.read().unwrap());
    assert!(ebpf.apply(&plan).unwrap().failed.is_empty());
    assert_eq!(ebpf.read().unwrap().frontends.len(), 4);
    // Where there is no room for it the others are served all the same, and it is named.
    let mut small = Ebpf::new(Memory::new(64, 1024), 1024..=29_999, 1);
    let failed = small.apply(&plan).unwrap().failed;
    assert!(!failed.is_empty());
    let held = small.read().unwrap().frontends;
    assert!(held.keys().all(|key| key.addr.to_string() == "10.96.0.2") && held.len() == 2);
}

struct Line<'a> {
    verb: &'a str,
    words: Vec<&'a str>,
    values: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let mut all = line.split_whitespace();
        let verb = all.next().unwrap();
        let (values, words): (Vec<&str>, Vec<&str>) = all.partition(|word| word.contains('='));
        let values = values.into_iter().map(|word| word.split_once('=').unwrap()).collect();
        Self { verb, words, values }
    }

    fn flag(&self, name: &str) -> bool {
        self.words.contains(&name)
    }

    fn list<T: std::str::FromStr<Err: std::fmt::Debug>>(&self, name: &str) -> Vec<T> {
        let text = self.values.get(name).copied().unwrap_or("");
        text.split(',').filter(|part| !part.is_empty()).map(|part| part.parse().unwrap()).collect()
    }

    fn name(&self, key: &str) -> Option<Arc<str>> {
        self.values.get(key).map(|text| Arc::from(*text))
    }
}

fn parse(input: &str, world: &mut (Snapshot, NodeView)) {
    let (snapshot, view) = world;
    let mut endpoints: BTreeMap<ServiceKey, Vec<Endpoint>> = BTreeMap::new();
    for text in input.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let line = Line::parse(text);
        match line.verb {
            "node" => {
                let addresses: Vec<IpAddr> = line.list("addresses");
                let known_by = line.list("known-by");
                *view = NodeView {
                    name: line.words[0].into(),
                    zone: line.name("zone"),
                    known_by: if known_by.is_empty() { addresses.clone() } else { known_by },
                    node_port_addresses: addresses,
                    node_port_loopback: line.flag("loopback"),
                    maglev_default: line.flag("maglev-default"),
                    maglev_offered: !line.flag("no-maglev"),
                    dsr_default: line.flag("dsr-default"),
                    dsr_offered: !line.flag("no-dsr"),
                    masquerade_all: false,
                };
            }
            "service" => {
                let service = service(&line);
                snapshot.services.insert(service.key.clone(), Arc::new(service));
            }
            "pod" => {
                let pod = host_pod(&line);
                snapshot.host_pods.insert(pod.pod.clone(), Arc::new(pod));
            }
            "gone" => gone(&line, snapshot),
            "endpoint" => endpoints.entry(key(&line)).or_default().push(endpoint(&line)),
            other => panic!("unknown verb {other:?} in {text:?}"),
        }
    }
    for (key, endpoints) in endpoints {
        snapshot.endpoints.insert(key, Arc::new(EndpointSet { endpoints: endpoints.into() }));
    }
}

fn gone(line: &Line<'_>, snapshot: &mut Snapshot) {
    let (namespace, name) = line.words[1].split_once('/').unwrap();
    let key = ServiceKey::new(namespace, name);
    let known = match line.words[0] {
        "service" => snapshot.services.remove(&key).is_some(),
        "endpoints" => snapshot.endpoints.remove(&key).is_some(),
        "pod" => {
            let pod = TargetPod { namespace: namespace.into(), name: name.into() };
            snapshot.host_pods.remove(&pod).is_some()
        }
        other => panic!("unknown kind {other:?}"),
    };
    assert!(known, "{key} was not there");
}

/// `8080/TCP@80`: the container's port, and the host's behind it.
fn host_pod(line: &Line<'_>) -> HostPod {
    let (namespace, name) = line.words[0].split_once('/').unwrap();
    let port = |text: &String| {
        let (port, host_port) = text.split_once('@').unwrap();
        let port = endpoint_port(&format!(":{port}"));
        HostPort {
            protocol: port.protocol,
            host_port: host_port.parse().unwrap(),
            host_ip: line.values.get("ip").map(|ip| ip.parse().unwrap()),
            container_port: port.port,
        }
    };
    HostPod {
        pod: TargetPod { namespace: namespace.into(), name: name.into() },
        uid: "".into(),
        addrs: line.words[1].split(',').map(|addr| addr.parse().unwrap()).collect(),
        ports: line.list::<String>("ports").iter().map(port).collect(),
    }
}

fn key(line: &Line<'_>) -> ServiceKey {
    let (namespace, name) = line.words[0].split_once('/').unwrap();
    ServiceKey::new(namespace, name)
}

fn service(line: &Line<'_>) -> Service {
    let policy = |name| match line.values.get(name) {
        Some(&"Local") => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    };
    let mut service = Service::new(key(line));
    service.kind = match line.values.get("type").copied().unwrap_or("ClusterIP") {
        "ClusterIP" => ServiceKind::ClusterIp,
        "NodePort" => ServiceKind::NodePort,
        "LoadBalancer" => ServiceKind::LoadBalancer,
        "ExternalName" => ServiceKind::ExternalName,
        other => panic!("unknown type {other}"),
    };
    service.cluster_ips = line.list("ip");
    service.external_ips = line.list("external");
    service.headless = line.flag("headless");
    let mode = if line.flag("proxied") { IngressMode::Proxy } else { IngressMode::Vip };
    let vips = line.list("vip");
    service.load_balancer = vips.into_iter().map(|addr| LoadBalancerIngress { addr, mode }).collect();
    service.source_ranges = line.list("from");
    service.ports = line.list::<String>("ports").iter().map(|text| service_port(text)).collect();
    service.session_affinity =
        line.values.get("affinity").map(|seconds| Duration::from_secs(seconds.parse().unwrap()));
    service.external_policy = policy("external-policy");
    service.internal_policy = policy("internal-policy");
    service.publish_not_ready = line.flag("publish-not-ready");
    service.traffic_distribution = line.values.get("prefer").map(|prefer| match *prefer {
        "SameNode" => TrafficDistribution::PreferSameNode,
        _ => TrafficDistribution::PreferSameZone,
    });
    service.balancing = line.values.get("balance").map(|wish| match *wish {
        "maglev" => Balancing::Maglev,
        "random" => Balancing::Random,
        _ => Balancing::Unknown,
    });
    service.forwarding = line.values.get("north-south").map(|wish| match *wish {
        "dsr" => Forwarding::Dsr,
        "snat" => Forwarding::Snat,
        _ => Forwarding::Unknown,
    });
    service.proxy_name = line.name("proxy-name");
    service.load_balancer_class = line.name("class");
    service
}

/// `name:port/PROTOCOL` with `@nodePort` behind it where there is one.
fn service_port(text: &str) -> ServicePort {
    let (rest, node_port) =
        text.split_once('@').map_or((text, None), |(rest, port)| (rest, port.parse().ok()));
    let port = endpoint_port(rest);
    ServicePort { name: port.name, protocol: port.protocol, port: port.port, node_port, app_protocol: None }
}

fn endpoint_port(text: &str) -> EndpointPort {
    let (name, rest) = text.split_once(':').unwrap();
    let (port, protocol) = rest.split_once('/').unwrap();
    EndpointPort { name: name.into(), protocol: protocol.parse().unwrap(), port: port.parse().unwrap() }
}

fn endpoint(line: &Line<'_>) -> Endpoint {
    let ports: Vec<String> = line.list("ports");
    let ports: Vec<EndpointPort> = if ports.is_empty() {
        vec![endpoint_port("http:8080/TCP")]
    } else {
        ports.iter().map(|text| endpoint_port(text)).collect()
    };
    let terminating = line.flag("terminating");
    let ready = !terminating && !line.flag("not-ready");
    Endpoint {
        node: line.name("node"),
        zone: line.name("zone"),
        ready,
        serving: ready || line.flag("serving"),
        terminating,
        hints: Some(Arc::new(Hints {
            zones: line.list::<String>("for-zones").iter().map(|zone| Arc::from(zone.as_str())).collect(),
            nodes: line.list::<String>("for-nodes").iter().map(|node| Arc::from(node.as_str())).collect(),
        })),
        ..Endpoint::new(line.words[1].parse().unwrap(), ports.into())
    }
}

fn render(desired: &Desired) -> String {
    let mut entries: Vec<(&FrontendKey, &Arc<Entry>)> = desired.frontends.iter().collect();
    entries.sort_by_key(|(key, entry)| (entry.owner.service.clone(), entry.frontend.kind, **key));
    let mut out = String::new();
    for (key, entry) in entries {
        let frontend = &entry.frontend;
        let kind = match frontend.kind {
            FrontendKind::ClusterIP => "ClusterIP",
            FrontendKind::LoadBalancer => "LoadBalancer",
            FrontendKind::ExternalIP => "ExternalIP",
            FrontendKind::NodePort => "NodePort",
        };
        let address = format!("{}/{}", std::net::SocketAddr::new(key.addr, key.port), key.protocol);
        let scope = if key.scope == Scope::Internal { "inside" } else { "outside" };
        let mut backends: Vec<String> = frontend
            .backends
            .iter()
            .map(|b| {
                format!("{}{}", std::net::SocketAddr::new(b.addr, b.port), if b.local { "*" } else { "" })
            })
            .collect();
        if backends.is_empty() {
            backends.push("-".to_owned());
        }
        let mut notes = Vec::new();
        if frontend.preserve_source {
            notes.push("keep-source".to_owned());
        }
        if frontend.elsewhere {
            notes.push("elsewhere".to_owned());
        }
        if let Some(affinity) = frontend.affinity {
            notes.push(format!("affinity={}s", affinity.as_secs()));
        }
        if frontend.maglev {
            notes.push("maglev".to_owned());
        }
        if frontend.dsr {
            notes.push("dsr".to_owned());
        }
        if !frontend.source_ranges.is_empty() {
            let ranges: Vec<String> = frontend.source_ranges.iter().map(ToString::to_string).collect();
            notes.push(format!("from={}", ranges.join(",")));
        }
        let row = format!(
            "{:<10} {kind:<12} {address:<26} {scope:<7} -> {:<40} {}",
            entry.owner.service.to_string(),
            backends.join(" "),
            notes.join(" ")
        );
        writeln!(out, "{}", row.trim_end()).unwrap();
    }
    for conflict in desired.conflicts() {
        let losers = conflict.losers.join(" ");
        writeln!(
            out,
            "conflict   {}/{}: {} has it, not {losers}",
            conflict.address, conflict.protocol, conflict.winner
        )
        .unwrap();
    }
    out
}
