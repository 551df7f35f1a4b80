//! API objects as they come over the wire, reduced to the fields that the data plane acts on.
//!
//! Strings are borrowed from the text wherever nothing is escaped in them: a list of a hundred thousand endpoints is
//! read without an allocation for each of its strings, and nothing of it is kept. Fields that nobody acts on are not
//! read, so that what stands in them cannot keep an object from being served.

#![allow(missing_docs, reason = "the fields are the API's")]

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A string, borrowed where that is possible. (serde borrows a `Cow`, but not one inside of an `Option` or a `Vec`.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text<'a>(Cow<'a, str>);

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl<'de> Visitor<'de> for Reads {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }
        deserializer.deserialize_str(Reads)
    }
}

/// Labels or annotations, in their order. Objects have a handful.
#[derive(Debug, Default)]
pub struct Pairs<'a>(Vec<(Text<'a>, Text<'a>)>);

impl Pairs<'_> {
    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| **key == *name).map(|(_, value)| &**value)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl<'de> Visitor<'de> for Reads {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Reads)
    }
}

/// Go writes an empty list as null.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// `metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub namespace: Option<Text<'a>>,
    #[serde(borrow)]
    pub uid: Option<Text<'a>>,
    #[serde(borrow)]
    pub resource_version: Option<Text<'a>>,
    #[serde(borrow)]
    pub deletion_timestamp: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub labels: Pairs<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub annotations: Pairs<'a>,
}

/// An object of the API.
pub(crate) trait Object {
    /// Who it is.
    fn meta(&self) -> &Meta<'_>;
}

macro_rules! objects {
    ($($object:ident)*) => {
        $(impl Object for $object<'_> {
            fn meta(&self) -> &Meta<'_> {
                &self.metadata
            }
        })*
    };
}

objects!(Head Service EndpointSlice Node Pod);

/// A page of a list as a whole.
#[derive(Deserialize)]
pub(crate) struct Page<T> {
    #[serde(default)]
    pub(crate) metadata: PageMeta,
    pub(crate) items: Option<Vec<T>>,
}

/// `metadata` of a list.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PageMeta {
    pub(crate) resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub(crate) continue_token: Option<String>,
}

/// Reads a page of a list. Its objects are passed to `each` one by one, as they are read.
pub(crate) fn read_page<'a, W: Deserialize<'a>>(
    text: &'a str,
    mut each: impl FnMut(W),
) -> Result<PageMeta, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let metadata = deserializer.deserialize_map(ReadsPage(Items(&mut each, PhantomData)))?;
    deserializer.end()?;
    Ok(metadata)
}

struct ReadsPage<'f, F, W>(Items<'f, F, W>);

impl<'de, W: Deserialize<'de>, F: FnMut(W)> Visitor<'de> for ReadsPage<'_, F, W> {
    type Value = PageMeta;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PageMeta, A::Error> {
        let Self(Items(each, object)) = self;
        let mut metadata = PageMeta::default();
        while let Some(field) = map.next_key::<Text<'de>>()? {
            match &*field {
                "metadata" => metadata = map.next_value()?,
                "items" => map.next_value_seed(Items(&mut *each, object))?,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(metadata)
    }
}

/// `items` of a list, which Go writes as null where there are none.
struct Items<'f, F, W>(&'f mut F, PhantomData<fn(W)>);

impl<'de, W: Deserialize<'de>, F: FnMut(W)> DeserializeSeed<'de> for Items<'_, F, W> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, W: Deserialize<'de>, F: FnMut(W)> Visitor<'de> for Items<'_, F, W> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("objects")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element()? {
            (self.0)(item);
        }
        Ok(())
    }
}

/// Of any object: who it is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Head<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub metadata: Meta<'a>,
}

/// A Service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub metadata: Meta<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub spec: ServiceSpec<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub status: ServiceStatus<'a>,
}

/// `spec` of a Service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec<'a> {
    #[serde(borrow, rename = "type")]
    pub type_: Option<Text<'a>>,
    #[serde(borrow, rename = "clusterIP")]
    pub cluster_ip: Option<Text<'a>>,
    #[serde(borrow, rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<Text<'a>>,
    #[serde(borrow, rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<Text<'a>>,
    #[serde(borrow)]
    pub external_name: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub ports: Vec<ServicePort<'a>>,
    #[serde(borrow)]
    pub load_balancer_class: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub load_balancer_source_ranges: Vec<Text<'a>>,
    #[serde(borrow)]
    pub session_affinity: Option<Text<'a>>,
    #[serde(deserialize_with = "or_default")]
    pub session_affinity_config: SessionAffinityConfig,
    #[serde(borrow)]
    pub external_traffic_policy: Option<Text<'a>>,
    #[serde(borrow)]
    pub internal_traffic_policy: Option<Text<'a>>,
    pub health_check_node_port: Option<i32>,
    pub publish_not_ready_addresses: Option<bool>,
    #[serde(borrow)]
    pub traffic_distribution: Option<Text<'a>>,
}

/// A port of a Service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub protocol: Option<Text<'a>>,
    pub port: Option<i32>,
    pub node_port: Option<i32>,
    #[serde(borrow)]
    pub app_protocol: Option<Text<'a>>,
}

/// `status` of a Service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub load_balancer: LoadBalancerStatus<'a>,
}

/// `status.loadBalancer` of a Service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerStatus<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub ingress: Vec<Ingress<'a>>,
}

/// An address of a load balancer.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress<'a> {
    #[serde(borrow)]
    pub ip: Option<Text<'a>>,
    #[serde(borrow)]
    pub ip_mode: Option<Text<'a>>,
}

/// An EndpointSlice.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub metadata: Meta<'a>,
    #[serde(borrow)]
    pub address_type: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub endpoints: Vec<Endpoint<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub ports: Vec<EndpointPort<'a>>,
}

/// An endpoint of a slice.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub addresses: Vec<Text<'a>>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Conditions,
    #[serde(borrow)]
    pub hostname: Option<Text<'a>>,
    #[serde(borrow)]
    pub node_name: Option<Text<'a>>,
    #[serde(borrow)]
    pub zone: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub hints: Hints<'a>,
}

/// For whom an endpoint is meant.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub for_zones: Vec<Named<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub for_nodes: Vec<Named<'a>>,
}

/// Something that has a name.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Named<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
}

/// A port of a slice.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub protocol: Option<Text<'a>>,
    pub port: Option<i32>,
}

/// A Node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub metadata: Meta<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub spec: NodeSpec<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub status: NodeStatus<'a>,
}

/// `spec` of a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec<'a> {
    #[serde(borrow, rename = "podCIDR")]
    pub pod_cidr: Option<Text<'a>>,
    #[serde(borrow, rename = "podCIDRs", deserialize_with = "or_default")]
    pub pod_cidrs: Vec<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub taints: Vec<Taint<'a>>,
}

/// A taint of a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint<'a> {
    #[serde(borrow)]
    pub key: Option<Text<'a>>,
}

/// `status` of a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub addresses: Vec<NodeAddress<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub conditions: Vec<NodeCondition<'a>>,
}

/// An address of a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAddress<'a> {
    #[serde(borrow, rename = "type")]
    pub type_: Option<Text<'a>>,
    #[serde(borrow)]
    pub address: Option<Text<'a>>,
}

/// A condition of a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCondition<'a> {
    #[serde(borrow, rename = "type")]
    pub type_: Option<Text<'a>>,
    #[serde(borrow)]
    pub status: Option<Text<'a>>,
}

/// A Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    pub metadata: Meta<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub spec: PodSpec<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub status: PodStatus<'a>,
}

/// `spec` of a Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec<'a> {
    #[serde(borrow)]
    pub node_name: Option<Text<'a>>,
    pub host_network: Option<bool>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub containers: Vec<Container<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub init_containers: Vec<Container<'a>>,
}

/// A container of a Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container<'a> {
    #[serde(borrow)]
    pub restart_policy: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "or_default")]
    pub ports: Vec<ContainerPort<'a>>,
}

/// A port of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort<'a> {
    #[serde(borrow)]
    pub protocol: Option<Text<'a>>,
    pub container_port: Option<i32>,
    pub host_port: Option<i32>,
    #[serde(borrow, rename = "hostIP")]
    pub host_ip: Option<Text<'a>>,
}

/// `status` of a Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus<'a> {
    #[serde(borrow)]
    pub phase: Option<Text<'a>>,
    #[serde(borrow, rename = "podIPs", deserialize_with = "or_default")]
    pub pod_ips: Vec<PodIp<'a>>,
}

/// An address of a Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodIp<'a> {
    #[serde(borrow)]
    pub ip: Option<Text<'a>>,
}

/// `spec.sessionAffinityConfig` of a Service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP", deserialize_with = "or_default")]
    pub client_ip: ClientIp,
}

/// `spec.sessionAffinityConfig.clientIP` of a Service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIp {
    pub timeout_seconds: Option<i32>,
}

/// `conditions` of an endpoint.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}
