//! GC: remove everything that belongs to no attachment of a list.

use std::collections::BTreeSet;

use seaway_cni_network::ipam::Ipam;
use seaway_cni_network::pod::{self, Attachment};

use crate::config::Config;
use crate::error::CniError;

/// Removes wiring and reservations of this network whose attachment is not in the list. Goes on after an error and
/// reports the first one, with the number of the others. Without a list nothing is known, so nothing is removed;
/// an empty list removes all.
pub(crate) fn gc(config: &Config) -> Result<(), CniError> {
    let Some(valid) = &config.valid_attachments else { return Ok(()) };
    let valid: BTreeSet<(&str, &str)> =
        valid.iter().map(|one| (one.container_id.as_str(), one.ifname.as_str())).collect();
    let keep = |container_id: &str, ifname: &str| valid.contains(&(container_id, ifname));
    let mut errors: Vec<CniError> = Vec::new();
    let mut stuck: Vec<Attachment> = Vec::new();
    match pod::wired_attachments(&config.name) {
        Ok(wired) => {
            for attachment in wired.into_iter().filter(|one| !keep(&one.container_id, &one.ifname)) {
                if let Err(error) = attachment.unwire() {
                    errors.push(error.into());
                    stuck.push(attachment);
                }
            }
        }
        Err(error) => return Err(error.into()),
    }
    // The addresses of wiring that could not be removed are still in use.
    let in_use = |container_id: &str, ifname: &str| {
        stuck.iter().any(|one| one.container_id == container_id && one.ifname == ifname)
    };
    let released = Ipam::open_if_there(&config.data_dir, &config.name).and_then(|ipam| {
        ipam.map_or(Ok(Vec::new()), |mut ipam| {
            ipam.release_unless(|owner| {
                keep(&owner.container_id, &owner.ifname) || in_use(&owner.container_id, &owner.ifname)
            })
        })
    });
    errors.extend(released.err().map(CniError::from));
    let others = errors.len().saturating_sub(1);
    match errors.into_iter().next() {
        None => Ok(()),
        Some(error) if others == 0 => Err(error),
        Some(error) => {
            Err(CniError { message: format!("{} (and {others} more errors)", error.message), ..error })
        }
    }
}
