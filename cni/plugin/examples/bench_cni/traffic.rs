//! What a packet between two pods of a node costs: ours, bridge's, and two veth pairs with routes and nothing else.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use seaway_cni_network::netlink::{Netlink, Route, Veth, VethPeer};
use seaway_cni_network::netns::Namespace;

use super::{Node, Plugin, Sandbox, percentile, pod_address, row};

const EXCHANGES: u32 = 10_000;
const STREAM: usize = 1 << 30;

/// Two namespaces and the address of the second.
struct Pair {
    client: Namespace,
    server: Namespace,
    addr: IpAddr,
}

/// Rows for round trips and throughput.
pub(super) fn measure(node: &Node, plugins: &[Plugin; 2], rounds: usize) {
    let pairs = [pair_of(node, &plugins[0]), plain(node), pair_of(node, &plugins[1])];
    let mut round_trips = [const { Vec::new() }; 3];
    let mut streams = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for (side, pair) in pairs.iter().enumerate() {
            round_trips[side].push(round_trip_us(pair));
            streams[side].push(stream_s(pair));
        }
    }
    let [ours, plain, bridge] = round_trips.map(|mut values| percentile(&mut values, 0.5));
    row("pod-to-pod-rtt", 1, "us", "veth", [ours, plain], Some(1.05));
    row("pod-to-pod-rtt", 1, "us", "bridge", [ours, bridge], Some(1.0));
    let [ours, plain, bridge] = streams.map(|mut values| percentile(&mut values, 0.5));
    // The time for the same bytes: at least 0.97 of the throughput.
    row("pod-to-pod-stream", STREAM, "s", "veth", [ours, plain], Some(1.0 / 0.97));
    row("pod-to-pod-stream", STREAM, "s", "bridge", [ours, bridge], Some(1.0));
}

fn pair_of(node: &Node, plugin: &Plugin) -> Pair {
    let (client, server) = (Sandbox::new(1), Sandbox::new(2));
    node.call(plugin, "ADD", &client);
    let addr = pod_address(&node.call(plugin, "ADD", &server).1);
    Pair { client: client.namespace, server: server.namespace, addr }
}

/// By hand: an address per pod, a route each way.
fn plain(node: &Node) -> Pair {
    let mut outer = Netlink::open_in(&node.namespace).unwrap();
    let mut end = |number: u8| {
        let namespace = Namespace::anonymous().unwrap();
        let name = format!("plain{number}");
        let peer = VethPeer { name: "eth0", mac: None, netns: Some(namespace.as_fd()) };
        let link =
            outer.create_veth(&Veth { name: &name, mac: None, mtu: Some(1500), group: 0, peer }).unwrap();
        outer.add_address(link.index, format!("10.77.{number}.1/24").parse().unwrap()).unwrap();
        outer.set_up(link.index).unwrap();
        let mut inner = Netlink::open_in(&namespace).unwrap();
        let eth0 = inner.link("eth0").unwrap().unwrap();
        inner.add_address(eth0.index, format!("10.77.{number}.2/24").parse().unwrap()).unwrap();
        inner.set_up(eth0.index).unwrap();
        let gateway = format!("10.77.{number}.1").parse().unwrap();
        inner.add_route(&Route::default_via(gateway).on(eth0.index)).unwrap();
        namespace
    };
    Pair { client: end(1), server: end(2), addr: "10.77.2.2".parse().unwrap() }
}

/// A connection, the server's end handled by `serve` on a thread.
fn connected<T>(
    pair: &Pair,
    serve: impl FnOnce(TcpStream) + Send + 'static,
    work: impl FnOnce(&mut TcpStream) -> T,
) -> T {
    let listener = pair.server.run(|| TcpListener::bind((pair.addr, 0)).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || serve(listener.accept().unwrap().0));
    let mut stream = pair.client.run(|| TcpStream::connect(target).unwrap()).unwrap();
    stream.set_nodelay(true).unwrap();
    let result = work(&mut stream);
    drop(stream);
    server.join().unwrap();
    result
}

fn round_trip_us(pair: &Pair) -> f64 {
    let echo = |mut stream: TcpStream| {
        stream.set_nodelay(true).unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() {
            stream.write_all(&byte).unwrap();
        }
    };
    connected(pair, echo, |stream| {
        let mut byte = [1];
        let mut exchange = |count: u32| {
            let before = Instant::now();
            for _ in 0..count {
                stream.write_all(&byte).unwrap();
                stream.read_exact(&mut byte).unwrap();
            }
            before.elapsed().as_secs_f64() * 1e6 / f64::from(count)
        };
        exchange(500);
        exchange(EXCHANGES)
    })
}

fn stream_s(pair: &Pair) -> f64 {
    let swallow = |mut stream: TcpStream| {
        let mut buffer = vec![0; 256 * 1024];
        while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
        stream.write_all(&[1]).unwrap();
    };
    connected(pair, swallow, |stream| {
        let block = vec![7; 256 * 1024];
        let before = Instant::now();
        for _ in 0..STREAM / block.len() {
            stream.write_all(&block).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        before.elapsed().as_secs_f64()
    })
}
