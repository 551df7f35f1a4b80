//! The Node object: what it says (pure), and keeping it said (registration, Lease heartbeats, status).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::NodeConfig;

const HEARTBEAT: Duration = Duration::from_secs(10);
const LEASE_DURATION_S: i32 = 40;
const STATUS_PERIOD: Duration = Duration::from_secs(300);
const PODS: u32 = 110;
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// The annotation that carries the Ethernet address of the node's VXLAN device.
pub(crate) const VTEP_MAC: &str = "seaway.dev/vtep-mac";

/// Whether the node can run pods, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Readiness {
    /// What is still missing, in words; empty when nothing is.
    pub(crate) missing: Vec<String>,
    /// The pod network works.
    pub(crate) network: bool,
}

/// The Ethernet address of a node's VXLAN device, as text.
pub(crate) fn vtep_mac(node: &str) -> String {
    seaway_cni_network::vtep_mac(node).map(|byte| format!("{byte:02x}")).join(":")
}

/// The Node as it is registered.
pub(crate) fn node(config: &NodeConfig) -> Node {
    let mac = vtep_mac(&config.name);
    Node {
        metadata: ObjectMeta {
            name: Some(config.name.clone()),
            labels: Some(labels(config)),
            annotations: Some(BTreeMap::from([(VTEP_MAC.to_owned(), mac)])),
            ..ObjectMeta::default()
        },
        ..Node::default()
    }
}

fn labels(config: &NodeConfig) -> BTreeMap<String, String> {
    let (os, arch) = ("linux".to_owned(), architecture().to_owned());
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), config.name.clone()),
        ("kubernetes.io/os".to_owned(), os.clone()),
        ("kubernetes.io/arch".to_owned(), arch.clone()),
        ("beta.kubernetes.io/os".to_owned(), os),
        ("beta.kubernetes.io/arch".to_owned(), arch),
    ]);
    labels.extend(config.zone.clone().map(|zone| ("topology.kubernetes.io/zone".to_owned(), zone)));
    labels.extend(config.labels.clone());
    labels
}

/// The name that container images and Kubernetes use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What the machine offers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    cpus: usize,
    memory_kib: u64,
    info: NodeSystemInfo,
}

impl Machine {
    /// Reads it from the kernel.
    pub(crate) fn read(runtime: &str) -> Self {
        let line = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let uname = rustix::system::uname();
        let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let os_image = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_kib: memory_kib(&line("/proc/meminfo")),
            info: NodeSystemInfo {
                architecture: architecture().to_owned(),
                boot_id: line("/proc/sys/kernel/random/boot_id"),
                container_runtime_version: runtime.to_owned(),
                kernel_version: uname.release().to_string_lossy().into_owned(),
                kube_proxy_version: String::new(),
                kubelet_version: format!("v1.33.0+seaway-{}", env!("CARGO_PKG_VERSION")),
                machine_id: line("/etc/machine-id"),
                operating_system: "linux".to_owned(),
                os_image: os_image.trim_matches('"').to_owned(),
                system_uuid: line("/sys/class/dmi/id/product_uuid"),
                ..NodeSystemInfo::default()
            },
        }
    }

    fn resources(&self) -> BTreeMap<String, Quantity> {
        BTreeMap::from([
            ("cpu".to_owned(), Quantity(self.cpus.to_string())),
            ("memory".to_owned(), Quantity(format!("{}Ki", self.memory_kib))),
            ("pods".to_owned(), Quantity(PODS.to_string())),
        ])
    }
}

fn memory_kib(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The Node's status. Conditions of others in `previous` are kept.
pub(crate) fn status(
    config: &NodeConfig,
    machine: &Machine,
    readiness: &Readiness,
    previous: &NodeStatus,
    now: Timestamp,
) -> NodeStatus {
    let mut addresses: Vec<NodeAddress> = config
        .node_ips
        .iter()
        .map(|ip| NodeAddress { address: ip.to_string(), type_: "InternalIP".to_owned() })
        .collect();
    addresses.push(NodeAddress { address: config.name.clone(), type_: "Hostname".to_owned() });
    let mut conditions = previous.conditions.clone().unwrap_or_default();
    let (ready_reason, ready_message) = if readiness.missing.is_empty() {
        ("KubeletReady", "the node agent is posting ready status".to_owned())
    } else {
        ("KubeletNotReady", readiness.missing.join("; "))
    };
    let (network_reason, network_message) = network(readiness.network);
    let enough = |what: &str| format!("the node agent has sufficient {what} available");
    for (kind, holds, reason, message) in [
        (NETWORK_UNAVAILABLE, !readiness.network, network_reason, network_message),
        ("MemoryPressure", false, "KubeletHasSufficientMemory", enough("memory")),
        ("DiskPressure", false, "KubeletHasNoDiskPressure", enough("disk space")),
        ("PIDPressure", false, "KubeletHasSufficientPID", enough("process ids")),
        ("Ready", readiness.missing.is_empty(), ready_reason, ready_message),
    ] {
        set_condition(&mut conditions, kind, holds, reason, message, now);
    }
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(machine.resources()),
        allocatable: Some(machine.resources()),
        conditions: Some(conditions),
        daemon_endpoints: config.run_pods.then(|| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.kubelet_port) }),
        }),
        node_info: Some(machine.info.clone()),
        ..NodeStatus::default()
    }
}

/// Why the pod network stands as it does.
fn network(up: bool) -> (&'static str, String) {
    if up {
        ("SeawayIsUp", "the pod network is configured".to_owned())
    } else {
        ("SeawayIsNotUp", "the pod network is not configured yet".to_owned())
    }
}

/// The condition about the pod network.
pub(crate) fn network_condition(up: bool, now: Timestamp) -> NodeCondition {
    let (reason, message) = network(up);
    condition(NETWORK_UNAVAILABLE, !up, reason, message, now)
}

/// A condition that has changed just now.
fn condition(kind: &str, holds: bool, reason: &str, message: String, now: Timestamp) -> NodeCondition {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    NodeCondition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}

fn set_condition(
    conditions: &mut Vec<NodeCondition>,
    kind: &str,
    holds: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let mut condition = condition(kind, holds, reason, message, now);
    let held = conditions.iter().position(|c| c.type_ == kind);
    let since = held.map(|i| &conditions[i]).filter(|c| c.status == condition.status);
    if let Some(since) = since.and_then(|c| c.last_transition_time.clone()) {
        condition.last_transition_time = Some(since);
    }
    match held {
        Some(i) => conditions[i] = condition,
        None => conditions.push(condition),
    }
}

/// Creates the Node or takes it over.
async fn register(api: &Api<Node>, config: &NodeConfig) -> Result<Node, kube::Error> {
    let desired = node(config);
    if api.get_opt(&config.name).await?.is_none() {
        match api.create(&PostParams::default(), &desired).await {
            Ok(created) => return Ok(created),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error),
        }
    }
    let metadata = json!({"labels": desired.metadata.labels, "annotations": desired.metadata.annotations});
    let patch = Patch::Merge(json!({"metadata": metadata}));
    api.patch(&config.name, &PatchParams::default(), &patch).await
}

/// Whether the conditions of `live` say something else than those of `wanted`, heartbeats aside.
fn differs(live: &NodeStatus, wanted: &NodeStatus) -> bool {
    let said = |status: &NodeStatus| -> Vec<(String, String, Option<String>)> {
        let conditions = status.conditions.iter().flatten();
        conditions.map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone())).collect()
    };
    said(live) != said(wanted)
}

/// Registers the node and keeps its status current: at every change of readiness, when somebody else has changed it (who
/// did not hear from this node for a while says that it is not ready, and waits for the node to say that it is), and
/// every five minutes.
pub(crate) async fn keep_status(
    client: kube::Client,
    config: NodeConfig,
    machine: Machine,
    mut readiness: watch::Receiver<Readiness>,
) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(client);
    let mut posted: Option<Instant> = None;
    loop {
        let registered = match api.get_opt(&config.name).await? {
            Some(live) if posted.is_some_and(|at| at.elapsed() < STATUS_PERIOD) => live,
            // Whoever deletes the Node of a living agent gets it back.
            _ => {
                posted = None;
                register(&api, &config).await?
            }
        };
        let now = readiness.borrow_and_update().clone();
        let previous = registered.status.unwrap_or_default();
        let status = status(&config, &machine, &now, &previous, Timestamp::now());
        if posted.is_none() || differs(&previous, &status) {
            let patch = Patch::Merge(json!({"status": status}));
            api.patch_status(&config.name, &PatchParams::default(), &patch).await?;
            posted = Some(Instant::now());
        }
        let changed = readiness.wait_for(|current| *current != now);
        let _unchanged = tokio::time::timeout(HEARTBEAT, changed).await;
    }
}

/// Renews the node's Lease every ten seconds, until `shutdown`.
pub(crate) async fn heartbeat(
    client: kube::Client,
    node: String,
    shutdown: CancellationToken,
) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let owner = Api::<Node>::all(client).get_opt(&node).await?.and_then(|node| node.metadata.uid);
    let mut interval = tokio::time::interval(HEARTBEAT);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(interval.tick()).await.is_some() {
        let renewed = json!({"spec": {"renewTime": MicroTime(Timestamp::now())}});
        match api.patch(&node, &PatchParams::default(), &Patch::Merge(renewed)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                api.create(&PostParams::default(), &lease(&node, owner.as_deref())).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn lease(node: &str, owner: Option<&str>) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            owner_references: owner.map(|uid| vec![owner_reference(node, uid)]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(LEASE_DURATION_S),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    }
}

/// The Node as an owner: what it owns goes with it.
pub(crate) fn owner_reference(node: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config() -> NodeConfig {
        let ips = vec!["172.30.0.11".parse().unwrap(), "fd00:10:30::b".parse().unwrap()];
        let mut config = NodeConfig::new("n1", "kubeconfig".into(), ips, Path::new("/var/lib/n1"));
        config.zone = Some("z1".into());
        config.run_pods = true;
        config
    }

    fn condition<'a>(status: &'a NodeStatus, kind: &str) -> &'a NodeCondition {
        status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap()
    }

    #[test]
    fn the_node_says_where_it_is() {
        let node = node(&config());
        let labels = node.metadata.labels.unwrap();
        assert_eq!(labels["kubernetes.io/hostname"], "n1");
        assert_eq!(labels["topology.kubernetes.io/zone"], "z1");
        assert_eq!(node.metadata.annotations.unwrap()[VTEP_MAC].len(), 17);
    }

    #[test]
    fn readiness_becomes_conditions_that_remember_since_when() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let machine = Machine::read("test://1");
        let missing = Readiness { missing: vec!["CNI is not installed".into()], network: false };
        let first = status(&config(), &machine, &missing, &NodeStatus::default(), at(10));
        assert_eq!(condition(&first, "Ready").status, "False");
        assert_eq!(condition(&first, "Ready").message.as_deref(), Some("CNI is not installed"));
        assert_eq!(condition(&first, "NetworkUnavailable").status, "True");
        let ready = Readiness { missing: vec![], network: true };
        let second = status(&config(), &machine, &ready, &first, at(20));
        assert_eq!(condition(&second, "Ready").last_transition_time, Some(Time(at(20))));
        let third = status(&config(), &machine, &ready, &second, at(30));
        assert_eq!(condition(&third, "Ready").last_transition_time, Some(Time(at(20))));
        assert_eq!(condition(&third, "Ready").last_heartbeat_time, Some(Time(at(30))));
        let kinds: Vec<String> = third.addresses.unwrap().into_iter().map(|a| a.type_).collect();
        assert_eq!(kinds, ["InternalIP", "InternalIP", "Hostname"]);
        assert_eq!(third.daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port, 10250);
    }

    #[test]
    fn a_node_contradicts_who_says_that_it_is_gone() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let (machine, ready) = (Machine::read("test://1"), Readiness { missing: vec![], network: true });
        let posted = status(&config(), &machine, &ready, &NodeStatus::default(), at(10));
        let same = status(&config(), &machine, &ready, &posted, at(20));
        assert!(!differs(&posted, &same));
        let mut given_up = posted;
        for condition in given_up.conditions.iter_mut().flatten().filter(|c| c.type_ == "Ready") {
            condition.status = "Unknown".to_owned();
            condition.reason = Some("NodeStatusUnknown".to_owned());
        }
        let again = status(&config(), &machine, &ready, &given_up, at(70));
        assert!(differs(&given_up, &again));
        assert_eq!(condition(&again, "Ready").last_transition_time, Some(Time(at(70))));
    }

    #[test]
    fn memory_is_read_from_meminfo() {
        assert_eq!(memory_kib("MemTotal:       24046060 kB\nMemFree: 1 kB\n"), 24_046_060);
        assert_eq!(memory_kib(""), 0);
    }
}
