//! What the scheduler knows: nodes with what is left of them, and every pod that takes a place, bound or assumed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use seaway_client::Key;

use crate::resources::{Resources, units};

/// The label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// A pod as the scheduler sees it.
#[derive(Debug)]
pub(crate) struct PodInfo {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) pod: Arc<Pod>,
    pub(crate) requests: Resources,
    /// What it counts for when nodes are compared.
    pub(crate) weight: Resources,
    pub(crate) host_ports: Vec<HostPort>,
    /// UID of the object that controls it: pods of one owner are spread.
    pub(crate) owner: Option<String>,
    pub(crate) priority: i32,
}

/// A port of the node itself: address, protocol, number.
pub(crate) type HostPort = (String, String, i32);

impl PodInfo {
    pub(crate) fn new(pod: Arc<Pod>) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let requests = Resources::of_pod(&spec);
        let owners = pod.metadata.owner_references.iter().flatten();
        let owner =
            owners.filter(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone()).next();
        Self {
            key: Key::of(pod.as_ref()),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            weight: requests.clone().at_least_something(),
            requests,
            host_ports: host_ports(&spec),
            owner,
            priority: spec.priority.unwrap_or(0),
            pod,
        }
    }

    /// The pod's spec.
    pub(crate) fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let host_network = spec.host_network == Some(true);
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.or_else(|| host_network.then_some(port.container_port))?;
            let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            (number > 0).then(|| (ip, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number))
        })
        .collect()
}

/// Whether two host ports cannot be had at once.
pub(crate) fn conflict(a: &HostPort, b: &HostPort) -> bool {
    let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || any(&a.0) || any(&b.0))
}

/// A node with what its pods take.
#[derive(Debug)]
pub(crate) struct NodeInfo {
    pub(crate) node: Arc<Node>,
    pub(crate) name: String,
    pub(crate) zone: Option<String>,
    pub(crate) allocatable: Resources,
    pub(crate) allowed_pods: i64,
    pub(crate) requested: Resources,
    pub(crate) weight: Resources,
    pub(crate) pods: HashMap<String, Arc<PodInfo>>,
    /// How many pods of each owner are here.
    pub(crate) of_owner: HashMap<String, u32>,
}

impl NodeInfo {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        let status = node.status.clone().unwrap_or_default();
        let amounts = status.allocatable.or(status.capacity);
        let pods = amounts.as_ref().and_then(|amounts| amounts.get("pods"));
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            zone: node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).cloned(),
            allocatable: Resources::of(amounts.as_ref()),
            allowed_pods: pods.map_or(0, units),
            requested: Resources::default(),
            weight: Resources::default(),
            pods: HashMap::new(),
            of_owner: HashMap::new(),
            node,
        }
    }

    /// The value of one of the node's labels.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    fn insert(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.weight.add(&pod.weight);
        if let Some(owner) = &pod.owner {
            *self.of_owner.entry(owner.clone()).or_default() += 1;
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    fn remove(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        self.requested.subtract(&pod.requests);
        self.weight.subtract(&pod.weight);
        if let Some(owner) = &pod.owner
            && let Some(count) = self.of_owner.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                self.of_owner.remove(owner);
            }
        }
    }
}

/// Nodes and the pods on them.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    nodes: BTreeMap<String, NodeInfo>,
    /// Where each pod that takes a place is, by UID; also on nodes that are not (yet) there.
    places: HashMap<String, Place>,
    /// UIDs of pods with required anti-affinity, which others must respect.
    exclusive: BTreeMap<String, Arc<PodInfo>>,
}

#[derive(Debug)]
struct Place {
    node: String,
    pod: Arc<PodInfo>,
    assumed: bool,
}

impl Cluster {
    /// All nodes, ordered by name.
    pub(crate) fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeInfo> {
        self.nodes.values()
    }

    /// The node of that name.
    pub(crate) fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name)
    }

    /// The pods with required anti-affinity and where they are.
    pub(crate) fn exclusive(&self) -> impl Iterator<Item = (&PodInfo, &str)> {
        self.exclusive
            .iter()
            .filter_map(|(uid, pod)| Some((pod.as_ref(), self.places.get(uid)?.node.as_str())))
    }

    /// A node is there, or has changed.
    pub(crate) fn set_node(&mut self, node: Arc<Node>) {
        let mut info = NodeInfo::new(node);
        if let Some(before) = self.nodes.remove(&info.name) {
            before.pods.into_values().for_each(|pod| info.insert(pod));
        } else {
            let name = info.name.clone();
            let here = self.places.values().filter(|place| place.node == name);
            here.for_each(|place| info.insert(Arc::clone(&place.pod)));
        }
        self.nodes.insert(info.name.clone(), info);
    }

    /// A node is gone. Its pods keep their places should it come back.
    pub(crate) fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// The server says that the pod is on `node`.
    pub(crate) fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.put(pod, node, false);
    }

    /// We have decided for `node` and the server does not know yet.
    pub(crate) fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.put(pod, node, true);
    }

    /// Whether a decision for the pod is on its way to the server.
    pub(crate) fn is_assumed(&self, uid: &str) -> bool {
        self.places.get(uid).is_some_and(|place| place.assumed)
    }

    /// The pod takes no place any more.
    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        self.exclusive.remove(uid);
        let Some(place) = self.places.remove(uid) else { return false };
        if let Some(node) = self.nodes.get_mut(&place.node) {
            node.remove(uid);
        }
        true
    }

    /// The decision did not come to be.
    pub(crate) fn forget(&mut self, uid: &str) {
        if self.is_assumed(uid) {
            self.remove(uid);
        }
    }

    fn put(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.remove(&pod.uid);
        if let Some(info) = self.nodes.get_mut(node) {
            info.insert(Arc::clone(&pod));
        }
        if crate::interpod::is_exclusive(&pod) {
            self.exclusive.insert(pod.uid.clone(), Arc::clone(&pod));
        }
        self.places.insert(pod.uid.clone(), Place { node: node.to_owned(), pod, assumed });
    }
}
