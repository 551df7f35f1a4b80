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

/// An address that is free, and what has to be remembered when it is taken.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) addr: IpAddr,
    pool: String,
    /// The newest address that was given for the first time, if that changes.
    last: Option<IpAddr>,
    /// The queue before and after, if that changes.
    queue: Option<(Queue, Queue)>,
    /// Addresses that were lost from the queue and go back to it.
    found: Vec<IpAddr>,
}

/// Which files of a queue there are: from the first to one before the last number.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Queue {
    head: u64,
    tail: u64,
}

impl Choice {
    /// An address that was asked for by name.
    pub(super) fn wanted(pool: &[Range], addr: IpAddr) -> Self {
        Self { addr, pool: key(pool), last: None, queue: None, found: Vec::new() }
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
    let before = read_queue(files, &name)?;
    let mut queue = before;
    let mut waiting = None;
    while waiting.is_none() && queue.head < queue.tail {
        waiting = match freed(files, &name, queue.head)?.filter(|addr| contains(pool, *addr)) {
            Some(addr) => match state(addr)? {
                // Somebody asked for it by name in the meantime, or a crash left it here.
                AddressState::Held => None,
                AddressState::Free => Some((addr, u64::MAX)),
                AddressState::Resting { rested_ms } => Some((addr, rested_ms)),
            },
            None => None,
        };
        queue.head += 1;
    }
    let choice = |addr, last, queue| Choice { addr, pool: name.clone(), last, queue, found: Vec::new() };
    let taken = (before != queue).then_some((before, queue));
    if let Some((addr, rested_ms)) = waiting
        && rested_ms >= REST_MS
    {
        return Ok(Some(choice(addr, None, taken)));
    }
    let last = files.read(&last_name(&name))?.and_then(|text| text.trim().parse().ok());
    let mut reached = None;
    for addr in range::onward(pool, last) {
        if state(addr)? == AddressState::Free {
            return Ok(Some(choice(addr, Some(addr), None)));
        }
        reached = Some(addr);
    }
    Ok(waiting.map(|(addr, _)| choice(addr, reached, taken)))
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
    let before = read_queue(files, &name)?;
    // What stands in the queue now is held by somebody.
    let queue = Some((before, Queue { head: before.tail, ..before }));
    Ok(Some(Choice { addr, pool: name, last: None, queue, found: found.collect() }))
}

/// Remembers that a choice was taken. Cut short, the queue keeps what is held by now, and it is passed over.
pub(super) fn commit<F: Files>(files: &mut F, choice: &Choice) -> FilesResult<()> {
    if let Some(last) = choice.last {
        files.write(&last_name(&choice.pool), &last.to_string())?;
    }
    if let Some((before, after)) = choice.queue {
        write_queue(files, &choice.pool, after)?;
        for number in before.head..after.head {
            files.remove(&freed_name(&choice.pool, number))?;
        }
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
    let queue = read_queue(files, pool)?;
    files.write(&freed_name(pool, queue.tail), &addr.to_string())?;
    write_queue(files, pool, Queue { tail: queue.tail + 1, ..queue })
}

fn contains(pool: &[Range], addr: IpAddr) -> bool {
    pool.iter().any(|range| range.contains(addr))
}

fn freed<F: Files>(files: &F, pool: &str, number: u64) -> FilesResult<Option<IpAddr>> {
    Ok(files.read(&freed_name(pool, number))?.and_then(|text| text.parse().ok()))
}

/// A queue that cannot be read is an empty one: what waited in it is found when nothing else is left.
fn read_queue<F: Files>(files: &F, pool: &str) -> FilesResult<Queue> {
    let text = files.read(&queue_name(pool))?.unwrap_or_default();
    let mut numbers = text.split(' ').map(str::parse);
    Ok(match (numbers.next(), numbers.next()) {
        (Some(Ok(head)), Some(Ok(tail))) if head <= tail => Queue { head, tail },
        _ => Queue::default(),
    })
}

fn write_queue<F: Files>(files: &mut F, pool: &str, queue: Queue) -> FilesResult<()> {
    // In one step: half a number is another number.
    files.replace(&queue_name(pool), &format!("{} {}", queue.head, queue.tail))
}

fn last_name(pool: &str) -> String {
    format!("pools/{pool}.last")
}

fn queue_name(pool: &str) -> String {
    format!("pools/{pool}.queue")
}

fn freed_name(pool: &str, number: u64) -> String {
    format!("freed/{pool}-{number}")
}
