//! The loop over data planes in memory.

use std::net::IpAddr;

use seaway_model::{Endpoint, EndpointPort, EndpointSet, Service, ServiceKey, ServicePort};

use super::*;
use crate::dataplane::fake::Fake;
use crate::dataplane::faulty::Faulty;

const NODE: &str = "node-a";

fn cluster(services: u8) -> Snapshot {
    let mut snapshot = Snapshot { version: 1, synced: true, ..Snapshot::default() };
    let node = Node::named(NODE);
    snapshot.nodes.insert(NODE.into(), Arc::new(node));
    for index in 0..services {
        let mut service = Service::new(ServiceKey::new("default", &format!("web-{index}")));
        service.cluster_ips = vec![IpAddr::from([10, 96, 0, index])];
        service.ports = vec![ServicePort {
            name: "".into(),
            protocol: seaway_model::Protocol::Tcp,
            port: 80,
            node_port: None,
            app_protocol: None,
        }];
        snapshot.services.insert(service.key.clone(), Arc::new(service));
    }
    snapshot
}

fn config() -> ProxyConfig {
    let mut config = ProxyConfig::new(NODE, "", "");
    config.node_port_loopback = false;
    config.resync_interval = Duration::from_secs(1000);
    config
}

fn metrics() -> Metrics {
    Metrics::new(&prometheus::Registry::new())
}

/// A running loop with what a test holds on to.
struct Loop {
    sender: watch::Sender<Arc<Snapshot>>,
    config: ProxyConfig,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn start(config: ProxyConfig, dataplane: Box<dyn Dataplane>) -> Loop {
    let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
    let stop = CancellationToken::new();
    let reconciler = Reconciler::new(config.clone(), metrics(), dataplane);
    let task = tokio::spawn(reconciler.run(receiver, stop.clone()));
    Loop { sender, config, stop, task }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..200_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_every_list_has_been_read() {
    let fake = Fake::default();
    let mut former = Reconciler::new(config(), metrics(), Box::new(fake.clone()));
    assert!(former.sync(&cluster(3)).await);
    let held = fake.held();
    assert_eq!(held.frontends.len(), 6);

    let running = start(config(), Box::new(fake.clone()));
    running.sender.send_replace(Arc::new(Snapshot { synced: false, ..cluster(1) }));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.held(), held, "the former process's state stands");
    assert!(!running.config.status.healthy());
    running.sender.send_replace(Arc::new(cluster(1)));
    until("pruned once synced", || fake.held().frontends.len() == 2).await;
    until("healthy", || running.config.status.healthy()).await;
    running.stop.cancel();
    running.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_its_node_it_waits() {
    let fake = Fake::default();
    let mut reconciler = Reconciler::new(config(), metrics(), Box::new(fake.clone()));
    let mut unknown = cluster(1);
    unknown.nodes.clear();
    assert!(reconciler.sync(&unknown).await);
    assert!(fake.held().frontends.is_empty());
    let error = reconciler.config.status.status().last_error.unwrap();
    assert_eq!(error, "waiting for the Node object \"node-a\"");
    reconciler.sync(&cluster(1)).await;
    reconciler.sync(&unknown).await;
    assert_eq!(fake.held().frontends.len(), 2, "once seen, it is known");
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_it_comes_through() {
    let fake = Fake::default();
    let running = start(config(), Box::new(Faulty::new(fake.clone(), 30, 42)));
    for services in [5, 1, 9, 0, 4] {
        running.sender.send_replace(Arc::new(cluster(services)));
        until("in line", || fake.held().frontends.len() == 2 * usize::from(services)).await;
    }
    running.stop.cancel();
    running.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_broke_is_repaired() {
    let fake = Fake::default();
    let mut config = config();
    config.resync_interval = Duration::from_secs(30);
    let running = start(config, Box::new(fake.clone()));
    running.sender.send_replace(Arc::new(cluster(2)));
    until("in line", || fake.held().frontends.len() == 4).await;
    let held = fake.held();
    let broken = Plan { removals: held.frontends.keys().copied().collect(), ..Plan::default() };
    fake.clone().apply(&broken).unwrap();
    assert!(fake.held().frontends.is_empty());
    until("repaired", || fake.held() == held).await;
    running.stop.cancel();
    running.task.await.unwrap();
}

#[test]
fn uplinks_are_the_links_of_the_nodes_own_addresses() {
    let link = |name: &str, index, addr: &str| Link {
        name: name.into(),
        index,
        mac: None,
        addrs: [addr.parse().unwrap()].into(),
        shaped: false,
    };
    let links = [link("lo", 1, "127.0.0.1"), link("eth0", 2, "192.0.2.1"), link("eth1", 3, "192.0.2.65")];
    let mut node = (**cluster(0).nodes.get(NODE).unwrap()).clone();
    let address = |text: &str| seaway_model::NodeAddress {
        addr: text.parse().unwrap(),
        kind: seaway_model::NodeAddressKind::Internal,
    };
    node.addresses = vec![address("192.0.2.1"), address("fd00::1")];
    let mut config = config();
    let names = |host: Host| host.uplinks.iter().map(|d| d.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(host(&config, Some(&node), &links)), ["eth0"]);
    assert_eq!(host(&config, Some(&node), &links).node_v6, Some("fd00::1".parse().unwrap()));
    let pods =
        [Link { mac: Some([0xee; 6]), ..link("sw0123456789a", 4, "fe80::1") }, link("lxc1", 5, "fe80::2")];
    let pod_links = |config: &ProxyConfig| {
        let host = host(config, Some(&node), &[&links[..], &pods].concat());
        host.pod_links.iter().map(|d| d.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(pod_links(&config), ["sw0123456789a"]);
    config.pod_link_prefixes = vec!["lxc".into(), "eth0".into()];
    assert_eq!(pod_links(&config), ["lxc1", "sw0123456789a"], "an uplink is none, whatever its name");
    let shaped = pods.map(|pod| Link { shaped: pod.index == 5, ..pod });
    let shaped = [&links[..], &shaped, &[Link { shaped: true, ..link("br0", 6, "10.0.0.1") }]].concat();
    let found = host(&config, Some(&node), &shaped);
    assert_eq!((found.pod_links.len(), found.shaped_links.len()), (2, 1));
    assert!(found.shaped_links.iter().all(|link| link.index == 5));
    config.devices = vec!["eth1".into()];
    assert_eq!(names(host(&config, Some(&node), &links)), ["eth1"]);
    config.node_port_addresses.ranges =
        vec!["192.0.2.64/26".parse().unwrap(), "127.0.0.0/8".parse().unwrap()];
    let own: Vec<IpAddr> = vec!["192.0.2.65".parse().unwrap()];
    assert_eq!(view(&config, Some(&node), &links).node_port_addresses, own);
}

#[derive(Debug, Default)]
struct Heard(std::sync::Mutex<Vec<String>>);

impl crate::Reporter for Heard {
    fn warn(&self, notice: crate::Notice) {
        let line = format!("{} {}/{}: {}", notice.kind, notice.namespace, notice.name, notice.reason);
        self.0.lock().unwrap().push(format!("{line}: {}", notice.message));
    }
}

/// What the data plane refuses and what two claim is told, once; the rest is served.
#[tokio::test]
async fn what_is_not_served_is_told() {
    use crate::dataplane::ebpf::{Ebpf, Memory};
    let heard = Arc::new(Heard::default());
    let mut config = config();
    config.reporter = Some(Arc::<Heard>::clone(&heard));
    let dataplane = Box::new(Ebpf::new(Memory::new(4096, 4096), 1024..=29_999, 1));
    let mut reconciler = Reconciler::new(config, metrics(), dataplane);
    let mut snapshot = cluster(3);
    let mut change = |name: &str, change: &dyn Fn(&mut Service)| {
        let key = ServiceKey::new("default", name);
        let mut service = (*snapshot.services[&key]).clone();
        change(&mut service);
        snapshot.services.insert(key, Arc::new(service));
    };
    change("web-1", &|service| service.ports[0].protocol = seaway_model::Protocol::Sctp);
    change("web-2", &|service| service.cluster_ips = vec![IpAddr::from([10, 96, 0, 0])]);
    for _ in 0..2 {
        reconciler.sync(&snapshot).await;
        reconciler.actual = None;
    }
    let heard = heard.0.lock().unwrap();
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard.iter().any(|line| {
        line.starts_with(
            "Service default/web-1: NotSupportedByProxy: 10.96.0.1:80/SCTP is not served on node node-a: ",
        )
    }));
    let conflict = "Service default/web-2: AddressConflict: 10.96.0.0:80/TCP is served for default/web-0, which claims it too";
    assert!(heard.iter().any(|line| line == conflict), "{heard:?}");
}

/// Where there is no socket for a Service since no more files can be opened, it is told.
#[tokio::test]
async fn what_has_no_socket_for_want_of_files_is_told() {
    use crate::dataplane::userspace::{Memory, Userspace};
    let heard = Arc::new(Heard::default());
    let mut config = config();
    config.reporter = Some(Arc::<Heard>::clone(&heard));
    let mut network = Memory::default();
    network.out_of_files = true;
    let mut reconciler = Reconciler::new(config, metrics(), Box::new(Userspace::new(network)));
    let mut snapshot = cluster(1);
    let ports = [EndpointPort { name: "".into(), protocol: seaway_model::Protocol::Tcp, port: 8080 }];
    let endpoint = Endpoint::new("10.244.0.1".parse().unwrap(), ports.into());
    let endpoints = EndpointSet { endpoints: [endpoint].into() };
    snapshot.endpoints.insert(ServiceKey::new("default", "web-0"), Arc::new(endpoints));
    assert!(!reconciler.sync(&snapshot).await);
    let heard = heard.0.lock().unwrap();
    let told = "Service default/web-0: ProxyExhausted: 10.96.0.0:80/TCP is not served on node node-a: no more files can be opened";
    assert_eq!(*heard, [told]);
}

#[test]
fn node_ports_answer_where_the_filter_says() {
    let link = |name: &str, addrs: &[&str]| Link {
        name: name.into(),
        addrs: addrs.iter().map(|addr| addr.parse().unwrap()).collect(),
        ..Link::default()
    };
    let links = [
        link("lo", &["127.0.0.1", "::1"]),
        link("eth0", &["172.30.0.11", "fd00:10:30::11"]),
        link("eth1", &["192.168.7.11", "192.168.7.12"]),
    ];
    let snapshot = cluster(0);
    let node = snapshot.nodes[NODE].clone();
    let with = |ranges: &[&str]| {
        let mut config = config();
        config.node_port_addresses.ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let view = view(&config, Some(&node), &links);
        view.node_port_addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(with(&[]), "", "those of the Node object, and it has none here");
    assert_eq!(with(&["192.168.0.0/16"]), "192.168.7.11 192.168.7.12", "several of one device");
    assert_eq!(with(&["172.30.0.0/24", "192.168.7.12/32"]), "172.30.0.11 192.168.7.12", "several devices");
    assert_eq!(with(&["0.0.0.0/0", "::/0"]), "172.30.0.11 fd00:10:30::11 192.168.7.11 192.168.7.12");
    assert_eq!(with(&["127.0.0.0/8"]), "", "loopback has a switch of its own");
    let mut config = config();
    config.node_port_addresses.primary = true;
    config.node_port_addresses.ranges = vec!["192.168.7.12/32".parse().unwrap()];
    let node = Node {
        addresses: vec![seaway_model::NodeAddress {
            addr: "172.30.0.11".parse().unwrap(),
            kind: seaway_model::NodeAddressKind::Internal,
        }],
        ..(*node).clone()
    };
    let both: [IpAddr; 2] = ["172.30.0.11".parse().unwrap(), "192.168.7.12".parse().unwrap()];
    assert_eq!(view(&config, Some(&node), &links).node_port_addresses, both);
}
