//! The netlink and namespace calls against the real kernel, in namespaces that the test makes and removes.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test helpers")]

use std::os::fd::AsFd;

use seaway_cni_network::netlink::{
    Bridge, FdbEntry, Mac, Monitor, MonitorGroups, Neighbour, NeighbourKind, Netlink, Route, RouteQuery,
    Veth, VethPeer, Vxlan,
};
use seaway_cni_network::netns::{self, Namespace, sysctl};

fn need_root() {
    assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
}

#[test]
fn links_addresses_and_routes_are_read_back_as_written() {
    need_root();
    let (near, far) = (Namespace::anonymous().unwrap(), Namespace::anonymous().unwrap());
    let mut netlink = Netlink::open_in(&near).unwrap();
    let veth = Veth {
        name: "sw0",
        mac: Some(Mac([0xee; 6])),
        mtu: Some(1400),
        group: 77,
        peer: VethPeer { name: "eth0", mac: Some(Mac([2, 0, 0, 0, 0, 1])), netns: Some(far.as_fd()) },
    };
    let link = netlink.create_veth(&veth).unwrap();
    assert_eq!((link.name.as_str(), link.mtu, link.group), ("sw0", 1400, 77));
    assert_eq!((link.kind.as_deref(), link.mac), (Some("veth"), Some(Mac([0xee; 6]))));
    let error = netlink.create_veth(&veth).unwrap_err();
    assert!(error.is_exists(), "{error}");
    assert!(error.to_string().contains("link sw0"), "{error}");

    let mut inner = Netlink::open_in(&far).unwrap();
    let eth0 = inner.link("eth0").unwrap().unwrap();
    assert_eq!((eth0.mac, eth0.mtu), (Some(Mac([2, 0, 0, 0, 0, 1])), 1400));
    inner.set_up(eth0.index).unwrap();
    netlink.set_no_link_local(link.index).unwrap();
    netlink.set_up(link.index).unwrap();
    for net in ["10.1.0.5/32", "fd00::5/128"] {
        inner.add_address(eth0.index, net.parse().unwrap()).unwrap();
        inner.add_address(eth0.index, net.parse().unwrap()).unwrap();
    }
    let gateway = "169.254.1.1".parse().unwrap();
    inner.add_route(&Route { onlink: true, ..Route::default_via(gateway).on(eth0.index) }).unwrap();
    let default = inner.route_to("192.0.2.1".parse().unwrap()).unwrap().unwrap();
    assert_eq!(default.gateway, Some(gateway));
    let addresses = inner.addresses(Some(eth0.index)).unwrap();
    assert!(addresses.iter().any(|a| a.net == "10.1.0.5/32".parse().unwrap()));
    let v6 = addresses.iter().find(|a| a.net == "fd00::5/128".parse().unwrap()).unwrap();
    assert!(!v6.tentative);

    let route = Route { protocol: 83, ..Route::to("10.1.0.5/32".parse().unwrap()).on(link.index) };
    netlink.add_route(&route).unwrap();
    assert!(netlink.add_route(&route).unwrap_err().is_exists());
    netlink.replace_route(&route).unwrap();
    assert_eq!(
        netlink.routes(RouteQuery { protocol: Some(83), ..RouteQuery::default() }).unwrap(),
        std::slice::from_ref(&route)
    );
    netlink.delete_route(&route).unwrap();
    assert!(netlink.delete_route(&route).unwrap_err().is_missing());

    assert!(netlink.delete_group(77).unwrap());
    assert!(!netlink.delete_group(77).unwrap());
    assert_eq!(netlink.link("sw0").unwrap(), None);
    assert_eq!(inner.link("eth0").unwrap(), None);
}

#[test]
fn vxlan_neighbours_and_forwarding_entries_are_read_back() {
    need_root();
    let namespace = Namespace::anonymous().unwrap();
    let mut netlink = Netlink::open_in(&namespace).unwrap();
    let bridge = netlink.create_bridge(&Bridge { name: "lan", ..Bridge::default() }).unwrap();
    netlink.set_up(bridge.index).unwrap();
    let local = "192.0.2.1".parse().unwrap();
    netlink.add_address(bridge.index, "192.0.2.1/24".parse().unwrap()).unwrap();
    let vxlan =
        Vxlan { name: "vx", vni: 5, port: 8472, local, link: Some(bridge.index), mac: None, mtu: Some(1450) };
    let link = netlink.create_vxlan(&vxlan).unwrap();
    let info = link.vxlan.unwrap();
    assert_eq!((info.vni, info.port, info.local, info.learning), (5, 8472, Some(local), false));
    netlink.set_up(link.index).unwrap();

    let mac = Mac([2, 1, 1, 1, 1, 1]);
    for addr in ["10.9.0.0", "fd00:9::"] {
        let addr = addr.parse().unwrap();
        let neighbour = Neighbour { link: link.index, addr, mac: Some(mac), kind: NeighbourKind::Permanent };
        netlink.set_neighbour(&neighbour).unwrap();
        assert!(netlink.neighbours(Some(link.index)).unwrap().contains(&neighbour));
        netlink.delete_neighbour(&neighbour).unwrap();
        assert!(!netlink.neighbours(Some(link.index)).unwrap().contains(&neighbour));
    }
    let entry = FdbEntry { link: link.index, mac, remote: "192.0.2.2".parse().unwrap() };
    netlink.set_fdb(&entry).unwrap();
    let moved = FdbEntry { remote: "192.0.2.3".parse().unwrap(), ..entry };
    netlink.set_fdb(&moved).unwrap();
    assert_eq!(netlink.fdb(link.index).unwrap(), [moved]);
    netlink.delete_fdb(&moved).unwrap();
    assert_eq!(netlink.fdb(link.index).unwrap(), []);
}

#[test]
fn a_named_namespace_runs_closures_and_programs_until_it_is_deleted() {
    need_root();
    let directory = tempfile::tempdir().unwrap();
    let namespace = Namespace::create(directory.path(), "a").unwrap();
    assert!(Namespace::create(directory.path(), "a").is_err());
    assert_ne!(namespace.id().unwrap(), Namespace::current().unwrap().id().unwrap());
    let reopened = Namespace::open(&directory.path().join("a")).unwrap();
    assert_eq!(reopened.id().unwrap(), namespace.id().unwrap());
    let up = Netlink::open_in(&namespace).unwrap().link("lo").unwrap().unwrap().up;
    assert!(up, "the loopback link is up from the start");

    namespace.run(|| sysctl::write("net/ipv4/ip_forward", "1").unwrap()).unwrap();
    assert_eq!(namespace.run(|| sysctl::read("net/ipv4/ip_forward").unwrap()).unwrap(), "1");
    let output = namespace.command("readlink").unwrap().arg("/proc/self/ns/net").output().unwrap();
    let link = String::from_utf8(output.stdout).unwrap();
    assert_eq!(link.trim(), format!("net:[{}]", namespace.id().unwrap()));

    assert!(netns::delete(directory.path(), "a").unwrap());
    assert!(!netns::delete(directory.path(), "a").unwrap());
    std::fs::write(directory.path().join("plain"), "").unwrap();
    assert!(Namespace::open(&directory.path().join("plain")).is_err());
    assert!(netns::delete(directory.path(), "plain").unwrap(), "what a crash left is removed as well");
}

#[test]
fn a_monitor_tells_that_something_changed() {
    need_root();
    let namespace = Namespace::anonymous().unwrap();
    let mut monitor = namespace.run(|| Monitor::open(MonitorGroups::ALL)).unwrap().unwrap();
    assert!(!monitor.drain().unwrap());
    let mut netlink = Netlink::open_in(&namespace).unwrap();
    netlink.create_bridge(&Bridge { name: "lan", ..Bridge::default() }).unwrap();
    assert!(monitor.drain().unwrap());
}
