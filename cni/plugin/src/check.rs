//! CHECK: is the attachment still as ADD has made it?

use seaway_cni_network::ipam::Ipam;

use crate::attachment::{attachment, open_netns, owner};
use crate::config::Config;
use crate::env::Environment;
use crate::error::{CniError, Code};
use crate::result::addresses_of;

/// Compares reservation, links, addresses and routes with `prevResult`. What plugins after us have added is not
/// looked at.
pub(crate) fn check(environment: &Environment, config: &Config) -> Result<(), CniError> {
    let attachment = attachment(environment, config);
    let Some(prev_result) = &config.prev_result else {
        return Err(CniError::new(Code::Config, "CHECK needs \"prevResult\", the result of ADD"));
    };
    let netns = open_netns(environment)?;
    let told = addresses_of(prev_result, &attachment.ifname)?;
    let ipam = Ipam::open_if_there(&config.data_dir, &config.name)?;
    let held = ipam.map(|ipam| ipam.reservation(&owner(environment))).transpose()?;
    let Some(held) = held.flatten() else {
        let message =
            format!("container {} holds no addresses in network {}", attachment.container_id, config.name);
        return Err(CniError::new(Code::UnknownContainer, message));
    };
    if let Some(addr) = held.addresses.iter().find(|addr| !told.contains(addr)) {
        let message =
            format!("\"prevResult\" does not have the address {addr}, which is reserved for the container");
        return Err(CniError::new(Code::CheckFailed, message));
    }
    Ok(attachment.check(&netns, &held.addresses, config.bandwidth)?)
}
