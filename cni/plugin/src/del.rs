//! DEL: undo an ADD, whatever is left of it.

use std::path::Path;

use seaway_cni_network::ipam::{Ipam, Owner};
use seaway_cni_network::netns::Namespace;

use crate::add::OTHER_CALL_WITHIN;
use crate::attachment::{attachment, owner, refuse_own_netns};
use crate::config::Config;
use crate::env::Environment;
use crate::error::CniError;

/// Detaches the container. What is missing is no error, nor is a namespace that is gone: the names of links and
/// files follow from the ids. The addresses are freed last, when nothing leads to them any more. The links are left to
/// `bury`, which is given the directory that whoever deletes them is known by.
pub(crate) fn del(
    environment: &Environment,
    config: &Config,
    bury: &dyn Fn(&Path) -> Result<(), CniError>,
) -> Result<(), CniError> {
    let (owner, namespace) = (owner(environment), open_if_there(environment));
    // An ADD that is under way ends first. One that does not end does not keep anything from being taken away.
    let _lock = namespace.as_ref().and_then(|namespace| namespace.lock(OTHER_CALL_WITHIN).ok().flatten());
    let held = Ipam::peek(&config.data_dir, &config.name, &owner).unwrap_or_default();
    let retired = attachment(environment, config).retire(&held.addresses, namespace.as_ref())?;
    free(config, &owner);
    if retired {
        bury(&config.data_dir)?;
    }
    // What was ours is gone in any case; that the runtime is mistaken, it should know.
    namespace.map_or(Ok(()), |namespace| refuse_own_netns(environment, &namespace))
}

/// Frees the addresses. If somebody keeps them locked for longer than a runtime waits, or nothing can be written, that is
/// left to the agent, to which a reservation without wiring is a leak: a runtime would try again without end.
fn free(config: &Config, owner: &Owner) {
    let opened = Ipam::open_if_there(&config.data_dir, &config.name);
    if let Err(error) = opened.and_then(|ipam| ipam.map_or(Ok(None), |mut ipam| ipam.release(owner))) {
        eprintln!("seaway-cni: {} is not freed yet: {}", owner, CniError::from(error));
    }
}

fn open_if_there(environment: &Environment) -> Option<Namespace> {
    Namespace::open(Path::new(environment.netns.as_deref()?)).ok()
}
