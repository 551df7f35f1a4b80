//! What the runtime fills in at run time (`runtimeConfig`, one key per capability that our configuration declares),
//! and what a person may ask for in `args`.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use seaway_cni_network::netlink::{Mac, TokenBucket};
use seaway_cni_network::pod::{Bandwidth, HOST_MAC};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::config::{RawRange, invalid};
use crate::error::CniError;

/// Keys that we do not know belong to others and are left alone.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RawRuntimeConfig {
    pub(crate) ips: Option<Vec<String>>,
    pub(crate) mac: Option<String>,
    #[serde(alias = "ipranges")]
    pub(crate) ip_ranges: Option<Vec<Vec<RawRange>>>,
    pub(crate) bandwidth: Option<RawBandwidth>,
    #[serde(alias = "portmappings")]
    pub(crate) port_mappings: Option<Vec<PortMapping>>,
}

/// Reads what the runtime fills in. The case of its keys does not matter: plugins of others do not look at it, so that
/// containerd writes `HostPort` and `IngressRate`.
pub(crate) fn runtime_config<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<RawRuntimeConfig>, D::Error> {
    let Some(value) = Option::<Value>::deserialize(from)? else { return Ok(None) };
    RawRuntimeConfig::deserialize(with_lower_keys(value)).map(Some).map_err(D::Error::custom)
}

fn with_lower_keys(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let lower = |(key, value): (String, Value)| (key.to_ascii_lowercase(), with_lower_keys(value));
            Value::Object(members.into_iter().map(lower).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(with_lower_keys).collect()),
        other => other,
    }
}

/// An address, or none where a runtime has nothing to say.
pub(crate) fn addr_or_empty<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<Cow<'de, str>>::deserialize(from)?;
    let parse =
        |text: &str| text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not an address")));
    text.as_deref().filter(|text| !text.is_empty()).map(parse).transpose()
}

/// `args.cni`, a convention.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RawArgs {
    pub(crate) cni: Option<RawCniArgs>,
}

/// What we read of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RawCniArgs {
    pub(crate) ips: Option<Vec<String>>,
    pub(crate) mac: Option<String>,
}

/// Bits, and bits per second. 0 is no limit.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RawBandwidth {
    #[serde(alias = "ingressrate")]
    ingress_rate: u64,
    #[serde(alias = "ingressburst")]
    ingress_burst: u64,
    #[serde(alias = "egressrate")]
    egress_rate: u64,
    #[serde(alias = "egressburst")]
    egress_burst: u64,
}

/// A port of the node that leads to the pod. The service proxy does it; here it is checked and remembered.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortMapping {
    #[serde(default, alias = "hostport")]
    host_port: u16,
    #[serde(alias = "containerport")]
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP", alias = "hostip")]
    host_ip: String,
}

impl RawBandwidth {
    /// The limits, if there are any.
    pub(crate) fn limits(&self) -> Result<Bandwidth, CniError> {
        Ok(Bandwidth {
            ingress: bucket("ingress", self.ingress_rate, self.ingress_burst)?,
            egress: bucket("egress", self.egress_rate, self.egress_burst)?,
        })
    }
}

fn bucket(name: &str, rate_bits: u64, burst_bits: u64) -> Result<Option<TokenBucket>, CniError> {
    /// The burst if none is given: what the rate has in this part of a second.
    const PARTS: u64 = 100;
    if rate_bits == 0 {
        if burst_bits != 0 {
            let message = format!("\"runtimeConfig.bandwidth\": {name}Burst {burst_bits} without {name}Rate");
            return Err(invalid(message));
        }
        return Ok(None);
    }
    let rate_bytes = rate_bits / 8;
    if rate_bytes == 0 {
        let message =
            format!("\"runtimeConfig.bandwidth\": {name}Rate {rate_bits} is less than a byte a second");
        return Err(invalid(message));
    }
    let burst_bytes = if burst_bits == 0 { rate_bytes / PARTS } else { burst_bits / 8 };
    Ok(Some(TokenBucket { rate_bytes, burst_bytes: u32::try_from(burst_bytes).unwrap_or(u32::MAX) }))
}

/// Checks the mappings and gives them back in one form.
pub(crate) fn port_mappings(mappings: Vec<PortMapping>) -> Result<Option<Value>, CniError> {
    let mut kept = Vec::new();
    for mapping in mappings {
        let wrong = |what: String| invalid(format!("\"runtimeConfig.portMappings\": {what}"));
        let protocol = mapping.protocol.to_ascii_lowercase();
        if !matches!(protocol.as_str(), "" | "tcp" | "udp" | "sctp") {
            return Err(wrong(format!("protocol {:?} is not tcp, udp or sctp", mapping.protocol)));
        }
        if mapping.container_port == 0 {
            return Err(wrong("containerPort 0".to_owned()));
        }
        if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
            return Err(wrong(format!("hostIP {:?} is not an address", mapping.host_ip)));
        }
        // A runtime lists all ports of a container; those without a port of the node are none of ours.
        if mapping.host_port != 0 {
            kept.push(serde_json::json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": if protocol.is_empty() { "tcp" } else { protocol.as_str() },
                "hostIP": mapping.host_ip,
            }));
        }
    }
    Ok(Some(kept).filter(|kept| !kept.is_empty()).map(Value::Array))
}

/// An address with or without a prefix length, as the runtime may give it.
pub(crate) fn wanted(key: &str, text: &str) -> Result<IpAddr, CniError> {
    let net = text.parse::<IpNet>().map(|net| net.addr());
    net.or_else(|_| text.parse()).map_err(|_| invalid(format!("{key}: {text:?} is not an address")))
}

/// A unicast Ethernet address, other than that of the node's end.
pub(crate) fn parse_mac(key: &str, text: &str) -> Result<Mac, CniError> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|part| {
            let hex = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        })
        .collect();
    let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    match mac {
        Some(mac) if Mac(mac) == HOST_MAC => {
            Err(invalid(format!("{key}: {text:?} is the node's end's of every pod")))
        }
        Some(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(Mac(mac)),
        _ => Err(invalid(format!("{key}: {text:?} is not a unicast Ethernet address"))),
    }
}
