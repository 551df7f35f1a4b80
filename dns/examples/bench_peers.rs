//! CPU time per million answers over loopback, against unbound and knot serving the same records: `cargo run --release -p
//! seaway-dns --example bench_peers -- [SIZE…]`. Server and client (dnsperf) each have a core of their own; the servers are
//! measured in turn, medians of three. Needs Debian's dnsperf, unbound and knot. Prints one JSON object per row.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use seaway_dns::{DnsConfig, Metrics, Server};
use seaway_model::{Protocol, Service, ServiceKey, ServicePort, Snapshot};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 3;
const SECONDS: u32 = 2;
const CASES: [&str; 4] = ["hit", "nxdomain", "nodata", "srv"];
const PEERS: [&str; 3] = ["seaway", "unbound", "knot"];
/// Clock ticks per second, as /proc counts them.
const TICKS: f64 = 100.0;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, size, port] = &args[..]
        && serve == "serve"
    {
        return self::serve(size.parse()?, port.parse()?);
    }
    let sizes = args.iter().map(|size| size.parse()).collect::<std::result::Result<Vec<u32>, _>>()?;
    for size in if sizes.is_empty() { vec![1_000, 10_000, 50_000] } else { sizes } {
        compare(size)?;
    }
    Ok(())
}

/// A server that is killed when its bench ends.
struct Running {
    child: Child,
    port: u16,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn compare(size: u32) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("seaway-bench-dns-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let done = compare_in(size, &dir);
    fs::remove_dir_all(&dir)?;
    done
}

#[expect(clippy::print_stdout, reason = "what a bench is for")]
fn compare_in(size: u32, dir: &Path) -> Result<()> {
    let servers = [seaway(size)?, unbound(size, dir)?, knot(size, dir)?];
    for server in &servers {
        wait_for(server.port)?;
    }
    for case in CASES {
        let questions = dir.join(case);
        fs::write(&questions, questions_of(case, size))?;
        let mut costs = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (server, costs) in servers.iter().zip(&mut costs) {
                costs.push(measure(server, &questions)?);
            }
        }
        let [(ours, rate), others @ ..] = costs.map(median);
        for (peer, (theirs, their_rate)) in PEERS.iter().skip(1).zip(others) {
            println!(
                "{{\"bench\":\"dns\",\"case\":\"{case}\",\"size\":{size},\"unit\":\"cpu s per million\",\
                 \"ours\":{ours:.2},\"peer\":\"{peer}\",\"theirs\":{theirs:.2},\"ratio\":{:.3},\
                 \"answers_per_second\":[{rate:.0},{their_rate:.0}]}}",
                ours / theirs
            );
        }
    }
    Ok(())
}

/// The pair with the median cost.
fn median(mut pairs: Vec<(f64, f64)>) -> (f64, f64) {
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    pairs[pairs.len() / 2]
}

fn questions_of(case: &str, size: u32) -> String {
    (0..20_000_u64).fold(String::new(), |mut text, n| {
        let n = n * 7919 % u64::from(size);
        let line = match case {
            "nxdomain" => format!("n{n}.shop.svc.cluster.local A"),
            "nodata" => format!("s{n}.shop.svc.cluster.local AAAA"),
            "srv" => format!("_http._tcp.s{n}.shop.svc.cluster.local SRV"),
            _ => format!("s{n}.shop.svc.cluster.local A"),
        };
        writeln!(text, "{line}").ok();
        text
    })
}

/// CPU seconds of the server per million answers, and answers per second.
fn measure(server: &Running, questions: &Path) -> Result<(f64, f64)> {
    let before = cpu_s(server.child.id())?;
    let output = Command::new("taskset")
        .args(["-c", "1", "dnsperf", "-s", "127.0.0.1", "-p", &server.port.to_string()])
        .args(["-l", &SECONDS.to_string(), "-c", "4", "-q", "64", "-d"])
        .arg(questions)
        .output()?;
    let cpu = cpu_s(server.child.id())? - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    let (completed, rate) =
        field("Queries completed:").zip(field("Queries per second:")).ok_or_else(|| text.clone())?;
    Ok((cpu * 1e6 / completed, rate))
}

/// CPU time of a process with all its threads.
fn cpu_s(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / TICKS)
}

fn free_port() -> Result<u16> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn spawn(program: &str, args: &[&str], port: u16) -> Result<Running> {
    let child = Command::new("taskset")
        .args(["-c", "0", program])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Running { child, port })
}

fn seaway(size: u32) -> Result<Running> {
    let port = free_port()?;
    let own = std::env::current_exe()?.display().to_string();
    spawn(&own, &["serve", &size.to_string(), &port.to_string()], port)
}

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a60_0000 + n)
}

fn unbound(size: u32, dir: &Path) -> Result<Running> {
    let port = free_port()?;
    let mut text = format!(
        "server:\n interface: 127.0.0.1\n port: {port}\n do-daemonize: no\n chroot: \"\"\n username: \"\"\n \
         pidfile: \"\"\n use-syslog: no\n num-threads: 1\n directory: \"{}\"\n access-control: 127.0.0.0/8 allow\n \
         local-zone: \"cluster.local.\" static\n \
         local-data: \"cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5\"\n",
        dir.display()
    );
    for n in 0..size {
        let name = format!("s{n}.shop.svc.cluster.local.");
        writeln!(text, " local-data: \"{name} 5 A {}\"", address(n))?;
        writeln!(text, " local-data: \"_http._tcp.{name} 5 SRV 0 100 80 {name}\"")?;
    }
    text += "remote-control:\n control-enable: no\n";
    let file = dir.join("unbound.conf");
    fs::write(&file, text)?;
    spawn("/usr/sbin/unbound", &["-d", "-c", &file.display().to_string()], port)
}

fn knot(size: u32, dir: &Path) -> Result<Running> {
    let port = free_port()?;
    let mut zone = "$ORIGIN cluster.local.\n@ 5 SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ 5 NS ns.dns\nns.dns 5 A 10.96.0.10\n"
        .to_owned();
    for n in 0..size {
        writeln!(
            zone,
            "s{n}.shop.svc 5 A {}\n_http._tcp.s{n}.shop.svc 5 SRV 0 100 80 s{n}.shop.svc",
            address(n)
        )?;
    }
    let (file, dir) = (dir.join("knot.conf"), dir.display());
    fs::write(format!("{dir}/zone"), zone)?;
    fs::write(
        &file,
        format!(
            "server:\n  rundir: {dir}\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  \
             background-workers: 1\ndatabase:\n  storage: {dir}\nzone:\n  - domain: cluster.local\n    file: {dir}/zone\n"
        ),
    )?;
    spawn("/usr/sbin/knotd", &["-c", &file.display().to_string()], port)
}

/// Waits until the server at `port` answers.
fn wait_for(port: u16) -> Result<()> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii("s1.shop.svc.cluster.local.")?, RecordType::A));
    let packet = message.to_vec()?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.connect(("127.0.0.1", port))?;
        let mut buffer = [0; 512];
        let answered = socket.send(&packet).and_then(|_| socket.recv(&mut buffer));
        if answered
            .is_ok_and(|length| Message::from_vec(&buffer[..length]).is_ok_and(|m| !m.answers.is_empty()))
        {
            return Ok(());
        }
        sleep(Duration::from_millis(50));
    }
    Err(format!("nobody answers at port {port}").into())
}

/// Serves `size` Services on one thread until standard input ends.
fn serve(size: u32, port: u16) -> Result<()> {
    let mut snapshot = Snapshot { version: 1, synced: true, ..Snapshot::default() };
    for n in 0..size {
        let mut service = Service::new(ServiceKey::new("shop", &format!("s{n}")));
        service.cluster_ips.push(address(n).into());
        service.ports.push(ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            app_protocol: None,
        });
        snapshot.services.insert(service.key.clone(), Arc::new(service));
    }
    let listen = vec![SocketAddr::from(([127, 0, 0, 1], port))];
    let server = Server::bind(&DnsConfig { listen, sockets: 1, ..DnsConfig::default() })?;
    let metrics = Metrics::new(&prometheus::Registry::new())?;
    let (_writer, snapshots) = watch::channel(Arc::new(snapshot));
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    std::thread::spawn(move || {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        stop.cancel();
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(server.serve(snapshots, metrics, shutdown))?)
}
