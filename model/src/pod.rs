//! Ports of pods that are reached at their node's addresses (`containers[].ports[].hostPort`).

use std::net::IpAddr;
use std::sync::Arc;

use crate::{Protocol, TargetPod};

/// A pod of the own node that asks for host ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPod {
    /// Its name.
    pub pod: TargetPod,
    /// `metadata.uid`, which tells a re-created pod from its predecessor.
    pub uid: Arc<str>,
    /// `status.podIPs`.
    pub addrs: Vec<IpAddr>,
    /// Its host ports.
    pub ports: Vec<HostPort>,
}

/// One host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port at the node's addresses.
    pub host_port: u16,
    /// The only address that it is offered at; `None`: all of the node's.
    pub host_ip: Option<IpAddr>,
    /// The port that the pod listens on.
    pub container_port: u16,
}
