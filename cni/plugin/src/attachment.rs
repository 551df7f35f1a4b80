//! What ADD, DEL and CHECK have in common: whose interface it is, and in which namespace.

use std::path::Path;

use seaway_cni_network::ipam::Owner;
use seaway_cni_network::netns::Namespace;
use seaway_cni_network::pod::Attachment;

use crate::config::Config;
use crate::env::Environment;
use crate::error::{CniError, Code};

/// The attachment that a call is about. The environment has been validated.
pub(crate) fn attachment(environment: &Environment, config: &Config) -> Attachment {
    let (container_id, ifname) = ids(environment);
    Attachment::new(&config.name, container_id, ifname)
}

/// The owner of its addresses.
pub(crate) fn owner(environment: &Environment) -> Owner {
    let (container_id, ifname) = ids(environment);
    Owner::new(container_id, ifname)
}

fn ids(environment: &Environment) -> (&str, &str) {
    (
        environment.container_id.as_deref().unwrap_or_default(),
        environment.ifname.as_deref().unwrap_or_default(),
    )
}

/// Opens the container's namespace, which must not be the plugin's own unless the runtime insists.
pub(crate) fn open_netns(environment: &Environment) -> Result<Namespace, CniError> {
    let path = environment.netns.as_deref().unwrap_or_default();
    let namespace = Namespace::open(Path::new(path))?;
    refuse_own_netns(environment, &namespace)?;
    Ok(namespace)
}

/// Fails if a container's namespace is the plugin's own.
pub(crate) fn refuse_own_netns(environment: &Environment, namespace: &Namespace) -> Result<(), CniError> {
    if environment.netns_override || namespace.id()? != Namespace::current()?.id()? {
        return Ok(());
    }
    let path = namespace.path().display();
    Err(CniError::new(Code::Netns, format!("CNI_NETNS {path} is the plugin's own network namespace")))
}
