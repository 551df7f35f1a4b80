//! The store against sequences of events.

use proptest::prelude::*;
use seaway_model::{Endpoint, Family};

use super::*;

fn service(name: &str) -> Arc<Service> {
    Arc::new(Service::new(ServiceKey::new("default", name)))
}

fn slice(name: &str, service: &str, addrs: &[&str]) -> Arc<EndpointSlice> {
    Arc::new(EndpointSlice {
        namespace: "default".into(),
        name: name.into(),
        service: ServiceKey::new("default", service),
        family: Family::V4,
        endpoints: addrs.iter().map(|addr| Endpoint::new(addr.parse().unwrap(), Arc::from([]))).collect(),
    })
}

fn key(name: &str) -> ObjectKey {
    ("default".into(), name.into())
}

fn put_slice(store: &mut Store, slice: Arc<EndpointSlice>) {
    store.apply(Event::Slice(Change::Applied((slice, None))));
}

fn list_services(store: &mut Store, names: &[&str]) {
    store.apply(Event::Service(Change::ListBegins));
    for name in names {
        store.apply(Event::Service(Change::Listed(service(name))));
    }
    store.apply(Event::Service(Change::ListEnds));
}

fn sync(store: &mut Store) {
    list_services(store, &[]);
    store.apply(Event::Slice(Change::ListBegins));
    store.apply(Event::Slice(Change::ListEnds));
    store.apply(Event::Node(Change::ListBegins));
    store.apply(Event::Node(Change::ListEnds));
}

fn addrs(snapshot: &Snapshot, service: &str) -> Option<Vec<String>> {
    let set = snapshot.endpoints.get(&ServiceKey::new("default", service))?;
    Some(set.endpoints.iter().map(|e| e.addr.to_string()).collect())
}

#[test]
fn synced_only_when_every_list_is_complete() {
    let mut store = Store::default();
    list_services(&mut store, &["web"]);
    assert!(!store.publish().unwrap().synced);
    store.apply(Event::Slice(Change::ListBegins));
    store.apply(Event::Slice(Change::ListEnds));
    assert!(store.publish().is_none());
    store.apply(Event::Node(Change::ListBegins));
    store.apply(Event::Node(Change::ListEnds));
    let snapshot = store.publish().unwrap();
    assert!(snapshot.synced);
    assert_eq!(snapshot.version, 2);
}

#[test]
fn a_relist_swaps_at_its_end() {
    let mut store = Store::default();
    sync(&mut store);
    list_services(&mut store, &["gone", "stays"]);
    let before = store.publish().unwrap();
    store.apply(Event::Service(Change::ListBegins));
    store.apply(Event::Service(Change::Listed(service("stays"))));
    store.apply(Event::Service(Change::Listed(service("new"))));
    assert!(store.publish().is_none(), "nothing vanishes while the list comes in");
    store.apply(Event::Service(Change::ListEnds));
    let after = store.publish().unwrap();
    assert!(after.synced);
    let names: Vec<&str> = after.services.keys().map(|key| &*key.name).collect();
    assert_eq!(names, ["new", "stays"]);
    let stays = ServiceKey::new("default", "stays");
    assert!(Arc::ptr_eq(&before.services[&stays], &after.services[&stays]));
}

#[test]
fn a_list_that_breaks_off_is_forgotten() {
    let mut store = Store::default();
    list_services(&mut store, &["web"]);
    store.publish();
    store.apply(Event::Service(Change::ListBegins));
    store.apply(Event::Service(Change::Listed(service("half"))));
    list_services(&mut store, &["web"]);
    assert!(store.publish().is_none());
}

#[test]
fn what_stays_the_same_is_not_published() {
    let mut store = Store::default();
    store.apply(Event::Service(Change::Applied(service("web"))));
    assert!(store.publish().is_some());
    store.apply(Event::Service(Change::Applied(service("web"))));
    assert!(store.publish().is_none());
}

#[test]
fn slices_of_a_service_are_joined() {
    let mut store = Store::default();
    put_slice(&mut store, slice("web-1", "web", &["10.0.0.1"]));
    put_slice(&mut store, slice("web-2", "web", &["10.0.0.2"]));
    assert_eq!(addrs(&store.publish().unwrap(), "web").unwrap(), ["10.0.0.1", "10.0.0.2"]);
    store.apply(Event::Slice(Change::Deleted(key("web-1"))));
    assert_eq!(addrs(&store.publish().unwrap(), "web").unwrap(), ["10.0.0.2"]);
    store.apply(Event::Slice(Change::Deleted(key("web-2"))));
    assert_eq!(addrs(&store.publish().unwrap(), "web"), None);
}

#[test]
fn a_slice_may_change_its_service() {
    let mut store = Store::default();
    put_slice(&mut store, slice("s", "old", &["10.0.0.1"]));
    put_slice(&mut store, slice("s", "new", &["10.0.0.1"]));
    let snapshot = store.publish().unwrap();
    assert_eq!(addrs(&snapshot, "old"), None);
    assert_eq!(addrs(&snapshot, "new").unwrap(), ["10.0.0.1"]);
}

#[test]
fn the_oldest_trigger_is_shown_once() {
    let mut store = Store::default();
    let at = |seconds| Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds));
    store.apply(Event::Slice(Change::Applied((slice("a", "a", &["10.0.0.1"]), at(9)))));
    store.apply(Event::Slice(Change::Applied((slice("b", "b", &["10.0.0.2"]), at(5)))));
    assert_eq!(store.publish().unwrap().triggered_at, at(5));
    put_slice(&mut store, slice("c", "c", &["10.0.0.3"]));
    assert_eq!(store.publish().unwrap().triggered_at, None);
}

proptest! {
    /// Events of different objects may arrive in any order; the slices of a Service, too.
    #[test]
    fn order_does_not_matter(order in Just((0..6_usize).collect::<Vec<_>>()).prop_shuffle()) {
        let run = |order: &[usize]| {
            let mut store = Store::default();
            for step in order {
                match step {
                    0 => store.apply(Event::Service(Change::Applied(service("web")))),
                    1 => store.apply(Event::Service(Change::Applied(service("api")))),
                    2 => put_slice(&mut store, slice("web-1", "web", &["10.0.0.1", "10.0.0.2"])),
                    3 => put_slice(&mut store, slice("web-2", "web", &["10.0.0.2", "10.0.0.3"])),
                    4 => put_slice(&mut store, slice("api-1", "api", &["10.0.0.9"])),
                    _ => store.apply(Event::Service(Change::Deleted(key("never-was")))),
                }
            }
            store.publish().unwrap()
        };
        let sorted: Vec<usize> = (0..6).collect();
        prop_assert_eq!(run(&sorted).changes_since(&run(&order)), seaway_model::Changes::default());
    }
}

#[test]
fn pods_and_namespaces_are_waited_for_where_they_were_asked_for() {
    let mut store = Store::waiting_for(true, true);
    sync(&mut store);
    assert!(store.publish().is_none(), "pods and namespaces are still to come");
    store.apply(Event::PodsDenied);
    assert!(store.publish().is_none());
    store.apply(Event::Namespace(Change::ListBegins));
    store.apply(Event::Namespace(Change::Listed("default".into())));
    store.apply(Event::Namespace(Change::ListEnds));
    let snapshot = store.publish().unwrap();
    assert!(snapshot.synced && snapshot.namespaces.contains("default"));
    store.apply(Event::Namespace(Change::Deleted(("".into(), "default".into()))));
    assert!(store.publish().unwrap().namespaces.is_empty());
}

#[test]
fn an_address_belongs_to_the_pod_that_had_it_last() {
    let pod = |name: &str, addr: &str| {
        Arc::new(HostPod {
            pod: TargetPod { namespace: "default".into(), name: name.into() },
            uid: "u".into(),
            addrs: vec![addr.parse().unwrap()],
            ports: Vec::new(),
        })
    };
    let owner = |store: &mut Store, addr: &str| {
        let addr: IpAddr = addr.parse().unwrap();
        store.snapshot.pods.get(&addr).map(|pod| pod.name.to_string())
    };
    let mut store = Store::waiting_for(true, false);
    store.apply(Event::Pod(Change::Applied(pod("old", "10.0.0.1"))));
    store.apply(Event::Pod(Change::Applied(pod("new", "10.0.0.1"))));
    store.apply(Event::Pod(Change::Deleted(key("old"))));
    assert_eq!(owner(&mut store, "10.0.0.1").as_deref(), Some("new"));
    assert!(store.snapshot.host_pods.is_empty(), "it has no host ports");
    store.apply(Event::Pod(Change::Applied(pod("new", "10.0.0.2"))));
    assert_eq!(owner(&mut store, "10.0.0.1"), None);
    assert_eq!(owner(&mut store, "10.0.0.2").as_deref(), Some("new"));
    store.apply(Event::Pod(Change::ListBegins));
    store.apply(Event::Pod(Change::Listed(pod("other", "10.0.0.3"))));
    store.apply(Event::Pod(Change::ListEnds));
    assert_eq!(owner(&mut store, "10.0.0.2"), None);
    assert_eq!(owner(&mut store, "10.0.0.3").as_deref(), Some("other"));
}
