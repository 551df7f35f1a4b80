//! The images as processes: this test binary runs itself as the image (there is no binary in this crate), and the
//! probe asks over loopback. No privilege is needed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use seaway_images::probe::{ErrorKind, Kind, ProbeRequest, ProbeResult, execute_blocking};

const IMAGE: &str = "SEAWAY_TEST_IMAGE";
const ARGUMENTS: &str = "SEAWAY_TEST_ARGUMENTS";

/// Not a test: the process of the image that the tests below start.
#[test]
fn image_process() {
    let Ok(image) = std::env::var(IMAGE) else { return };
    let arguments = std::env::var(ARGUMENTS).unwrap();
    let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    // `ExitCode` cannot be looked into: leave with 0 or 1.
    let code = seaway_images::run(&image, &arguments);
    std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
}

struct Image {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Image {
    fn start(image: &str, arguments: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "image_process", "--nocapture"])
            .envs([(IMAGE, image), (ARGUMENTS, arguments), ("POD_NAME", "pod-1"), ("NODE_NAME", "node-1")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    /// Reads lines until one has `text` in it.
    fn wait_for_line(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "ended without a line that has {text:?}");
            if line.contains(text) {
                return line;
            }
        }
    }

    fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    fn wait(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Already ended in most tests.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct Echo {
    image: Image,
    http: u16,
    tcp: u16,
    udp: u16,
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn start_echo() -> Echo {
    let (http, tcp, udp) = (free_port(), free_port(), free_port());
    let arguments = format!("--http-port {http} --tcp-port={tcp} --udp-port {udp} --drain-ms 3000");
    let mut image = Image::start("seaway/echo:test", &arguments);
    image.wait_for_line("pod-1 listens on");
    Echo { image, http, tcp, udp }
}

fn probe(kind: Kind, target: String, change: impl FnOnce(&mut ProbeRequest)) -> ProbeResult {
    let mut request = ProbeRequest::new(kind, target);
    change(&mut request);
    execute_blocking(request)
}

fn get(port: u16, path: &str) -> ProbeResult {
    probe(Kind::Http, format!("http://127.0.0.1:{port}{path}"), |_| {})
}

fn reply(result: &ProbeResult) -> &str {
    result.attempts[0].reply.as_deref().unwrap_or_else(|| panic!("no reply: {result:?}"))
}

#[test]
fn echo_says_who_answers_over_http_in_both_families() {
    let echo = start_echo();
    for host in ["127.0.0.1", "[::1]"] {
        let result = probe(Kind::Http, format!("http://{host}:{}/json", echo.http), |r| {
            r.count = 4;
            r.parallel = 2;
            r.keep_alive = true;
        });
        assert!(result.ok, "{result:?}");
        assert_eq!(result.answered_by.get("pod-1"), Some(&4));
        let answer: serde_json::Value = serde_json::from_str(reply(&result)).unwrap();
        assert_eq!(answer["client"], result.attempts[0].local.unwrap().to_string());
        assert_eq!(answer["local"], format!("{host}:{}", echo.http));
        assert_eq!(answer["node"], "node-1");
        assert_eq!(answer["protocol"], "http");
    }
    assert!(reply(&get(echo.http, "/")).starts_with("pod: pod-1\nnode: node-1\nhostname: "));
    assert_eq!(reply(&get(echo.http, "/hostname")), "pod-1\n");
    let result = get(echo.http, "/clientip");
    assert_eq!(reply(&result).trim(), result.attempts[0].local.unwrap().to_string());
    let missing = get(echo.http, "/missing");
    assert_eq!((missing.error(), missing.attempts[0].status), (Some(ErrorKind::Status), Some(404)));
    let posted =
        probe(Kind::Http, format!("127.0.0.1:{}/echo", echo.http), |r| r.send = Some("hello".to_owned()));
    assert_eq!(reply(&posted), "hello");
}

#[test]
fn echo_readiness_can_be_switched() {
    let echo = start_echo();
    let switch = |to: &str| {
        let url = format!("http://127.0.0.1:{}/readyz?ready={to}", echo.http);
        probe(Kind::Http, url, |r| r.send = Some(String::new()))
    };
    assert!(get(echo.http, "/readyz").ok);
    assert!(switch("false").ok);
    assert_eq!(get(echo.http, "/readyz").attempts[0].status, Some(503));
    assert!(get(echo.http, "/healthz").ok);
    assert!(switch("true").ok);
    assert!(get(echo.http, "/readyz").ok);
    assert_eq!(switch("perhaps").attempts[0].status, Some(400));
}

#[test]
fn echo_over_tcp_and_udp() {
    let echo = start_echo();
    let result = probe(Kind::Tcp, format!("127.0.0.1:{}", echo.tcp), |r| {
        r.greeting = true;
        r.send = Some("a line".to_owned());
        r.source_port = Some(free_port());
        r.count = 3;
    });
    assert!(result.ok, "{result:?}");
    assert_eq!(result.attempts[2].echo.as_deref(), Some("a line"));
    assert_eq!(result.answered_by.get("pod-1"), Some(&3));
    for unconnected in [false, true] {
        let result = probe(Kind::Udp, format!("127.0.0.1:{}", echo.udp), |r| {
            r.unconnected = unconnected;
            r.keep_alive = true;
            r.count = 3;
            r.send = Some("datagram".to_owned());
        });
        assert!(result.ok, "{result:?}");
        assert!(reply(&result).ends_with("\ndatagram"));
        assert_eq!(result.answered_by.get("pod-1"), Some(&3));
        assert_eq!(result.attempts[0].local, result.attempts[2].local);
    }
}

#[test]
fn terminating_echo_finishes_what_is_open_and_leaves_with_0() {
    let mut echo = start_echo();
    let mut held = TcpStream::connect((Ipv4Addr::LOCALHOST, echo.tcp)).unwrap();
    let mut greeting = String::new();
    BufReader::new(held.try_clone().unwrap()).read_line(&mut greeting).unwrap();
    let http = echo.http;
    let slow = std::thread::spawn(move || get(http, "/delay?ms=800"));
    // The request must have arrived before the signal: an idle connection would be closed. Each look counts itself.
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut looks = 1;
    while !reply(&get(http, "/json")).contains(&format!("\"requests\":{}", looks + 1)) {
        assert!(Instant::now() < deadline, "the slow request does not arrive");
        looks += 1;
    }
    echo.image.terminate();
    echo.image.wait_for_line("terminating");
    held.write_all(b"still here\n").unwrap();
    let mut answer = [0; 11];
    held.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still here\n");
    assert!(slow.join().unwrap().ok);
    drop(held);
    assert_eq!(echo.image.wait(), 0);
    assert_eq!(get(http, "/").error(), Some(ErrorKind::Refused));
}

#[test]
fn hold_counts_what_breaks_and_connects_again() {
    let mut echo = start_echo();
    let target = format!("127.0.0.1:{}", echo.tcp);
    let steady = probe(Kind::Hold, target.clone(), |r| {
        r.count = 20;
        r.interval_ms = 2;
    });
    assert!(steady.ok, "{steady:?}");
    assert_eq!((steady.good, steady.reconnects), (20, 0));
    let (tcp, held) = (echo.tcp, target);
    let broken = std::thread::spawn(move || {
        probe(Kind::Hold, held, |r| {
            r.count = 300;
            r.interval_ms = 10;
        })
    });
    std::thread::sleep(Duration::from_millis(300));
    echo.image.child.kill().unwrap();
    echo.image.child.wait().unwrap();
    let _again = Image::start("seaway/echo", &format!("--http-port 0 --udp-port 0 --tcp-port {tcp}"));
    let broken = broken.join().unwrap();
    assert!(!broken.ok && broken.good > 0 && broken.failed > 0, "{broken:?}");
    assert_eq!(broken.reconnects, 1);
    assert!(broken.longest_gap_us > 10_000);
}

#[test]
fn client_dials_when_asked_and_reports_its_load() {
    let echo = start_echo();
    let port = free_port();
    let load = format!("http://127.0.0.1:{}/json", echo.http);
    let arguments = format!("--http-port {port} --load {load} --rate 50 --report-s 1");
    let mut client = Image::start("docker.io/seaway/client:v1", &arguments);
    client.wait_for_line("listens on");
    let dial = format!("/dial?kind=tcp&target=127.0.0.1:{}&greeting=true&count=2", echo.tcp);
    let result: ProbeResult = serde_json::from_str(reply(&get(port, &dial))).unwrap();
    assert_eq!((result.ok, result.answered_by.get("pod-1")), (true, Some(&2)));
    let request = ProbeRequest::new(Kind::Udp, format!("127.0.0.1:{}", echo.udp));
    let posted = probe(Kind::Http, format!("http://127.0.0.1:{port}/dial"), |r| {
        r.send = Some(serde_json::to_string(&request).unwrap());
    });
    let result: ProbeResult = serde_json::from_str(reply(&posted)).unwrap();
    assert!(result.ok, "{result:?}");
    let wrong = get(port, "/dial?kind=tcp&target=x&bogus=1");
    assert_eq!(wrong.attempts[0].status, Some(400));
    assert!(reply(&wrong).contains("unknown field `bogus`"));
    let line = client.wait_for_line("good=");
    assert!(line.contains("failed=0 pods=1 "), "{line}");
    client.terminate();
    assert_eq!(client.wait(), 0);
}

#[test]
fn pause_waits_until_told_to_stop() {
    let mut pause = Image::start("seaway/pause", "");
    pause.wait_for_line("running 1 test");
    wait_until_sigterm_is_caught(&pause.child);
    assert!(pause.child.try_wait().unwrap().is_none());
    pause.terminate();
    assert_eq!(pause.wait(), 0);
}

/// A signal before its handler is in place would kill the process.
fn wait_until_sigterm_is_caught(child: &Child) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        if u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << (15 - 1)) != 0 {
            return;
        }
        assert!(Instant::now() < deadline, "SIGTERM is not caught");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn mistakes_end_the_process_at_once() {
    for (image, arguments) in [
        ("seaway/echo", "--bogus 1"),
        ("seaway/client", "--rate 0"),
        ("seaway/none", ""),
        ("seaway/echo", "--tcp-port x"),
    ] {
        assert_eq!(Image::start(image, arguments).wait(), 1, "{image} {arguments}");
    }
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    assert_eq!(Image::start("seaway/echo", &format!("--http-port {port}")).wait(), 1);
}

#[test]
fn failures_have_their_kind() {
    let closed = format!("127.0.0.1:{}", free_port());
    for kind in [Kind::Tcp, Kind::Udp, Kind::Http, Kind::Hold] {
        let result = probe(kind, closed.clone(), |_| {});
        assert_eq!(result.error(), Some(ErrorKind::Refused), "{kind:?} {result:?}");
    }
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let result = probe(Kind::Udp, silent.local_addr().unwrap().to_string(), |r| {
        r.timeout_ms = 60;
        r.retries = 2;
    });
    assert_eq!(result.error(), Some(ErrorKind::Timeout));
    let mut asked = 0;
    silent.set_nonblocking(true).unwrap();
    while silent.recv(&mut [0; 16]).is_ok() {
        asked += 1;
    }
    assert_eq!(asked, 3);
    let hangs_up = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hangs_up.local_addr().unwrap();
    let server = std::thread::spawn(move || drop(hangs_up.accept().unwrap()));
    let result = probe(Kind::Tcp, address.to_string(), |r| r.greeting = true);
    assert_eq!(result.error(), Some(ErrorKind::Closed));
    server.join().unwrap();
    let kind_of = |change: fn(&mut ProbeRequest)| probe(Kind::Tcp, closed.clone(), change).error();
    assert_eq!(kind_of(|r| r.count = 0), Some(ErrorKind::Invalid));
    assert_eq!(kind_of(|r| r.source = Some("198.51.100.1".parse().unwrap())), Some(ErrorKind::Source));
    assert_eq!(kind_of(|r| r.target = "no-such-name.invalid:80".to_owned()), Some(ErrorKind::Resolve));
    assert_eq!(probe(Kind::Http, "https://127.0.0.1/".to_owned(), |_| {}).error(), Some(ErrorKind::Invalid));
}

#[test]
fn an_answer_from_another_address_is_noticed() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let answers = std::thread::spawn(move || {
        let (_, client) = server.recv_from(&mut [0; 64]).unwrap();
        other.send_to(b"hello", client).unwrap();
    });
    let result = probe(Kind::Udp, address.to_string(), |r| r.unconnected = true);
    assert_eq!(result.error(), Some(ErrorKind::Mismatch));
    answers.join().unwrap();
}

#[test]
fn dns_probe_reads_answers_and_response_codes() {
    use hickory_proto::op::{Message, MessageType, ResponseCode};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record};
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = server.local_addr().unwrap();
    let serve = std::thread::spawn(move || {
        for _ in 0..3 {
            let mut buffer = [0; 512];
            let (length, client) = server.recv_from(&mut buffer).unwrap();
            let mut message = Message::from_vec(&buffer[..length]).unwrap();
            message.metadata.message_type = MessageType::Response;
            let name = message.queries[0].name().clone();
            match name.to_ascii().as_str() {
                "web.default.svc.cluster.local." => {
                    message.add_answer(Record::from_rdata(name, 5, RData::A(A::new(192, 0, 2, 1))));
                }
                "none." => message.metadata.response_code = ResponseCode::NXDomain,
                _ => {}
            }
            server.send_to(&message.to_vec().unwrap(), client).unwrap();
        }
    });
    let ask = |name: &str| probe(Kind::Dns, name.to_owned(), |r| r.server = Some(address));
    let found = ask("web.default.svc.cluster.local");
    assert!(found.ok, "{found:?}");
    assert_eq!(found.attempts[0].answers, ["web.default.svc.cluster.local. A 192.0.2.1"]);
    assert_eq!(found.attempts[0].addresses, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    let none = ask("none");
    assert_eq!(
        (none.error(), none.attempts[0].rcode.as_deref()),
        (Some(ErrorKind::NxDomain), Some("NXDOMAIN"))
    );
    assert_eq!(ask("empty").error(), Some(ErrorKind::NoData));
    serve.join().unwrap();
}
