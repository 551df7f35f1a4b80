//! The lab itself: its nodes reach each other, and nothing of it stays.
#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use seaway_cni_network::netns::Namespace;
use seaway_lab::{Lab, bpffs_mount, cgroup2_mount, tcp_exchange, udp_exchange};

#[test]
fn nodes_and_pods_reach_each_other_and_nothing_stays() {
    let lab = Lab::new(2).unwrap();
    let run = lab.run_name().to_owned();
    let second = lab.node(1);
    assert_eq!(second.addresses().map(|addr| addr.to_string()), ["172.30.0.12", "fd00:10:30::12"]);
    for (who, addr) in [(lab.node(0), second.addresses()[0]), (lab.client(), second.addresses()[1])] {
        tcp_exchange(who.namespace(), second.namespace(), addr, 100_000).unwrap();
        udp_exchange(who.namespace(), second.namespace(), addr, 100).unwrap();
    }
    let addresses: [IpAddr; 2] = ["10.244.1.2".parse().unwrap(), "fd00:10:244:1::2".parse().unwrap()];
    let pod = lab.node(0).add_pod("a", &addresses).unwrap();
    for addr in addresses {
        tcp_exchange(lab.node(0).namespace(), pod.namespace(), addr, 100).unwrap();
    }
    assert!(pod.ok(&["cat", "/proc/self/cgroup"]).contains(&format!("{run}/node1/pod-a")));
    let sleeper = pod.spawn(&["sleep", "1000"]);
    assert!(Path::new("/proc").join(sleeper.pid().to_string()).exists());
    drop((sleeper, pod, lab));
    assert_eq!(left_of(&run), Vec::<PathBuf>::new());
}

/// Everything whose name begins as the run's.
fn left_of(run: &str) -> Vec<PathBuf> {
    let places =
        ["/run/netns".into(), std::env::temp_dir(), cgroup2_mount().unwrap(), bpffs_mount().unwrap()];
    let entries = places.iter().flat_map(|place: &PathBuf| std::fs::read_dir(place).unwrap().flatten());
    let of_run = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(run));
    of_run.map(|entry| entry.path()).collect()
}

#[test]
fn a_panic_leaves_nothing_either() {
    let mut run = String::new();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let lab = Lab::new(1).unwrap();
        lab.run_name().clone_into(&mut run);
        let _sleeper = lab.node(0).spawn(&["sleep", "1000"]);
        lab.node(0).ok(&["false"]);
    }));
    assert!(outcome.is_err() && !run.is_empty());
    assert_eq!(left_of(&run), Vec::<PathBuf>::new());
}

#[test]
fn what_a_killed_run_has_left_is_removed_by_the_next() {
    // A process that has ended and whose number is not in use.
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let run = format!("swlab-{}-0", child.id());
    Namespace::create(Path::new("/run/netns"), &format!("{run}-node1")).unwrap();
    std::fs::create_dir_all(cgroup2_mount().unwrap().join(&run).join("node1/pod-a")).unwrap();
    drop(Lab::new(0).unwrap());
    assert_eq!(left_of(&run), Vec::<PathBuf>::new());
}
