//! Fuzzes the wire for a time: `cargo xtask fuzz dns`. The same seed makes the same packets. A packet that breaks a rule is
//! printed in hexadecimal, for `tests/wire/corpus.txt`, and the example fails.
//!
//! Coverage of the code would need a nightly compiler or a C toolchain. What stands in for it is coverage of the behaviour: a
//! packet whose answer has a shape that no answer had before is kept, and others are made of it.

#[path = "../tests/support/cluster.rs"]
mod cluster;
#[path = "../tests/support/mutate.rs"]
mod mutate;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mutate::{Random, check, corpus, mutate, responder};

/// Packets between two looks at the clock.
const BATCH: u64 = 4096;
/// Packets to go on from.
const CORPUS_MAX: usize = 4096;

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let (Ok(seconds), Ok(seed)) = (numbers.next().unwrap_or(Ok(10)), numbers.next().unwrap_or(Ok(1))) else {
        eprintln!("want: fuzz_wire [SECONDS] [SEED]");
        return ExitCode::FAILURE;
    };
    let (responder, mut corpus) = (responder(), corpus());
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (began, mut count, mut answered) = (Instant::now(), 0_u64, 0_u64);
    let (mut reply, mut shapes) = (Vec::new(), HashSet::new());
    while began.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..BATCH {
            let mut packet = corpus[random.below(corpus.len())].clone();
            mutate(&mut packet, &corpus, &mut random);
            reply.clear();
            let checked = catch_unwind(AssertUnwindSafe(|| check(&responder, &packet, &mut reply)));
            let wrong = checked.unwrap_or_else(|_| Err("a panic".to_owned()));
            if let Err(what) = wrong {
                let hex: String = packet.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
                eprintln!("{what}\n{hex}");
                return ExitCode::FAILURE;
            }
            count += 1;
            answered += u64::from(!reply.is_empty());
            if shapes.insert(shape(&packet, &reply)) {
                let place = random.below(CORPUS_MAX);
                match corpus.get_mut(place) {
                    Some(former) => *former = packet,
                    None => corpus.push(packet),
                }
            }
        }
    }
    let shapes = shapes.len();
    println!("{count} packets, {answered} answered in {shapes} shapes, none broke a rule; seed {seed}");
    ExitCode::SUCCESS
}

/// What an answer looks like: its flags and counts, about how long it is, and about how long the packet was.
fn shape(packet: &[u8], reply: &[u8]) -> (Vec<u8>, usize, usize) {
    let head = reply.get(2..12).unwrap_or_default().to_vec();
    (head, reply.len() / 8, packet.len().checked_ilog2().unwrap_or_default() as usize)
}
