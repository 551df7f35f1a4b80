//! DEL: undo an ADD, whatever is left of it.

use seaway_cni_network::ipam::Ipam;

use crate::attachment::{attachment, owner};
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
    Ok(())
}
