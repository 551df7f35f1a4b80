//! Chains with the reference plugins (Debian's containernetworking-plugins), ours before and after others, and their
//! own behaviours beside ours.
#![allow(clippy::unwrap_used, reason = "test helpers")]

#[path = "support/runtime.rs"]
mod runtime;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use runtime::{BOTH, Sandbox, addresses, outcome};
use seaway_cni_network::netlink::{Mac, Netlink};
use seaway_cni_network::netns::sysctl;
use seaway_cni_network::pod::RETIRED_GROUP;
use seaway_lab::{Lab, LabNode, tcp_exchange};
use serde_json::{Value, json};

/// Where Debian puts them.
const REFERENCE: &str = "/usr/lib/cni";

/// A list of plugins on one node, called as libcni does: ADD in order, DEL in reverse, each with the result before.
struct Chain<'a> {
    node: &'a LabNode,
    version: &'static str,
    plugins: Vec<Value>,
    runtime_config: Value,
    /// CNI_ARGS
    arguments: &'static str,
}

impl<'a> Chain<'a> {
    fn new(node: &'a LabNode, version: &'static str, plugins: Vec<Value>) -> Self {
        assert!(
            Path::new(REFERENCE).join("portmap").exists(),
            "these tests need containernetworking-plugins"
        );
        Self { node, version, plugins, runtime_config: json!({}), arguments: "" }
    }

    fn call(
        &self,
        plugin: &Value,
        verb: &str,
        sandbox: &Sandbox,
        prev: Option<&Value>,
    ) -> Result<Value, Value> {
        let mut config = plugin.clone();
        config["cniVersion"] = self.version.into();
        config["name"] = "chained".into();
        let declared = plugin["capabilities"].as_object().cloned().unwrap_or_default();
        for (key, value) in self.runtime_config.as_object().unwrap() {
            if declared.get(key) == Some(&json!(true)) {
                config["runtimeConfig"][key] = value.clone();
            }
        }
        if let Some(prev) = prev {
            config["prevResult"] = prev.clone();
        }
        let name = plugin["type"].as_str().unwrap();
        let executable = match name {
            "seaway-cni" => PathBuf::from(env!("CARGO_BIN_EXE_seaway-cni")),
            other => Path::new(REFERENCE).join(other),
        };
        let mut child = self
            .node
            .command(executable.to_str().unwrap())
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", &sandbox.id), ("CNI_NETNS", &sandbox.netns)])
            .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", REFERENCE), ("CNI_ARGS", self.arguments)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdin.take().unwrap().write_all(config.to_string().as_bytes()));
        outcome(child.wait_with_output().unwrap())
    }

    fn add(&self, sandbox: &Sandbox) -> Result<Value, Value> {
        let mut prev = None;
        for plugin in &self.plugins {
            prev = Some(self.call(plugin, "ADD", sandbox, prev.as_ref())?);
        }
        Ok(prev.unwrap())
    }

    fn check(&self, sandbox: &Sandbox, result: &Value) -> Result<(), Value> {
        // portmap 1.1 looks for rules of IPv4 in the tables of IPv6 when a pod has both.
        let mut checked = self.plugins.iter().filter(|plugin| plugin["type"] != "portmap");
        checked.try_for_each(|plugin| self.call(plugin, "CHECK", sandbox, Some(result)).map(drop))
    }

    fn del(&self, sandbox: &Sandbox, result: Option<&Value>) -> Result<(), Value> {
        let mut reverse = self.plugins.iter().rev();
        reverse.try_for_each(|plugin| self.call(plugin, "DEL", sandbox, result).map(drop))
    }
}

fn ours(node: &LabNode) -> Value {
    let ranges: Vec<Value> = BOTH.iter().map(|subnet| json!({ "subnet": subnet })).collect();
    json!({
        "type": "seaway-cni", "dataDir": node.state_dir().join("cni"), "ranges": ranges, "mtu": 1450,
        "capabilities": { "bandwidth": true, "ips": true, "mac": true, "portMappings": true },
    })
}

/// Links of pods, without those that DEL has left for after its answer.
fn links(node: &LabNode) -> usize {
    let links = node.netlink().unwrap().links().unwrap();
    links.iter().filter(|link| link.name.starts_with("sw") && link.group != RETIRED_GROUP).count()
}

#[test]
fn portmap_bandwidth_and_tuning_come_after_ours() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        node.run(|| sysctl::write(key, "1").unwrap());
    }
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let mut first = ours(node);
        // What is chained does it instead.
        first["capabilities"] = json!({});
        let plugins = vec![
            first,
            json!({ "type": "tuning", "mac": "02:00:00:00:00:77", "sysctl": { "net.core.somaxconn": "500" } }),
            json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
            json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } }),
        ];
        let mut chain = Chain::new(node, version, plugins);
        chain.runtime_config = json!({
            "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
            "bandwidth": { "ingressRate": 80_000_000, "ingressBurst": 8_000_000,
                           "egressRate": 80_000_000, "egressBurst": 8_000_000 },
        });
        let pod = Sandbox::new("pod");
        let result = chain.add(&pod).unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(addresses(&result).len(), 2, "{result}");
        let mut inner = Netlink::open_in(&pod.namespace).unwrap();
        let eth0 = inner.link("eth0").unwrap().unwrap();
        assert_eq!(eth0.mac, Some(Mac([2, 0, 0, 0, 0, 0x77])), "tuning has set it");
        let host = node.netlink().unwrap().link_by_index(eth0.peer.unwrap()).unwrap().unwrap();
        assert!(
            node.netlink().unwrap().token_bucket_rate(host.index).unwrap().is_some(),
            "bandwidth has set it"
        );
        if version != "0.3.1" {
            chain.check(&pod, &result).unwrap();
        }
        for addr in addresses(&result) {
            tcp_exchange(node.namespace(), &pod.namespace, addr, 10_000).unwrap();
        }
        // A runtime that has lost the result still cleans up.
        chain.del(&pod, Some(&result).filter(|_| version != "0.4.0")).unwrap();
        chain.del(&pod, Some(&result)).unwrap();
        assert_eq!(links(node), 0);
    }
}

#[test]
fn ours_comes_after_another() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let data_dir = node.state_dir().join("host-local");
    let before = json!({
        "type": "host-local",
        "ipam": { "type": "host-local", "dataDir": data_dir, "ranges": [[{ "subnet": "10.99.0.0/24" }]] },
    });
    let chain = Chain::new(node, "1.0.0", vec![before, ours(node)]);
    let pod = Sandbox::new("pod");
    let result = chain.add(&pod).unwrap();
    let all: Vec<String> = addresses(&result).iter().map(ToString::to_string).collect();
    assert_eq!(all, ["10.99.0.2", "10.244.1.1", "fd00:10:244:1::1"], "{result}");
    assert_eq!(result["ips"][0].get("interface"), None, "what came before is as it was");
    assert_eq!(result["ips"][1]["interface"], 1);
    chain.call(&chain.plugins[1], "CHECK", &pod, Some(&result)).unwrap();
    chain.del(&pod, Some(&result)).unwrap();
    assert_eq!(links(node), 0);
}

/// In the other direction: what sets the namespace up comes before us and is undone after us.
#[test]
fn tuning_comes_before_ours() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    for version in ["0.4.0", "1.0.0"] {
        let tuning = json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "321" } });
        let chain = Chain::new(node, version, vec![tuning, ours(node)]);
        let pod = Sandbox::new("pod");
        // It passes on what it was given, and insists that it was given something.
        let nothing = json!({ "cniVersion": version, "interfaces": [], "ips": [], "dns": {} });
        let before = chain.call(&chain.plugins[0], "ADD", &pod, Some(&nothing)).unwrap();
        let result = chain.call(&chain.plugins[1], "ADD", &pod, Some(&before)).unwrap();
        assert_eq!((addresses(&result).len(), &result["cniVersion"]), (2, &json!(version)));
        assert_eq!(pod.namespace.run(|| sysctl::read("net/core/somaxconn").unwrap()).unwrap(), "321");
        chain.check(&pod, &result).unwrap();
        tcp_exchange(node.namespace(), &pod.namespace, addresses(&result)[0], 10_000).unwrap();
        chain.del(&pod, Some(&result)).unwrap();
        chain.del(&pod, Some(&result)).unwrap();
        assert_eq!(links(node), 0);
    }
}

/// A plugin after us fails: the runtime undoes all of the chain, with what it has been told so far.
#[test]
fn a_chain_that_fails_after_ours_is_undone() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let broken = json!({ "type": "tuning", "sysctl": { "net.core.no_such_thing": "1" } });
    let chain = Chain::new(node, "1.0.0", vec![ours(node), broken]);
    let pod = Sandbox::new("pod");
    let refused = chain.add(&pod).unwrap_err();
    assert!(refused["msg"].as_str().unwrap().contains("no_such_thing"), "{refused}");
    chain.del(&pod, None).unwrap();
    assert_eq!(links(node), 0);
    let whole = Chain::new(node, "1.0.0", vec![ours(node)]);
    let result = whole.add(&pod).unwrap();
    whole.check(&pod, &result).unwrap();
    whole.del(&pod, Some(&result)).unwrap();
}

#[test]
fn our_own_limits_hold_and_are_checked() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let mut chain = Chain::new(node, "1.0.0", vec![ours(node)]);
    chain.runtime_config = json!({
        "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000 },
        "ips": ["10.244.1.77"], "mac": "02:00:00:00:00:09",
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
    });
    let pod = Sandbox::new("pod");
    let result = chain.add(&pod).unwrap();
    assert_eq!(addresses(&result)[0].to_string(), "10.244.1.77");
    let mut inner = Netlink::open_in(&pod.namespace).unwrap();
    let eth0 = inner.link("eth0").unwrap().unwrap();
    assert_eq!(eth0.mac, Some(Mac([2, 0, 0, 0, 0, 9])));
    assert_eq!(inner.token_bucket_rate(eth0.index).unwrap(), Some(2_000_000));
    let mut outer = node.netlink().unwrap();
    assert_eq!(outer.token_bucket_rate(eth0.peer.unwrap()).unwrap(), Some(1_000_000));
    assert!(node.ok(&["tc", "qdisc", "show"]).contains("tbf"));
    chain.check(&pod, &result).unwrap();
    let held = std::fs::read_to_string(node.state_dir().join("cni/chained/owners/pod:eth0")).unwrap();
    assert!(held.contains(r#""hostPort":8080"#) && held.contains(&pod.netns), "{held}");
    // Traffic passes, and not faster than it may: 100 kB at once, the other 400 kB at 1 MB/s.
    let before = std::time::Instant::now();
    tcp_exchange(node.namespace(), &pod.namespace, addresses(&result)[0], 500_000).unwrap();
    assert!(before.elapsed().as_millis() > 300, "{:?}", before.elapsed());
    node.ok(&[
        "tc",
        "qdisc",
        "del",
        "dev",
        &outer.link_by_index(eth0.peer.unwrap()).unwrap().unwrap().name,
        "root",
    ]);
    let error = chain.check(&pod, &result).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("no bandwidth limit"), "{error}");
    chain.del(&pod, Some(&result)).unwrap();
}

/// What a runtime may rely on, side by side. Where they differ, the difference is meant.
#[test]
fn behaviours_beside_those_of_the_reference_plugins() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let ipam = json!({
        "type": "host-local", "dataDir": node.state_dir().join("host-local"),
        "ranges": [[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "fd00:88::/64" }]],
    });
    let bridge = json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam });
    let ptp = json!({ "type": "ptp", "ipam": ipam });
    let mut table = String::new();
    for (name, plugin) in [("seaway-cni", ours(node)), ("bridge", bridge), ("ptp", ptp)] {
        let chain = Chain::new(node, "1.0.0", vec![plugin]);
        let pod = Sandbox::new("pod");
        let ok = |outcome: &Result<(), Value>| match outcome {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("error {}", error["code"]),
        };
        let empty = chain.del(&pod, None);
        let added = chain.add(&pod);
        let result = added.clone().unwrap();
        let mut inner = Netlink::open_in(&pod.namespace).unwrap();
        let eth0 = inner.link("eth0").unwrap().unwrap();
        let held = inner.addresses(Some(eth0.index)).unwrap();
        let whole = held.iter().filter(|address| matches!(address.net.prefix_len(), 32 | 128)).count();
        let again = chain.add(&pod).map(drop);
        let checked = chain.check(&pod, &result);
        inner.set_down(eth0.index).unwrap();
        let down = chain.check(&pod, &result);
        let deleted = chain.del(&pod, Some(&result));
        let twice = chain.del(&pod, Some(&result));
        let gone = Sandbox { netns: "/nowhere".to_owned(), ..pod };
        let without = chain.del(&gone, Some(&result));
        writeln!(
            table,
            "{name:<10} | DEL of nothing {} | ips {} | host prefixes {whole} | ADD again {} | CHECK {} | \
             CHECK of a link that is down {} | DEL {} | DEL again {} | DEL without netns {}",
            ok(&empty),
            result["ips"].as_array().unwrap().len(),
            ok(&again),
            ok(&checked),
            ok(&down),
            ok(&deleted),
            ok(&twice),
            ok(&without)
        )
        .unwrap();
    }
    expect_test::expect![[r"
        seaway-cni | DEL of nothing ok | ips 2 | host prefixes 2 | ADD again error 103 | CHECK ok | CHECK of a link that is down error 102 | DEL ok | DEL again ok | DEL without netns ok
        bridge     | DEL of nothing ok | ips 2 | host prefixes 0 | ADD again error 999 | CHECK ok | CHECK of a link that is down error 999 | DEL ok | DEL again ok | DEL without netns ok
        ptp        | DEL of nothing ok | ips 2 | host prefixes 0 | ADD again error 999 | CHECK ok | CHECK of a link that is down error 999 | DEL ok | DEL again ok | DEL without netns ok
    "]].assert_eq(&table);
}

/// Ways of asking: their name, runtimeConfig, args.cni, CNI_ARGS.
fn ways(ips: &Value) -> [(&'static str, Value, Value, &'static str); 9] {
    [
        ("runtimeConfig", json!({ "mac": "02:00:00:00:00:01", "ips": ips }), json!({}), ""),
        ("args.cni", json!({}), json!({ "mac": "02:00:00:00:00:02", "ips": ips }), ""),
        ("CNI_ARGS", json!({}), json!({}), "IgnoreUnknown=1;MAC=02:00:00:00:00:03;IP=10.88.0.77"),
        (
            "all of them",
            json!({ "mac": "02:00:00:00:00:01" }),
            json!({ "mac": "02:00:00:00:00:02" }),
            "IgnoreUnknown=1;MAC=02:00:00:00:00:03",
        ),
        ("CNI_ARGS of Kubernetes", json!({}), json!({}), "IgnoreUnknown=1;K8S_POD_NAME=a;K8S_POD_UID=b"),
        ("no MAC", json!({}), json!({}), "IgnoreUnknown=1;MAC=x"),
        ("no IP", json!({}), json!({}), "IgnoreUnknown=1;IP=x"),
        ("no range's IP", json!({}), json!({}), "IgnoreUnknown=1;IP=10.99.0.1"),
        ("nothing", json!({ "mac": "", "ips": [] }), json!({}), ""),
    ]
}

/// What may be asked for, and in which of the three ways, side by side: a line for each way, with what came of it.
#[test]
fn what_is_asked_for_beside_bridge() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let ipam = json!({
        "type": "host-local", "dataDir": node.state_dir().join("host-local"),
        "ranges": [[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "fd00:88::/64" }]],
    });
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "ipam": ipam, "capabilities": { "mac": true, "ips": true },
    });
    let mut own = ours(node);
    own["ranges"] = json!([{ "subnet": "10.88.0.0/24" }, { "subnet": "fd00:88::/64" }]);
    let ips = json!(["10.88.0.77/24", "fd00:88::77/64"]);
    let mut table = String::new();
    for (way, runtime_config, args, arguments) in ways(&ips) {
        for (name, plugin) in [("seaway-cni", &own), ("bridge", &bridge)] {
            let mut plugin = plugin.clone();
            plugin["args"] = json!({ "cni": args });
            let mut chain = Chain::new(node, "1.0.0", vec![plugin]);
            (chain.runtime_config, chain.arguments) = (runtime_config.clone(), arguments);
            let pod = Sandbox::new("pod");
            let outcome = chain.add(&pod).map(|result| {
                let mut inner = Netlink::open_in(&pod.namespace).unwrap();
                let Mac(mac) = inner.link("eth0").unwrap().unwrap().mac.unwrap();
                let mac = if mac[..5] == [2, 0, 0, 0, 0] { mac[5].to_string() } else { "own".to_owned() };
                let wanted =
                    addresses(&result).iter().filter(|addr| addr.to_string().ends_with("77")).count();
                format!("MAC {mac}, {wanted} of the addresses")
            });
            let said = outcome.unwrap_or_else(|error| format!("error {}", error["code"]));
            let deleted = chain
                .del(&pod, None)
                .map_or_else(|error| format!("error {}", error["code"]), |()| "ok".to_owned());
            writeln!(table, "{way:<22} | {name:<10} | {said:<26} | DEL {deleted}").unwrap();
        }
    }
    expect_test::expect![[r"
        runtimeConfig          | seaway-cni | MAC 1, 2 of the addresses  | DEL ok
        runtimeConfig          | bridge     | MAC 1, 2 of the addresses  | DEL ok
        args.cni               | seaway-cni | MAC 2, 2 of the addresses  | DEL ok
        args.cni               | bridge     | MAC 2, 2 of the addresses  | DEL ok
        CNI_ARGS               | seaway-cni | MAC 3, 1 of the addresses  | DEL ok
        CNI_ARGS               | bridge     | MAC 3, 1 of the addresses  | DEL ok
        all of them            | seaway-cni | MAC 1, 0 of the addresses  | DEL ok
        all of them            | bridge     | MAC 1, 0 of the addresses  | DEL ok
        CNI_ARGS of Kubernetes | seaway-cni | MAC own, 0 of the addresses | DEL ok
        CNI_ARGS of Kubernetes | bridge     | MAC own, 0 of the addresses | DEL ok
        no MAC                 | seaway-cni | error 4                    | DEL ok
        no MAC                 | bridge     | error 999                  | DEL ok
        no IP                  | seaway-cni | error 4                    | DEL ok
        no IP                  | bridge     | error 999                  | DEL error 999
        no range's IP          | seaway-cni | error 7                    | DEL ok
        no range's IP          | bridge     | error 999                  | DEL ok
        nothing                | seaway-cni | MAC own, 0 of the addresses | DEL ok
        nothing                | bridge     | MAC own, 0 of the addresses | DEL ok
    "]]
    .assert_eq(&table);
}

/// The same for the addresses alone, beside host-local. Where they differ, the difference is meant: none is kept for a
/// gateway, which is link-local, and errors have codes that tell them apart.
#[test]
fn addresses_beside_those_of_host_local() {
    let lab = Lab::new(1).unwrap();
    let node = lab.node(0);
    let data_dir = node.state_dir().join("host-local");
    let range = json!({ "subnet": "10.88.0.0/29" });
    let host_local = json!({
        "type": "host-local", "capabilities": { "ips": true },
        "ipam": { "type": "host-local", "dataDir": data_dir, "ranges": [[range]] },
    });
    let mut own = ours(node);
    own["ranges"] = json!([range]);
    let mut table = String::new();
    for (name, plugin) in [("seaway-cni", own), ("host-local", host_local)] {
        let mut chain = Chain::new(node, "1.0.0", vec![plugin]);
        let pods: Vec<Sandbox> = (0..8).map(|number| Sandbox::new(&format!("pod{number}"))).collect();
        let add = |chain: &Chain<'_>, number: usize| match chain.add(&pods[number]) {
            Ok(result) => addresses(&result).iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(error) => format!("error {}", error["code"]),
        };
        let delete_all = |chain: &Chain<'_>| {
            for pod in &pods {
                chain.del(pod, None).unwrap();
            }
        };
        let first: Vec<String> = (0..3).map(|number| add(&chain, number)).collect();
        chain.del(&pods[0], None).unwrap();
        let next = add(&chain, 3);
        let more: Vec<String> = (4..8).map(|number| add(&chain, number)).collect();
        delete_all(&chain);
        chain.runtime_config = json!({ "ips": ["10.88.0.5"] });
        let wanted = [add(&chain, 0), add(&chain, 1)];
        chain.runtime_config = json!({ "ips": ["10.99.0.5"] });
        let elsewhere = add(&chain, 2);
        delete_all(&chain);
        writeln!(
            table,
            "{name} | three {} | after DEL of the first {next} | until full {} | wanted {} | \
             not in the range {elsewhere}",
            first.join(" "),
            more.join(" "),
            wanted.join(", again ")
        )
        .unwrap();
    }
    expect_test::expect![[r"
        seaway-cni | three 10.88.0.1 10.88.0.2 10.88.0.3 | after DEL of the first 10.88.0.4 | until full 10.88.0.5 10.88.0.6 10.88.0.1 error 100 | wanted 10.88.0.5, again error 100 | not in the range error 7
        host-local | three 10.88.0.2 10.88.0.3 10.88.0.4 | after DEL of the first 10.88.0.5 | until full 10.88.0.6 10.88.0.2 error 999 error 999 | wanted 10.88.0.5, again error 999 | not in the range error 999
    "]].assert_eq(&table);
}
