//! The lab itself: its nodes reach each other, and nothing of it stays.

use std::net::IpAddr;
use std::path::Path;

use seaway_lab::{Lab, cgroup2_mount, tcp_exchange, udp_exchange};

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
    for place in [Path::new("/run/netns"), &std::env::temp_dir(), &cgroup2_mount().unwrap()] {
        let left: Vec<_> =
            std::fs::read_dir(place).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains(&run)), "{left:?} in {place:?}");
    }
}
