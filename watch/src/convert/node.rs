//! Node.

use ipnet::IpNet;
use seaway_model::{Node, NodeAddress, NodeAddressKind};

use super::{InvalidObject, Names, Subject};
use crate::wire;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The cluster autoscaler is about to remove the node.
const GOING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const VTEP_ANNOTATION: &str = "seaway.dev/vtep-mac";

/// Converts a Node.
pub fn node(object: &wire::Node<'_>, names: &mut Names) -> Result<Node, InvalidObject> {
    let subject = Subject { kind: "Node", meta: &object.metadata };
    let meta = &object.metadata;
    let excluded = meta.labels.get(EXCLUDE_LABEL).is_some() || meta.deletion_timestamp.is_some();
    Ok(Node {
        name: names.share(subject.name()?),
        addresses: addresses(&subject, object)?,
        pod_cidrs: pod_cidrs(&subject, object)?,
        zone: names.share_opt(meta.labels.get(ZONE_LABEL)),
        ready: says_of_ready(object, "True"),
        unreachable: says_of_ready(object, "Unknown"),
        excluded_from_load_balancers: excluded,
        draining: meta.deletion_timestamp.is_some() || has_taint(object, GOING_TAINT),
        vtep_mac: match meta.annotations.get(VTEP_ANNOTATION) {
            None => None,
            Some(text) => Some(mac(text).ok_or_else(|| {
                let field = format!("metadata.annotations[{VTEP_ANNOTATION}]");
                subject.invalid(field, text, "want six bytes as aa:bb:cc:dd:ee:ff")
            })?),
        },
    })
}

fn has_taint(object: &wire::Node<'_>, key: &str) -> bool {
    object.spec.taints.iter().any(|taint| taint.key.as_deref() == Some(key))
}

fn addresses(subject: &Subject<'_>, object: &wire::Node<'_>) -> Result<Vec<NodeAddress>, InvalidObject> {
    let mut found = Vec::new();
    for (index, entry) in object.status.addresses.iter().enumerate() {
        let kind = match entry.type_.as_deref() {
            Some("InternalIP") => NodeAddressKind::Internal,
            Some("ExternalIP") => NodeAddressKind::External,
            _ => continue, // Names.
        };
        let addr = subject.address(
            format_args!("status.addresses[{index}].address"),
            entry.address.as_deref().unwrap_or(""),
        )?;
        found.push(NodeAddress { addr, kind });
    }
    Ok(found)
}

fn pod_cidrs(subject: &Subject<'_>, object: &wire::Node<'_>) -> Result<Vec<IpNet>, InvalidObject> {
    let spec = &object.spec;
    let plural = &spec.pod_cidrs[..];
    let all = if plural.is_empty() { spec.pod_cidr.as_slice() } else { plural };
    all.iter()
        .filter(|text| !text.is_empty())
        .enumerate()
        .map(|(index, text)| {
            let field = format!("spec.podCIDRs[{index}]");
            text.parse::<IpNet>()
                .map(|cidr| cidr.trunc())
                .map_err(|error| subject.invalid(field, &**text, error))
        })
        .collect()
}

/// Whether the condition Ready has this status.
fn says_of_ready(object: &wire::Node<'_>, status: &str) -> bool {
    let mut conditions = object.status.conditions.iter();
    conditions.any(|c| c.type_.as_deref() == Some("Ready") && c.status.as_deref() == Some(status))
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}
