//! STATUS: could an ADD succeed now, and do the pods that exist get their packets?

use seaway_cni_network::ipam::{Ipam, IpamError};
use seaway_cni_network::netlink::Netlink;
use seaway_cni_network::netns::sysctl;
use seaway_cni_network::ready;

use crate::config::Config;
use crate::error::{CniError, Code};

/// Fails with code 51 if the node does not pass packets on, and with code 50 if there are no ranges, no free
/// address, no place to write reservations, or no agent yet that has set up the node.
pub(crate) fn status(config: &Config) -> Result<(), CniError> {
    let unavailable = |error: CniError| CniError { code: Code::NotAvailable, ..error };
    let pools = config.require_pools().map_err(unavailable)?;
    if config.ready_file.as_deref().is_some_and(|path| !ready::is_set_up(path)) {
        let message = "the agent of this node has not set up the pod network since the boot";
        return Err(CniError::new(Code::NotAvailable, message));
    }
    if let Some(reason) = degraded(config)? {
        return Err(CniError::new(Code::Degraded, reason));
    }
    let opened = Ipam::open_soon(&config.data_dir, &config.name);
    let checked = opened.and_then(|mut ipam| ipam.check_writable().and(ipam.check_capacity(pools)));
    match checked {
        // Somebody works on it right now: that is what it looks like when all is well.
        Ok(()) | Err(IpamError::Locked { .. }) => Ok(()),
        Err(error) => Err(unavailable(error.into())),
    }
}

/// Why pods are cut off, if they are.
fn degraded(config: &Config) -> Result<Option<String>, CniError> {
    for pool in &config.pools {
        let v4 = pool.iter().any(|range| range.subnet().addr().is_ipv4());
        let key = if v4 { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
        // A kernel that cannot be asked is not said to be broken.
        if sysctl::read(key).is_ok_and(|value| value == "0") {
            return Ok(Some(format!("the node does not forward packets: sysctl {key} is 0")));
        }
    }
    let Some(name) = config.overlay_device.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let device = Netlink::open()?.link(name)?;
    let reason = match device {
        Some(device) if device.up => return Ok(None),
        Some(_) => "is down",
        None => "does not exist",
    };
    Ok(Some(format!("the way to other nodes is cut: device {name} {reason}")))
}
