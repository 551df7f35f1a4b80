//! DEL answers before the links are gone. Who deletes them, and what is there in the meantime.
#![allow(clippy::unwrap_used, reason = "test helpers")]

#[path = "support/runtime.rs"]
mod runtime;

use std::path::Path;

use runtime::{BOTH, Runtime, Sandbox, addresses};
use seaway_cni_network::netlink::{Netlink, RouteQuery};
use seaway_cni_network::pod::ROUTE_PROTOCOL;
use seaway_cni_network::pod::retired::Undertaker;
use seaway_lab::{Lab, tcp_exchange};
use serde_json::{Value, json};

/// What an agent has that does not come to its work.
fn busy(runtime: &Runtime<'_>) -> Undertaker {
    let data_dir = Path::new(runtime.config["dataDir"].as_str().unwrap());
    Undertaker::appoint(data_dir).unwrap().unwrap()
}

fn routes_to_pods(runtime: &Runtime<'_>) -> usize {
    let query = RouteQuery { protocol: Some(ROUTE_PROTOCOL), ..RouteQuery::default() };
    runtime.node.netlink().unwrap().routes(query).unwrap().len()
}

#[test]
fn what_is_left_for_later_leads_nowhere_and_is_in_nobodys_way() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let agent = busy(&runtime);
    let (a, b) = (Sandbox::new("pod-a"), Sandbox::new("pod-b"));
    let first = addresses(&runtime.add(&a));
    runtime.add(&b);
    runtime.del(&a);
    assert_eq!((runtime.held(), runtime.retired(), routes_to_pods(&runtime)), (1, 1, 2));
    // The pod can no longer speak as somebody.
    let mut inner = Netlink::open_in(&a.namespace).unwrap();
    let eth0 = inner.link("eth0").unwrap().unwrap();
    assert_eq!(inner.addresses(Some(eth0.index)).unwrap(), []);
    assert!(tcp_exchange(lab.node(0).namespace(), &a.namespace, first[0], 10).is_err());
    // The same again, before the link is gone.
    runtime.del(&a);
    let second = runtime.add(&a);
    assert_ne!(addresses(&second), first);
    assert_eq!(runtime.call("CHECK", &a, json!({ "prevResult": second })), Ok(Value::Null));
    tcp_exchange(lab.node(0).namespace(), &a.namespace, addresses(&second)[0], 10).unwrap();
    runtime.del(&a);
    runtime.del(&b);
    assert_eq!((runtime.held(), runtime.retired(), routes_to_pods(&runtime)), (0, 2, 0));
    // The agent is killed: the next call finds nobody to leave it to.
    drop(agent);
    runtime.del(&b);
    assert_eq!(runtime.in_kernel(), (0, 0));
}

/// A runtime may keep a namespace and give it to another container as soon as DEL has answered.
#[test]
fn another_container_follows_at_once_in_the_same_namespace() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let _agent = busy(&runtime);
    let mut pod = Sandbox::new("pod-a");
    for next in ["pod-b", "pod-c"] {
        runtime.add(&pod);
        // While it is in use, it is nobody else's.
        let former = std::mem::replace(&mut pod.id, next.to_owned());
        let refused = runtime.call("ADD", &pod, json!({})).unwrap_err();
        assert!(refused.to_string().contains("interface eth0 exists"), "{refused}");
        pod.id = former;
        runtime.del(&pod);
        assert_eq!((runtime.held(), runtime.retired()), (0, 1));
        next.clone_into(&mut pod.id);
    }
    let given = runtime.add(&pod);
    assert_eq!(runtime.call("CHECK", &pod, json!({ "prevResult": given })), Ok(Value::Null));
    tcp_exchange(lab.node(0).namespace(), &pod.namespace, addresses(&given)[0], 10).unwrap();
    runtime.del(&pod);
    assert_eq!((runtime.held(), routes_to_pods(&runtime)), (0, 0));
}

#[test]
fn collection_takes_what_is_left_for_later() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let _agent = busy(&runtime);
    let (a, b) = (Sandbox::new("pod-a"), Sandbox::new("pod-b"));
    runtime.add(&a);
    runtime.add(&b);
    runtime.del(&a);
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "pod-b", "ifname": "eth0" }] });
    runtime.call("GC", &b, valid).unwrap();
    assert_eq!((runtime.retired(), runtime.held(), runtime.in_kernel()), (0, 1, (1, 2)));
}

#[test]
fn the_end_of_the_namespace_takes_it() {
    let lab = Lab::new(1).unwrap();
    let runtime = Runtime::new(lab.node(0), &BOTH);
    let _agent = busy(&runtime);
    let a = Sandbox::new("pod-a");
    runtime.add(&a);
    runtime.del(&a);
    assert_eq!(runtime.retired(), 1);
    drop(a);
    assert_eq!(runtime.in_kernel(), (0, 0));
}
