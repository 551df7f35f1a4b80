//! The reservations of one network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::files::{DIRECTORIES, DirectoryFiles, Files};
use super::pool::{self, Choice};
use super::{AddressState, FilesResult, Holder, IpamError, Owner, Range};
use crate::fault;

const BOOT: &str = "boot";
/// What is written to see whether one can.
const PROBE: &str = "probe";
/// How long somebody waits for the lock who only looks.
const SOON: Duration = Duration::from_secs(1);
/// The one record of an entry of the index.
const INDEX: u64 = 0;

/// What one owner holds: addresses, at most one per family, and what is known about who it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    /// The addresses, in the order of the ranges that they were taken from.
    pub addresses: Vec<IpAddr>,
    /// The queue that each address goes back to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<String>,
    /// The file of the pod's network namespace, as the runtime named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// Ports of the node that lead to the pod (capability `portMappings`), as the runtime gave them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_mappings: Option<Value>,
    /// The pod, `namespace/name`, where the runtime told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// What an owner asks for besides an address of each pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// Addresses to take rather than others; they have to be free.
    pub wanted: &'a [IpAddr],
    /// The file of the pod's network namespace, to be remembered.
    pub netns: Option<&'a str>,
    /// Port mappings, to be remembered.
    pub port_mappings: Option<&'a Value>,
    /// The pod, `namespace/name`, to be remembered.
    pub pod: Option<&'a str>,
}

/// The reservations of one network, open and locked. See the module's head for what is on the disk.
#[derive(Debug)]
pub struct Ipam<F: Files = DirectoryFiles> {
    files: F,
    now_ms: u64,
}

impl Ipam {
    /// Opens the reservations of `network` below `data_dir`, and waits for whoever has them open.
    pub fn open(data_dir: &Path, network: &str) -> FilesResult<Self> {
        let boot_id = boot_id()?;
        let files = DirectoryFiles::lock(&data_dir.join(network))?;
        Self::new(files, &boot_id, now_ms())
    }

    /// As [`Self::open`], but does not wait for long: for those who only look.
    pub fn open_soon(data_dir: &Path, network: &str) -> FilesResult<Self> {
        let boot_id = boot_id()?;
        let files = DirectoryFiles::lock_within(&data_dir.join(network), fault::wait(SOON))?;
        Self::new(files, &boot_id, now_ms())
    }

    /// What `owner` held when it was last written, without waiting for anybody. For hints, not for decisions.
    pub fn peek(data_dir: &Path, network: &str, owner: &Owner) -> Option<Reservation> {
        let text = std::fs::read_to_string(data_dir.join(network).join(owner_name(&owner.key()))).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// As [`Self::open`], but makes nothing: none if there never was a reservation of `network`.
    pub fn open_if_there(data_dir: &Path, network: &str) -> FilesResult<Option<Self>> {
        if data_dir.join(network).join(BOOT).exists() {
            Self::open(data_dir, network).map(Some)
        } else {
            Ok(None)
        }
    }
}

impl<F: Files> Ipam<F> {
    /// Opens reservations in `files`. Those of another boot are forgotten: their pods have ended with it. `now_ms`
    /// counts from the boot on.
    pub fn new(files: F, boot_id: &str, now_ms: u64) -> FilesResult<Self> {
        let mut ipam = Self { files, now_ms };
        if ipam.files.read(BOOT)?.as_deref() != Some(boot_id) {
            for directory in DIRECTORIES {
                for name in ipam.files.list(directory)? {
                    ipam.files.remove(&format!("{directory}/{name}"))?;
                }
            }
            // Last: cut short, it is done again.
            ipam.files.replace(BOOT, boot_id)?;
        }
        Ok(ipam)
    }

    /// Gives `owner` an address out of each of `pools` (a pool is the ranges of one family), all or none. An owner
    /// that holds fitting addresses already gets the same ones.
    pub fn reserve(&mut self, owner: &Owner, pools: &[Vec<Range>]) -> FilesResult<Reservation> {
        self.reserve_for(owner, pools, Request::default())
    }

    /// As [`Self::reserve`], but takes those wanted addresses that a pool contains, if they are free.
    pub fn reserve_for(
        &mut self,
        owner: &Owner,
        pools: &[Vec<Range>],
        request: Request<'_>,
    ) -> FilesResult<Reservation> {
        let remembered = |addresses, pools| Reservation {
            addresses,
            pools,
            netns: request.netns.map(str::to_owned),
            port_mappings: request.port_mappings.cloned(),
            pod: request.pod.map(str::to_owned),
        };
        if let Some(held) = self.reservation(owner)? {
            if fits(&held, pools, request.wanted) {
                let new = remembered(held.addresses.clone(), held.pools.clone());
                if new != held {
                    self.write_owner(owner, &new)?;
                }
                return Ok(new);
            }
            self.release(owner)?;
        }
        let mut choices = Vec::new();
        for pool in pools {
            choices.push(self.choose_from(pool, request.wanted)?);
        }
        for choice in &choices {
            self.files.set_record(&index_name(choice.addr), INDEX, &format!("held {}", owner.key()))?;
        }
        let addresses = choices.iter().map(|choice| choice.addr).collect();
        let reservation = remembered(addresses, pools.iter().map(|pool| pool::key(pool)).collect());
        self.write_owner(owner, &reservation)?;
        for choice in &choices {
            pool::commit(&mut self.files, choice)?;
        }
        Ok(reservation)
    }

    fn write_owner(&mut self, owner: &Owner, reservation: &Reservation) -> FilesResult<()> {
        let text = serde_json::to_string(reservation).unwrap_or_default();
        self.files.replace(&owner_name(&owner.key()), &text)
    }

    /// What an owner holds.
    pub fn reservation(&self, owner: &Owner) -> FilesResult<Option<Reservation>> {
        self.reservation_of(&owner.key())
    }

    /// Frees what an owner holds and returns it. It may hold nothing.
    pub fn release(&mut self, owner: &Owner) -> FilesResult<Option<Reservation>> {
        let held = self.reservation(owner)?;
        self.files.remove(&owner_name(&owner.key()))?;
        let freed = held.iter().flat_map(|held| held.addresses.iter().zip(&held.pools));
        for (addr, pool) in freed {
            // It is free already. If this cannot be written (a full disk), it does not rest, and is found again when
            // nothing else is left.
            drop(self.files.set_record(&index_name(*addr), INDEX, &format!("freed {}", self.now_ms)));
            drop(pool::enqueue(&mut self.files, pool, *addr));
        }
        Ok(held)
    }

    /// Everyone who holds something, with what they hold.
    pub fn owners(&self) -> FilesResult<Vec<(Owner, Reservation)>> {
        let mut owners = Vec::new();
        for key in self.files.list("owners")? {
            if let (Some(owner), Some(held)) = (Owner::from_key(&key), self.reservation_of(&key)?) {
                owners.push((owner, held));
            }
        }
        owners.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(owners)
    }

    /// Frees what everyone holds for whom `keep` says no, and returns who that was.
    pub fn release_unless(&mut self, mut keep: impl FnMut(&Owner) -> bool) -> FilesResult<Vec<Owner>> {
        let mut released = Vec::new();
        for (owner, _) in self.owners()? {
            if !keep(&owner) {
                self.release(&owner)?;
                released.push(owner);
            }
        }
        Ok(released)
    }

    /// Fails if a pool has nothing left to give.
    pub fn check_capacity(&self, pools: &[Vec<Range>]) -> FilesResult<()> {
        for pool in pools {
            self.choose_from(pool, &[])?;
        }
        Ok(())
    }

    /// Fails if nothing can be written, as on a full disk.
    pub fn check_writable(&mut self) -> FilesResult<()> {
        self.files.replace(PROBE, PROBE)?;
        self.files.remove(PROBE)
    }

    fn choose_from(&self, pool: &[Range], wanted: &[IpAddr]) -> FilesResult<Choice> {
        if let Some(addr) = wanted.iter().find(|addr| pool.iter().any(|range| range.contains(**addr))) {
            return match self.state(*addr)? {
                AddressState::Held => Err(self.exhausted(&[Range::new((*addr).into())])?),
                AddressState::Free | AddressState::Resting { .. } => Ok(Choice::wanted(pool, *addr)),
            };
        }
        if let Some(choice) = pool::choose(&self.files, pool, |addr| self.state(addr))? {
            return Ok(choice);
        }
        // What a crash has taken out of the queue is looked for only now.
        let held: BTreeSet<IpAddr> =
            self.owners()?.into_iter().flat_map(|(_, reservation)| reservation.addresses).collect();
        match pool::lost(&self.files, pool, &held, |addr| self.state(addr))? {
            Some(choice) => Ok(choice),
            None => Err(self.exhausted(pool)?),
        }
    }

    fn exhausted(&self, pool: &[Range]) -> FilesResult<IpamError> {
        let held = |held: &Reservation| {
            held.addresses.iter().any(|addr| pool.iter().any(|range| range.contains(*addr)))
        };
        let holders = self.owners()?.into_iter().filter(|(_, reservation)| held(reservation));
        Ok(IpamError::Exhausted {
            ranges: pool.iter().map(Range::subnet).collect(),
            size: pool.iter().fold(0, |sum: u128, range| sum.saturating_add(range.size())),
            holders: holders.map(|(owner, held)| Holder { owner, pod: held.pod }).collect(),
        })
    }

    fn state(&self, addr: IpAddr) -> FilesResult<AddressState> {
        let Some(entry) = self.files.record(&index_name(addr), INDEX)? else { return Ok(AddressState::Free) };
        if let Some(key) = entry.strip_prefix("held ") {
            let held = self.reservation_of(key)?.is_some_and(|held| held.addresses.contains(&addr));
            // An entry without its reservation is what a crash left.
            return Ok(if held { AddressState::Held } else { AddressState::Free });
        }
        let freed = entry.strip_prefix("freed ").and_then(|text| text.parse::<u64>().ok());
        Ok(freed.map_or(AddressState::Free, |freed| AddressState::Resting {
            rested_ms: self.now_ms.saturating_sub(freed),
        }))
    }

    fn reservation_of(&self, key: &str) -> FilesResult<Option<Reservation>> {
        // The name came out of an index entry that may be torn: it must not lead elsewhere.
        if key.is_empty() || key.contains('/') {
            return Ok(None);
        }
        let text = self.files.read(&owner_name(key))?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    #[cfg(test)]
    pub(super) fn files_for_test(&self) -> &F {
        &self.files
    }

    #[cfg(test)]
    pub(super) fn into_files(self) -> F {
        self.files
    }
}

fn fits(held: &Reservation, pools: &[Vec<Range>], wanted: &[IpAddr]) -> bool {
    let within = |(addr, pool): (&IpAddr, &Vec<Range>)| pool.iter().any(|range| range.contains(*addr));
    held.addresses.len() == pools.len()
        && held.addresses.iter().zip(pools).all(within)
        && wanted.iter().all(|addr| held.addresses.contains(addr))
}

fn owner_name(key: &str) -> String {
    format!("owners/{key}")
}

fn index_name(addr: IpAddr) -> String {
    format!("addresses/{addr}")
}

/// What tells this boot from all others.
pub fn boot_id() -> FilesResult<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path);
    text.map_err(|source| IpamError::Io { action: "read", path: path.to_owned(), source })
        .map(|text| text.trim().to_owned())
}

fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}
