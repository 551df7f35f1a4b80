//! GC: remove everything that belongs to no attachment of a list.

use std::collections::BTreeSet;

use seaway_cni_network::ipam::{Ipam, Owner};
use seaway_cni_network::pod::{self, Attachment};

use crate::config::Config;
use crate::error::CniError;

/// Removes wiring and reservations of this network whose attachment is not in the list. Goes on after an error and
/// reports all of them. Without a list nothing is known, so nothing is removed; an empty list removes all.
///
/// An ADD that was cut short may have left wiring without a remark that says whose it is. Its name follows from the
/// reservation, which is made before it and goes after it.
pub(crate) fn gc(config: &Config) -> Result<(), CniError> {
    let Some(valid) = &config.valid_attachments else { return Ok(()) };
    let valid: BTreeSet<(&str, &str)> =
        valid.iter().map(|one| (one.container_id.as_str(), one.ifname.as_str())).collect();
    let keep = |container_id: &str, ifname: &str| valid.contains(&(container_id, ifname));
    let mut errors: Vec<CniError> = Vec::new();

    let mut stale: Vec<Attachment> = pod::wired_attachments(&config.name)?;
    match Ipam::open_if_there(&config.data_dir, &config.name)
        .and_then(|ipam| ipam.map_or(Ok(Vec::new()), |ipam| ipam.owners()))
    {
        Ok(owners) => {
            let ours = |id: &str, ifname: &str| Attachment::new(&config.name, id, ifname);
            stale.extend(owners.iter().map(|(owner, _)| ours(&owner.container_id, &owner.ifname)));
        }
        Err(error) => errors.push(error.into()),
    }
    stale.retain(|one| !keep(&one.container_id, &one.ifname));
    stale.sort_by(|a, b| (&a.container_id, &a.ifname).cmp(&(&b.container_id, &b.ifname)));
    stale.dedup();

    // The lock is not held while links are deleted. What is reserved meanwhile is not known by the list, but is no leak.
    let mut freed: BTreeSet<Owner> =
        stale.iter().map(|one| Owner::new(&one.container_id, &one.ifname)).collect();
    for (attachment, error) in pod::unwire_all(stale) {
        errors.push(error.into());
        // The addresses of wiring that could not be removed are still in use.
        freed.remove(&Owner::new(&attachment.container_id, &attachment.ifname));
    }
    let released = Ipam::open_if_there(&config.data_dir, &config.name).and_then(|ipam| {
        ipam.map_or(Ok(Vec::new()), |mut ipam| ipam.release_unless(|owner| !freed.contains(owner)))
    });
    errors.extend(released.err().map(CniError::from));
    all_of(errors)
}

/// The first error, with the others in its details.
fn all_of(mut errors: Vec<CniError>) -> Result<(), CniError> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        count => {
            let details = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            let first = errors.remove(0);
            let message = format!("{} (and {} more errors)", first.message, count - 1);
            Err(CniError { message, details, ..first })
        }
    }
}
