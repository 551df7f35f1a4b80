//! The wire against packets that are nearly right: a fixed number of them, the same each time. `--example fuzz_wire` goes on
//! for longer and from other seeds.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/mutate.rs"]
mod mutate;

use mutate::{Random, check, corpus, mutate, responder};

#[test]
fn nearly_right_packets() {
    let (responder, corpus) = (responder(), corpus());
    let mut reply = Vec::new();
    for packet in &corpus {
        check(&responder, packet, &mut reply).unwrap();
    }
    let mut random = Random(0x5ea_c0de);
    for _ in 0..20_000 {
        let mut packet = corpus[random.below(corpus.len())].clone();
        mutate(&mut packet, &corpus, &mut random);
        if let Err(what) = check(&responder, &packet, &mut reply) {
            panic!("{what}: {packet:02x?}");
        }
    }
}
