//! DEL: undo an ADD, whatever is left of it.

use std::path::Path;

use seaway_cni_network::ipam::Ipam;
use seaway_cni_network::netns::Namespace;

use crate::attachment::{attachment, owner, refuse_own_netns};
use crate::config::Config;
use crate::env::Environment;
use crate::error::CniError;

/// Detaches the container. What is missing is no error, nor is a namespace that is gone: the names of links and
/// files follow from the ids. The addresses are freed last, when nothing leads to them any more.
pub(crate) fn del(environment: &Environment, config: &Config) -> Result<(), CniError> {
    attachment(environment, config).unwire()?;
    if let Some(mut ipam) = Ipam::open_if_there(&config.data_dir, &config.name)? {
        ipam.release(&owner(environment))?;
    }
    // What was ours is gone in any case; that the runtime is mistaken, it should know.
    match open_if_there(environment) {
        Some(namespace) => refuse_own_netns(environment, &namespace),
        None => Ok(()),
    }
}

fn open_if_there(environment: &Environment) -> Option<Namespace> {
    Namespace::open(Path::new(environment.netns.as_deref()?)).ok()
}
