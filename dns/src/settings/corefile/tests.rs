//! What a Corefile's options come out as.

use super::*;
use crate::PodRecords;
use crate::settings::Matching;
use proptest::prelude::*;

fn parse(text: &str, config: DnsConfig) -> Result<Settings, Vec<Problem>> {
    super::parse(text, config, &Files::new(std::time::SystemTime::now()))
}

fn settings(text: &str) -> Settings {
    parse(text, DnsConfig::default()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// The settings of one block with these lines.
fn zone(lines: &str) -> ZoneSettings {
    settings(&format!(".:53 {{\n{lines}\n}}")).zones.remove(0)
}

#[test]
fn the_cluster_is_that_of_the_block_where_nothing_is_said() {
    let texts = |ranges: &[IpNet]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let cases = [
        ("k8s.example.org:53 {\n kubernetes\n}", "k8s.example.org", ""),
        ("k8s.example.org 10.in-addr.arpa {\n kubernetes\n}", "k8s.example.org", "10.0.0.0/8"),
        (". {\n kubernetes\n}", "cluster.local", ""),
        (". {\n kubernetes other.example 10.96.0.0/12 ip6.arpa\n}", "other.example", "10.96.0.0/12 ::/0"),
        (
            "a.example {\n kubernetes c.example in-addr.arpa {\n fallthrough in-addr.arpa\n }\n}",
            "c.example",
            "",
        ),
    ];
    for (text, cluster, reverse) in cases {
        let config = settings(text).config;
        assert_eq!(config.zone.trim_end_matches('.'), cluster, "{text}");
        assert_eq!(texts(&config.reverse), reverse, "{text}");
    }
}

#[test]
fn options_of_forward() {
    let forward = |lines: &str| {
        zone(&format!("forward . 192.0.2.1 tls://192.0.2.2%dns.example {{\n{lines}\n}}")).forward.unwrap()
    };
    let plain = forward("");
    assert_eq!(plain.upstreams[1].tls_name.as_deref(), Some("dns.example"));
    assert_eq!(plain.max_concurrent, UNLIMITED);
    assert_eq!(forward("max_concurrent 0").max_concurrent, UNLIMITED);
    assert_eq!(forward("max_concurrent 1000").max_concurrent, 1000);
    assert_eq!(
        forward("health_check 0.5s no_rec domain example.org").health_check,
        Duration::from_millis(500)
    );
    assert_eq!(forward("read_timeout 3s\nfailover SERVFAIL REFUSED").attempt_timeout, Duration::from_secs(3));
    assert_eq!(forward("expire 1.5s\nprefer_udp\nmax_fails 7").max_fails, 7);
    let own = settings("example.org {\n forward example.org. 192.0.2.1\n}");
    assert!(own.zones[0].forward.is_some());
}

/// Stub domains in the block of everything else: what else it says holds for them, too.
#[test]
fn zones_that_are_forwarded_elsewhere() {
    let zones = settings(
        ". {\n forward corp.example 192.0.2.1\n forward . 192.0.2.2\n forward lab.corp.example 192.0.2.3\n cache 30\n log\n}",
    )
    .zones;
    let told: Vec<String> = zones
        .iter()
        .map(|zone| format!("{} {}", zone.name, zone.forward.as_ref().unwrap().upstreams[0].address))
        .collect();
    assert_eq!(told, [". 192.0.2.2:53", "corp.example. 192.0.2.1:53", "lab.corp.example. 192.0.2.3:53"]);
    let whole = DnsConfig::default().cache_bytes;
    assert!(zones.iter().all(|zone| zone.cache.bytes_max == whole / 3 && zone.log == LogClasses::ALL));
    let text = "a.example {\n forward b.example 192.0.2.1\n}";
    assert_eq!(
        parse(text, DnsConfig::default()).unwrap_err()[0].to_string(),
        "line 2: forward from \"b.example\": the block is not about it"
    );
}

#[test]
fn options_of_cache() {
    let cache = |lines: &str| zone(&format!("cache 30 {{\n{lines}\n}}")).cache;
    let stale = |arguments: &str| {
        let stale = cache(&format!("serve_stale {arguments}")).serve_stale.unwrap();
        let verify = stale.verify_timeout.map(|patience| patience.as_millis());
        (stale.keep.as_secs(), stale.immediate, verify, stale.ttl.as_secs())
    };
    assert_eq!(stale(""), (3600, true, None, 0));
    assert_eq!(stale("2h"), (7200, true, None, 0));
    assert_eq!(stale("1h immediate 30s"), (3600, true, None, 30));
    assert_eq!(stale("verify"), (3600, false, None, 0));
    assert_eq!(stale("1h verify 100ms 30s"), (3600, false, Some(100), 30));
    assert_eq!(stale("1h verify 0 30s"), (3600, false, None, 30));
    let names = |names: &[Name]| names.iter().map(Name::to_ascii).collect::<Vec<_>>().join(" ");
    let held = cache("disable success a.example b.example\ndisable denial\nprefetch 10 1m 20%\nservfail 1m");
    assert_eq!(
        (names(&held.no_success), names(&held.no_denial)),
        ("a.example. b.example.".into(), ".".into())
    );
    assert_eq!(held.prefetch.unwrap().percentage, 20);
    assert_eq!(held.servfail_ttl, Duration::from_secs(60));
}

#[test]
fn options_of_hosts_log_and_rewrite() {
    let hosts = zone("hosts {\n 192.0.2.1 a.example\n fallthrough b.example\n reload 1s\n ttl 60\n}").hosts;
    assert_eq!((hosts.fallthrough, hosts.ttl_s), (vec![values::name("b.example").unwrap()], 60));
    assert_eq!(zone("log").log, LogClasses::ALL);
    assert_eq!(zone("log . {\n class denial error\n}").log, LogClasses { success: false, ..LogClasses::ALL });
    let rules =
        zone("rewrite stop name regex ^(.*)[.]old[.]example[.]$ {1}.svc\nrewrite name stop go").rewrites;
    assert_eq!((rules[0].matching, rules[0].to.as_str()), (Matching::Regex, "{1}.svc"));
    assert_eq!((rules[1].matching, rules[1].from.as_str()), (Matching::Exact, "stop."));
}

#[test]
fn what_would_not_hold_is_refused() {
    let cases = [
        "errors {\n bogus\n}",
        "errors loudly",
        "health {\n nonsense 5s\n}",
        "health {\n lameduck soon\n}",
        "ready a b",
        "ready {\n nonsense\n}",
        "log example.org",
        "log . \"{remote}\"",
        "log {\n class some\n}",
        "loadbalance weighted /etc/weights",
        "loadbalance round_robin {\n prefer 10.0.0.0/8\n}",
        "reload never",
        "loop nonsense",
        "prometheus a b",
        "kubernetes cluster.local {\n namespaces\n}",
        "kubernetes cluster.local other.example",
        "kubernetes cluster.local {\n labels a=b\n}",
        "hosts {\n no_reverse at all\n}",
        "hosts {\n reload often\n}",
        "hosts {\n ttl 0\n}",
        "forward . 192.0.2.1 {\n force_tcp now\n}",
        "forward . 192.0.2.1 {\n health_check\n}",
        "forward . 192.0.2.1 {\n health_check 0s\n}",
        "forward . 192.0.2.1 {\n health_check 1s often\n}",
        "forward . 192.0.2.1 {\n failover NXDOMAIN\n}",
        "forward . 192.0.2.1 {\n tls_servername a b\n}",
        "forward . 192.0.2.1 {\n tls_servername a..b\n}",
        "forward . 192.0.2.1\nforward . 192.0.2.2",
        "forward a.example 192.0.2.1\nforward a.example 192.0.2.2",
        "forward a..example 192.0.2.1",
        "cache 30 {\n serve_stale 1h immediate 30s 30s\n}",
        "cache 30 {\n disable errors\n}",
        "cache 30 {\n success 5000 3600 10 12\n}",
        "cache 30 {\n prefetch 10 1m 200%\n}",
        "cache 30 {\n servfail 10m\n}",
        "cache 30 example.org",
        "rewrite continue name",
        "rewrite {\n name a b\n ttl a 5\n}",
        "rewrite name exact a b {\n answer auto\n}",
        "rewrite name exact a b auto",
        "rewrite name exact a b answer",
        "rewrite name exact a b answer name (x y",
        "rewrite name exact a b answer name ( y",
        "rewrite ttl a.example 30",
        "bufsize 4096",
        "import",
        "import /nowhere/at/all",
        "hosts /nowhere/at/all",
        "hosts /etc/hosts a..b",
        "rewrite name regex ( x",
        "rewrite type A AAAA",
        "bind 127.0.0.1",
    ];
    for lines in cases {
        let text = format!(".:53 {{\n{lines}\n}}");
        assert!(parse(&text, DnsConfig::default()).is_err(), "{lines}");
    }
    let twice = "a.example {\n kubernetes\n}\nb.example {\n kubernetes\n}";
    assert!(parse(twice, DnsConfig::default()).is_err());
}

#[test]
fn rewrites_of_answers() {
    let rules = zone(
        "rewrite stop {\n name regex ^(.*)[.]a[.]$ {1}.b\n answer name (.*)[.]b[.] {1}.a\n answer value X y\n}\n\
         rewrite continue name suffix .c .d answer auto value (.*) z\nrewrite name e f answer auto",
    )
    .rewrites;
    let answers = |at: usize| {
        let rules = rules[at].answers.iter();
        rules.map(|rule| format!("{} {} {}", rule.of_values, rule.from, rule.to)).collect::<Vec<_>>()
    };
    assert_eq!(answers(0), ["false (.*)[.]b[.] {1}.a", "true X y"]);
    assert_eq!(answers(1), ["true (.*) z"]);
    assert!(answers(2).is_empty());
    assert_eq!(rules.iter().map(|rule| rule.goes_on).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn zones_of_blocks() {
    let names = |text: &str| {
        let names: Vec<String> = settings(text).zones.iter().map(|zone| zone.name.to_ascii()).collect();
        names.join(" ")
    };
    assert_eq!(
        names("A.example:53, b.example dns://c.example:1053 {\n}"),
        "a.example. b.example. c.example."
    );
    assert_eq!(names("a.example,\nb.example {\n}"), "a.example. b.example.");
    assert_eq!(names("10.96.0.0/15:53 {\n}"), "96.10.in-addr.arpa. 97.10.in-addr.arpa.");
    assert_eq!(names("fd00::/8 {\n}"), "d.f.ip6.arpa.");
    let refused = |text: &str| parse(text, DnsConfig::default()).unwrap_err()[0].to_string();
    assert_eq!(refused("forward . 192.0.2.1"), "line 1: \"forward . 192.0.2.1\" stands in no block");
    assert_eq!(refused("tls://a.example {\n}"), "line 1: \"tls://a.example\": only plain DNS is served");
}

/// Text that comes from elsewhere stands where it is imported, and its mistakes are named with its own name.
#[test]
fn imports() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let read = |text: &str| {
        let config = DnsConfig { file: Some(dir.path().join("Corefile")), ..DnsConfig::default() };
        let refused = |problems: Vec<Problem>| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            lines.join("\n").replace(&dir.path().display().to_string(), "DIR")
        };
        parse(text, config).map_err(refused)
    };
    std::fs::create_dir(dir.path().join("custom")).unwrap();
    std::fs::create_dir(dir.path().join("custom/not-a-file.server")).unwrap();
    write("custom/a.override", "log\n");
    write("custom/b.override", "hosts {\n 192.0.2.1 db.example\n fallthrough\n}");
    write("custom/stub.server", "corp.example {\n import ups\n}\n");
    let text = "(ups) {\n forward . 192.0.2.53 {\n  max_fails 7\n }\n}\n.:53 {\n import ups\n import custom/*.override\n}\n\
                import custom/*.server\nimport custom/*.none\nimport [a-z]ustom/?.server\n";
    let whole = read(text).unwrap();
    let names: Vec<String> = whole.zones.iter().map(|zone| zone.name.to_ascii()).collect();
    assert_eq!(names, [".", "corp.example."]);
    assert_eq!((whole.zones[0].log, whole.zones[0].hosts.entries.len()), (LogClasses::ALL, 1));
    for zone in &whole.zones {
        assert_eq!(zone.forward.as_ref().unwrap().max_fails, 7);
    }
    write("custom/c.override", "# a remark\n\nsurprise\n");
    assert_eq!(
        read(text).unwrap_err(),
        "DIR/custom/c.override, line 3: the plugin \"surprise\" is not supported"
    );
    write("custom/c.override", "import custom/c.override\nimport custom/c.override\n");
    assert!(read(text).unwrap_err().contains("line 1: \"custom/c.override\" is imported again and again"));
    assert_eq!(
        read(". {\n}\nimport gone.server\nimport a b\n").unwrap_err(),
        "line 3: cannot import DIR/gone.server: No such file or directory (os error 2)\n\
         line 4: \"import\" wants one file or snippet"
    );
}

/// The files that clusters come with, in our own words: whoever moves from one takes it along, or is told what not.
#[test]
fn what_clusters_come_with() {
    let dir = tempfile::tempdir().unwrap();
    let node_hosts = dir.path().join("NodeHosts");
    std::fs::write(&node_hosts, "192.0.2.11 node-one\n192.0.2.12 node-two\n").unwrap();
    let common = |kubernetes: &str, more: &str| {
        format!(
            ".:53 {{\n errors\n health {{\n  lameduck 5s\n }}\n ready\n kubernetes {kubernetes} {{\n  pods insecure\n  fallthrough \
             in-addr.arpa ip6.arpa\n  ttl 30\n }}\n prometheus :9153\n forward . 192.0.2.53 {{\n  max_concurrent 1000\n }}\n loop\n \
             reload\n loadbalance\n{more}\n}}\n"
        )
    };
    let usual = "cluster.local in-addr.arpa ip6.arpa";
    let hosts =
        format!("cache 30\nhosts {} {{\n ttl 60\n reload 15s\n fallthrough\n}}\n", node_hosts.display());
    let files = [
        (
            "kubeadm",
            common(usual, "cache 30 {\n disable success cluster.local\n disable denial cluster.local\n}"),
        ),
        ("k3s", common(usual, &format!("{hosts}import {0}/custom/*.override", dir.path().display()))),
        ("RKE2", common(&format!("cluster.local {usual}"), "cache 30")),
        ("kops", common("cluster.local. in-addr.arpa ip6.arpa", "cache 30")),
        ("minikube", common(usual, "log\ncache 30\nhosts {\n 192.0.2.1 host.internal\n fallthrough\n}")),
        ("Talos", common(usual, "log . {\n class error\n}\ncache 30 {\n denial 9984 30\n}")),
        (
            "AKS",
            common(
                usual,
                "cache 30\ntemplate ANY ANY cloud.internal {\n match \"^(?:[^.]+\\.){4,}cloud\\.internal\\.$\"\n rcode NXDOMAIN\n \
                 fallthrough\n}\nimport custom/*.override",
            ) + "import custom/*.server\n",
        ),
    ];
    for (whose, text) in &files {
        let config = DnsConfig { file: Some(dir.path().join("Corefile")), ..DnsConfig::default() };
        let read = parse(text, config).unwrap_or_else(|problems| panic!("{whose}: {problems:?}"));
        let DnsConfig { zone, pod_records, ttl_s, fallthrough, .. } = &read.config;
        assert_eq!(
            (zone.trim_end_matches('.'), *pod_records, *ttl_s),
            ("cluster.local", PodRecords::Insecure, 30)
        );
        assert_eq!(*fallthrough, ["in-addr.arpa.", "ip6.arpa."], "{whose}");
        let root = &read.zones[0];
        assert_eq!(root.forward.as_ref().unwrap().max_concurrent, 1000, "{whose}");
        assert_eq!(root.cache.ttl_max, Duration::from_secs(30), "{whose}");
        let hosts = match *whose {
            "k3s" => 2,
            "minikube" => 1,
            _ => 0,
        };
        assert_eq!(root.hosts.entries.len(), hosts, "{whose}");
    }
    // With names of pods verified and the search path walked, as some managed clusters have it.
    let managed = common(usual, "cache 30\nautopath @kubernetes").replace("pods insecure", "pods verified");
    let read = settings(&managed).config;
    assert_eq!((read.pod_records, read.autopath), (PodRecords::Verified, true));

    let refused = |text: &str| {
        let problems = parse(text, DnsConfig::default()).unwrap_err();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    // A cache on each node is what every node has here, at the addresses that its agent says.
    let node_local = "cluster.local:53 {\n errors\n cache {\n  success 9984 30\n  denial 9984 5\n }\n reload\n loop\n bind \
                      169.254.20.10 10.96.0.10\n forward . 10.96.0.10 {\n  force_tcp\n }\n prometheus :9253\n health 169.254.20.10:8080\n}\n";
    assert_eq!(refused(node_local), ["line 9: the plugin \"bind\" is not supported"]);
    let other = ".:5353 {\n bufsize 1232\n errors\n forward . 192.0.2.53 {\n  policy sequential\n }\n cache 900 {\n  denial 9984 30\n \
                 }\n}\nhostname.bind:5353 {\n chaos\n}\n";
    assert_eq!(refused(other), ["line 12: the plugin \"chaos\" is not supported"]);
}

proptest! {
    /// Whatever words stand in whatever order: it is read or refused.
    #[test]
    fn any_words_are_read_or_refused(words in proptest::collection::vec(prop::sample::select(WORDS), 0..60)) {
        let text = words.join(" ").replace(" \n ", "\n");
        for text in [text.clone(), format!(". {{\n{text}\n}}")] {
            if let Err(problems) = parse(&text, DnsConfig::default()) {
                prop_assert!(!problems.is_empty() && problems.iter().all(|problem| problem.line > 0));
            }
        }
    }
}

const WORDS: &[&str] = &[
    "\n",
    "\n",
    "\n",
    "{",
    "}",
    ".",
    ".:53",
    "a.example",
    "10.0.0.0/7",
    "fd00::/3",
    "(s)",
    "import",
    "s",
    "*",
    "#",
    "\"",
    "kubernetes",
    "pods",
    "verified",
    "ttl",
    "30",
    "-1",
    "fallthrough",
    "in-addr.arpa",
    "namespaces",
    "forward",
    "192.0.2.1",
    "tls://192.0.2.1%a",
    "policy",
    "random",
    "health_check",
    "0.5s",
    "cache",
    "success",
    "9984",
    "prefetch",
    "10",
    "20%",
    "serve_stale",
    "verify",
    "disable",
    "denial",
    "hosts",
    "::1",
    "reload",
    "rewrite",
    "continue",
    "stop",
    "name",
    "regex",
    "(.*)",
    "{1}",
    "answer",
    "auto",
    "value",
    "template",
    "IN",
    "ANY",
    "rcode",
    "NXDOMAIN",
    "match",
    "log",
    "class",
    "error",
    "errors",
    "health",
    "lameduck",
    "ready",
    "prometheus",
    "loop",
    "loadbalance",
    "autopath",
    "@kubernetes",
    "bind",
    "{$NOWHERE}",
    "except",
    "max_concurrent",
    "expire",
    ",",
    "..",
];
