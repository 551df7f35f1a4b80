//! The executable, called as a container runtime does, on nodes that are network namespaces.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test helpers")]

#[path = "support/runtime.rs"]
mod runtime;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::process::Child;
use std::time::Duration;

use runtime::{BOTH, Runtime, Sandbox, addresses, outcome};
use seaway_cni::{Environment, call};
use seaway_cni_network::ipam::{Ipam, Owner};
use seaway_cni_network::netlink::{Mac, Netlink, Route, RouteQuery};
use seaway_cni_network::netns::{Namespace, sysctl};
use seaway_cni_network::pod::{HOST_MAC, ROUTE_PROTOCOL};
use seaway_cni_network::ready;
use seaway_lab::{Lab, tcp_exchange, udp_exchange, wait_for};
use serde_json::{Value, json};

#[test]
fn pods_of_one_node_reach_each_other_and_the_node() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    // The plugin touches nothing but its own interfaces; for IPv6 the kernel has one switch for all of them, which
    // is the node agent's.
    lab.node(0).run(|| sysctl::write("net/ipv6/conf/all/forwarding", "1").unwrap());
    let (a, b) = (Sandbox::new("pod-a"), Sandbox::new("pod-b"));
    let (result_a, result_b) = (runtime.add(&a), runtime.add(&b));
    assert_eq!(result_a["interfaces"][1]["mtu"], 1450);
    let (of_a, of_b) = (addresses(&result_a), addresses(&result_b));
    assert_eq!(of_a, ["10.244.1.1".parse::<IpAddr>().unwrap(), "fd00:10:244:1::1".parse().unwrap()]);
    for (addr_a, addr_b) in of_a.iter().zip(&of_b) {
        let node = lab.node(0).namespace();
        // At once, both ways: nothing waits for duplicate address detection.
        assert_eq!(tcp_exchange(&a.namespace, &b.namespace, *addr_b, 200_000).unwrap(), *addr_a);
        assert_eq!(udp_exchange(&b.namespace, &a.namespace, *addr_a, 1200).unwrap(), *addr_b);
        tcp_exchange(node, &a.namespace, *addr_a, 1000).unwrap();
        let own = if addr_a.is_ipv4() { lab.node(0).addresses()[0] } else { lab.node(0).addresses()[1] };
        assert_eq!(tcp_exchange(&a.namespace, node, own, 1000).unwrap(), *addr_a);
    }
    let checked = runtime.call("CHECK", &a, json!({ "prevResult": result_a }));
    assert_eq!(checked, Ok(Value::Null));
    runtime.del(&a);
    runtime.del(&b);
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
    assert!(Netlink::open_in(&a.namespace).unwrap().link("eth0").unwrap().is_none());
}

#[test]
fn verbs_may_be_repeated() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let a = Sandbox::new("pod-a");
    runtime.del(&a);
    assert!(!lab.node(0).state_dir().join("cni").exists(), "there was nothing, and there is nothing");
    let first = runtime.add(&a);
    let error = runtime.call("ADD", &a, json!({})).unwrap_err();
    assert_eq!(error["code"], 103, "{error}");
    let check = |sandbox: &Sandbox| runtime.call("CHECK", sandbox, json!({ "prevResult": first }));
    assert_eq!(check(&a), Ok(Value::Null), "the refused ADD has changed nothing");
    // Nor has one that would have to be given something else: what the pod has is in use.
    let data_dir = lab.node(0).state_dir().join("cni");
    for other in [
        json!({ "ranges": [{ "subnet": "10.9.0.0/24" }] }),
        json!({ "runtimeConfig": { "ips": ["10.244.1.99"] } }),
    ] {
        assert_eq!(runtime.call("ADD", &a, other).unwrap_err()["code"], 103);
        let held = Ipam::peek(&data_dir, "seaway", &Owner::new("pod-a", "eth0")).unwrap();
        assert_eq!(held.addresses, addresses(&first));
    }
    runtime.del(&a);
    runtime.del(&a);
    assert!(check(&a).is_err());
    let second = runtime.add(&a);
    assert_ne!(addresses(&first), addresses(&second), "a freed address rests");
    // DEL works without the namespace, and after it is gone.
    let Sandbox { id, namespace, .. } = a;
    drop(namespace);
    let gone = Sandbox { id, namespace: Namespace::anonymous().unwrap(), netns: String::new() };
    runtime.del(&gone);
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
}

#[test]
fn check_finds_what_somebody_has_taken_away() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let a = Sandbox::new("pod-a");
    let result = runtime.add(&a);
    let check = || runtime.call("CHECK", &a, json!({ "prevResult": result }));
    assert_eq!(check(), Ok(Value::Null));
    let error = runtime.call("CHECK", &a, json!({})).unwrap_err();
    assert_eq!(error["code"], 7, "prevResult is needed: {error}");
    let mut inner = Netlink::open_in(&a.namespace).unwrap();
    let eth0 = inner.link("eth0").unwrap().unwrap();
    let mut outer = lab.node(0).netlink().unwrap();
    let query = RouteQuery { protocol: Some(ROUTE_PROTOCOL), ..RouteQuery::default() };
    let route = outer.routes(query).unwrap().remove(0);
    outer.delete_route(&route).unwrap();
    assert!(check().unwrap_err()["msg"].as_str().unwrap().contains("no route"));
    outer.add_route(&route).unwrap();
    let host = outer.link_by_index(eth0.peer.unwrap()).unwrap().unwrap();
    let says = |what: &str| {
        let error = check().unwrap_err();
        assert!(error["code"] == 102 && error["msg"].as_str().unwrap().contains(what), "{what}: {error}");
    };
    let set = |family: &str, key: &str, value: &str| {
        let key = format!("net/{family}/conf/{}/{key}", host.name);
        lab.node(0).run(|| sysctl::write(&key, value).unwrap());
    };
    for family in ["ipv4", "ipv6"] {
        set(family, "forwarding", "0");
        says("are not passed on");
        set(family, "forwarding", "1");
    }
    outer.set_mtu(host.index, 1300).unwrap();
    says("MTU 1450 is larger than 1300");
    inner.set_mtu(eth0.index, 1300).unwrap();
    assert_eq!(check(), Ok(Value::Null), "the agent lets both follow the way underneath");
    outer.set_mtu(host.index, 1450).unwrap();
    assert_eq!(check(), Ok(Value::Null), "a plugin after us may make the pod's smaller");
    outer.set_mac(host.index, Mac([2, 0, 0, 0, 0, 1])).unwrap();
    says("instead of ee:ee:ee:ee:ee:ee");
    outer.set_mac(host.index, HOST_MAC).unwrap();
    for gateway in ["169.254.1.1/32", "fe80::1/64"] {
        outer.delete_address(host.index, gateway.parse().unwrap()).unwrap();
        says("does not have the gateway's address");
        outer.add_silent_address(host.index, gateway.parse().unwrap()).unwrap();
        // With the last address of IPv4 its routes go as well.
        outer.replace_route(&route).unwrap();
    }
    let in_table = Route { table: 100, ..route.clone() };
    outer.delete_route(&route).unwrap();
    outer.add_route(&in_table).unwrap();
    says("no route");
    outer.add_route(&route).unwrap();
    assert_eq!(check(), Ok(Value::Null));
    let default = inner.routes(RouteQuery { link: Some(eth0.index), ..RouteQuery::default() }).unwrap();
    let default = default.into_iter().find(|route| route.gateway.is_some()).unwrap();
    inner.delete_route(&default).unwrap();
    says("no default route through");
    inner.add_route(&default).unwrap();
    a.namespace.run(|| sysctl::write("net/ipv6/conf/eth0/disable_ipv6", "1").unwrap()).unwrap();
    says("IPv6 is disabled");
    inner.delete_address(eth0.index, "10.244.1.1/32".parse().unwrap()).unwrap();
    assert!(check().unwrap_err()["msg"].as_str().unwrap().contains("address 10.244.1.1"));
    inner.set_down(eth0.index).unwrap();
    assert!(check().unwrap_err()["msg"].as_str().unwrap().contains("is down"));
}

#[test]
fn a_hundred_at_once_get_a_hundred_addresses_and_nothing_leaks() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let sandboxes: Vec<Sandbox> = (0..100).map(|number| Sandbox::new(&format!("pod-{number}"))).collect();
    let config = runtime.config.to_string();
    let start = |verb: &str| -> Vec<Result<Value, Value>> {
        let children: Vec<Child> =
            sandboxes.iter().map(|sandbox| runtime.start(verb, sandbox, config.as_bytes())).collect();
        children.into_iter().map(|child| outcome(child.wait_with_output().unwrap())).collect()
    };
    let results: Vec<Value> = start("ADD").into_iter().map(Result::unwrap).collect();
    let given: BTreeSet<IpAddr> = results.iter().flat_map(addresses).collect();
    assert_eq!(given.len(), 200);
    assert_eq!((runtime.held(), runtime.in_kernel()), (100, (100, 200)));
    for result in start("DEL") {
        result.unwrap();
    }
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
}

#[test]
fn a_plugin_that_is_killed_anywhere_is_mended_by_the_next_call() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &["10.244.1.0/29", "fd00:10:244:1::/125"]);
    let config = runtime.config.to_string();
    for microseconds in (0..6000).step_by(150) {
        let sandbox = Sandbox::new("pod-a");
        let mut child = runtime.start("ADD", &sandbox, config.as_bytes());
        std::thread::sleep(Duration::from_micros(microseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        // Either the runtime gives up, or it cleans up and tries again.
        if microseconds % 300 == 0 {
            runtime.del(&sandbox);
            let result = runtime.add(&sandbox);
            assert_eq!(runtime.call("CHECK", &sandbox, json!({ "prevResult": result })), Ok(Value::Null));
            assert_eq!((runtime.held(), runtime.in_kernel()), (1, (1, 2)));
        }
        runtime.del(&sandbox);
        assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
    }
}

#[test]
fn an_exhausted_range_is_named_and_leaves_nothing() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &["10.244.1.0/30", "fd00:10:244:1::/64"]);
    let sandboxes: Vec<Sandbox> = (0..3).map(|number| Sandbox::new(&format!("pod-{number}"))).collect();
    for (key, way) in [("ipv6/conf/all/forwarding", "0"), ("ipv4/ip_forward", "0")] {
        lab.node(0).run(|| sysctl::write(&format!("net/{key}"), way).unwrap());
        let error = runtime.call("STATUS", &sandboxes[0], json!({})).unwrap_err();
        assert_eq!(error["code"], 51, "{error}");
        lab.node(0).run(|| sysctl::write(&format!("net/{key}"), "1").unwrap());
    }
    let cut = runtime.call("STATUS", &sandboxes[0], json!({ "overlayDevice": "nowhere" })).unwrap_err();
    assert_eq!(cut["code"], 51, "{cut}");
    assert_eq!(runtime.call("STATUS", &sandboxes[0], json!({ "overlayDevice": "eth0" })), Ok(Value::Null));
    assert_eq!(runtime.call("STATUS", &sandboxes[0], json!({})), Ok(Value::Null));
    runtime.add(&sandboxes[0]);
    runtime.add(&sandboxes[1]);
    let error = runtime.call("ADD", &sandboxes[2], json!({})).unwrap_err();
    assert_eq!(error["code"], 100);
    assert!(
        error["msg"]
            .as_str()
            .unwrap()
            .contains("10.244.1.0/30: all 2 are held, by pod-0 (eth0), pod-1 (eth0)")
    );
    assert_eq!(runtime.call("STATUS", &sandboxes[0], json!({})).unwrap_err()["code"], 50);
    assert_eq!((runtime.held(), runtime.in_kernel()), (2, (2, 4)));
    // What is in no list is collected; without a list nothing is.
    runtime.call("GC", &sandboxes[0], json!({})).unwrap();
    assert_eq!(runtime.held(), 2);
    let valid = json!([{ "containerID": "pod-1", "ifname": "eth0" }]);
    runtime.call("GC", &sandboxes[0], json!({ "cni.dev/valid-attachments": valid })).unwrap();
    assert_eq!((runtime.held(), runtime.in_kernel()), (1, (1, 2)));
    runtime.call("GC", &sandboxes[0], json!({ "cni.dev/valid-attachments": [] })).unwrap();
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
}

#[test]
fn several_ranges_serve_one_after_the_other_and_the_runtime_may_name_others() {
    let lab = Lab::new(1).unwrap();
    let ranges = ["10.244.1.0/30", "fd00:10:244:1::/64", "10.244.9.0/30"];
    let runtime = Runtime::new(lab.node(0), &ranges);
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        lab.node(0).run(|| sysctl::write(key, "1").unwrap());
    }
    let sandboxes: Vec<Sandbox> = (0..6).map(|number| Sandbox::new(&format!("pod-{number}"))).collect();
    let given: Vec<String> =
        sandboxes[..4].iter().map(|sandbox| addresses(&runtime.add(sandbox))[0].to_string()).collect();
    assert_eq!(given, ["10.244.1.1", "10.244.1.2", "10.244.9.1", "10.244.9.2"]);
    let error = runtime.call("ADD", &sandboxes[4], json!({})).unwrap_err();
    let message = error["msg"].as_str().unwrap();
    assert!(message.contains("10.244.1.0/30, 10.244.9.0/30: all 4 are held, by pod-0 (eth0)"), "{message}");
    assert_eq!(runtime.call("STATUS", &sandboxes[4], json!({})).unwrap_err()["code"], 50);
    let others = json!({ "ipRanges": [[{ "subnet": "10.99.0.0/24", "rangeStart": "10.99.0.9" }]] });
    let result = runtime.call("ADD", &sandboxes[5], json!({ "runtimeConfig": others })).unwrap();
    assert_eq!(addresses(&result), ["10.99.0.9".parse::<IpAddr>().unwrap()]);
    // Whichever of the ranges an address is from, it comes back.
    runtime.del(&sandboxes[2]);
    assert_eq!(addresses(&runtime.add(&sandboxes[4]))[0].to_string(), "10.244.9.1");
    assert_eq!((runtime.held(), runtime.in_kernel()), (5, (5, 9)));
}

#[test]
fn a_reboot_frees_what_it_ended() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &["10.244.1.0/30"]);
    lab.node(0).run(|| sysctl::write("net/ipv4/ip_forward", "1").unwrap());
    let boot = lab.node(0).state_dir().join("cni/seaway/boot");
    let this = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for round in 0..3 {
        let pods = [0, 1].map(|number| Sandbox::new(&format!("pod-{round}-{number}")));
        let given: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| addresses(&runtime.add(pod))).collect();
        assert_eq!((given.len(), runtime.held()), (2, 2));
        assert_eq!(runtime.call("STATUS", &pods[0], json!({})).unwrap_err()["code"], 50);
        assert_eq!(std::fs::read_to_string(&boot).unwrap().trim(), this.trim());
        // Pods end with the boot, and without DEL: what was written is of another boot than the next.
        drop(pods);
        wait_for(Duration::from_secs(20), "the links to go", || runtime.in_kernel() == (0, 0));
        assert_eq!(runtime.held(), 2);
        std::fs::write(&boot, "another boot").unwrap();
        assert_eq!(runtime.call("STATUS", &Sandbox::new("pod"), json!({})), Ok(Value::Null));
        assert_eq!(runtime.held(), 0);
    }
}

#[test]
fn the_own_namespace_is_a_containers_only_if_the_runtime_insists() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let own = format!("/run/netns/{}-node1", lab.run_name());
    let code = |verb: &str, insists: &str| {
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "pod"),
            ("CNI_NETNS", &own),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/"),
            ("CNI_NETNS_OVERRIDE", insists),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let environment = Environment::from_map(&HashMap::from(variables));
        let outcome = lab.node(0).run(|| call(&environment, runtime.config.to_string().as_bytes()));
        outcome.map_or_else(|error| error.to_json()["code"].as_u64(), |_| None)
    };
    for insists in ["", "0", "false"] {
        assert_eq!((code("ADD", insists), code("DEL", insists)), (Some(8), Some(8)), "{insists:?}");
    }
    for insists in ["1", "true"] {
        // It goes on, and finds the node's own link of that name.
        assert_eq!((code("ADD", insists), code("DEL", insists)), (Some(103), None), "{insists:?}");
    }
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
    assert!(lab.node(0).netlink().unwrap().link("eth0").unwrap().unwrap().up, "the node's own link stays");
}

#[test]
fn bad_input_gets_its_code_and_changes_nothing() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let a = Sandbox::new("pod-a");
    let raw = |stdin: &[u8]| {
        let output = runtime.start("ADD", &a, stdin).wait_with_output().unwrap();
        outcome(output).unwrap_err()["code"].as_u64().unwrap()
    };
    assert_eq!(raw(b""), 6);
    assert_eq!(raw(b"\xff\xfe{"), 6);
    assert_eq!(raw(&vec![b'['; 5 << 20]), 6);
    assert_eq!(raw(b"{}"), 7);
    let code =
        |verb: &str, extra: Value| runtime.call(verb, &a, extra).unwrap_err()["code"].as_u64().unwrap();
    assert_eq!(code("ADD", json!({ "cniVersion": "2.0.0" })), 1);
    assert_eq!(code("CHECK", json!({ "cniVersion": "0.3.1" })), 1);
    assert_eq!(code("GC", json!({ "cniVersion": "1.0.0" })), 1);
    assert_eq!(code("ADD", json!({ "name": "" })), 7);
    assert_eq!(code("ADD", json!({ "ranges": [] })), 7);
    assert_eq!(code("ADD", json!({ "ipam": { "type": "host-local" } })), 2);
    assert_eq!(code("ADD", json!({ "dataDir": "/proc/nowhere" })), 5);
    assert_eq!(code("NONSENSE", json!({})), 4);
    let own = format!("/run/netns/{}-node1", lab.run_name());
    for netns in [own.as_str(), "/nowhere", "/etc/passwd"] {
        let there = Sandbox {
            id: "a".to_owned(),
            namespace: Namespace::anonymous().unwrap(),
            netns: netns.to_owned(),
        };
        let error = runtime.call("ADD", &there, json!({})).unwrap_err();
        assert_eq!(error["code"], 8, "{error}");
    }
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
    assert!(Netlink::open_in(&a.namespace).unwrap().link("eth0").unwrap().is_none());
}

#[test]
fn versions_and_earlier_results_are_passed_on() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let a = Sandbox::new("pod-a");
        let before = json!({ "cniVersion": version, "interfaces": [{ "name": "x" }], "foreign": [1] });
        let result = runtime.call("ADD", &a, json!({ "cniVersion": version, "prevResult": before })).unwrap();
        assert_eq!((&result["cniVersion"], &result["foreign"]), (&json!(version), &json!([1])));
        assert_eq!(
            (&result["interfaces"][0]["name"], &result["ips"][0]["interface"]),
            (&json!("x"), &json!(2))
        );
        runtime.call("DEL", &a, json!({ "cniVersion": version, "prevResult": result })).unwrap();
    }
    let a = Sandbox::new("pod-a");
    let answer = runtime.call("VERSION", &a, json!({})).unwrap();
    assert_eq!(answer["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    assert_eq!(runtime.held(), 0);
}

/// What a runtime must not do, and does when it gives up a call that goes on.
#[test]
fn two_calls_for_one_container_do_not_take_from_each_other() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let config = runtime.config.to_string();
    let together = |pod: &Sandbox, verbs: [&str; 2]| {
        let children = verbs.map(|verb| runtime.start(verb, pod, config.as_bytes()));
        children.map(|child| outcome(child.wait_with_output().unwrap()))
    };
    for number in 0..30 {
        let pod = Sandbox::new(&format!("pod-{number}"));
        let [one, two] = together(&pod, ["ADD", "ADD"]);
        let (added, refused) = match (one, two) {
            (Ok(added), Err(refused)) | (Err(refused), Ok(added)) => (added, refused),
            both => panic!("one of them, not {both:?}"),
        };
        assert_eq!(refused["code"], 103, "{refused}");
        assert_eq!((runtime.held(), runtime.in_kernel()), (1, (1, 2)));
        assert_eq!(runtime.call("CHECK", &pod, json!({ "prevResult": added })), Ok(Value::Null));
        runtime.del(&pod);
        let [added, deleted] = together(&pod, ["ADD", "DEL"]);
        deleted.unwrap();
        // One after the other, whichever comes first.
        let (held, (links, _)) = (runtime.held(), runtime.in_kernel());
        assert_eq!(held, links, "{added:?}");
        runtime.del(&pod);
        assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
    }
}

#[test]
fn add_waits_for_the_nodes_agent_after_a_boot_and_the_rest_does_not() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        lab.node(0).run(|| sysctl::write(key, "1").unwrap());
    }
    let (mark, pod) = (lab.node(0).state_dir().join("ready"), Sandbox::new("pod"));
    let config = || json!({ "readyFile": mark, "cni.dev/valid-attachments": [] });
    std::fs::write(&mark, "another boot").unwrap();
    let status = runtime.call("STATUS", &pod, config()).unwrap_err();
    assert!(status["code"] == 50 && status["msg"].as_str().unwrap().contains("since the boot"), "{status}");
    let mut all = runtime.config.clone();
    all["readyFile"] = json!(mark);
    let mut waiting = runtime.start("ADD", &pod, all.to_string().as_bytes());
    runtime.call("DEL", &Sandbox::new("other"), config()).unwrap();
    runtime.call("GC", &pod, config()).unwrap();
    assert!(waiting.try_wait().unwrap().is_none(), "it waits");
    let done = lab.node(0).run(|| ready::mark().unwrap());
    std::fs::write(&mark, done).unwrap();
    outcome(waiting.wait_with_output().unwrap()).unwrap();
    assert_eq!(runtime.call("STATUS", &pod, config()), Ok(Value::Null));
    runtime.call("DEL", &pod, config()).unwrap();
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
}

/// A runtime calls DEL with the very configuration that ADD could not use. It would do so for ever.
#[test]
fn what_add_cannot_use_del_and_gc_do_without() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let pod = Sandbox::new("pod");
    for wrong in [
        json!({ "runtimeConfig": { "mac": "zz" } }),
        json!({ "runtimeConfig": { "portMappings": [{ "containerPort": 1, "protocol": "x" }] } }),
        json!({ "runtimeConfig": { "bandwidth": { "ingressRate": -1 } } }),
        json!({ "runtimeConfig": 7 }),
        json!({ "ranges": [{ "subnet": "10.0.0.0/33" }] }),
        json!({ "mtu": "large" }),
        json!({ "args": { "cni": { "ips": ["x"] } } }),
        json!({ "prevResult": { "interfaces": 7 } }),
    ] {
        let error = runtime.call("ADD", &pod, wrong.clone()).unwrap_err();
        assert!(error["code"] == 6 || error["code"] == 7, "{wrong}: {error}");
        assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
        assert_eq!(runtime.call("DEL", &pod, wrong.clone()), Ok(Value::Null), "{wrong}");
        // Nor does it keep what is there from going.
        runtime.add(&pod);
        assert_eq!(runtime.call("DEL", &pod, wrong.clone()), Ok(Value::Null), "{wrong}");
        assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
        runtime.add(&pod);
        let mut collect = wrong;
        collect["cni.dev/valid-attachments"] = json!([]);
        assert_eq!(runtime.call("GC", &pod, collect), Ok(Value::Null));
        assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
    }
}

#[test]
fn no_path_in_the_place_of_a_namespace_is_waited_for() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let pipe = lab.node(0).state_dir().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for netns in [pipe.to_str().unwrap(), "/dev/zero", "/proc/self/ns/uts", "/proc/self/ns/mnt", "/"] {
        let pod = Sandbox { netns: netns.to_owned(), ..Sandbox::new("pod") };
        let error = runtime.call("ADD", &pod, json!({})).unwrap_err();
        assert_eq!(error["code"], 8, "{netns}: {error}");
        runtime.del(&pod);
    }
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
}

#[test]
fn no_name_of_a_network_is_in_the_way_of_another() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let pod = Sandbox::new("pod");
    for name in ["retired.lock", "ready", "lock", "boot", "owners", &"n".repeat(200)] {
        let named = json!({ "name": name });
        runtime.call("ADD", &pod, named.clone()).unwrap();
        runtime.call("DEL", &pod, named).unwrap();
        runtime.add(&pod);
        runtime.del(&pod);
    }
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
}

/// A file system that ends with this value.
struct Small(std::path::PathBuf);

impl Small {
    fn at(path: std::path::PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&path);
        assert!(mount.status().unwrap().success());
        Self(path)
    }

    fn remount(&self, mode: &str) {
        let remounted = || {
            let mut mount = std::process::Command::new("mount");
            mount.args(["-o", &format!("remount,{mode}")]).arg(&self.0).stderr(std::process::Stdio::null());
            mount.status().unwrap().success()
        };
        // Whoever deletes links has to be through.
        wait_for(Duration::from_secs(20), "the other mode", remounted);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Whoever deletes links may be at work in it.
        drop(std::process::Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_is_told_beforehand_and_keeps_nobody_from_going() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let small = Small::at(lab.node(0).state_dir().join("cni"));
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        lab.node(0).run(|| sysctl::write(key, "1").unwrap());
    }
    let (first, second) = (Sandbox::new("first"), Sandbox::new("second"));
    let status = || runtime.call("STATUS", &second, json!({}));
    runtime.add(&first);
    assert_eq!(status(), Ok(Value::Null));
    let full = small.0.join("full");
    assert!(std::fs::write(&full, vec![0; 64 << 10]).is_err());
    let error = status().unwrap_err();
    assert!(error["code"] == 50 && error["details"].as_str().unwrap().contains("No space left"), "{error}");
    assert_eq!(runtime.call("ADD", &second, json!({})).unwrap_err()["code"], 5);
    assert_eq!((runtime.held(), runtime.in_kernel()), (1, (1, 2)));
    runtime.del(&second);
    runtime.del(&first);
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
    std::fs::remove_file(&full).unwrap();
    assert_eq!(status(), Ok(Value::Null));
    runtime.add(&second);
    // Where nothing can be written at all, DEL cuts the pod off, and the addresses are for later.
    small.remount("ro");
    assert_eq!(status().unwrap_err()["code"], 50);
    runtime.del(&second);
    assert_eq!((runtime.held(), runtime.retired()), (1, 1));
    small.remount("rw");
    runtime.del(&second);
    assert_eq!((runtime.held(), runtime.in_kernel()), (0, (0, 0)));
}
