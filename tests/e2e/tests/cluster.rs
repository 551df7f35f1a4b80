//! `up`, `check`, `status`, `down`: the way a new user goes, and what is left afterwards.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use seaway_e2e::{Cluster, free_port, require_root, run, seaway};

/// Everything on the machine that a cluster could leave behind.
fn traces() -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    let mut commands = vec![
        vec!["ip", "netns", "list"],
        vec!["ip", "-o", "link", "show"],
        vec!["ip", "-4", "route", "show", "table", "all"],
        vec!["ip", "-6", "route", "show", "table", "all"],
        vec!["ip", "rule"],
        vec!["nft", "list", "ruleset"],
        vec!["find", "/sys/fs/bpf", "-mindepth", "1"],
        vec!["find", "/run/netns", "-mindepth", "1"],
        vec!["pgrep", "-af", "e2e-cluster"],
    ];
    let cgroups = if Path::new("/sys/fs/cgroup/unified").exists() {
        "/sys/fs/cgroup/unified"
    } else {
        "/sys/fs/cgroup"
    };
    commands.push(vec!["find", cgroups, "-type", "d", "-path", "*seaway*"]);
    for command in commands {
        let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        traces.extend(text.lines().map(|line| format!("{}: {line}", command.join(" "))));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // A mount's number may change; its place may not appear.
    traces.extend(
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| format!("mount: {point}")),
    );
    traces
}

/// What is there now and was not before. Others may work on this machine at the same time: what goes by itself within
/// half a minute was theirs.
fn left_behind(before: &BTreeSet<String>) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(30);
    let mut left: Vec<String> = traces().difference(before).cloned().collect();
    while !left.is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500));
        let now = traces();
        left.retain(|trace| now.contains(trace));
    }
    left
}

#[test]
fn up_check_down_leaves_nothing() {
    require_root();
    let before = traces();
    let cluster = Cluster::up("e2e-cluster", &[]);
    assert!(cluster.up.stderr.contains("is up in"), "up prints how long it took: {}", cluster.up.stderr);
    assert!(cluster.up.stdout.contains("KUBECONFIG="), "up says what to do next: {}", cluster.up.stdout);

    let rows = cluster.seaway(&["check", "--json"]).ok();
    let rows: Vec<serde_json::Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.len() > 50, "only {} rows", rows.len());
    for row in &rows {
        assert_eq!(row["ok"], true, "{row}");
        assert!(row["name"].is_string() && row["detail"].is_string() && row["ms"].is_u64(), "{row}");
    }

    let status = cluster.seaway(&["status"]).ok();
    assert!(status.contains("server") && status.contains("node3") && status.contains("MiB"), "{status}");
    cluster.seaway(&["services"]).ok();
    let page =
        run(Command::new("curl").args(["-sS", "--max-time", "5", &format!("http://{}/", cluster.publish)]))
            .ok();
    assert!(page.contains("frontend-"), "the demo answers with its pod's name: {page}");

    let dir = cluster.dir();
    cluster.seaway(&["down"]).ok();
    assert!(!dir.exists(), "{} is still there", dir.display());
    let left = left_behind(&before);
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    let again = cluster.seaway(&["down"]).ok();
    assert!(again.contains("nothing to remove"), "{again}");
}

/// Runs in a mount namespace of its own, in which no bpffs is mounted at first.
const BPFFS_SCRIPT: &str = r#"
    set -eu
    up() { "$BIN" up --detach --no-demo --nodes 1 --state-dir "$STATES" --name "$1" --api-listen "$2"; }
    down() { "$BIN" down --state-dir "$STATES" --name "$1"; }
    trap 'down e2e-bpffs; down e2e-bpffs-2' EXIT
    while mountpoint -q /sys/fs/bpf; do umount /sys/fs/bpf; done
    up e2e-bpffs "$FIRST"
    up e2e-bpffs-2 "$SECOND"
    down e2e-bpffs
    mountpoint -q /sys/fs/bpf || { echo "the other cluster lost its bpffs"; exit 1; }
    "$BIN" status --state-dir "$STATES" --name e2e-bpffs-2
    down e2e-bpffs-2
    ! mountpoint -q /sys/fs/bpf || { echo "bpffs stays mounted"; exit 1; }
    mount -t bpf bpf /sys/fs/bpf
    up e2e-bpffs "$FIRST"
    down e2e-bpffs
    mountpoint -q /sys/fs/bpf || { echo "the system's own bpffs is gone"; exit 1; }
"#;

#[test]
fn a_bpffs_that_up_mounted_goes_with_the_last_cluster() {
    require_root();
    let states = std::env::temp_dir().join(format!("seaway-e2e-bpffs-{}", std::process::id()));
    let listen = || format!("127.0.0.1:{}", free_port());
    let mut script = Command::new("unshare");
    script.args(["--mount", "sh", "-c", BPFFS_SCRIPT]).env("BIN", seaway_e2e::seaway_bin());
    script.env("STATES", &states).env("FIRST", listen()).env("SECOND", listen());
    let ran = run(&mut script);
    drop(std::fs::remove_dir(&states));
    ran.ok();
}

#[test]
fn vxlan_carries_pods_as_routes_do() {
    let cluster = Cluster::up("e2e-vxlan", &["--overlay", "vxlan", "--nodes", "2"]);
    let rows = cluster.seaway(&["check", "--only", "across nodes"]).ok();
    assert!(rows.contains("0 failed"), "{rows}");
    let mut link = cluster.in_netns("node1", &["ip", "link", "show", "seaway-vxlan"]);
    run(&mut link).ok();
}

#[test]
fn what_cannot_work_is_said_in_one_line() {
    require_root();
    let cases: [(&[&str], &str); 9] = [
        (&["up", "--no-such-flag"], "unexpected argument '--no-such-flag'"),
        (&["up", "--pod-cidr", "10.96.0.0/12"], "overlaps --service-cidr"),
        (&["up", "--pod-cidr", "10.0.0/8"], "invalid value '10.0.0/8'"),
        (&["up", "--nodes", "0"], "0 is not in 1..=64"),
        (&["up", "--pod-cidr", "10.0.0.0/33"], "such as 10.244.0.0/16"),
        (&["server", "--node-port-range", "9-1"], "FIRST-LAST"),
        (&["server", "--service-cidr", "10.244.0.0/24"], "overlaps --cluster-cidr"),
        (&["down", "--name", ".."], "must be 1 to 32 of a-z"),
        (&["status", "--name", "e2e-no-such-cluster"], "there is no cluster"),
    ];
    for (args, wanted) in cases {
        let ran = seaway(args);
        let code = ran.code;
        let said = ran.fails_with(wanted);
        assert!(!said.contains("panicked"), "{said}");
        assert!(code == Some(2) || args[0] == "status", "wrong usage has exit code 2, not {code:?}: {said}");
    }
}

#[test]
fn without_privilege_up_says_so_and_makes_nothing() {
    require_root();
    let bin = seaway_e2e::seaway_bin();
    let copy = std::env::temp_dir().join(format!("seaway-e2e-unprivileged-{}", std::process::id()));
    std::fs::copy(bin, &copy).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).args([
        "up",
        "--name",
        "e2e-nobody",
    ]);
    let ran = run(&mut command);
    std::fs::remove_file(&copy).unwrap();
    ran.fails_with("run it as root");
}

#[test]
fn a_full_disk_is_named_and_nothing_is_left() {
    require_root();
    let dir = std::env::temp_dir().join(format!("seaway-e2e-full-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&dir)).ok();
    let state = dir.display().to_string();
    let ran = seaway(&["up", "--detach", "--name", "e2e-full", "--state-dir", &state]);
    run(Command::new("umount").arg(&dir)).ok();
    std::fs::remove_dir(&dir).unwrap();
    ran.fails_with("MiB are needed");
}

#[test]
fn a_path_that_is_broken_fails_its_rows_loudly() {
    let cluster = Cluster::up("e2e-broken", &["--nodes", "2", "--no-demo"]);
    let nft =
        "table inet broken { chain forward { type filter hook forward priority 0; udp dport 8082 drop; }; }";
    run(&mut cluster.in_netns("node1", &["nft", nft])).ok();
    let ran = cluster.seaway(&["check", "--json", "--only", "pod to ClusterIP"]);
    assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
    for line in ran.stdout.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let is_broken = row["name"].as_str().unwrap().contains("UDP");
        assert_eq!(row["ok"], !is_broken, "{row}");
    }
    run(&mut cluster.in_netns("node1", &["nft", "delete table inet broken"])).ok();
    cluster.seaway(&["check", "--only", "pod to ClusterIP"]).ok();
}
