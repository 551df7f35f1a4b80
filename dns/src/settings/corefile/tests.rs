//! What a Corefile's options come out as.

use super::*;

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
        "forward example.org 192.0.2.1",
        "cache 30 {\n serve_stale 1h immediate 30s 30s\n}",
        "cache 30 {\n disable errors\n}",
        "cache 30 {\n success 5000 3600 10 12\n}",
        "cache 30 {\n prefetch 10 1m 200%\n}",
        "cache 30 {\n servfail 10m\n}",
        "cache 30 example.org",
        "rewrite continue name a b",
        "rewrite {\n name a b\n}",
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
