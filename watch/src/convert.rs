//! API objects to model values: pure functions. An object that makes no sense is an [`InvalidObject`] that names
//! the field and its value; it is left out and never keeps others from being served.

mod endpoint_slice;
mod node;
mod pod;
mod service;

use std::collections::HashSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use seaway_model::EndpointPort;
use serde::Deserialize;
use thiserror::Error;

pub(crate) use endpoint_slice::no_service;
pub use endpoint_slice::{ConvertedSlice, endpoint_slice};
pub use node::node;
pub use pod::host_pod;
pub use service::service;

use crate::wire::{Head, Meta};

/// An object, or a part of it, that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} {object}: {field} is {value:?}: {reason}")]
pub struct InvalidObject {
    /// Such as `Service`.
    pub kind: &'static str,
    /// `namespace/name`, or `name`.
    pub object: String,
    /// The path of the field.
    pub field: String,
    /// What stands there.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What many objects share (namespaces, nodes, zones, names of ports, the ports of slices) exists once.
#[derive(Debug, Default)]
pub struct Names {
    texts: HashSet<Arc<str>>,
    ports: HashSet<Arc<[EndpointPort]>>,
}

impl Names {
    /// The one copy of `name`.
    pub fn share(&mut self, name: &str) -> Arc<str> {
        if let Some(held) = self.texts.get(name) {
            return Arc::clone(held);
        }
        let name: Arc<str> = name.into();
        self.texts.insert(Arc::clone(&name));
        name
    }

    /// The one copy of `ports`.
    fn share_ports(&mut self, ports: Vec<EndpointPort>) -> Arc<[EndpointPort]> {
        if let Some(held) = self.ports.get(&ports[..]) {
            return Arc::clone(held);
        }
        let ports: Arc<[EndpointPort]> = ports.into();
        self.ports.insert(Arc::clone(&ports));
        ports
    }

    fn share_opt(&mut self, name: Option<&str>) -> Option<Arc<str>> {
        name.filter(|name| !name.is_empty()).map(|name| self.share(name))
    }

    /// Forgets the names that nobody uses any more.
    pub fn purge(&mut self) {
        self.ports.retain(|ports| Arc::strong_count(ports) > 1);
        self.texts.retain(|name| Arc::strong_count(name) > 1);
    }
}

/// Converts a Namespace: its name.
pub fn namespace(object: &Head<'_>, names: &mut Names) -> Result<Arc<str>, InvalidObject> {
    let subject = Subject { kind: "Namespace", meta: &object.metadata };
    Ok(names.share(subject.name()?))
}

/// Reads an object of this kind. One that has another shape than the API says is named as far as it can be.
pub(crate) fn read<'a, T: Deserialize<'a>>(kind: &'static str, text: &'a str) -> Result<T, InvalidObject> {
    serde_json::from_str(text).map_err(|error| {
        let head: Head<'_> = serde_json::from_str(text).unwrap_or_default();
        let before = error.column().saturating_sub(1);
        InvalidObject {
            kind,
            object: object_name(&head.metadata),
            field: "the text up to where it makes no sense".to_owned(),
            value: excerpt(text, before),
            reason: error.to_string(),
        }
    })
}

/// What stands before a place in `text`, which is one line.
fn excerpt(text: &str, end: usize) -> String {
    const LENGTH: usize = 40;
    let end = text.floor_char_boundary(end);
    text[text.floor_char_boundary(end.saturating_sub(LENGTH))..end].to_owned()
}

/// Who an error is about.
struct Subject<'a> {
    kind: &'static str,
    meta: &'a Meta<'a>,
}

impl Subject<'_> {
    fn invalid(&self, field: impl Display, value: impl ToString, reason: impl ToString) -> InvalidObject {
        InvalidObject {
            kind: self.kind,
            object: object_name(self.meta),
            field: field.to_string(),
            value: value.to_string(),
            reason: reason.to_string(),
        }
    }

    /// An address that packets can be sent to.
    fn address(&self, field: impl Display, text: &str) -> Result<IpAddr, InvalidObject> {
        let addr = match text.parse::<IpAddr>() {
            Ok(addr) => addr.to_canonical(),
            Err(error) => return Err(self.invalid(field, text, error)),
        };
        let link_local = match addr {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || link_local {
            return Err(self.invalid(field, text, "not an address that a Service can use"));
        }
        Ok(addr)
    }

    fn port(&self, field: impl Display, number: i32) -> Result<u16, InvalidObject> {
        match u16::try_from(number) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(self.invalid(field, number, "want a port from 1 to 65535")),
        }
    }

    fn name(&self) -> Result<&str, InvalidObject> {
        match self.meta.name.as_deref() {
            Some(name) if !name.is_empty() => Ok(name),
            _ => Err(self.invalid("metadata.name", "", "must not be empty")),
        }
    }

    fn namespace(&self) -> Result<&str, InvalidObject> {
        match self.meta.namespace.as_deref() {
            Some(namespace) if !namespace.is_empty() => Ok(namespace),
            _ => Err(self.invalid("metadata.namespace", "", "must not be empty")),
        }
    }
}

/// `namespace/name`, or `name` where there is no namespace.
pub(crate) fn object_name(meta: &Meta<'_>) -> String {
    let name = meta.name.as_deref().unwrap_or("");
    match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests;
