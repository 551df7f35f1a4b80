//! ADD: reserve addresses, wire the pod, tell.

use std::time::Duration;

use seaway_cni_network::ipam::{Ipam, Owner, Request};
use seaway_cni_network::pod::{Attachment, WireError, Wiring};
use seaway_cni_network::ready;
use serde_json::Value;

use crate::attachment::{attachment, open_netns, owner};
use crate::config::Config;
use crate::env::Environment;
use crate::error::{CniError, Code};
use crate::result::{Made, result};

/// How long a call for the same namespace is waited for. A runtime makes them one after the other, but one that it gave
/// up may be there still.
pub(crate) const OTHER_CALL_WITHIN: Duration = Duration::from_secs(10);

/// Attaches the container. If it fails, nothing stays, except that a reservation which was there before remains:
/// it belongs to an interface that exists.
pub(crate) fn add(environment: &Environment, config: &Config) -> Result<Value, CniError> {
    let pools = config.require_pools()?;
    let netns = open_netns(environment)?;
    config.require_wanted()?;
    await_node(config)?;
    // Two calls for one container would each take what the other has begun for what a crash has left.
    let Some(_lock) = netns.lock(OTHER_CALL_WITHIN)? else {
        let message = format!("another call works on the namespace {}", netns.path().display());
        return Err(CniError::new(Code::TryAgainLater, message));
    };
    let (attachment, owner, pod) = (attachment(environment, config), owner(environment), environment.pod());
    // What a repeated ADD finds held is in use, also if by now it would not be given any more.
    if Ipam::peek(&config.data_dir, &config.name, &owner).is_some() {
        attachment.ensure_free(&netns)?;
    }
    // The lock is given back before the kernel is asked for anything.
    let request = Request {
        wanted: &config.wanted,
        netns: environment.netns.as_deref(),
        port_mappings: config.port_mappings.as_ref(),
        pod: pod.as_deref(),
    };
    let reservation = Ipam::open(&config.data_dir, &config.name)?.reserve_for(&owner, pools, request)?;
    let wiring = Wiring {
        addresses: reservation.addresses,
        mtu: config.mtu,
        mac: config.mac,
        bandwidth: config.bandwidth,
    };
    let wired = match attachment.wire(&netns, &wiring) {
        Ok(wired) => wired,
        Err(error) => {
            if !is_live(&error, &attachment) {
                release(config, &owner);
            }
            return Err(error.into());
        }
    };
    Ok(result(
        config,
        &Made {
            ifname: &attachment.ifname,
            netns: environment.netns.as_deref().unwrap_or_default(),
            wired: &wired,
            addresses: &wiring.addresses,
        },
    ))
}

/// Waits until the agent has set up the node since the boot, if there is one that tells.
fn await_node(config: &Config) -> Result<(), CniError> {
    match &config.ready_file {
        Some(path) if !ready::await_set_up(path) => {
            let message = "the agent of this node has not set up the pod network since the boot";
            let details = format!("it would have told so in {}", path.display());
            Err(CniError { details, ..CniError::new(Code::TryAgainLater, message) })
        }
        _ => Ok(()),
    }
}

/// The interface exists and is the other end of the link that is ours: the reservation is in use.
fn is_live(error: &WireError, attachment: &Attachment) -> bool {
    // If the kernel cannot be asked, nothing is freed: DEL will.
    matches!(error, WireError::InterfaceExists { .. }) && attachment.is_wired().unwrap_or(true)
}

fn release(config: &Config, owner: &Owner) {
    // The error to report is the one before; DEL frees it if this does not.
    drop(Ipam::open(&config.data_dir, &config.name).and_then(|mut ipam| ipam.release(owner)));
}
