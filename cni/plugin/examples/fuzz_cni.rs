//! Mutates a corpus of configurations and environments and feeds them to the plugin, for a given number of seconds
//! (`cargo xtask fuzz cni`). Deterministic for a seed. Arguments: `SECONDS SEED [DIRECTORY]`; inputs that get an answer
//! of a new kind are kept in the directory.
//!
//! What guides it is the answers: an input whose answer differs from all others (verb, code, the sentence without what
//! was quoted) joins those that are mutated. Whatever comes, there is an answer: success, or an error with a known code
//! and a sentence, and after an error the node is as it was before. What an ADD has made a DEL takes away.
//!
//! It runs in a network namespace of its own; a mutated configuration is carried out only if its data stays in a
//! directory of this run.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a finding ends the run")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use seaway_cni::{CniError, Environment, call};
use seaway_cni_network::netlink::Netlink;
use seaway_cni_network::netns::Namespace;
use serde_json::Value;

const VERBS: [&str; 8] = ["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION", "", "add"];
const CODES: [u64; 15] = [1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, 100, 101, 102, 103];
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

/// The variables of a call; now and then the namespace exists.
fn environment(random: &mut Random, netns: &str) -> HashMap<String, String> {
    let mut map = HashMap::new();
    map.insert("CNI_COMMAND".to_owned(), (*random.pick(&VERBS)).to_owned());
    let netns = if random.below(16) == 0 { netns } else { "/nowhere" };
    for (name, value) in
        [("CNI_CONTAINERID", "pod"), ("CNI_NETNS", netns), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/p")]
    {
        let mut bytes = value.as_bytes().to_vec();
        if random.below(6) == 0 {
            mutate(random, &mut bytes);
        }
        map.insert(name.to_owned(), String::from_utf8_lossy(&bytes).into_owned());
    }
    map
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

/// What can be seen of a node: its links, and who holds addresses.
fn node(netlink: &mut Netlink, directory: &Path) -> BTreeSet<String> {
    let mut seen: BTreeSet<String> = netlink.links().unwrap().into_iter().map(|link| link.name).collect();
    for network in std::fs::read_dir(directory).unwrap().flatten() {
        let owners = std::fs::read_dir(network.path().join("owners"));
        let owners = owners.into_iter().flatten().flatten().map(|owner| owner.path().display().to_string());
        seen.extend(owners);
    }
    seen
}

/// The kind of an answer: what the same mistake with other words in it has in common.
fn kind(verb: &str, outcome: &Result<Option<Value>, CniError>) -> String {
    let Err(error) = outcome else { return format!("{verb} 0") };
    // Beyond the first words there is much of what was sent, in ever new forms.
    let words: String = error.message.split('"').step_by(2).collect();
    let letters: String = words.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').take(18).collect();
    format!("{verb} {} {letters}", error.to_json()["code"])
}

/// One run.
struct Fuzz<'a> {
    random: Random,
    corpus: Vec<Vec<u8>>,
    directory: &'a Path,
    keep: Option<PathBuf>,
    netns: String,
    netlink: Netlink,
    kinds: BTreeMap<String, u64>,
}

impl Fuzz<'_> {
    fn input(&mut self) -> Vec<u8> {
        let mut input = self.random.pick(&self.corpus).clone();
        match self.random.below(3) {
            0 => mutate(&mut self.random, &mut input),
            1 => {
                let mut value: Value = serde_json::from_slice(&input).unwrap_or(Value::Null);
                mutate_value(&mut self.random, &mut value);
                input = value.to_string().into_bytes();
            }
            _ => {}
        }
        input
    }

    fn step(&mut self) {
        let input = self.input();
        let variables = environment(&mut self.random, &self.netns);
        if !is_confined(&input, self.directory) {
            return;
        }
        let environment = Environment::from_map(&variables);
        let verb = environment.command.clone().unwrap_or_default();
        let before = node(&mut self.netlink, self.directory);
        let outcome = call(&environment, &input);
        let said = || format!("{outcome:?} for {variables:?} {}", String::from_utf8_lossy(&input));
        match &outcome {
            Ok(_) if verb == "ADD" => self.undo(&variables, &input, &before),
            Ok(_) => {}
            Err(error) => {
                let json = error.to_json();
                let told = json["msg"].as_str().is_some_and(|message| !message.is_empty());
                assert!(CODES.contains(&json["code"].as_u64().unwrap()) && told, "{}", said());
                // DEL and GC go as far as they can.
                if !matches!(verb.as_str(), "DEL" | "GC") {
                    assert_eq!(node(&mut self.netlink, self.directory), before, "{}", said());
                }
            }
        }
        let kind = kind(&verb, &outcome);
        let seen = self.kinds.entry(kind.clone()).or_insert(0);
        *seen += 1;
        if *seen == 1 {
            self.learn(&kind, input);
        }
    }

    fn undo(&mut self, variables: &HashMap<String, String>, input: &[u8], before: &BTreeSet<String>) {
        let mut variables = variables.clone();
        variables.insert("CNI_COMMAND".to_owned(), "DEL".to_owned());
        call(&Environment::from_map(&variables), input).unwrap();
        assert_eq!(node(&mut self.netlink, self.directory), *before, "{variables:?}");
    }

    fn learn(&mut self, kind: &str, input: Vec<u8>) {
        if let Some(keep) = &self.keep {
            let name: String =
                kind.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(50).collect();
            let text = String::from_utf8_lossy(&input).replace(self.directory.to_str().unwrap(), "DATA_DIR");
            std::fs::write(keep.join(format!("{name}.json")), text).unwrap();
        }
        self.corpus.push(input);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default| {
        arguments.get(place).map_or(default, |text| text.parse::<u64>().expect("a number"))
    };
    let (seconds, seed) = (number(0, 30), number(1, 1));
    let directory = tempfile::tempdir().unwrap();
    // Whoever waits for the agent gives up at once.
    seaway_cni_network::fault::hurry(true);
    let (own, pod) = (Namespace::anonymous().unwrap(), Namespace::anonymous().unwrap());
    let mut fuzz = Fuzz {
        random: Random(seed),
        corpus: corpus(directory.path()),
        directory: directory.path(),
        keep: arguments.get(2).map(PathBuf::from),
        netns: format!("/proc/self/fd/{}", pod.as_fd().as_raw_fd()),
        netlink: Netlink::open_in(&own).unwrap(),
        kinds: BTreeMap::new(),
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    own.run(|| {
        while Instant::now() < end {
            fuzz.step();
        }
    })
    .unwrap();
    let total: u64 = fuzz.kinds.values().sum();
    println!("{total} inputs in {seconds} s from seed {seed}, {} kinds of answers:", fuzz.kinds.len());
    for (kind, count) in &fuzz.kinds {
        println!("{count:>8} {kind}");
    }
}

/// The files of the corpus, with the run's directory in them.
fn corpus(directory: &Path) -> Vec<Vec<u8>> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let files = std::fs::read_dir(place).unwrap().flatten();
    let mut corpus: Vec<(String, Vec<u8>)> = files
        .map(|file| {
            let text = std::fs::read(file.path()).unwrap();
            let text = String::from_utf8_lossy(&text).replace("DATA_DIR", directory.to_str().unwrap());
            (file.file_name().to_string_lossy().into_owned(), text.into_bytes())
        })
        .collect();
    corpus.sort();
    corpus.into_iter().map(|(_, bytes)| bytes).collect()
}
