//! The former iptables, which nftables does not show: what its tables hold, read the way its own program does.
//!
//! A table exists in a network namespace from the first time that anybody looked at it there.
#![allow(unsafe_code, reason = "these socket options are in no library")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _};

use crate::NftError;
use crate::base::{BaseChain, BaseFamily, Point};

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`, and the same of ip6tables.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// The length of a table's name in requests and answers.
const NAME_BYTES: usize = 32;
/// `struct ipt_getinfo`: the name; which hooks are valid; where the rules of each of five hooks begin, and where its
/// policy is; the number of entries and their size.
const INFO_BYTES: usize = NAME_BYTES + 4 + 5 * 4 + 5 * 4 + 4 + 4;
/// `struct ipt_get_entries` up to the entries.
const ENTRIES_HEADER_BYTES: usize = 40;
/// `struct xt_entry_target` up to the verdict of a standard target.
const TARGET_BYTES: usize = 32;
/// `-NF_ACCEPT - 1`
const ACCEPT: i32 = -2;
const POINTS: [Point; 5] =
    [Point::Prerouting, Point::Input, Point::Forward, Point::Output, Point::Postrouting];
/// Those that forwarded packets come by.
const FORWARDED: [Point; 3] = [Point::Prerouting, Point::Forward, Point::Postrouting];

/// One of the two programs.
#[derive(Debug, Clone, Copy)]
struct Iptables {
    family: BaseFamily,
    /// Which tables there are.
    names: &'static str,
    /// Where a socket of the family is bound.
    any: &'static str,
    level: i32,
    /// Where an entry says how far behind its beginning its target is.
    target_at: usize,
}

const BOTH: [Iptables; 2] = [
    Iptables {
        family: BaseFamily::Ip,
        names: "/proc/thread-self/net/ip_tables_names",
        any: "0.0.0.0:0",
        level: libc::IPPROTO_IP,
        target_at: 88,
    },
    Iptables {
        family: BaseFamily::Ip6,
        names: "/proc/thread-self/net/ip6_tables_names",
        any: "[::]:0",
        level: libc::IPPROTO_IPV6,
        target_at: 140,
    },
];

/// The chains of the former iptables that packets enter, in the calling thread's network namespace.
///
/// # Errors
/// Without CAP_NET_ADMIN, where there are tables.
pub fn legacy_chains() -> Result<Vec<BaseChain>, NftError> {
    let mut found = Vec::new();
    for iptables in BOTH {
        let names = match std::fs::read_to_string(iptables.names) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(NftError::Socket { action: "list the tables of iptables", source });
            }
        };
        for table in names.lines() {
            let chains = iptables.table(table);
            let failed = |source| NftError::Socket { action: "read a table of iptables", source };
            found.extend(chains.map_err(failed)?);
        }
    }
    Ok(found)
}

impl Iptables {
    /// The chains of a table. It may change between the question how long it is and the next: then it is asked again.
    fn table(self, table: &str) -> io::Result<Vec<BaseChain>> {
        const ATTEMPTS: usize = 10;
        let socket = UdpSocket::bind(self.any)?;
        let mut last = io::Error::from(io::ErrorKind::Interrupted);
        for _ in 0..ATTEMPTS {
            let mut info = request(table, INFO_BYTES);
            self.ask(&socket, GET_INFO, &mut info)?;
            let chains = self.chains(table, &info);
            if chains.iter().any(|chain| chain.has_rules && FORWARDED.contains(&chain.point)) {
                return Ok(chains);
            }
            let size = number(&info, INFO_BYTES - 4).unwrap_or(0);
            let mut entries = request(table, ENTRIES_HEADER_BYTES + size as usize);
            entries[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&size.to_ne_bytes());
            match self.ask(&socket, GET_ENTRIES, &mut entries) {
                Ok(()) => return Ok(self.with_policies(chains, &info, &entries[ENTRIES_HEADER_BYTES..])),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINVAL)) => {
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn ask(self, socket: &UdpSocket, option: i32, answer: &mut [u8]) -> io::Result<()> {
        let mut length = libc::socklen_t::try_from(answer.len()).unwrap_or(0);
        let (fd, data) = (socket.as_fd().as_raw_fd(), answer.as_mut_ptr());
        // SAFETY: the kernel writes at most `length` bytes to the buffer, which has that many.
        match unsafe { libc::getsockopt(fd, self.level, option, data.cast(), &raw mut length) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What the information about a table says.
    fn chains(self, table: &str, info: &[u8]) -> Vec<BaseChain> {
        let valid = number(info, NAME_BYTES).unwrap_or(u32::MAX);
        let is_valid = |(hook, _): &(usize, Point)| valid & 1 << hook != 0;
        let chain = |(hook, point)| BaseChain {
            family: self.family,
            table: table.to_owned(),
            legacy: true,
            point,
            devices: Vec::new(),
            accepts: true,
            has_rules: number(info, NAME_BYTES + 4 + 4 * hook) != policy_at(info, hook),
        };
        POINTS.into_iter().enumerate().filter(is_valid).map(chain).collect()
    }

    /// Chains with their policies, which are entries.
    fn with_policies(self, mut chains: Vec<BaseChain>, info: &[u8], entries: &[u8]) -> Vec<BaseChain> {
        for chain in &mut chains {
            let hook = POINTS.iter().position(|point| *point == chain.point);
            let policy = hook.and_then(|hook| policy_at(info, hook));
            let verdict = policy.and_then(|at| self.verdict(entries.get(at as usize..)?));
            chain.accepts = verdict == Some(ACCEPT);
        }
        chains
    }

    /// The verdict of an entry with a standard target.
    fn verdict(self, entry: &[u8]) -> Option<i32> {
        let target = u16::from_ne_bytes(*entry.get(self.target_at..)?.first_chunk()?);
        let verdict = entry.get(usize::from(target) + TARGET_BYTES..)?.first_chunk()?;
        Some(i32::from_ne_bytes(*verdict))
    }
}

/// Room for an answer about a table, with its name.
fn request(table: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let name = table.as_bytes();
    let kept = name.len().min(NAME_BYTES - 1);
    bytes[..kept].copy_from_slice(&name[..kept]);
    bytes
}

/// Where the entry with a hook's policy is.
fn policy_at(info: &[u8], hook: usize) -> Option<u32> {
    number(info, NAME_BYTES + 24 + 4 * hook)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry without matches, whose target has this verdict.
    fn entry(iptables: Iptables, verdict: i32) -> Vec<u8> {
        let head = iptables.target_at + 24;
        let mut bytes = vec![0; head + TARGET_BYTES + 8];
        let target = u16::try_from(head).unwrap();
        bytes[iptables.target_at..iptables.target_at + 2].copy_from_slice(&target.to_ne_bytes());
        bytes[head + TARGET_BYTES..head + TARGET_BYTES + 4].copy_from_slice(&verdict.to_ne_bytes());
        bytes
    }

    #[test]
    fn rules_and_policies_are_told_by_hook() {
        for iptables in BOTH {
            let entries: Vec<u8> = [-2, -2, -1].into_iter().flat_map(|v| entry(iptables, v)).collect();
            let size = u32::try_from(entries.len() / 3).unwrap();
            // The filter table: input without rules, forward with one, output with another policy.
            let mut info = request("filter", INFO_BYTES);
            let mut set = |at: usize, value: u32| info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            set(NAME_BYTES, 0b1110);
            for (hook, begin, policy) in [(1, 0, 0), (2, 0, size), (3, 2 * size, 2 * size)] {
                set(NAME_BYTES + 4 + 4 * hook, begin);
                set(NAME_BYTES + 24 + 4 * hook, policy);
            }
            let chains = iptables.with_policies(iptables.chains("filter", &info), &info, &entries);
            let found: Vec<_> = chains.iter().map(|c| (c.point, c.has_rules, c.accepts)).collect();
            let wanted =
                [(Point::Input, false, true), (Point::Forward, true, true), (Point::Output, false, false)];
            assert_eq!(found, wanted);
            // What is cut short accepts nothing.
            assert!(iptables.with_policies(chains, &info, &[]).iter().all(|chain| !chain.accepts));
        }
    }
}
