//! Which address of a pool is given next, in a constant number of steps.
//!
//! Freed addresses wait in a queue, so the one at its head has rested longest. It is taken if it has rested for long
//! enough; else an address that was never given; else the head after all: a pod that starts is worth more than the
//! rest. So only as many addresses are ever touched as were needed at once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::files::Files;
use super::{AddressState, FilesResult, REST_MS, Range, range};

/// How many lost addresses are put back into the queue at once.
const FOUND_AT_ONCE: usize = 256;
/// How many addresses can wait in a queue. What does not fit is found again when there is nothing else left.
const QUEUE: u64 = 1 << 16;
/// The record of a pool's file that says what stands in the others.
const MARK: u64 = 0;

/// An address that is free, and what has to be remembered when it is taken.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) addr: IpAddr,
    pool: String,
    /// What the pool's mark says from now on, if that changes.
    mark: Option<Mark>,
    /// Addresses that were lost from the queue and go back to it.
    found: Vec<IpAddr>,
}

/// What is known about a pool in one record.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Mark {
    /// The first number of the queue.
    first: u64,
    /// One after the last number.
    end: u64,
    /// The newest address that was given for the first time.
    last: Option<IpAddr>,
}

impl Choice {
    /// An address that was asked for by name.
    pub(super) fn wanted(pool: &[Range], addr: IpAddr) -> Self {
        Self { addr, pool: key(pool), mark: None, found: Vec::new() }
    }
}

/// The name of a pool: its first subnet.
pub(super) fn key(pool: &[Range]) -> String {
    let subnet = pool.first().map(|range| range.subnet().to_string()).unwrap_or_default();
    subnet.replace('/', "_")
}

/// Chooses a free address, or none if all that are known about are held.
pub(super) fn choose<F: Files>(
    files: &F,
    pool: &[Range],
    state: impl Fn(IpAddr) -> FilesResult<AddressState>,
) -> FilesResult<Option<Choice>> {
    let name = key(pool);
    let before = read_mark(files, &name)?;
    let mut mark = before;
    let mut waiting = None;
    while waiting.is_none() && mark.first < mark.end {
        waiting = match freed(files, &name, mark.first)?.filter(|addr| contains(pool, *addr)) {
            Some(addr) => match state(addr)? {
                // Somebody asked for it by name in the meantime, or a crash left it here.
                AddressState::Held => None,
                AddressState::Free => Some((addr, u64::MAX)),
                AddressState::Resting { rested_ms } => Some((addr, rested_ms)),
            },
            None => None,
        };
        mark.first += 1;
    }
    let choice = |addr, mark| Choice { addr, pool: name.clone(), mark: Some(mark), found: Vec::new() };
    if let Some((addr, rested_ms)) = waiting
        && rested_ms >= REST_MS
    {
        return Ok(Some(choice(addr, mark)));
    }
    let mut reached = before.last;
    for addr in range::onward(pool, before.last) {
        if state(addr)? == AddressState::Free {
            return Ok(Some(choice(addr, Mark { last: Some(addr), ..before })));
        }
        reached = Some(addr);
    }
    Ok(waiting.map(|(addr, _)| choice(addr, Mark { last: reached, ..mark })))
}

/// Looks through the whole pool for addresses that nobody holds. For when there seem to be none: it costs what the
/// pool is large.
pub(super) fn lost<F: Files>(
    files: &F,
    pool: &[Range],
    held: &BTreeSet<IpAddr>,
    state: impl Fn(IpAddr) -> FilesResult<AddressState>,
) -> FilesResult<Option<Choice>> {
    let mut found = Vec::new();
    for addr in range::onward(pool, None).filter(|addr| !held.contains(addr)).take(FOUND_AT_ONCE) {
        found.push(match state(addr)? {
            AddressState::Resting { rested_ms } => (rested_ms, addr),
            AddressState::Free | AddressState::Held => (u64::MAX, addr),
        });
    }
    found.sort_by_key(|(rested_ms, addr)| (u64::MAX - rested_ms, *addr));
    let mut found = found.into_iter().map(|(_, addr)| addr);
    let Some(addr) = found.next() else { return Ok(None) };
    let name = key(pool);
    let before = read_mark(files, &name)?;
    // What stands in the queue now is held by somebody.
    let mark = Some(Mark { first: before.end, ..before });
    Ok(Some(Choice { addr, pool: name, mark, found: found.collect() }))
}

/// Remembers that a choice was taken. Cut short, the queue keeps what is held by now, and it is passed over.
pub(super) fn commit<F: Files>(files: &mut F, choice: &Choice) -> FilesResult<()> {
    if let Some(mark) = choice.mark {
        write_mark(files, &choice.pool, mark)?;
    }
    for addr in &choice.found {
        enqueue(files, &choice.pool, *addr)?;
    }
    Ok(())
}

/// Puts a freed address at the end of its pool's queue.
pub(super) fn enqueue<F: Files>(files: &mut F, pool: &str, addr: IpAddr) -> FilesResult<()> {
    if pool.is_empty() || pool.contains('/') {
        return Ok(());
    }
    let mark = read_mark(files, pool)?;
    if mark.end - mark.first >= QUEUE {
        return Ok(());
    }
    files.set_record(&file_name(pool), record_of(mark.end), &addr.to_string())?;
    write_mark(files, pool, Mark { end: mark.end + 1, ..mark })
}

fn contains(pool: &[Range], addr: IpAddr) -> bool {
    pool.iter().any(|range| range.contains(addr))
}

fn freed<F: Files>(files: &F, pool: &str, number: u64) -> FilesResult<Option<IpAddr>> {
    Ok(files.record(&file_name(pool), record_of(number))?.and_then(|text| text.parse().ok()))
}

/// A mark that cannot be read is that of a new pool: what waited in its queue is found when nothing else is left.
fn read_mark<F: Files>(files: &F, pool: &str) -> FilesResult<Mark> {
    let text = files.record(&file_name(pool), MARK)?.unwrap_or_default();
    let mut words = text.split(' ');
    let mut number = || words.next().and_then(|word| word.parse().ok());
    Ok(match (number(), number()) {
        (Some(first), Some(end)) if first <= end => {
            Mark { first, end, last: words.next().and_then(|word| word.parse().ok()) }
        }
        _ => Mark::default(),
    })
}

fn write_mark<F: Files>(files: &mut F, pool: &str, mark: Mark) -> FilesResult<()> {
    let last = mark.last.map_or_else(|| "-".to_owned(), |addr| addr.to_string());
    files.set_record(&file_name(pool), MARK, &format!("{} {} {last}", mark.first, mark.end))
}

/// The queue goes round in its records.
fn record_of(number: u64) -> u64 {
    MARK + 1 + number % QUEUE
}

fn file_name(pool: &str) -> String {
    format!("pools/{pool}")
}
