//! What a change costs, and that it costs no more.

use super::*;

fn backends(last: &[u8]) -> Arc<[Backend]> {
    let backend = |last: &u8| Backend { addr: [10, 244, 0, *last].into(), port: 8080, local: *last == 1 };
    last.iter().map(backend).collect()
}

fn frontend(kind: FrontendKind, last: &[u8]) -> Arc<Frontend> {
    Arc::new(Frontend {
        group: Group::from_bits(7),
        kind,
        backends: backends(last),
        affinity: None,
        source_ranges: Arc::from([]),
        preserve_source: false,
        elsewhere: false,
        maglev: false,
        dsr: false,
        masquerade: false,
    })
}

fn key(scope: Scope) -> FrontendKey {
    FrontendKey { addr: [10, 96, 0, 1].into(), port: 80, protocol: Protocol::Tcp, scope }
}

fn both(frontend: &Arc<Frontend>) -> Plan {
    let upserts = [Scope::Internal, Scope::External].map(|scope| (key(scope), Arc::clone(frontend)));
    Plan { upserts: upserts.into(), ..Plan::default() }
}

/// Elements removed and added, by set.
fn cost(ops: &[Op]) -> Vec<String> {
    let row = |op: &Op| match op {
        Op::Create => "create".to_owned(),
        Op::AddChain(_, target) => format!("+ chain {}", target.chain()),
        Op::RemoveChain(_, target) => format!("- chain {}", target.chain()),
        Op::Add(_, set, elements) => format!("+ {} {}", elements.len(), set.name()),
        Op::Remove(_, set, elements) => format!("- {} {}", elements.len(), set.name()),
    };
    ops.iter().map(row).collect()
}

#[test]
fn one_changed_endpoint_is_a_few_elements() {
    let mut layout = Layout::default();
    let many: Vec<u8> = (1..=100).collect();
    let (ops, failed) = layout.compile(&both(&frontend(FrontendKind::ClusterIP, &many)));
    assert!(failed.is_empty());
    expect_test::expect![[r"
        + chain pick-100
        + chain pick-100-masquerade
        + 1 inside
        + 1 outside
        + 2 targets
        + 100 endpoints
        + 1 cluster-ips
        + 1 hairpin
    "]]
    .assert_eq(&(cost(&ops).join("\n") + "\n"));
    // One has another address.
    let other: Vec<u8> = many.iter().map(|last| if *last == 50 { 200 } else { *last }).collect();
    let (ops, _) = layout.compile(&both(&frontend(FrontendKind::ClusterIP, &other)));
    assert_eq!(cost(&ops), ["- 1 endpoints", "+ 1 endpoints"]);
    // One in the middle goes: the last one takes its place.
    let fewer: Vec<u8> = other.iter().copied().filter(|last| *last != 7).collect();
    let (ops, _) = layout.compile(&both(&frontend(FrontendKind::ClusterIP, &fewer)));
    expect_test::expect![[r"
        + chain pick-99
        + chain pick-99-masquerade
        - 1 inside
        - 1 outside
        - 2 targets
        - 2 endpoints
        + 1 inside
        + 1 outside
        + 2 targets
        + 1 endpoints
        - chain pick-100
        - chain pick-100-masquerade
    "]]
    .assert_eq(&(cost(&ops).join("\n") + "\n"));
    assert_eq!(layout.compile(&both(&frontend(FrontendKind::ClusterIP, &fewer))).0, []);
}

#[test]
fn what_cannot_be_had_is_refused_by_name_and_the_rest_is_done() {
    let mut layout = Layout::default();
    let ranges = ["10.0.0.0/8", "10.1.0.0/16"].map(|text| text.parse().unwrap());
    let overlapping =
        Frontend { source_ranges: ranges.into(), ..(*frontend(FrontendKind::LoadBalancer, &[1])).clone() };
    let mut plan = both(&frontend(FrontendKind::LoadBalancer, &[1]));
    plan.upserts[1].1 = Arc::new(overlapping);
    let (ops, failed) = layout.compile(&plan);
    assert!(ops.iter().any(|op| matches!(op, Op::Add(_, Set::Inside, _))));
    assert!(!ops.iter().any(|op| matches!(op, Op::Add(_, Set::Outside, _))));
    assert_eq!(failed.len(), 1);
    assert_eq!(
        failed[0].error.to_string(),
        "frontend 10.96.0.1:80/TCP external: source ranges that overlap is not supported by nftables"
    );
}

/// The rows of kube-proxy's table that a target decides: who asks, which kind of address, external policy Local.
#[test]
fn sources_are_rewritten_as_in_kube_proxy() {
    let rows = [
        (Scope::Internal, FrontendKind::ClusterIP, false, false),
        (Scope::Internal, FrontendKind::NodePort, false, true),
        (Scope::Internal, FrontendKind::LoadBalancer, false, true),
        (Scope::Internal, FrontendKind::LoadBalancer, true, false),
        (Scope::External, FrontendKind::ClusterIP, false, true),
        (Scope::External, FrontendKind::NodePort, false, true),
        (Scope::External, FrontendKind::NodePort, true, false),
        (Scope::External, FrontendKind::LoadBalancer, true, false),
    ];
    for (scope, kind, local, wanted) in rows {
        let inside = frontend(kind, &[1, 2]);
        let outside = Arc::new(Frontend { preserve_source: local, ..(*inside).clone() });
        let mut stand = Stand { frontends: [Some(inside), Some(outside)], ..Stand::default() };
        stand.place();
        let Some(Target::Pick { masquerade, .. }) = stand.target(Address::of(&key(scope)), scope) else {
            panic!("{scope:?} {kind:?} has backends");
        };
        assert_eq!(masquerade, wanted, "{scope:?} {kind:?}, policy Local: {local}");
    }
}

#[test]
fn loopback_addresses_are_refused() {
    let address = Address { addr: [127, 0, 0, 1].into(), port: 30_080, protocol: Protocol::Tcp };
    let stand = Stand { frontends: [Some(frontend(FrontendKind::NodePort, &[1])), None], ..Stand::default() };
    assert_eq!(stand.target(address, Scope::Internal), Some(Target::Reject));
}

#[test]
fn backends_that_stay_keep_their_index() {
    let placed = |held: &[u8], wanted: &[u8]| -> Vec<u8> {
        let octet = |backend: &Backend| match backend.addr {
            IpAddr::V4(addr) => addr.octets()[3],
            IpAddr::V6(_) => 0,
        };
        place(&backends(held), &backends(wanted)).iter().map(octet).collect()
    };
    assert_eq!(placed(&[], &[1, 2, 3]), [1, 2, 3]);
    assert_eq!(placed(&[3, 1, 2], &[1, 2, 3]), [3, 1, 2]);
    assert_eq!(placed(&[3, 1, 2], &[1, 2, 3, 4]), [3, 1, 2, 4]);
    assert_eq!(placed(&[3, 1, 2, 4], &[1, 3, 4]), [3, 1, 4]);
    assert_eq!(placed(&[1, 2, 3], &[4]), [4]);
    assert_eq!(placed(&[1, 2], &[]), [] as [u8; 0]);
}

/// Codes tell targets apart, and so do names of chains.
#[test]
fn targets_have_codes_and_names_of_their_own() {
    let mut seen: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    let mut names = BTreeSet::new();
    let mut add = |target: Target| {
        assert!(names.insert(target.chain()), "{target:?}");
        let former = seen.insert(target.code(), target.chain());
        assert_eq!(former, None, "{target:?}");
    };
    add(Target::Reject);
    add(Target::Elsewhere);
    for count in [1, 2, 4, 2047] {
        for (outside, masquerade) in [(false, false), (false, true), (true, false), (true, true)] {
            for affinity_s in [None, Some(1), Some(10_800), Some(AFFINITY_MAX_S)] {
                add(Target::Pick { count, outside, masquerade, affinity_s });
            }
        }
    }
}
