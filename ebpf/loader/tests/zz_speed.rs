#![allow(warnings, unsafe_code)]
#[path = "support/node.rs"]
mod node;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use node::{Node, external};
use seaway_ebpf_loader::*;

fn sh(s: &str) { assert!(Command::new("bash").args(["-c", s]).status().unwrap().success(), "{s}"); }
fn enter(ns: &str) {
    let file = std::fs::File::open(format!("/run/netns/{ns}")).unwrap();
    assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
}
struct Gone;
impl Drop for Gone { fn drop(&mut self) { sh("for n in zlan zcl zn1 zn2 zp1 zp2; do ip netns del $n 2>/dev/null; done; true"); } }

fn server(ns: &'static str) {
    std::thread::spawn(move || {
        enter(ns);
        let l = TcpListener::bind("0.0.0.0:8080").unwrap();
        let s = TcpListener::bind("0.0.0.0:8081").unwrap();
        for _ in 0..32 {
            let l = l.try_clone().unwrap();
            std::thread::spawn(move || for c in l.incoming().flatten() {
                let mut c = c; c.set_nodelay(true); let mut b = [0];
                while let Ok(1) = c.read(&mut b) { c.write_all(&b); }
            });
        }
        std::thread::spawn(move || for c in s.incoming().flatten() {
            let mut c = c; let mut b = vec![0; 1 << 18];
            while c.read(&mut b).unwrap_or(0) > 0 {}
        });
        loop { std::thread::park() }
    });
}
fn one(to: SocketAddr) {
    let s = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    use std::os::fd::FromRawFd;
    let SocketAddr::V4(v4) = to else { panic!() };
    let lin = libc::linger { l_onoff: 1, l_linger: 0 };
    unsafe { libc::setsockopt(s, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const lin).cast(), 8) };
    let a = libc::sockaddr_in { sin_family: 2, sin_port: v4.port().to_be(), sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) }, sin_zero: [0; 8] };
    let r = unsafe { libc::connect(s, (&raw const a).cast(), 16) };
    let mut c = unsafe { TcpStream::from_raw_fd(s) };
    assert_eq!(r, 0, "{to} {}", std::io::Error::last_os_error());
    c.write_all(&[1]).unwrap(); let mut b = [0]; c.read_exact(&mut b).unwrap();
}
fn rate(to: &str, ms: u64) -> f64 {
    let to: SocketAddr = to.parse().unwrap();
    let n = AtomicU64::new(0); let t = Instant::now();
    std::thread::scope(|s| { for _ in 0..4 { s.spawn(|| { enter("zcl"); while t.elapsed() < Duration::from_millis(ms) { one(to); n.fetch_add(1, Ordering::Relaxed); } }); } });
    n.into_inner() as f64 / t.elapsed().as_secs_f64()
}
fn stream(to: &str, ms: u64) -> f64 {
    let to: SocketAddr = to.parse().unwrap();
    std::thread::scope(|s| s.spawn(|| { enter("zcl"); let mut c = TcpStream::connect(to).unwrap(); let chunk = vec![7; 1<<18]; let t = Instant::now(); let mut n = 0u64;
        while t.elapsed() < Duration::from_millis(ms) { n += c.write(&chunk).unwrap() as u64 } n as f64 * 8.0 / 1e9 / t.elapsed().as_secs_f64() }).join().unwrap())
}
fn med(v: &mut Vec<f64>) -> f64 { v.sort_by(f64::total_cmp); v[v.len()/2] }

#[test]
fn speed() {
    let _g = Gone;
    sh("for n in zlan zcl zn1 zn2 zp1 zp2; do ip netns del $n 2>/dev/null; done; true");
    sh(r#"set -e
for n in zlan zcl zn1 zn2 zp1 zp2; do ip netns add $n; ip -n $n link set lo up; done
ip -n zlan link add br0 type bridge; ip -n zlan link set br0 up
i=1; for n in zcl zn1 zn2; do ip -n $n link add eth0 type veth peer name p$n netns zlan; ip -n zlan link set p$n master br0 up; ip -n $n addr add 172.30.0.$i/24 dev eth0; ip -n $n link set eth0 up; i=$((i+1)); done
for k in 1 2; do
 ip -n zn$k link add pod0 type veth peer name eth0 netns zp$k; ip -n zn$k link set pod0 address ee:ee:ee:ee:ee:ee
 ip -n zn$k link set pod0 up; ip -n zp$k link set eth0 up; ip -n zp$k addr add 10.244.$k.2/32 dev eth0
 ip -n zp$k neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
 ip -n zp$k route add default via 169.254.1.1 dev eth0 onlink
 ip -n zn$k route add 10.244.$k.2/32 dev pod0
 ip netns exec zn$k sysctl -qw net.ipv4.ip_forward=1
 ip -n zcl route add 10.244.$k.0/24 via 172.30.0.$((k+1))
done
ip netns exec zn2 iptables-restore <<X
*filter
:KUBE-FORWARD - [0:0]
-A INPUT -m conntrack --ctstate NEW
-A FORWARD -m conntrack --ctstate NEW
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KS - [0:0]
:KN - [0:0]
:KE - [0:0]
-A PREROUTING -j KS
-A KS -m addrtype --dst-type LOCAL -j KN
-A KN -p tcp -m tcp --dport 30080 -j KE
-A KN -p tcp -m tcp --dport 30081 -j DNAT --to-destination 10.244.2.2:8081
-A KE -j MARK --set-xmark 0x4000/0x4000
-A KE -p tcp -j DNAT --to-destination 10.244.2.2:8080
-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A POSTROUTING -j MASQUERADE --random-fully
COMMIT
X
"#);
    server("zp1"); server("zp2");
    let mut node = Node::new("speed");
    enter("zn1");
    node.maps.set_config(&NodeConfig { node_v4: Some("172.30.0.2".parse().unwrap()), ..NodeConfig::default() }).unwrap();
    node.service(external("172.30.0.2", 30080, Protocol::Tcp), &[("10.244.1.2", 8080, true)], |_| {});
    node.service(external("172.30.0.2", 30081, Protocol::Tcp), &[("10.244.1.2", 8081, true)], |_| {});
    let up = || ("eth0".to_owned(), Role::Uplink);
    let both = || vec![up(), ("pod0".to_owned(), Role::Pod)];
    std::thread::sleep(Duration::from_millis(300));
    let ms: u64 = std::env::var("MS").map_or(250, |v| v.parse().unwrap());
    let rounds: usize = std::env::var("ROUNDS").map_or(12, |v| v.parse().unwrap());
    let only = std::env::var("ONLY").unwrap_or_default();
    let names = ["direct-noprog", "direct-prog", "nodeport-stack", "nodeport-podlink", "iptables"];
    let mut r = vec![Vec::new(); 5]; let mut s = vec![Vec::new(); 5];
    for round in 0..rounds {
        for k in 0..5 {
            let k = (k + round) % 5;
            if !only.is_empty() && only != names[k] { continue; }
            match k { 0 => node.dataplane.attach_devices(&[]), 2 => node.dataplane.attach_devices(&[up()]), _ => node.dataplane.attach_devices(&both()) }.unwrap();
            let (a, b) = match k { 0 | 1 => ("10.244.1.2:8080", "10.244.1.2:8081"), 4 => ("172.30.0.3:30080", "172.30.0.3:30081"), _ => ("172.30.0.2:30080", "172.30.0.2:30081") };
            if std::env::var("PERF").is_ok() && round == rounds - 1 {
                let child = Command::new("perf").args(["record", "-a", "-g", "-o", &format!("/tmp/perf-{}.data", names[k]), "--", "sleep", "2"]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
                rate(a, 2300);
                let mut child = child; child.wait();
            }
            r[k].push(rate(a, ms)); s[k].push(stream(b, ms));
        }
    }
    for k in 0..5 { if !r[k].is_empty() { println!("{:18} {:8.0}/s {:6.2} Gb/s", names[k], med(&mut r[k]), med(&mut s[k])); } }
}
