//! STATUS: could an ADD succeed now?

use seaway_cni_network::ipam::{Ipam, IpamError};

use crate::config::Config;
use crate::error::{CniError, Code};

/// Fails with code 50 if it could not: no ranges, no free address, or no place to write reservations.
pub(crate) fn status(config: &Config) -> Result<(), CniError> {
    let unavailable = |error: CniError| CniError { code: Code::NotAvailable, ..error };
    let pools = config.require_pools().map_err(unavailable)?;
    let checked = Ipam::open(&config.data_dir, &config.name).and_then(|ipam| ipam.check_capacity(pools));
    match checked {
        // Somebody works on it right now: that is what it looks like when all is well.
        Ok(()) | Err(IpamError::Locked { .. }) => Ok(()),
        Err(error) => Err(unavailable(error.into())),
    }
}
