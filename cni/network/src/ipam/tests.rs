//! The laws of IPAM, also when the work is cut short after any write.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

/// Counts what is asked of the files.
#[derive(Debug, Default)]
struct CountedFiles {
    files: MemoryFiles,
    count: Cell<usize>,
}

impl CountedFiles {
    fn counted(&self) -> &MemoryFiles {
        self.count.set(self.count.get() + 1);
        &self.files
    }
}

impl Files for CountedFiles {
    fn read(&self, name: &str) -> FilesResult<Option<String>> {
        self.counted().read(name)
    }

    fn replace(&mut self, name: &str, content: &str) -> FilesResult<()> {
        self.counted();
        self.files.replace(name, content)
    }

    fn record(&self, name: &str, number: u64) -> FilesResult<Option<String>> {
        self.counted().record(name, number)
    }

    fn set_record(&mut self, name: &str, number: u64, text: &str) -> FilesResult<()> {
        self.counted();
        self.files.set_record(name, number, text)
    }

    fn remove(&mut self, name: &str) -> FilesResult<()> {
        self.counted();
        self.files.remove(name)
    }

    fn list(&self, directory: &str) -> FilesResult<Vec<String>> {
        // A list costs what it is long.
        let names = self.counted().list(directory)?;
        self.count.set(self.count.get() + names.len());
        Ok(names)
    }
}

/// What one ADD and one DEL ask of the files when `held` addresses are held and `freed` wait.
fn cost(subnets: &[&str], held: u32, freed: u32) -> usize {
    let pools = pools(subnets);
    let owner = |number: u32| Owner::new(&format!("c{number}"), "eth0");
    let mut ipam = Ipam::new(CountedFiles::default(), "boot", 0).unwrap();
    for number in 0..held + freed {
        ipam.reserve(&owner(number), &pools).unwrap();
    }
    // From the middle, so that they lie apart.
    for number in (0..held + freed).step_by(2).take(freed as usize) {
        ipam.release(&owner(number)).unwrap();
    }
    let mut ipam = Ipam::new(ipam.into_files(), "boot", REST_MS).unwrap();
    let before = ipam.files_for_test().count.get();
    ipam.reserve(&owner(1_000_000), &pools).unwrap();
    ipam.release(&owner(1_000_000)).unwrap();
    ipam.files_for_test().count.get() - before
}

#[test]
fn an_address_costs_the_same_however_large_the_range_is_and_however_full() {
    let empty = cost(&["10.0.0.0/24"], 0, 0);
    assert!(empty <= 20, "{empty} calls");
    for (subnet, held) in [
        ("10.0.0.0/24", 253),
        ("10.0.0.0/16", 10),
        ("10.0.0.0/16", 9000),
        ("fd00::/64", 9000),
        ("10.0.0.0/8", 1),
    ] {
        let cost = cost(&[subnet], held, 0);
        assert!(cost <= empty + 1, "{subnet} with {held} held: {cost} calls, {empty} when empty");
    }
    // With freed ones it is the queue's head instead of the next fresh one.
    let few = cost(&["10.0.0.0/24"], 1, 1);
    for (subnet, held, freed) in [
        ("10.0.0.0/24", 127, 127),
        ("10.0.0.0/16", 4000, 4000),
        ("10.0.0.0/24", 253, 1),
        ("fd00::/64", 2000, 2000),
    ] {
        let cost = cost(&[subnet], held, freed);
        assert!(cost <= few + 1, "{subnet} with {held} held and {freed} freed: {cost} calls, {few} with two");
    }
    assert!(few <= 24, "{few} calls");
}

/// Files in memory that stop working at a given write, and leave that write undone, torn or done.
#[derive(Debug, Clone, Default)]
struct MemoryFiles {
    content: BTreeMap<String, String>,
    /// Writes until the crash; none: no crash.
    left: Cell<Option<usize>>,
    /// How the write that crashes ends.
    torn: Torn,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Torn {
    #[default]
    Undone,
    Half,
    Done,
}

impl MemoryFiles {
    fn crashing(mut self, after: usize, torn: Torn) -> Self {
        self.left = Cell::new(Some(after));
        self.torn = torn;
        self
    }

    fn restarted(mut self) -> Self {
        self.left = Cell::new(None);
        self
    }

    /// `Ok(true)`: go on; `Ok(false)`: this is the last write before the crash.
    fn step(&self) -> Result<bool, IpamError> {
        match self.left.get() {
            None => Ok(true),
            Some(left) => {
                self.left.set(Some(left.saturating_sub(1)));
                match left {
                    0 => Err(crash()),
                    1 => Ok(false),
                    _ => Ok(true),
                }
            }
        }
    }
}

fn crash() -> IpamError {
    IpamError::Io { action: "write", path: PathBuf::new(), source: std::io::Error::other("crash") }
}

impl Files for MemoryFiles {
    fn read(&self, name: &str) -> FilesResult<Option<String>> {
        Ok(self.content.get(name).cloned())
    }

    fn replace(&mut self, name: &str, content: &str) -> FilesResult<()> {
        let goes_on = self.step()?;
        if goes_on || self.torn == Torn::Done {
            self.content.insert(name.to_owned(), content.to_owned());
        }
        if goes_on { Ok(()) } else { Err(crash()) }
    }

    fn record(&self, name: &str, number: u64) -> FilesResult<Option<String>> {
        self.read(&format!("{name}#{number}"))
    }

    /// The rest of the store trusts a record no further than a torn one goes.
    fn set_record(&mut self, name: &str, number: u64, text: &str) -> FilesResult<()> {
        let goes_on = self.step()?;
        let name = format!("{name}#{number}");
        let half = &text[..text.len() / 2];
        match (goes_on, self.torn) {
            (true, _) | (false, Torn::Done) => drop(self.content.insert(name, text.to_owned())),
            (false, Torn::Half) if !name.starts_with("pools/") => {
                drop(self.content.insert(name, half.to_owned()));
            }
            (false, Torn::Half | Torn::Undone) => {}
        }
        if goes_on { Ok(()) } else { Err(crash()) }
    }

    fn remove(&mut self, name: &str) -> FilesResult<()> {
        let goes_on = self.step()?;
        if goes_on || self.torn == Torn::Done {
            self.content.remove(name);
        }
        if goes_on { Ok(()) } else { Err(crash()) }
    }

    fn list(&self, directory: &str) -> FilesResult<Vec<String>> {
        let prefix = format!("{directory}/");
        Ok(self.content.keys().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect())
    }
}

fn pools(subnets: &[&str]) -> Vec<Vec<Range>> {
    subnets.iter().map(|subnet| vec![Range::new(subnet.parse().unwrap())]).collect()
}

fn owner(number: u8) -> Owner {
    Owner::new(&format!("c{number}"), "eth0")
}

fn open(files: MemoryFiles) -> Ipam<MemoryFiles> {
    Ipam::new(files, "boot", 0).unwrap()
}

fn text(reservation: &Reservation) -> String {
    reservation.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// No address is held twice.
fn assert_unique(ipam: &Ipam<MemoryFiles>) {
    let mut seen: BTreeSet<IpAddr> = BTreeSet::new();
    for (owner, held) in ipam.owners().unwrap() {
        for addr in held.addresses {
            assert!(seen.insert(addr), "{owner} holds {addr}, which somebody else holds as well");
        }
    }
}

#[test]
fn both_families_or_none() {
    let pools = pools(&["10.0.0.0/24", "fd00::/127"]);
    let mut ipam = open(MemoryFiles::default());
    assert_eq!(text(&ipam.reserve(&owner(1), &pools).unwrap()), "10.0.0.1 fd00::");
    assert_eq!(text(&ipam.reserve(&owner(2), &pools).unwrap()), "10.0.0.2 fd00::1");
    let error = ipam.reserve(&owner(3), &pools).unwrap_err();
    expect_test::expect!["no free address in fd00::/127: all 2 are held, by c1 (eth0), c2 (eth0)"]
        .assert_eq(&error.to_string());
    assert_eq!(ipam.reservation(&owner(3)).unwrap(), None);
    assert!(ipam.check_capacity(&pools).is_err());
    ipam.release(&owner(1)).unwrap();
    ipam.check_capacity(&pools).unwrap();
    assert_eq!(text(&ipam.reserve(&owner(3), &pools).unwrap()), "10.0.0.3 fd00::");
}

#[test]
fn exhaustion_names_pods_as_far_as_they_are_known() {
    let pools = pools(&["10.0.0.0/30"]);
    let mut ipam = open(MemoryFiles::default());
    let request = Request { pod: Some("default/web-0"), ..Request::default() };
    ipam.reserve_for(&owner(1), &pools, request).unwrap();
    ipam.reserve(&owner(2), &pools).unwrap();
    let error = ipam.reserve(&owner(3), &pools).unwrap_err();
    expect_test::expect![
        "no free address in 10.0.0.0/30: all 2 are held, by default/web-0 (c1, eth0), c2 (eth0)"
    ]
    .assert_eq(&error.to_string());
    // Who is told later who it is remembers that as well.
    let named = Request { pod: Some("default/web-1"), ..Request::default() };
    let held = ipam.reserve_for(&owner(2), &pools, named).unwrap();
    assert_eq!((text(&held), held.pod.as_deref()), ("10.0.0.2".to_owned(), Some("default/web-1")));
}

#[test]
fn a_repeated_reservation_is_the_same_and_a_freed_address_rests() {
    let pools = pools(&["10.0.0.0/29"]);
    let mut ipam = open(MemoryFiles::default());
    let first = ipam.reserve(&owner(1), &pools).unwrap();
    assert_eq!(ipam.reserve(&owner(1), &pools).unwrap(), first);
    assert_eq!(ipam.release(&owner(1)).unwrap(), Some(first));
    assert_eq!(ipam.release(&owner(1)).unwrap(), None);
    for number in 2..=6 {
        assert_eq!(text(&ipam.reserve(&owner(number), &pools).unwrap()), format!("10.0.0.{number}"));
    }
    assert_eq!(text(&ipam.reserve(&owner(7), &pools).unwrap()), "10.0.0.1", "better than nothing");
}

#[test]
fn resting_addresses_are_passed_over_while_there_are_others() {
    let pools = pools(&["10.0.0.0/29"]);
    let mut ipam = open(MemoryFiles::default());
    for number in 1..=4 {
        ipam.reserve(&owner(number), &pools).unwrap();
    }
    ipam.release(&owner(3)).unwrap();
    ipam.release(&owner(1)).unwrap();
    assert_eq!(text(&ipam.reserve(&owner(9), &pools).unwrap()), "10.0.0.5");
    let mut later = Ipam::new(ipam.into_files(), "boot", REST_MS).unwrap();
    assert_eq!(text(&later.reserve(&owner(10), &pools).unwrap()), "10.0.0.3", "it was freed first");
    assert_eq!(text(&later.reserve(&owner(11), &pools).unwrap()), "10.0.0.1");
    assert_eq!(text(&later.reserve(&owner(12), &pools).unwrap()), "10.0.0.6");
}

#[test]
fn a_new_boot_forgets_and_new_ranges_give_new_addresses() {
    let mut ipam = open(MemoryFiles::default());
    ipam.reserve(&owner(1), &pools(&["10.0.0.0/24"])).unwrap();
    assert_eq!(text(&ipam.reserve(&owner(1), &pools(&["10.9.0.0/24"])).unwrap()), "10.9.0.1");
    let ipam = Ipam::new(ipam.into_files(), "next boot", 0).unwrap();
    assert_eq!(ipam.owners().unwrap(), []);
}

#[test]
fn wanted_addresses_are_given_if_free() {
    let pools = pools(&["10.0.0.0/24", "fd00::/64"]);
    let mut ipam = open(MemoryFiles::default());
    let wanted = ["10.0.0.77".parse().unwrap()];
    let request = Request { wanted: &wanted, ..Request::default() };
    assert_eq!(text(&ipam.reserve_for(&owner(1), &pools, request).unwrap()), "10.0.0.77 fd00::1");
    assert!(ipam.reserve_for(&owner(2), &pools, request).is_err());
    assert_eq!(text(&ipam.reserve(&owner(2), &pools).unwrap()), "10.0.0.1 fd00::2");
}

#[test]
fn collection_keeps_what_is_to_be_kept() {
    let pools = pools(&["10.0.0.0/24"]);
    let mut ipam = open(MemoryFiles::default());
    for number in 1..=3 {
        ipam.reserve(&owner(number), &pools).unwrap();
    }
    assert_eq!(ipam.release_unless(|held| *held == owner(2)).unwrap(), [owner(1), owner(3)]);
    assert_eq!(ipam.owners().unwrap().len(), 1);
}

#[test]
fn a_directory_on_the_disk_does_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let pools = pools(&["10.0.0.0/24", "fd00::/64"]);
    let reserve =
        |number| Ipam::open(directory.path(), "net").unwrap().reserve(&owner(number), &pools).unwrap();
    let given: BTreeSet<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..50).map(|number| scope.spawn(move || text(&reserve(number)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(given.len(), 50);
    let mut ipam = Ipam::open(directory.path(), "net").unwrap();
    assert_eq!(ipam.owners().unwrap().len(), 50);
    assert_eq!(ipam.release_unless(|_| false).unwrap().len(), 50);
    assert!(std::fs::read_dir(directory.path().join("net/owners")).unwrap().next().is_none());
}

#[test]
fn a_lock_that_somebody_keeps_is_not_waited_for_without_end() {
    let directory = tempfile::tempdir().unwrap();
    let held = DirectoryFiles::lock(directory.path()).unwrap();
    let refused = DirectoryFiles::lock_within(directory.path(), std::time::Duration::from_millis(20));
    let error = refused.unwrap_err();
    assert!(matches!(error, IpamError::Locked { waited_ms: 20, .. }), "{error}");
    drop(held);
    DirectoryFiles::lock(directory.path()).unwrap();
}

#[test]
fn the_queue_of_freed_addresses_goes_round_in_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let pools = pools(&["10.0.0.0/29"]);
    for round in 0..40_u64 {
        let files = DirectoryFiles::lock(directory.path()).unwrap();
        let mut ipam = Ipam::new(files, "boot", round * REST_MS).unwrap();
        let number = u8::try_from(round).unwrap();
        let given = ipam.reserve(&owner(number), &pools).unwrap();
        assert_eq!(text(&given), "10.0.0.1", "round {round}: it has rested");
        ipam.release(&owner(number)).unwrap();
    }
    let size = std::fs::metadata(directory.path().join("pools/10.0.0.0_29")).unwrap().len();
    assert_eq!(size, 41 * 256);
}

#[derive(Debug, Clone)]
enum Step {
    Add(u8),
    Del(u8),
}

fn steps() -> impl Strategy<Value = Vec<(Step, Option<(usize, Torn)>)>> {
    let step = prop_oneof![(0..8_u8).prop_map(Step::Add), (0..8_u8).prop_map(Step::Del)];
    let torn = prop_oneof![Just(Torn::Undone), Just(Torn::Half), Just(Torn::Done)];
    proptest::collection::vec((step, proptest::option::of((1..14_usize, torn))), 1..60)
}

proptest! {
    #[test]
    fn whatever_crashes_when_nothing_is_doubled_and_nothing_is_lost(steps in steps()) {
        let pools = pools(&["10.0.0.0/29", "fd00::/125"]);
        let mut files = MemoryFiles::default();
        for (step, crash) in steps {
            if let Some((after, torn)) = crash {
                files = files.crashing(after, torn);
            }
            // Opening writes as well, the first time.
            let opened = Ipam::new(files.clone(), "boot", 0);
            let Ok(mut ipam) = opened else {
                files = files.restarted();
                continue;
            };
            let outcome = match &step {
                Step::Add(number) => ipam.reserve(&owner(*number), &pools).map(|held| {
                    assert_eq!(held.addresses.len(), 2);
                }),
                Step::Del(number) => ipam.release(&owner(*number)).map(|_| ()),
            };
            files = ipam.into_files().restarted();
            let ipam = open(files.clone());
            assert_unique(&ipam);
            if let (Ok(()), Step::Del(number)) = (&outcome, &step) {
                prop_assert_eq!(ipam.reservation(&owner(*number)).unwrap(), None);
            }
            // Nothing is lost: what nobody holds can all be given out.
            let held = ipam.owners().unwrap().len();
            let mut probe = open(files.clone());
            for number in 0..6 - held {
                let given = probe.reserve(&owner(100 + u8::try_from(number).unwrap()), &pools);
                prop_assert!(given.is_ok(), "{:?}", given);
            }
            assert_unique(&probe);
            prop_assert!(probe.reserve(&owner(200), &pools).is_err());
        }
    }
}
