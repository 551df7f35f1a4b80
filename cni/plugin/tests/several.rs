//! Ranges of very few addresses, and pods with more than one interface on the same network.
#![allow(clippy::unwrap_used, reason = "test helpers")]

#[path = "support/runtime.rs"]
mod runtime;

use std::collections::BTreeSet;
use std::net::IpAddr;

use runtime::{BOTH, Runtime, Sandbox, addresses};
use seaway_cni_network::ipam::{Ipam, Owner};
use seaway_cni_network::netlink::Netlink;
use seaway_cni_network::netns::sysctl;
use seaway_lab::{Lab, tcp_exchange};
use serde_json::json;

#[test]
fn one_container_may_be_attached_twice_under_two_names() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let a = Sandbox::new("pod-a");
    let first = addresses(&runtime.call_for("eth0", "ADD", &a).unwrap());
    let second = addresses(&runtime.call_for("net1", "ADD", &a).unwrap());
    assert!(second.len() == 2 && second.iter().all(|addr| !first.contains(addr)), "{first:?} {second:?}");
    let node = lab.node(0).namespace();
    let reaches =
        |addrs: &[IpAddr]| addrs.iter().all(|addr| tcp_exchange(node, &a.namespace, *addr, 1000).is_ok());
    assert!(reaches(&first) && reaches(&second), "each is led to by its own link");
    let interfaces = |names: [&str; 2]| {
        let mut inner = Netlink::open_in(&a.namespace).unwrap();
        names.map(|name| inner.link(name).unwrap().is_some())
    };
    runtime.call_for("eth0", "DEL", &a).unwrap();
    assert_eq!((runtime.held(), runtime.in_kernel()), (1, (1, 2)));
    assert_eq!(interfaces(["eth0", "net1"]), [false, true]);
    let data_dir = lab.node(0).state_dir().join("cni");
    let held = |ifname: &str| Ipam::peek(&data_dir, "seaway", &Owner::new("pod-a", ifname));
    assert!(held("eth0").is_none());
    assert_eq!(held("net1").unwrap().addresses, second);
    runtime.call_for("net1", "DEL", &a).unwrap();
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
    assert_eq!(interfaces(["eth0", "net1"]), [false, false]);
}

#[test]
fn ranges_of_one_and_two_addresses_give_all_that_they_have() {
    let lab = Lab::new(1).unwrap();
    lab.node(0).run(|| {
        sysctl::write("net/ipv4/ip_forward", "1").unwrap();
        sysctl::write("net/ipv6/conf/all/forwarding", "1").unwrap();
    });
    for (ranges, pods) in
        [(["10.244.1.4/31", "fd00:10:244:1::4/127"], 2), (["10.244.1.7/32", "fd00::7/128"], 1)]
    {
        let mut runtime = Runtime::new(lab.node(0), &ranges);
        runtime.config["name"] = json!(format!("of-{pods}"));
        let data_dir = lab.node(0).state_dir().join("cni");
        let sandboxes = ["pod-a", "pod-b"].map(Sandbox::new);
        let given: Vec<IpAddr> =
            sandboxes[..pods].iter().flat_map(|sandbox| addresses(&runtime.add(sandbox))).collect();
        for addr in &given {
            let sandbox = &sandboxes[given.iter().position(|other| other == addr).unwrap() / 2];
            tcp_exchange(lab.node(0).namespace(), &sandbox.namespace, *addr, 1000).unwrap();
        }
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 2 * pods, "{given:?}");
        let late = runtime.call("ADD", &Sandbox::new("late"), json!({})).unwrap_err();
        assert_eq!(late["code"], 100, "{late}");
        assert_eq!(runtime.call("STATUS", &sandboxes[0], json!({})).unwrap_err()["code"], 50);
        sandboxes[..pods].iter().for_each(|sandbox| runtime.del(sandbox));
        assert_eq!(runtime.in_kernel(), (0, 0));
        assert!(Ipam::peek(&data_dir, &format!("of-{pods}"), &Owner::new("pod-a", "eth0")).is_none());
    }
}
