//! Mutates a corpus of configurations and environments and feeds them to the plugin, for a given number of seconds
//! (`cargo xtask fuzz cni`). Deterministic for a seed. Arguments: `[SECONDS] [SEED]`.
//!
//! Whatever comes, there is an answer: success, or an error with a known code and a sentence. It runs in a network
//! namespace of its own; a mutated configuration is carried out only if its data stays in a directory of this run.
#![allow(clippy::unwrap_used, reason = "a finding ends the run")]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use seaway_cni::{Environment, call};
use seaway_cni_network::netns::Namespace;
use serde_json::Value;

const VERBS: [&str; 8] = ["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION", "", "add"];
const CODES: [u64; 14] = [1, 3, 4, 5, 6, 7, 8, 11, 50, 51, 100, 101, 102, 103];
/// What is put in where something stood.
const PIECES: [&[u8]; 22] = [
    b"null",
    b"[]",
    b"{}",
    b"0",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\"\"",
    b"\"../..\"",
    b"\"\\u0000\"",
    b"\xff\xfe",
    b"\"10.0.0.0/33\"",
    b"\"::/0\"",
    b"\"0.0.0.0/0\"",
    b"true",
    b"[[[[",
    b"\"1.1.0\"",
    b"\"0.3.1\"",
    b"\"fd00::/127\"",
    b"\"cni.dev/valid-attachments\"",
    b"{\"a\":{\"a\":{\"a\":1}}}",
    b",",
];

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % (limit.max(1) as u64)).unwrap_or(0)
    }

    fn piece(&mut self) -> &'static [u8] {
        PIECES[self.below(PIECES.len())]
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

fn mutate(random: &mut Random, input: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        let to = (at + random.below(24)).min(input.len());
        match random.below(6) {
            0 => drop(input.drain(at..to)),
            1 => drop(input.splice(at..to, random.piece().iter().copied())),
            2 => drop(input.splice(at..at, random.piece().iter().copied())),
            3 => {
                let copied: Vec<u8> = input[at..to].to_vec();
                let there = random.below(input.len() + 1);
                drop(input.splice(there..there, copied));
            }
            4 if at < input.len() => input[at] ^= 1 << random.below(8),
            _ => input.truncate(at.max(1)),
        }
    }
}

/// Replaces one value, at any depth, so that the rest stays readable.
fn mutate_value(random: &mut Random, value: &mut Value) {
    let deeper = random.below(4) != 0;
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let at = random.below(map.len());
            if let Some((_, inner)) = map.iter_mut().nth(at) {
                mutate_value(random, inner);
            }
        }
        Value::Array(values) if deeper && !values.is_empty() => {
            let at = random.below(values.len());
            mutate_value(random, &mut values[at]);
        }
        _ => *value = serde_json::from_slice(random.piece()).unwrap_or(Value::Null),
    }
}

fn environment(random: &mut Random) -> Environment {
    let mut map = HashMap::new();
    map.insert("CNI_COMMAND".to_owned(), (*random.pick(&VERBS)).to_owned());
    for (name, value) in
        [("CNI_CONTAINERID", "pod"), ("CNI_NETNS", "/nowhere"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/p")]
    {
        let mut bytes = value.as_bytes().to_vec();
        if random.below(6) == 0 {
            mutate(random, &mut bytes);
        }
        map.insert(name.to_owned(), String::from_utf8_lossy(&bytes).into_owned());
    }
    Environment::from_map(&map)
}

/// Only what keeps its data in `directory` may be carried out; all else must not get past reading.
fn is_confined(input: &[u8], directory: &Path) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(input) else { return true };
    match value.get("dataDir") {
        Some(Value::String(path)) => Path::new(path) == directory,
        // Of another type: it is refused.
        Some(Value::Number(_) | Value::Array(_) | Value::Object(_) | Value::Bool(_)) => true,
        Some(Value::Null) | None => !value.is_object(),
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let (seconds, seed) = (arguments.next().unwrap_or(30), arguments.next().unwrap_or(1));
    let directory = tempfile::tempdir().unwrap();
    let corpus: Vec<Vec<u8>> = corpus(directory.path());
    let own = Namespace::anonymous().unwrap();
    let counts = own.run(|| run(Duration::from_secs(seconds), seed, &corpus, directory.path())).unwrap();
    let total: u64 = counts.values().sum();
    println!("{total} inputs in {seconds} s from seed {seed}; answers by code: {counts:?}");
}

fn run(limit: Duration, seed: u64, corpus: &[Vec<u8>], directory: &Path) -> BTreeMap<u64, u64> {
    let mut random = Random(seed);
    let mut counts = BTreeMap::new();
    let end = Instant::now() + limit;
    while Instant::now() < end {
        let mut input = random.pick(corpus).clone();
        match random.below(3) {
            0 => mutate(&mut random, &mut input),
            1 => {
                let mut value: Value = serde_json::from_slice(&input).unwrap_or(Value::Null);
                mutate_value(&mut random, &mut value);
                input = value.to_string().into_bytes();
            }
            _ => {}
        }
        let environment = environment(&mut random);
        if !is_confined(&input, directory) {
            continue;
        }
        let code = match call(&environment, &input) {
            Ok(_) => 0,
            Err(error) => {
                let json = error.to_json();
                let code = json["code"].as_u64().unwrap();
                let told = json["msg"].as_str().is_some_and(|message| !message.is_empty());
                assert!(
                    CODES.contains(&code) && told,
                    "{json} for {environment:?} {}",
                    String::from_utf8_lossy(&input)
                );
                code
            }
        };
        *counts.entry(code).or_insert(0) += 1;
    }
    counts
}

/// The files beside this one, with the run's directory in them.
fn corpus(directory: &Path) -> Vec<Vec<u8>> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/corpus");
    let files = std::fs::read_dir(place).unwrap().flatten();
    let mut corpus: Vec<(String, Vec<u8>)> = files
        .map(|file| {
            let text = std::fs::read_to_string(file.path()).unwrap();
            let text = text.replace("DATA_DIR", directory.to_str().unwrap());
            (file.file_name().to_string_lossy().into_owned(), text.into_bytes())
        })
        .collect();
    corpus.sort();
    corpus.into_iter().map(|(_, bytes)| bytes).collect()
}
