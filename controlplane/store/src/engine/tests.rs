//! The engine against its promises: order, consistency at a revision, watches, restarts, damaged and full disks.

use std::{fs, path::Path};

use futures::executor::block_on;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::Change;

fn config(dir: &TempDir) -> EngineConfig {
    EngineConfig::new(dir.path())
}

fn open(dir: &TempDir) -> Engine {
    Engine::open(config(dir)).unwrap()
}

fn create(engine: &Engine, key: &str, value: &'static str) -> Revision {
    block_on(engine.create(key, Bytes::from(value).into())).unwrap().mod_revision
}

fn create_many(engine: &Engine, count: usize) {
    for at in 0..count {
        create(engine, &format!("/{at}"), "");
    }
}

fn keys(engine: &Engine, prefix: &str, options: ListOptions) -> Result<Vec<String>, StoreError> {
    block_on(engine.list(prefix, options))
        .map(|page| page.entries.iter().map(|entry| entry.key.to_string()).collect())
}

fn only_log(dir: &Path) -> PathBuf {
    let mut logs: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some())
        .collect();
    assert_eq!(logs.len(), 1, "{logs:?}");
    logs.remove(0)
}

#[test]
fn writes_expect_what_they_say() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    assert_eq!(create(&engine, "/a", "1"), 1);
    assert!(matches!(
        block_on(engine.create("/a", Bytes::new().into())),
        Err(StoreError::KeyExists { revision: 1, .. })
    ));
    assert_eq!(block_on(engine.update("/a", Bytes::from("2").into(), 1)).unwrap().mod_revision, 2);
    let late = block_on(engine.update("/a", Bytes::from("3").into(), 1));
    assert!(matches!(late, Err(StoreError::Conflict { expected: 1, actual: 2, .. })));
    assert!(matches!(block_on(engine.delete("/b", Expect::Present)), Err(StoreError::NotFound { .. })));
    let gone = block_on(engine.delete("/a", Expect::Revision(2))).unwrap();
    assert_eq!((&gone.value[..], gone.create_revision, gone.mod_revision), (&b"2"[..], 1, 3));
    assert_eq!(block_on(engine.get("/a")).unwrap(), None);
    assert_eq!(engine.revision(), 3);
}

#[test]
fn a_value_carries_its_revision() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    let put = |tail: &'static str| Put { value: Bytes::from(tail), stamp_at: Some(1) };
    create_many(&engine, 9);
    assert_eq!(block_on(engine.create("/x", put("<>"))).unwrap().value, "<10>");
    let old = block_on(engine.get("/x")).unwrap().unwrap();
    assert_eq!(old.stamped(7), "<7>");
    assert_eq!(block_on(engine.delete("/x", Expect::Present)).unwrap().value, "<11>");
}

#[test]
fn a_list_is_one_moment_however_many_pages_it_takes() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    for key in ["/p/a", "/p/b", "/p/c", "/p/d", "/q/a"] {
        create(&engine, key, "1");
    }
    let first = block_on(engine.list("/p/", ListOptions { limit: 2, ..ListOptions::default() })).unwrap();
    assert_eq!((first.entries.len(), first.remaining, first.revision), (2, 2, 5));
    // Between the pages everything changes.
    block_on(engine.delete("/p/c", Expect::Present)).unwrap();
    block_on(engine.put("/p/d", Bytes::from("2").into(), Expect::Present)).unwrap();
    create(&engine, "/p/e", "1");
    let rest = ListOptions { revision: Some(5), after: Some("/p/b".into()), limit: 0 };
    let page = block_on(engine.list("/p/", rest)).unwrap();
    let values: Vec<_> = page.entries.iter().map(|entry| (&*entry.key, &entry.value[..])).collect();
    assert_eq!(values, [("/p/c", &b"1"[..]), ("/p/d", &b"1"[..])]);
    assert_eq!(keys(&engine, "/p/", ListOptions::default()).unwrap(), ["/p/a", "/p/b", "/p/d", "/p/e"]);
    let future = ListOptions { revision: Some(99), ..ListOptions::default() };
    assert!(matches!(keys(&engine, "/p/", future), Err(StoreError::Future { requested: 99, current: 8 })));
    block_on(engine.compact(7)).unwrap();
    let past = ListOptions { revision: Some(5), ..ListOptions::default() };
    assert!(matches!(keys(&engine, "/p/", past), Err(StoreError::Compacted { requested: 5, compacted: 7 })));
}

#[test]
fn a_watch_sees_the_past_then_the_present_and_only_its_prefix() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    create(&engine, "/p/a", "1");
    create(&engine, "/q/a", "1");
    let mut watch = engine.watch("/p/", 0).unwrap();
    create(&engine, "/p/b", "1");
    block_on(engine.delete("/p/a", Expect::Present)).unwrap();
    let mut seen = Vec::new();
    while let Some(event) = watch.try_next() {
        seen.push((event.revision(), event.change, event.entry.key.to_string()));
    }
    let wanted = [(1, Change::Created, "/p/a"), (3, Change::Created, "/p/b"), (4, Change::Deleted, "/p/a")];
    assert_eq!(seen, wanted.map(|(revision, change, key)| (revision, change, key.to_owned())));
    assert!(matches!(engine.watch("/p/", 9), Err(StoreError::Future { .. })));
    block_on(engine.compact(3)).unwrap();
    assert!(matches!(engine.watch("/p/", 2), Err(StoreError::Compacted { requested: 2, compacted: 3 })));
    assert!(engine.watch("/p/", 3).is_ok());
    drop(engine);
    assert!(block_on(watch.next()).is_none());
    assert!(!watch.lagged());
}

#[test]
fn a_slow_reader_is_ended_and_told_so() {
    let dir = TempDir::new().unwrap();
    let engine = Engine::open(EngineConfig { watch_backlog: 2, ..config(&dir) }).unwrap();
    let mut watch = engine.watch("/", 0).unwrap();
    create_many(&engine, 4);
    let seen = std::iter::from_fn(|| block_on(watch.next())).count();
    assert_eq!((seen, watch.lagged()), (2, true));
}

#[test]
fn history_is_bounded_by_number_and_bytes() {
    let dir = TempDir::new().unwrap();
    let engine = Engine::open(EngineConfig { history_events: 3, ..config(&dir) }).unwrap();
    create_many(&engine, 10);
    assert_eq!(engine.compacted(), 7);
    let dir = TempDir::new().unwrap();
    let engine = Engine::open(EngineConfig { history_bytes: 3000, ..config(&dir) }).unwrap();
    let big = Bytes::from(vec![b'x'; 1000]);
    block_on(engine.create("/a", big.clone().into())).unwrap();
    (0..10).for_each(|_| drop(block_on(engine.put("/a", big.clone().into(), Expect::Present)).unwrap()));
    assert_eq!(engine.compacted(), 9);
}

#[test]
fn everything_is_there_after_opening_again() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    create(&engine, "/a", "1");
    create(&engine, "/b", "1");
    block_on(engine.put("/a", Put { value: "[]".into(), stamp_at: Some(1) }, Expect::Present)).unwrap();
    block_on(engine.delete("/b", Expect::Present)).unwrap();
    assert!(matches!(Engine::open(config(&dir)), Err(StoreError::Locked { .. })));
    drop(engine);
    let engine = open(&dir);
    assert_eq!(
        (engine.revision(), keys(&engine, "", ListOptions::default()).unwrap()),
        (4, vec!["/a".to_owned()])
    );
    let entry = block_on(engine.get("/a")).unwrap().unwrap();
    assert_eq!(
        (&entry.value[..], entry.create_revision, entry.mod_revision, entry.stamp_at),
        (&b"[3]"[..], 1, 3, Some(1))
    );
    // Watches resume across the restart.
    let mut watch = engine.watch("/", 2).unwrap();
    assert_eq!(watch.try_next().map(|event| event.revision()), Some(3));
    assert_eq!(watch.try_next().map(|event| event.change), Some(Change::Deleted));
}

#[test]
fn snapshots_replace_logs() {
    let dir = TempDir::new().unwrap();
    let small = || EngineConfig { rotate_bytes: 2000, ..config(&dir) };
    let engine = Engine::open(small()).unwrap();
    for at in 0..200 {
        let key = format!("/{}", at % 10);
        let value = Bytes::from(format!("value {at} {}", "x".repeat(100)));
        let expect = if at < 10 { Expect::Absent } else { Expect::Present };
        block_on(engine.put(&key, value.into(), expect)).unwrap();
    }
    let before = block_on(engine.list("", ListOptions::default())).unwrap();
    drop(engine);
    let names: Vec<String> = snapshot::files(dir.path()).unwrap().into_iter().map(|(_, name)| name).collect();
    assert!(names.iter().any(|name| snapshot::parse_name(name).is_some()), "{names:?}");
    let bytes: u64 =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 12_000, "{bytes} bytes are kept: {names:?}");
    let engine = Engine::open(small()).unwrap();
    assert_eq!(block_on(engine.list("", ListOptions::default())).unwrap(), before);
    assert!(matches!(engine.watch("", 0), Err(StoreError::Compacted { .. })));
}

#[test]
fn a_torn_tail_is_cut_and_damage_is_refused() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    create(&engine, "/a", "1");
    let first = fs::metadata(only_log(dir.path())).unwrap().len();
    create(&engine, "/b", "2");
    drop(engine);
    let log = only_log(dir.path());
    let whole = fs::read(&log).unwrap();
    for cut in usize::try_from(first).unwrap() + 1..whole.len() {
        fs::write(&log, &whole[..cut]).unwrap();
        let engine = open(&dir);
        assert_eq!(keys(&engine, "", ListOptions::default()).unwrap(), ["/a"]);
        // The cut place is written over.
        assert_eq!(create(&engine, "/c", "3"), 2);
        drop(engine);
        assert_eq!(keys(&open(&dir), "", ListOptions::default()).unwrap(), ["/a", "/c"]);
    }
    let mut damaged = whole.clone();
    damaged[20] ^= 1;
    fs::write(&log, &damaged).unwrap();
    let error = Engine::open(config(&dir)).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { offset: 0, .. }), "{error}");
    // Refusing changes nothing.
    assert_eq!(fs::read(&log).unwrap(), damaged);
}

/// A disk on which appends or syncs fail after a number of bytes.
#[derive(Debug)]
struct Faulty {
    file: fs::File,
    room: usize,
    kind: std::io::ErrorKind,
    broken_sync: bool,
}

impl log::LogFile for Faulty {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let fits = bytes.len().min(self.room);
        log::LogFile::append(&mut self.file, &bytes[..fits])?;
        self.room -= fits;
        if fits < bytes.len() { Err(self.kind.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> std::io::Result<()> {
        if self.broken_sync { Err(std::io::ErrorKind::Other.into()) } else { Ok(()) }
    }

    fn truncate(&mut self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }
}

fn open_faulty(dir: &TempDir, room: usize, kind: std::io::ErrorKind, broken_sync: bool) -> Engine {
    Engine::open_with(config(dir), |log| {
        let file = fs::OpenOptions::new().append(true).open(&log.path).unwrap();
        log.file = Box::new(Faulty { file, room, kind, broken_sync });
    })
    .unwrap()
}

#[test]
fn a_full_disk_refuses_the_write_and_shows_nothing_of_it() {
    let dir = TempDir::new().unwrap();
    let engine = open_faulty(&dir, 200, std::io::ErrorKind::StorageFull, false);
    let mut watch = engine.watch("/", 0).unwrap();
    create(&engine, "/a", "1");
    let big = Bytes::from(vec![b'x'; 500]);
    let error = block_on(engine.create("/b", big.into())).unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    assert_eq!((block_on(engine.get("/b")).unwrap(), engine.revision()), (None, 1));
    assert_eq!(watch.try_next().map(|event| event.revision()), Some(1));
    assert!(watch.try_next().is_none());
    engine.healthy().unwrap();
    // There was no room for the big one; nothing of it takes the place of a small one.
    drop(engine);
    let engine = open(&dir);
    assert_eq!(create(&engine, "/c", "1"), 2);
    drop(engine);
    assert_eq!(keys(&open(&dir), "", ListOptions::default()).unwrap(), ["/a", "/c"]);
}

#[test]
fn after_a_failed_sync_the_store_is_read_only() {
    let dir = TempDir::new().unwrap();
    let engine = open_faulty(&dir, usize::MAX, std::io::ErrorKind::Other, true);
    let error = block_on(engine.create("/a", Bytes::new().into())).unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
    assert!(matches!(block_on(engine.create("/b", Bytes::new().into())), Err(StoreError::ReadOnly { .. })));
    assert!(engine.healthy().is_err());
    assert_eq!(block_on(engine.get("/a")).unwrap(), None);
}

#[test]
fn waiting_writers_share_a_sync() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    let writes = (0..500).map(|at| engine.create(&format!("/{at}"), Bytes::new().into()));
    let results = block_on(futures::future::join_all(writes));
    assert!(results.iter().all(Result::is_ok));
    let stats = engine.stats();
    assert_eq!((stats.writes, stats.keys), (500, 500));
    assert!(stats.syncs < 250, "{stats:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What a client makes of a list and the watch after it is what a later list says, wherever it began.
    #[test]
    fn list_and_watch_agree(writes in proptest::collection::vec((0..6u8, 0..3u8), 1..40), from in any::<prop::sample::Index>()) {
        let dir = TempDir::new().unwrap();
        let engine = open(&dir);
        for (key, operation) in &writes {
            let key = format!("/{key}");
            // Refused writes are part of the game.
            drop(block_on(async {
                match operation {
                    0 => engine.delete(&key, Expect::Present).await,
                    1 => engine.create(&key, Bytes::from_static(b"new").into()).await,
                    _ => engine.put(&key, Bytes::from_static(b"changed").into(), Expect::Present).await,
                }
            }));
        }
        let revision = from.index(usize::try_from(engine.revision()).unwrap() + 1) as u64;
        let past = ListOptions { revision: Some(revision), ..ListOptions::default() };
        let mut view: BTreeMap<_, _> = block_on(engine.list("", past)).unwrap().entries.into_iter().map(|entry| (Arc::clone(&entry.key), entry)).collect();
        let mut watch = engine.watch("", revision).unwrap();
        while let Some(event) = watch.try_next() {
            let previous = match event.change {
                Change::Deleted => view.remove(&event.entry.key),
                _ => view.insert(Arc::clone(&event.entry.key), Arc::clone(&event.entry)),
            };
            prop_assert_eq!(previous, event.previous.clone());
        }
        let now: Vec<_> = view.into_values().collect();
        prop_assert_eq!(&now, &block_on(engine.list("", ListOptions::default())).unwrap().entries);
        drop(engine);
        prop_assert_eq!(&now, &block_on(open(&dir).list("", ListOptions::default())).unwrap().entries);
    }
}
