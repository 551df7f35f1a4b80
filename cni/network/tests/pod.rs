//! The wiring of pods against the real kernel: what a failure leaves, and what the next attempt finds.
#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::net::IpAddr;
use std::os::fd::AsFd;

use seaway_cni_network::netlink::{Mac, Netlink, Route, Veth, VethPeer};
use seaway_cni_network::netns::{Namespace, sysctl};
use seaway_cni_network::pod::{self, Attachment, Bandwidth, WireError, Wiring};
use seaway_lab::{Lab, tcp_exchange};

fn wiring() -> Wiring {
    let addresses: Vec<IpAddr> = vec!["10.244.1.5".parse().unwrap(), "fd00:10:244:1::5".parse().unwrap()];
    Wiring { addresses, mtu: Some(1400), mac: None, bandwidth: Bandwidth::default() }
}

#[test]
fn a_failure_leaves_nothing_and_the_next_attempt_succeeds() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let pod = Namespace::anonymous().unwrap();
    let attachment = Attachment::new("seaway", "pod", "eth0");
    let (mut outer, mut inner) = (node.netlink().unwrap(), Netlink::open_in(&pod).unwrap());
    // RFC 8200 section 5: no IPv6 below 1280 bytes. The kernel says so once both ends are there.
    let narrow = Wiring { mtu: Some(1000), ..wiring() };
    let error = node.run(|| attachment.wire(&pod, &narrow)).unwrap_err();
    assert!(error.to_string().contains("cannot add address fe80::1"), "{error}");
    assert!(inner.link("eth0").unwrap().is_none());
    assert!(outer.link(&attachment.host_link()).unwrap().is_none());

    let wired = node.run(|| attachment.wire(&pod, &wiring())).unwrap();
    assert_eq!((wired.mtu, wired.host_link.as_str()), (1400, attachment.host_link().as_str()));
    node.run(|| attachment.check(&pod, &wiring().addresses, Bandwidth::default())).unwrap();
    let again = node.run(|| attachment.wire(&pod, &wiring())).unwrap_err();
    assert!(matches!(again, WireError::InterfaceExists { .. }), "{again}");
    assert_eq!(node.run(|| pod::wired_attachments("seaway")).unwrap(), std::slice::from_ref(&attachment));
    assert_eq!(node.run(|| pod::wired_attachments("other")).unwrap(), []);
    assert!(node.run(|| attachment.unwire()).unwrap());
    assert!(!node.run(|| attachment.unwire()).unwrap());
}

#[test]
fn a_way_out_that_is_there_stays_and_ours_takes_over_when_it_goes() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let pod = Namespace::anonymous().unwrap();
    let mut outer = node.netlink().unwrap();
    let peer = VethPeer { name: "eth1", mac: None, netns: Some(pod.as_fd()) };
    let other = outer.create_veth(&Veth { name: "other", mac: None, mtu: None, group: 0, peer }).unwrap();
    outer.set_up(other.index).unwrap();
    let mut inner = Netlink::open_in(&pod).unwrap();
    let eth1 = inner.link("eth1").unwrap().unwrap();
    inner.set_up(eth1.index).unwrap();
    let default = Route { onlink: true, ..Route::default_via("192.0.2.1".parse().unwrap()).on(eth1.index) };
    inner.add_route(&default).unwrap();
    node.run(|| Attachment::new("seaway", "pod", "eth0").wire(&pod, &wiring())).unwrap();
    let eth0 = inner.link("eth0").unwrap().unwrap();
    let mut way_out = || inner.route_to("203.0.113.1".parse().unwrap()).unwrap().unwrap().link;
    assert_eq!(way_out(), Some(eth1.index));
    outer.delete_link(other.index).unwrap();
    assert_eq!(way_out(), Some(eth0.index));
}

#[test]
fn a_pod_sends_from_the_moment_on_that_it_is_wired() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    // The kernel is late only sometimes; a few dozen tries find it out.
    for number in 0..40 {
        let pod = Namespace::anonymous().unwrap();
        let attachment = Attachment::new("seaway", &format!("pod{number}"), "eth0");
        node.run(|| attachment.wire(&pod, &wiring())).unwrap();
        let eth0 = Netlink::open_in(&pod).unwrap().link("eth0").unwrap().unwrap();
        assert!(eth0.operational, "pod {number}: {eth0:?}");
        assert!(node.run(|| attachment.unwire()).unwrap());
    }
}

#[test]
fn a_pod_that_gets_another_ethernet_address_is_found_again() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let pod = Namespace::anonymous().unwrap();
    let attachment = Attachment::new("seaway", "pod", "eth0");
    node.run(|| attachment.wire(&pod, &wiring())).unwrap();
    // By default the kernel takes five seconds before it doubts.
    for family in ["ipv4", "ipv6"] {
        let key = format!("net/{family}/neigh/{}/delay_first_probe_time", attachment.host_link());
        node.run(|| sysctl::write(&key, "1")).unwrap();
    }
    let mut inner = Netlink::open_in(&pod).unwrap();
    let eth0 = inner.link("eth0").unwrap().unwrap();
    let Mac(mut mac) = eth0.mac.unwrap();
    mac[5] ^= 1;
    inner.set_mac(eth0.index, Mac(mac)).unwrap();
    for addr in wiring().addresses {
        // The first answers may be sent to the former address.
        seaway_lab::wait_for(std::time::Duration::from_secs(20), "the pod's answer", || {
            tcp_exchange(node.namespace(), &pod, addr, 100).is_ok()
        });
    }
}
