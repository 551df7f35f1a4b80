//! Who masquerades what pods send to the world: pod network and proxy of a node agree on it as they do in an agent, and
//! change over without a lost connection. Needs root.
#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use seaway_cni_network::netlink::Bridge;
use seaway_cni_network::netns::Namespace;
use seaway_cni_network::{MasqueradeOffer, NodeNetworkOptions, Overlay};
use seaway_lab::{Lab, LabNode, tcp_exchange, udp_exchange, wait_for};
use seaway_model::Snapshot;
use seaway_proxy::{MasqueradeOrder, Metrics, Mode, ProxyConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[path = "../../cni/network/tests/support/agent.rs"]
mod agent;

use agent::{Agent, PATIENCE, Pod, add_pod, config, snapshot};

/// The proxy of a node. It ends with this value, and what it made in the kernel stays.
struct Proxy {
    _snapshots: watch::Sender<Arc<Snapshot>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start(node: &LabNode, mode: Mode, order: MasqueradeOrder, all: Arc<Snapshot>) -> Self {
        let mut config = ProxyConfig::new(node.name(), node.cgroup(), node.bpffs());
        config.mode = mode;
        config.masquerade = Some(order);
        config.resync_interval = Duration::from_secs(1);
        let (snapshots, receiver) = watch::channel(all);
        let stop = CancellationToken::new();
        let (shutdown, namespace) = (stop.clone(), Namespace::open(node.namespace().path()).unwrap());
        let thread = std::thread::spawn(move || {
            let work = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let metrics = Metrics::new(&prometheus::Registry::new());
                runtime.block_on(seaway_proxy::run(config, receiver, metrics, shutdown)).unwrap();
            };
            namespace.run(work).unwrap();
        });
        Self { _snapshots: snapshots, stop, thread: Some(thread) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
        let outcome = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            outcome.unwrap();
        }
    }
}

/// Both parts of an agent, in the order in which it ends them.
struct Both {
    _network: Agent,
    _proxy: Proxy,
}

impl Both {
    fn start(node: &LabNode, mode: Mode, all: &Arc<Snapshot>) -> Self {
        let (wanted, done) = (watch::Sender::new(None), watch::Sender::new(None));
        let order = MasqueradeOrder::new(wanted.subscribe(), done.clone());
        let offer = MasqueradeOffer { wanted, done: done.subscribe() };
        let options = NodeNetworkOptions { masquerade: Some(offer), ..NodeNetworkOptions::default() };
        let network = Agent::start_with(node, config(node, Overlay::None), options, Arc::clone(all));
        Self { _network: network, _proxy: Proxy::start(node, mode, order, Arc::clone(all)) }
    }
}

/// A TCP connection from a pod to the client outside.
struct Open {
    near: TcpStream,
    far: TcpStream,
    seen: IpAddr,
}

impl Open {
    fn connect(lab: &Lab, pod: &Pod, family: usize) -> Self {
        let client = lab.client();
        let listener = client.run(|| TcpListener::bind((client.addresses()[family], 0))).unwrap();
        let to = listener.local_addr().unwrap();
        let near = pod.namespace.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
        let (far, from) = listener.accept().unwrap();
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Self { near, far, seen: from.ip() }
    }

    fn goes_on(&mut self) {
        let mut heard = [0; 2];
        self.near.write_all(b"on").unwrap();
        self.far.read_exact(&mut heard).unwrap();
        self.far.write_all(b"on").unwrap();
        self.near.read_exact(&mut heard).unwrap();
    }
}

fn rules(node: &LabNode) -> String {
    node.ok(&["nft", "list", "ruleset"])
}

/// How many connections the kernel tracks there.
fn tracked(node: &LabNode) -> u32 {
    let count = node.run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"));
    count.map_or(0, |count| count.trim().parse().unwrap())
}

fn wait_for_tables(node: &LabNode) {
    let whole = |rules: String| ["10.244.1.0/24", "fd00:10:244:1::/64"].iter().all(|net| rules.contains(net));
    wait_for(PATIENCE, "the tables", || whole(rules(node)));
}

fn wait_for_none(node: &LabNode) {
    wait_for(PATIENCE, "the tables to go", || !rules(node).contains("seaway-masq"));
}

/// What the client outside sees of a pod.
fn assert_masqueraded(lab: &Lab, pod: &Pod) {
    let (node, client) = (lab.node(0), lab.client());
    for family in [0, 1] {
        let (to, expected) = (client.addresses()[family], node.addresses()[family]);
        assert_eq!(tcp_exchange(&pod.namespace, client.namespace(), to, 100_000).unwrap(), expected);
        // Of the length of a packet, and in fragments; the first answer may be lost for the MTU to be learnt.
        for length in [1000, 4000] {
            let mut exchanges = (0..3).map(|_| udp_exchange(&pod.namespace, client.namespace(), to, length));
            assert_eq!(exchanges.find_map(Result::ok), Some(expected), "{length} bytes");
        }
        let ping =
            pod.namespace.command("ping").unwrap().args(["-c1", "-W3", &to.to_string()]).output().unwrap();
        assert!(ping.status.success(), "{ping:?}");
    }
}

#[test]
fn programs_masquerade_without_a_table_and_without_tracking() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let all = snapshot(&lab, &[1], true);
    let both = Both::start(node, Mode::Ebpf, &all);
    let pod = add_pod(&lab, 1, 5);
    wait_for(PATIENCE, "the programs to masquerade", || {
        let to = lab.client().addresses()[0];
        tcp_exchange(&pod.namespace, lab.client().namespace(), to, 10).is_ok()
    });
    assert_masqueraded(&lab, &pod);
    assert!(!rules(node).contains("seaway-masq"));
    assert_eq!(tracked(node), 0);
    // Without any agent it goes on, and a new one finds it so.
    let mut open = [0, 1].map(|family| Open::connect(&lab, &pod, family));
    drop(both);
    assert_masqueraded(&lab, &pod);
    let _again = Both::start(node, Mode::Ebpf, &all);
    for open in &mut open {
        open.goes_on();
    }
    assert_masqueraded(&lab, &pod);
    assert!(!rules(node).contains("seaway-masq"));
}

#[test]
fn a_table_goes_with_its_last_connection_once_programs_masquerade() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let all = snapshot(&lab, &[1], true);
    let former = Agent::start(node, config(node, Overlay::None), Arc::clone(&all));
    wait_for_tables(node);
    let pod = add_pod(&lab, 1, 5);
    let mut by_table = [0, 1].map(|family| Open::connect(&lab, &pod, family));
    assert_ne!(tracked(node), 0);
    drop(former);
    let both = Both::start(node, Mode::Ebpf, &all);
    let without_pods = || rules(node).contains("seaway-masq") && !rules(node).contains("10.244.1.0");
    wait_for(PATIENCE, "the tables to lose the pods", without_pods);
    assert_masqueraded(&lab, &pod);
    let mut by_programs = [0, 1].map(|family| Open::connect(&lab, &pod, family));
    for (family, open) in by_table.iter_mut().chain(&mut by_programs).enumerate() {
        assert_eq!(open.seen, node.addresses()[family % 2]);
        open.goes_on();
    }
    drop(by_table);
    wait_for(PATIENCE * 6, "the tables to go", || !rules(node).contains("seaway-masq"));
    // And back, as in a mode that has no programs.
    drop(both);
    let _modes = Both::start(node, Mode::Nftables, &all);
    wait_for_tables(node);
    for open in &mut by_programs {
        open.goes_on();
    }
    assert_masqueraded(&lab, &pod);
}

#[test]
fn a_way_out_without_programs_has_a_table() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let all = snapshot(&lab, &[1], true);
    let _both = Both::start(node, Mode::Ebpf, &all);
    let pod = add_pod(&lab, 1, 5);
    wait_for_none(node);
    let mut netlink = node.netlink().unwrap();
    let other = netlink.create_bridge(&Bridge { name: "other", ..Bridge::default() }).unwrap();
    netlink.set_up(other.index).unwrap();
    netlink.add_address(other.index, "172.31.0.1/24".parse().unwrap()).unwrap();
    netlink.add_address(other.index, "fd00:10:31::1/64".parse().unwrap()).unwrap();
    wait_for_tables(node);
    assert_masqueraded(&lab, &pod);
    netlink.delete_link(other.index).unwrap();
    wait_for(PATIENCE * 6, "the tables to go", || !rules(node).contains("seaway-masq"));
}
