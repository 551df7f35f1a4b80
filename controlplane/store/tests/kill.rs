//! kill -9 of a process that writes: everything that it acknowledged is there afterwards.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use bytes::Bytes;
use futures::executor::block_on;
use seaway_store::{Engine, EngineConfig, ListOptions, Store};

const DIR: &str = "SEAWAY_TEST_STORE";

/// The writing process: this test again, started by the other one. By itself it does nothing.
#[test]
fn writer() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let engine = Engine::open(EngineConfig { rotate_bytes: 64 * 1024, ..EngineConfig::new(dir) }).unwrap();
    let mut out = std::io::stdout().lock();
    // Higher than any round of a former writer, whatever it came to.
    for round in engine.revision().. {
        let writes =
            (0..8).map(|at| engine.create(&format!("/{round}/{at}"), Bytes::from(vec![b'x'; 300]).into()));
        for result in block_on(futures::future::join_all(writes)) {
            writeln!(out, "acknowledged {}", result.unwrap().key).unwrap();
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for kill_after in [1, 40, 333, 1000] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let keys = lines
            .by_ref()
            .map_while(Result::ok)
            .filter_map(|line| line.split_once("acknowledged ").map(|(_, key)| key.to_owned()));
        acknowledged.extend(keys.take(kill_after));
        child.kill().unwrap();
        child.wait().unwrap();
        // What was still in the pipe was acknowledged as well; the last line may be cut.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let whole = rest.iter().take(rest.len().saturating_sub(1));
        acknowledged
            .extend(whole.filter_map(|line| line.split_once("acknowledged ").map(|(_, key)| key.to_owned())));

        let engine = Engine::open(EngineConfig::new(dir.path())).unwrap();
        let page = block_on(engine.list("/", ListOptions::default())).unwrap();
        let present: std::collections::BTreeSet<&str> =
            page.entries.iter().map(|entry| &*entry.key).collect();
        let lost: Vec<&String> = acknowledged.iter().filter(|key| !present.contains(key.as_str())).collect();
        assert_eq!(lost, Vec::<&String>::new());
        // A batch is whole or not at all, so revisions have no gaps.
        assert_eq!(engine.revision(), present.len() as u64);
    }
    assert!(acknowledged.len() > 1300);
}
