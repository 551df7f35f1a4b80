//! What the tests use as the project's one binary: agent, shim, images and CNI plugin, without the rest.

use std::process::ExitCode;

use seaway_node::NodeConfig;
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let name = args.first().map(String::as_str).unwrap_or_default();
    if name.ends_with("seaway-cni") {
        return seaway_cni::main();
    }
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["pod-shim", ..] => seaway_node::shim::main(&args[2..]),
        ["image", image, ..] => seaway_images::run(image, &args[3..]),
        ["agent", dir, cgroup] => agent(dir, cgroup),
        _ => ExitCode::FAILURE,
    }
}

/// An agent that runs pods and nothing else, with everything it needs in `dir`.
fn agent(dir: &str, cgroup: &str) -> ExitCode {
    let dir = std::path::Path::new(dir);
    let ips = ["172.30.0.11", "fd00:10:30::b"].map(|ip| ip.parse().expect("an address")).to_vec();
    let mut config = NodeConfig::new("n1", dir.join("kubeconfig"), ips, &dir.join("state"));
    config.cgroup = cgroup.into();
    config.cni_conf_dir = dir.join("net.d");
    config.cni_bin_dir = dir.join("bin");
    (config.run_pods, config.proxy, config.cni, config.dns) = (true, false, false, false);
    (config.serving_cert, config.serving_key, config.ca) =
        (dir.join("serving.crt"), dir.join("serving.key"), dir.join("ca.crt"));
    config.cluster_dns = vec!["10.96.0.10".parse().expect("an address")];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = runtime.expect("a runtime").block_on(seaway_node::run(config, CancellationToken::new()));
    if let Err(error) = &ended {
        eprintln!("agent: {error}");
    }
    ExitCode::from(u8::from(ended.is_err()))
}
