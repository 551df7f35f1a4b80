//! Settings from a file: what both kinds of files say comes out, mistakes are named by their lines, and a running server takes
//! a new file over without losing a question, and a wrong one not at all.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/resolver.rs"]
mod resolver;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use resolver::{Behaviour, Resolver};
use seaway_dns::{DnsConfig, Metrics, PodsWanted, Server, Watched};
use seaway_model::Snapshot;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn config(file: PathBuf) -> DnsConfig {
    DnsConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        sockets: 1,
        file: Some(file),
        forward_attempt_timeout: Duration::from_millis(300),
        forward_timeout: Duration::from_millis(1000),
        drain_quiet: Duration::from_millis(20),
        ..DnsConfig::default()
    }
}

fn refusal(name: &str, text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), name, text);
    let error = Server::bind(&config(path)).map(drop).unwrap_err();
    error.to_string().replace(&dir.path().display().to_string(), "DIR")
}

#[test]
fn mistakes_in_toml_are_named_line_by_line() {
    let text = r#"[cluster]
ttl = 4000
pods = "all"
colour = "blue"

[[zone]]
name = "example.org"
[zone.forward]
policy = "fastest"
max-fails = "two"

[[zone]]
[zone.cache]
ttl-max = "5x"

[[zone]]
name = "example.org"
forward = { to = ["192.0.2.300"] }
[zone.hosts]
"db.example.org" = ["192.0.2.1", "here"]

[surprise]
"#;
    expect_test::expect![[r#"
        the settings in DIR/dns.toml are refused:
          line 2: want a number from 0 to 3600
          line 3: "all": want disabled, insecure or verified
          line 4: unknown key "colour": want one of zone, ttl, pods, reverse, fallthrough, namespaces, ignore-empty-services, zonal, autopath, search
          line 8: forward needs "to", a list of resolvers
          line 9: "fastest": want sequential, round_robin or random
          line 10: want a number from 0 to 1000
          line 12: a zone needs a name, "." for everything
          line 16: the zone example.org. is there twice
          line 18: "192.0.2.300" is no address of a resolver (an IP, with or without a port)
          line 20: "here" is no IP address
          line 22: unknown key "surprise": want one of cluster, limits, zone"#]]
    .assert_eq(&refusal("dns.toml", text));
    assert!(refusal("dns.toml", "[cluster\nttl = 5\n").contains("line 1: "));
    let forward = |more: &str| format!("[[zone]]\nname = \".\"\nlog = \"some\"\nforward = {{ {more} }}\n");
    let text = forward(
        "to = [], health-check = 0, attempt-timeout = \"0s\", timeout = 0, tls-server-name = \"a b\"",
    );
    expect_test::expect![[r#"
        the settings in DIR/dns.toml are refused:
          line 3: "some": want success, denial, error or all
          line 4: "a b" is no name of a server
          line 4: want more than nothing
          line 4: want more than nothing
          line 4: want more than nothing
          line 4: want one resolver at least"#]]
    .assert_eq(&refusal("dns.toml", &text));
}

/// The example is the reference: it is read, and no key is missing.
#[test]
fn the_example_has_every_key() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("settings.example.toml");
    Server::bind(&config(example.clone())).unwrap();
    let example = std::fs::read_to_string(example).unwrap();
    let text = r#"x = 1
[cluster]
x = 1
[limits]
x = 1
[[zone]]
name = "."
x = 1
forward = { to = "192.0.2.1", x = 1 }
cache = { x = 1, prefetch = { x = 1 }, serve-stale = { x = 1 } }
rewrite = [{ x = 1, from = "a", to = "b" }]
answer = [{ x = 1 }]
"#;
    let known: Vec<String> = refusal("dns.toml", text)
        .lines()
        .filter_map(|line| line.split_once("want one of ").map(|(_, keys)| keys.to_owned()))
        .collect();
    assert_eq!(known.len(), 10);
    for key in known.iter().flat_map(|keys| keys.split(", ")) {
        let forms = [format!("{key} = "), format!("[{key}]"), format!("zone.{key}]")];
        assert!(forms.iter().any(|form| example.contains(form)), "{key}");
    }
}

#[test]
fn mistakes_in_a_corefile_are_named_line_by_line() {
    let text = ".:53 {
    errors
    kubernetes cluster.local {
        pods some
        endpoint https://192.0.2.1
    }
    etcd {
        path /skydns
    }
    forward . 192.0.2.1 https://192.0.2.2 {
        policy best
        next NXDOMAIN
    }
    cache 30
    cache 30
    rewrite name infix (.*) x
    template IN ANY example.org {
        answer \"{{ .Name }} 60 IN A 192.0.2.1\"
        match [
    }
}
example.org {
    forward . 192.0.2.1
";
    expect_test::expect![[r#"
        the settings in DIR/Corefile are refused:
          line 4: "some": want disabled, insecure or verified
          line 5: the option of kubernetes "endpoint" is not supported
          line 7: the plugin "etcd" is not supported
          line 10: "https://192.0.2.2": "https" is not supported, want tls:// or nothing
          line 11: "best": want sequential, round_robin or random
          line 12: the option of forward "next" is not supported
          line 15: "cache" is there twice
          line 16: "infix": want exact, prefix, suffix, substring or regex
          line 18: the option of template "answer" is not supported
          line 19: "[" is no regular expression
          line 23: a brace is missing"#]]
    .assert_eq(&refusal("Corefile", text));
    assert!(refusal("Corefile", "").contains("the file is empty"));
}

struct Running {
    address: SocketAddr,
    metrics: Metrics,
    registry: prometheus::Registry,
    shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn start(config: &DnsConfig) -> Running {
    let server = Server::bind(config).unwrap();
    let address = server.local_addrs()[0];
    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    let text =
        "service shop/web cluster 10.96.0.1 ports http/tcp/80\npod shop/client 127.0.0.1\nnamespace shop";
    let (writer, snapshots) = watch::channel(Arc::new(cluster::snapshot(text)));
    let shutdown = CancellationToken::new();
    tokio::spawn(server.serve(snapshots, metrics.clone(), shutdown.clone()));
    drop(writer);
    Running { address, metrics, registry, shutdown }
}

/// The answer as text: its code, and the data of the answer section.
async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> String {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = vec![0; 4096];
    let Ok(received) = timeout(Duration::from_secs(3), socket.recv(&mut buffer)).await else {
        return "nothing".to_owned();
    };
    let answer = Message::from_vec(&buffer[..received.unwrap()]).unwrap();
    let data = answer.answers.iter().map(|record| format!(" {} {}", record.name, record.data));
    format!("{:?}{}", answer.metadata.response_code, data.collect::<String>())
}

#[tokio::test]
async fn what_a_toml_file_says_holds() {
    let (one, two) = (Resolver::start(Behaviour::Answer).await, Resolver::start(Behaviour::Answer).await);
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        r#"[limits]
queries-per-second-per-source = 100000
[cluster]
pods = "verified"
search = ["corp.example"]
[[zone]]
name = "."
forward = {{ to = ["{}"], except = ["never.example"] }}
[zone.hosts]
"db.example" = ["192.0.2.7", "2001:db8::7"]
[[zone.rewrite]]
from = "shop.example"
to = "web.shop.svc.cluster.local"
[[zone.answer]]
names-in = ["ads.example"]
code = "NXDOMAIN"
[[zone.answer]]
names-like = ["^ads[0-9]+[.]"]
code = "REFUSED"
[[zone]]
name = "corp.example"
forward = {{ to = ["{}"], policy = "round_robin" }}
"#,
        one.address, two.address
    );
    let running = start(&config(file(dir.path(), "dns.toml", &text)));
    let ask = async |name: &str, kind| ask(running.address, name, kind).await;
    assert_eq!(ask("www.example.", RecordType::A).await, "NoError www.example. 192.0.2.1");
    assert_eq!((one.asked(), two.asked()), (1, 0));
    assert_eq!(ask("www.corp.example.", RecordType::A).await, "NoError www.corp.example. 192.0.2.1");
    assert_eq!((one.asked(), two.asked()), (1, 1));
    assert_eq!(ask("db.example.", RecordType::AAAA).await, "NoError db.example. 2001:db8::7");
    assert_eq!(ask("Shop.example.", RecordType::A).await, "NoError Shop.example. 10.96.0.1");
    assert_eq!(ask("x.ads.example.", RecordType::A).await, "NXDomain");
    assert_eq!(ask("x.never.example.", RecordType::A).await, "Refused");
    assert_eq!(ask("ads7.example.", RecordType::A).await, "Refused");
    let pod = "127-0-0-1.shop.pod.cluster.local.";
    assert_eq!(ask(pod, RecordType::A).await, format!("NoError {pod} 127.0.0.1"));
}

/// Names that a Corefile gives a code, and those that it leaves to others.
#[tokio::test]
async fn codes_that_a_corefile_gives_hold() {
    let one = Resolver::start(Behaviour::Answer).await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        ".:53 {{
    template ANY ANY cluster.local.cluster.local {{
       rcode NXDOMAIN
    }}
    template ANY A {{
       match ^[^.]+[.]search[.]example[.]$ [.]local[.]example[.]$
       rcode NXDOMAIN
       fallthrough
    }}
    template ANY AAAA only.example {{
       match ^never$
       rcode NXDOMAIN
       fallthrough through.only.example
    }}
    template IN AAAA six.example
    forward . {}
}}
",
        one.address
    );
    let running = start(&config(file(dir.path(), "Corefile", &text)));
    let ask = async |name: &str, kind| ask(running.address, name, kind).await;
    assert_eq!(ask("a.cluster.local.cluster.local.", RecordType::A).await, "NXDomain");
    assert_eq!(ask("a.Search.example.", RecordType::A).await, "NXDomain");
    assert_eq!(ask("b.svc.cluster.local.example.", RecordType::A).await, "NXDomain");
    assert!(ask("a.b.search.example.", RecordType::A).await.starts_with("NoError"));
    assert_eq!(ask("a.only.example.", RecordType::AAAA).await, "ServFail");
    let asked = one.asked();
    assert_eq!(ask("a.six.example.", RecordType::AAAA).await, "NoError");
    assert_eq!(one.asked(), asked, "the answer is that there is nothing");
    assert_eq!(ask("a.through.only.example.", RecordType::AAAA).await, "NoError");
    assert_eq!(one.asked(), asked + 1);
}

#[tokio::test]
async fn what_a_corefile_says_holds() {
    let (one, two) = (Resolver::start(Behaviour::Answer).await, Resolver::start(Behaviour::Answer).await);
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        ".:53 {{
    errors
    health {{
       lameduck 5s
    }}
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
       pods insecure
       fallthrough in-addr.arpa ip6.arpa through.svc.cluster.local
       ttl 30
    }}
    hosts {{
       192.0.2.7 db.example # ours
       fallthrough
    }}
    rewrite name exact shop.example web.shop.svc.cluster.local
    prometheus :9153
    forward . {} {{
       max_concurrent 1000
    }}
    cache 30 {{
       disable success cluster.local
       prefetch 10 1m 20%
       serve_stale 1h verify
    }}
    loop
    reload
    loadbalance
}}
corp.example:53 {{
    forward . {}
    cache 30
}}
",
        one.address, two.address
    );
    let running = start(&config(file(dir.path(), "Corefile", &text)));
    let ask = async |name: &str, kind| ask(running.address, name, kind).await;
    assert_eq!(ask("www.example.", RecordType::A).await, "NoError www.example. 192.0.2.1");
    assert_eq!(ask("www.corp.example.", RecordType::A).await, "NoError www.corp.example. 192.0.2.1");
    assert_eq!((one.asked(), two.asked()), (1, 1));
    let through = "web.through.svc.cluster.local.";
    assert_eq!(ask(through, RecordType::A).await, format!("NoError {through} 192.0.2.1"));
    assert_eq!(ask("web.other.svc.cluster.local.", RecordType::A).await, "NXDomain");
    assert_eq!(ask("db.example.", RecordType::A).await, "NoError db.example. 192.0.2.7");
    assert_eq!(ask("shop.example.", RecordType::A).await, "NoError shop.example. 10.96.0.1");
    let pod = "192-0-2-9.shop.pod.cluster.local.";
    assert_eq!(ask(pod, RecordType::A).await, format!("NoError {pod} 192.0.2.9"));
}

/// Where an ExternalName Service leads is looked up as if the client had asked for it: hosts, codes and rewrites hold.
#[tokio::test]
async fn rules_hold_for_what_aliases_lead_to() {
    let resolver = Resolver::start(Behaviour::Answer).await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[[zone]]\nname = \".\"\nforward = {{ to = [\"{}\"] }}\n[zone.hosts]\n\"db.example\" = \"192.0.2.7\"\n\
         [[zone.rewrite]]\nfrom = \"old.example\"\nto = \"www.example\"\n\
         [[zone.rewrite]]\nfrom = \"api.example\"\nto = \"web.shop.svc.cluster.local\"\n\
         [[zone.rewrite]]\nfrom = \"round.example\"\nto = \"round.shop.svc.cluster.local\"\n\
         [[zone.answer]]\nnames-in = [\"ads.example\"]\ncode = \"NXDOMAIN\"\n",
        resolver.address
    );
    let server = Server::bind(&config(file(dir.path(), "dns.toml", &text))).unwrap();
    let address = server.local_addrs()[0];
    let services = ["db", "old", "api", "ads", "round", "www"];
    let services = services.map(|name| format!("service shop/{name} external {name}.example\n")).concat();
    let cluster = cluster::snapshot(&format!("{services}service shop/web cluster 10.96.0.1"));
    let (_writer, snapshots) = watch::channel(Arc::new(cluster));
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let shutdown = CancellationToken::new();
    tokio::spawn(server.serve(snapshots, metrics, shutdown.clone()));
    let table = [
        ("db", "db.example. db.example. 192.0.2.7"),
        ("www", "www.example. www.example. 192.0.2.1"),
        ("old", "old.example. old.example. 192.0.2.1"),
        ("api", "api.example. api.example. 10.96.0.1"),
    ];
    for (name, told) in table {
        let name = format!("{name}.shop.svc.cluster.local.");
        assert_eq!(ask(address, &name, RecordType::A).await, format!("NoError {name} {told}"));
    }
    let ads = "ads.shop.svc.cluster.local.";
    assert_eq!(ask(address, ads, RecordType::A).await, format!("NXDomain {ads} ads.example."));
    assert_eq!(ask(address, "round.shop.svc.cluster.local.", RecordType::A).await, "ServFail");
    assert_eq!(resolver.asked(), 1);
    shutdown.cancel();
}

#[tokio::test]
async fn the_search_path_costs_one_question() {
    let resolver = Resolver::start(Behaviour::Answer).await;
    let dir = tempfile::tempdir().unwrap();
    let zones = format!("[[zone]]\nname = \".\"\nforward = {{ to = [\"{}\"] }}\n", resolver.address);
    let on = start(&config(file(dir.path(), "on.toml", &zones)));
    let name = "www.Example.com.shop.svc.cluster.local.";
    for _ in 0..2 {
        assert_eq!(
            ask(on.address, name, RecordType::A).await,
            format!("NoError {name} www.Example.com. www.Example.com. 192.0.2.1")
        );
    }
    assert_eq!(resolver.asked(), 1);
    let short = "web.shop.shop.svc.cluster.local.";
    assert_eq!(
        ask(on.address, short, RecordType::A).await,
        format!("NoError {short} web.shop.svc.cluster.local. web.shop.svc.cluster.local. 10.96.0.1")
    );
    let missing = ask(on.address, "nothing.example.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(missing, "NXDomain");
    // Of another namespace, or with the switch off, it is the client's affair.
    let other = ask(on.address, "www.example.com.other.svc.cluster.local.", RecordType::A).await;
    assert_eq!(other, "NXDomain");
    let text = format!("[cluster]\nautopath = false\n{zones}");
    let off = start(&config(file(dir.path(), "off.toml", &text)));
    assert_eq!(ask(off.address, name, RecordType::A).await, "NXDomain");
}

#[tokio::test]
async fn rules_hold_along_the_search_path() {
    let resolver = Resolver::start(Behaviour::Answer).await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[[zone]]\nname = \".\"\nforward = {{ to = [\"{}\"] }}\n\
         [[zone.rewrite]]\nfrom = \"api.example\"\nto = \"web.shop.svc.cluster.local\"\n\
         [[zone.rewrite]]\nfrom = \"old.example\"\nto = \"www.example\"\n",
        resolver.address
    );
    let running = start(&config(file(dir.path(), "dns.toml", &text)));
    for (stem, addr) in
        [("Api.example.", "10.96.0.1"), ("old.example.", "192.0.2.1"), ("old.example.", "192.0.2.1")]
    {
        let name = format!("{stem}shop.svc.cluster.local.");
        assert_eq!(
            ask(running.address, &name, RecordType::A).await,
            format!("NoError {name} {stem} {stem} {addr}")
        );
    }
    assert_eq!(resolver.asked(), 1);
}

/// CoreDNS walks whether a name of the cluster's is denied by the cluster or by whoever it falls through to.
#[tokio::test]
async fn the_search_path_is_walked_where_names_fall_through() {
    let resolver = Resolver::start(Behaviour::Answer).await;
    let failing = Resolver::start(Behaviour::Fail(hickory_proto::op::ResponseCode::ServFail)).await;
    let dir = tempfile::tempdir().unwrap();
    let running = |at: SocketAddr| {
        let text = format!(
            "[cluster]\nfallthrough = [\"cluster.local\"]\n[[zone]]\nname = \".\"\nforward = {{ to = [\"{at}\"] }}\n\
             [zone.hosts]\n\"nothing.example\" = \"192.0.2.7\"\n"
        );
        start(&config(file(dir.path(), &format!("{}.toml", at.port()), &text)))
    };
    let (on, broken) = (running(resolver.address), running(failing.address));
    let searched = |stem: &str| format!("{stem}.shop.svc.cluster.local.");
    let (host, known, nowhere) =
        (searched("nothing.example"), searched("www.example"), searched("nothing.at.all"));
    let table = [
        // Denied upstream with the first three domains, and known as it is.
        (&on, &host, format!("NoError {host} nothing.example. nothing.example. 192.0.2.7")),
        // The same out of the cache.
        (&on, &host, format!("NoError {host} nothing.example. nothing.example. 192.0.2.7")),
        // The first name exists upstream: nothing to walk.
        (&on, &known, format!("NoError {known} 192.0.2.1")),
        (&on, &nowhere, "NXDomain".to_owned()),
        // Nobody can tell whether the first name exists.
        (&broken, &host, "ServFail".to_owned()),
    ];
    for (server, name, wanted) in table {
        assert_eq!(ask(server.address, name, RecordType::A).await, wanted, "{name}");
    }
    // Three domains and the name itself, each denied once.
    assert_eq!(resolver.asked(), 3 + 1 + 4);
}

async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(Instant::now() < deadline, "does not become true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Names of pods come to be verified while the server runs: from the moment on that all pods are known, and they are listed
/// no longer than that is wanted.
#[tokio::test]
async fn pods_are_listed_while_their_names_are_to_be_verified() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |mode: &str| file(dir.path(), "dns.toml", &format!("[cluster]\npods = \"{mode}\"\n"));
    let config = config(mode("insecure"));
    let (pods, mut wanted) = PodsWanted::new(&config, false);
    assert!(!*wanted.borrow_and_update());
    let text = "service shop/web cluster 10.96.0.1\npod shop/one 10.244.0.1\nnamespace shop";
    let (writer, snapshots) = watch::channel(Arc::new(cluster::snapshot(text)));
    let server = Server::bind(&config).unwrap();
    let address = server.local_addrs()[0];
    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    let shutdown = CancellationToken::new();
    let watched = Watched { snapshots, pods: Some(pods) };
    tokio::spawn(server.serve(watched, metrics, shutdown.clone()));
    let answers = async |addr: &str, code: &str| {
        let name = format!("{addr}.shop.pod.cluster.local.");
        ask(address, &name, RecordType::A).await.starts_with(code)
    };
    assert!(answers("10-244-0-1", "NoError").await && answers("10-244-0-2", "NoError").await);
    mode("verified");
    timeout(Duration::from_secs(10), wanted.wait_for(|all| *all)).await.unwrap().unwrap();
    // Nothing is denied of which it is not known.
    assert!(answers("10-244-0-2", "NoError").await);
    writer.send_replace(Arc::new(Snapshot { all_pods: true, ..cluster::snapshot(text) }));
    eventually(async || answers("10-244-0-2", "NXDomain").await).await;
    assert!(answers("10-244-0-1", "NoError").await);
    mode("disabled");
    eventually(async || answers("10-244-0-1", "NXDomain").await).await;
    timeout(Duration::from_secs(10), wanted.wait_for(|all| !*all)).await.unwrap().unwrap();
    // Whoever starts with them wants them from the start, and those who ask from everywhere for the search path, too.
    mode("verified");
    assert!(*PodsWanted::new(&config, false).1.borrow());
    mode("disabled");
    assert!(*PodsWanted::new(&config, true).1.borrow());
    shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_file_is_taken_over_without_a_lost_question_and_a_wrong_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = |addr: &str| format!("[[zone]]\nname = \".\"\n[zone.hosts]\n\"db.example\" = \"{addr}\"\n");
    let path = file(dir.path(), "dns.toml", &hosts("192.0.2.1"));
    let running = start(&config(path));
    let address = running.address;
    let stop = CancellationToken::new();
    let asking = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut lost = 0;
            while !stop.is_cancelled() {
                let answer = ask(address, "db.example.", RecordType::A).await;
                lost += usize::from(!answer.starts_with("NoError db.example. 192.0.2."));
            }
            lost
        }
    });
    let answers = async |text: &str| ask(address, "db.example.", RecordType::A).await.ends_with(text);
    assert!(answers("192.0.2.1").await);
    file(dir.path(), "dns.toml", &hosts("192.0.2.2"));
    eventually(async || answers("192.0.2.2").await).await;
    file(dir.path(), "dns.toml", "[surprise]\n");
    let told = || prometheus::TextEncoder::new().encode_to_string(&running.registry.gather()).unwrap();
    let versions = || told().lines().filter(|line| line.starts_with("coredns_reload_version_info{")).count();
    assert!(versions() == 1 && !told().contains("coredns_hosts_reload_timestamp_seconds 0"));
    assert!(told().contains("coredns_reload_failed_total 0") && told().contains("coredns_hosts_entries 1"));
    eventually(async || told().contains("coredns_reload_failed_total 1")).await;
    assert!(answers("192.0.2.2").await);
    // Right in itself, and yet pods that are there would be denied: nobody has asked for a list of them.
    file(dir.path(), "dns.toml", &format!("[cluster]\npods = \"verified\"\n{}", hosts("192.0.2.9")));
    eventually(async || told().contains("coredns_reload_failed_total 2")).await;
    assert!(answers("192.0.2.2").await);
    // A file that is gone is a mistake as well.
    std::fs::remove_file(dir.path().join("dns.toml")).unwrap();
    eventually(async || told().contains("coredns_reload_failed_total 3")).await;
    assert!(answers("192.0.2.2").await);
    // By way of a new file under the old name, as ConfigMaps change.
    let next = file(dir.path(), "next", &hosts("192.0.2.3"));
    std::fs::rename(next, dir.path().join("dns.toml")).unwrap();
    eventually(async || answers("192.0.2.3").await).await;
    stop.cancel();
    assert_eq!(asking.await.unwrap(), 0);
    assert!(running.metrics.ready());
}

#[tokio::test]
async fn resolv_conf_is_followed_while_the_server_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "resolv.conf", "# nobody yet\n");
    let config = DnsConfig { file: None, resolv_conf: Some(path.clone()), ..config(PathBuf::new()) };
    let running = start(&config);
    let refused = ask(running.address, "www.example.", RecordType::A).await;
    assert_eq!(refused, "Refused");
    // Nobody listens there: asked it is.
    std::fs::write(&path, "nameserver 127.99.98.97\n").unwrap();
    eventually(async || ask(running.address, "www.example.", RecordType::A).await == "ServFail").await;
}
