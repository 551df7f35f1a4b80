//! Service.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use seaway_model::{
    Balancing, Forwarding, IngressMode, LoadBalancerIngress, Protocol, Service, ServiceKey, ServiceKind,
    ServicePort, TrafficDistribution, TrafficPolicy,
};

use super::{InvalidObject, Names, Subject};
use crate::wire;

const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Read where `spec.loadBalancerSourceRanges` is empty, as kube-proxy does.
const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// How the proxy chooses backends.
const BALANCING_ANNOTATION: &str = "seaway.dev/load-balancing";
const FORWARDING_ANNOTATION: &str = "seaway.dev/north-south";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` when nothing is said.
const AFFINITY_DEFAULT_S: i32 = 10_800;
const AFFINITY_MAX_S: i32 = 86_400;

/// Converts a Service.
pub fn service(object: &wire::Service<'_>, names: &mut Names) -> Result<Service, InvalidObject> {
    let subject = Subject { kind: "Service", meta: &object.metadata };
    let key = ServiceKey { namespace: names.share(subject.namespace()?), name: subject.name()?.into() };
    let spec = &object.spec;
    let kind = kind(&subject, spec)?;
    let alias = kind == ServiceKind::ExternalName;
    let balanced = kind == ServiceKind::LoadBalancer;
    let policy = |field, text| policy(&subject, field, text);
    Ok(Service {
        uid: object.metadata.uid.as_deref().unwrap_or("").into(),
        cluster_ips: if alias { Vec::new() } else { cluster_ips(&subject, spec)? },
        headless: spec.cluster_ip.as_deref() == Some("None") && !alias,
        external_name: spec.external_name.as_deref().filter(|_| alias).map(Into::into),
        ports: ports(&subject, spec, kind, names)?,
        external_ips: addresses(&subject, "spec.externalIPs", &spec.external_ips)?,
        load_balancer: if balanced { ingress(&subject, &object.status)? } else { Vec::new() },
        load_balancer_class: spec.load_balancer_class.as_deref().map(|class| names.share(class)),
        source_ranges: if balanced { source_ranges(&subject, spec)? } else { Vec::new() },
        session_affinity: session_affinity(&subject, spec)?,
        external_policy: policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref())?,
        internal_policy: policy("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref())?,
        health_check_node_port: match spec.health_check_node_port {
            None | Some(0) => None,
            Some(port) => Some(subject.port("spec.healthCheckNodePort", port)?),
        },
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        traffic_distribution: match spec.traffic_distribution.as_deref() {
            Some("PreferClose" | "PreferSameZone") => Some(TrafficDistribution::PreferSameZone),
            Some("PreferSameNode") => Some(TrafficDistribution::PreferSameNode),
            // A preference that is not known is not a reason to serve worse.
            _ => None,
        },
        balancing: object.metadata.annotations.get(BALANCING_ANNOTATION).map(|wish| match wish {
            "maglev" => Balancing::Maglev,
            "random" => Balancing::Random,
            // The Service is served all the same, and the proxy says so.
            _ => Balancing::Unknown,
        }),
        forwarding: object.metadata.annotations.get(FORWARDING_ANNOTATION).map(|wish| match wish {
            "dsr" => Forwarding::Dsr,
            "snat" => Forwarding::Snat,
            _ => Forwarding::Unknown,
        }),
        proxy_name: object.metadata.labels.get(PROXY_NAME_LABEL).map(|name| names.share(name)),
        key,
        kind,
    })
}

fn kind(subject: &Subject<'_>, spec: &wire::ServiceSpec<'_>) -> Result<ServiceKind, InvalidObject> {
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => Ok(ServiceKind::ClusterIp),
        Some("NodePort") => Ok(ServiceKind::NodePort),
        Some("LoadBalancer") => Ok(ServiceKind::LoadBalancer),
        Some("ExternalName") => Ok(ServiceKind::ExternalName),
        Some(other) => Err(subject.invalid("spec.type", other, "unknown type of Service")),
    }
}

fn cluster_ips(subject: &Subject<'_>, spec: &wire::ServiceSpec<'_>) -> Result<Vec<IpAddr>, InvalidObject> {
    let plural = &spec.cluster_ips[..];
    let all = if plural.is_empty() { spec.cluster_ip.as_slice() } else { plural };
    let all: Vec<_> = all.iter().filter(|text| !text.is_empty() && ***text != *"None").collect();
    addresses(subject, "spec.clusterIPs", all)
}

fn addresses<'a, 'b: 'a>(
    subject: &Subject<'_>,
    field: &str,
    texts: impl IntoIterator<Item = &'a wire::Text<'b>>,
) -> Result<Vec<IpAddr>, InvalidObject> {
    let texts = texts.into_iter().enumerate();
    texts.map(|(index, text)| subject.address(format_args!("{field}[{index}]"), text)).collect()
}

fn ports(
    subject: &Subject<'_>,
    spec: &wire::ServiceSpec<'_>,
    kind: ServiceKind,
    names: &mut Names,
) -> Result<Vec<ServicePort>, InvalidObject> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(spec.ports.len());
    for (index, port) in spec.ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let protocol: Protocol = port.protocol.as_deref().unwrap_or("TCP").parse().map_err(|error| {
            subject.invalid(field("protocol"), port.protocol.as_deref().unwrap_or(""), error)
        })?;
        let number = subject.port(field("port"), port.port.unwrap_or(0))?;
        if ports.iter().any(|other| (other.protocol, other.port) == (protocol, number)) {
            return Err(subject.invalid(field("port"), number, format!("{protocol} {number} stands twice")));
        }
        let node_port = match port.node_port {
            None | Some(0) => None,
            Some(_) if kind == ServiceKind::ClusterIp || kind == ServiceKind::ExternalName => None,
            Some(number) => Some(subject.port(field("nodePort"), number)?),
        };
        ports.push(ServicePort {
            name: names.share(port.name.as_deref().unwrap_or("")),
            protocol,
            port: number,
            node_port,
            app_protocol: port.app_protocol.as_deref().map(|name| names.share(name)),
        });
    }
    Ok(ports)
}

fn ingress(
    subject: &Subject<'_>,
    status: &wire::ServiceStatus<'_>,
) -> Result<Vec<LoadBalancerIngress>, InvalidObject> {
    let mut found = Vec::new();
    for (index, entry) in status.load_balancer.ingress.iter().enumerate() {
        let field = |name: &str| format!("status.loadBalancer.ingress[{index}].{name}");
        let Some(ip) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        let mode = match entry.ip_mode.as_deref() {
            None | Some("VIP") => IngressMode::Vip,
            Some("Proxy") => IngressMode::Proxy,
            Some(other) => return Err(subject.invalid(field("ipMode"), other, "want VIP or Proxy")),
        };
        found.push(LoadBalancerIngress { addr: subject.address(field("ip"), ip)?, mode });
    }
    Ok(found)
}

fn source_ranges(subject: &Subject<'_>, spec: &wire::ServiceSpec<'_>) -> Result<Vec<IpNet>, InvalidObject> {
    let listed: Vec<&str> = spec.load_balancer_source_ranges.iter().map(|range| range.trim()).collect();
    let annotated = subject.meta.annotations.get(SOURCE_RANGES_ANNOTATION);
    let ranges: Vec<&str> = if listed.is_empty() {
        annotated.iter().flat_map(|all| all.split(',')).map(str::trim).filter(|r| !r.is_empty()).collect()
    } else {
        listed
    };
    ranges
        .into_iter()
        .enumerate()
        .map(|(index, text)| {
            let field = format!("spec.loadBalancerSourceRanges[{index}]");
            text.parse::<IpNet>().map_err(|error| subject.invalid(field, text, error))
        })
        .collect()
}

fn session_affinity(
    subject: &Subject<'_>,
    spec: &wire::ServiceSpec<'_>,
) -> Result<Option<Duration>, InvalidObject> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            return Err(subject.invalid("spec.sessionAffinity", other, "want ClientIP or None"));
        }
    }
    let timeout_s = spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(AFFINITY_DEFAULT_S);
    match u64::try_from(timeout_s) {
        Ok(seconds) if (1..=AFFINITY_MAX_S).contains(&timeout_s) => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(subject.invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            timeout_s,
            "want 1 to 86400 seconds",
        )),
    }
}

fn policy(subject: &Subject<'_>, field: &str, text: Option<&str>) -> Result<TrafficPolicy, InvalidObject> {
    match text {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(subject.invalid(field, other, "want Cluster or Local")),
    }
}
