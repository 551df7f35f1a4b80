//! A real runtime: containerd, driven through CRI, starts and stops pod sandboxes whose network is ours.
//!
//! containerd runs in a node's namespace with a root, a state and a socket of its own below the lab's directory; its
//! pause image is made here from a program without a system around it. CRI is gRPC; the few messages that are needed
//! are written by hand.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test helpers")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use seaway_cni_network::ipam::Ipam;
use seaway_cni_network::netns::Namespace;
use seaway_cni_network::pod::Attachment;
use seaway_lab::{Lab, LabNode, Process, tcp_exchange, wait_for};
use serde_json::json;

const IMAGE: &str = "seaway.test/pause:1";
const PATIENCE: Duration = Duration::from_secs(20);

/// Protocol buffers: a field with bytes in it.
fn field(message: &mut Vec<u8>, number: u8, value: &[u8]) {
    message.push(number << 3 | 2);
    varint(message, value.len());
    message.extend(value);
}

fn varint(message: &mut Vec<u8>, mut value: usize) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        message.push(low & 0x7f | if value > 0 { 0x80 } else { 0 });
        if value == 0 {
            return;
        }
    }
}

/// The first field of a message, if it is `number` and has bytes.
fn first_bytes(message: &[u8], number: u8) -> Option<&[u8]> {
    let (tag, length) = (*message.first()?, usize::from(*message.get(1)?));
    (tag == number << 3 | 2 && length < 0x80).then(|| message.get(2..2 + length)).flatten()
}

/// One call of gRPC: the answer, or what the server says is wrong.
fn call(socket: &Path, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
        let (mut client, connection) =
            h2::client::handshake(stream).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let request = http::Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (answer, mut body) = client.send_request(request, false).map_err(|error| error.to_string())?;
        let mut framed = vec![0];
        framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend(message);
        body.send_data(Bytes::from(framed), true).map_err(|error| error.to_string())?;
        let answer = answer.await.map_err(|error| error.to_string())?;
        let early = answer.headers().clone();
        let mut body = answer.into_body();
        let mut bytes = Vec::new();
        while let Some(part) = body.data().await {
            let part = part.map_err(|error| error.to_string())?;
            body.flow_control().release_capacity(part.len()).map_err(|error| error.to_string())?;
            bytes.extend(part);
        }
        let trailers = body.trailers().await.map_err(|error| error.to_string())?.unwrap_or(early);
        match trailers.get("grpc-status").map(http::HeaderValue::as_bytes) {
            Some(b"0") => Ok(bytes.get(5..).unwrap_or_default().to_vec()),
            _ => Err(format!("{method}: {trailers:?}")),
        }
    })
}

struct Containerd {
    directory: PathBuf,
    process: Process,
}

impl Containerd {
    fn start(node: &LabNode) -> Self {
        assert!(Path::new("/usr/bin/containerd").exists(), "this test needs containerd and runc");
        let directory = node.state_dir().join("cd");
        for below in ["bin", "net.d"] {
            fs::create_dir_all(directory.join(below)).unwrap();
        }
        fs::copy(env!("CARGO_BIN_EXE_seaway-cni"), directory.join("bin/seaway-cni")).unwrap();
        // The runtime insists on a loopback plugin; containerd carries its own since 1.7, Debian 12 has 1.6.
        fs::copy("/usr/lib/cni/loopback", directory.join("bin/loopback")).unwrap();
        let conflist = json!({
            "cniVersion": "1.0.0", "name": "seaway",
            "plugins": [{
                "type": "seaway-cni", "dataDir": directory.join("ipam"), "mtu": 1450,
                "ranges": [{ "subnet": "10.244.1.0/24" }, { "subnet": "fd00:10:244:1::/64" }],
                "capabilities": { "bandwidth": true, "ips": true, "mac": true, "portMappings": true },
            }],
        });
        fs::write(directory.join("net.d/10-seaway.conflist"), conflist.to_string()).unwrap();
        fs::write(directory.join("config.toml"), config(&directory)).unwrap();
        let config = directory.join("config.toml");
        let log = fs::File::create(directory.join("log")).unwrap();
        let mut command = node.command("/usr/bin/containerd");
        command.arg("--config").arg(config).stdout(Stdio::null()).stderr(log);
        let process = Process::spawn(&mut command).unwrap();
        let this = Self { directory, process };
        wait_for(PATIENCE, "containerd", || call(&this.socket(), "Version", &[]).is_ok());
        this.import_pause();
        this
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("sock")
    }

    /// A program that only waits, linked statically, packed as an image.
    fn import_pause(&self) {
        let root = self.directory.join("image");
        fs::create_dir_all(root.join("layer")).unwrap();
        fs::write(root.join("pause.c"), "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")
            .unwrap();
        run(Command::new("cc").args(["-static", "-o", "layer/pause", "pause.c"]).current_dir(&root));
        run(Command::new("tar").args(["-C", "layer", "-cf", "layer.tar", "pause"]).current_dir(&root));
        let digest = Command::new("sha256sum").arg(root.join("layer.tar")).output().unwrap().stdout;
        let digest = String::from_utf8(digest).unwrap().split(' ').next().unwrap().to_owned();
        let image = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": { "Entrypoint": ["/pause"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        });
        let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
        fs::write(root.join("config.json"), image.to_string()).unwrap();
        fs::write(root.join("manifest.json"), manifest.to_string()).unwrap();
        let files = ["-cf", "image.tar", "manifest.json", "config.json", "layer.tar"];
        run(Command::new("tar").args(files).current_dir(&root));
        let tar = root.join("image.tar");
        let mut import = Command::new("ctr");
        import.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io", "images", "import"]);
        run(import.args(["--snapshotter", "native"]).arg(tar));
    }

    /// A pod that limits what it receives to a megabyte a second, and has a port of the node.
    fn sandbox_config(name: &str) -> Vec<u8> {
        let mut metadata = Vec::new();
        for (number, value) in [(1, name), (2, "some-uid"), (3, "default")] {
            field(&mut metadata, number, value.as_bytes());
        }
        let mut config = Vec::new();
        field(&mut config, 1, &metadata);
        field(&mut config, 2, name.as_bytes());
        let mut mapping = Vec::new();
        for (number, value) in [(2, 80), (3, 8080)] {
            mapping.push(number << 3);
            varint(&mut mapping, value);
        }
        field(&mut config, 5, &mapping);
        let mut annotation = Vec::new();
        for (number, value) in [(1, "kubernetes.io/ingress-bandwidth"), (2, "8M")] {
            field(&mut annotation, number, value.as_bytes());
        }
        field(&mut config, 7, &annotation);
        config
    }

    fn run_sandbox(&self, name: &str) -> Result<String, String> {
        let mut request = Vec::new();
        field(&mut request, 1, &Self::sandbox_config(name));
        let answer = call(&self.socket(), "RunPodSandbox", &request)?;
        Ok(String::from_utf8(first_bytes(&answer, 1).unwrap().to_vec()).unwrap())
    }

    fn of_sandbox(&self, method: &str, id: &str) -> Result<Vec<u8>, String> {
        let mut request = Vec::new();
        field(&mut request, 1, id.as_bytes());
        call(&self.socket(), method, &request)
    }

    fn held(&self) -> Vec<(seaway_cni_network::ipam::Owner, seaway_cni_network::ipam::Reservation)> {
        let ipam = Ipam::open_if_there(&self.directory.join("ipam"), "seaway").unwrap();
        ipam.map(|ipam| ipam.owners().unwrap()).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Sandboxes have shims of their own, which end with them.
        for (owner, _) in self.held() {
            drop(self.of_sandbox("StopPodSandbox", &owner.container_id));
            drop(self.of_sandbox("RemovePodSandbox", &owner.container_id));
        }
        drop(self.process.terminate());
    }
}

fn config(directory: &Path) -> String {
    let place = directory.display();
    format!(
        r#"version = 2
root = "{place}/root"
state = "{place}/state"
[grpc]
  address = "{place}/sock"
[ttrpc]
  address = "{place}/sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  disable_cgroup = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{place}/bin"
    conf_dir = "{place}/net.d"
"#
    )
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn containerd_starts_and_stops_sandboxes_on_our_network() {
    let lab = Lab::new(1).unwrap();
    let containerd = Containerd::start(lab.node(0));
    let first = containerd.run_sandbox("first").unwrap();
    let second = containerd.run_sandbox("second").unwrap();
    let held = containerd.held();
    assert_eq!(held.len(), 2, "{held:?}");
    let of = |id: &str| held.iter().find(|(owner, _)| owner.container_id == id).unwrap().1.clone();
    let open = |id: &str| Namespace::open(Path::new(&of(id).netns.unwrap())).unwrap();
    for addr in of(&second).addresses {
        tcp_exchange(lab.node(0).namespace(), &open(&second), addr, 10_000).unwrap();
    }
    // What the runtime passes on by capabilities and arguments.
    let node = lab.node(0);
    let link = node.netlink().unwrap().link(&Attachment::new("seaway", &second, "eth0").host_link());
    let link = link.unwrap().unwrap();
    assert_eq!(node.netlink().unwrap().token_bucket_rate(link.index).unwrap(), Some(1_000_000));
    let remembered = of(&second);
    assert_eq!(remembered.pod.as_deref(), Some("default/second"));
    assert_eq!(remembered.port_mappings.unwrap()[0]["hostPort"], 8080);
    containerd.of_sandbox("StopPodSandbox", &first).unwrap();
    assert_eq!(containerd.held().len(), 1);
    containerd.of_sandbox("StopPodSandbox", &first).unwrap();
    containerd.of_sandbox("RemovePodSandbox", &first).unwrap();
    let third = containerd.run_sandbox("third").unwrap();
    for id in [&second, &third] {
        containerd.of_sandbox("StopPodSandbox", id).unwrap();
        containerd.of_sandbox("RemovePodSandbox", id).unwrap();
    }
    assert_eq!(containerd.held().len(), 0);
    // DEL has left the links for after its answer.
    let links = || lab.node(0).netlink().unwrap().links().unwrap();
    wait_for(PATIENCE, "the links to go", || !links().iter().any(|link| link.name.starts_with("sw")));
}
