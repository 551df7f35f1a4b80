//! The runtime for images that the binary carries itself: a sandbox is a shim process in fresh namespaces, a cgroup
//! and a directory. Everything that it makes can be found again from these two.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use tokio::sync::{mpsc, watch};

use super::connection::{Link, connect};
use super::{Refusal, Runtime, RuntimeError, Sandbox, SandboxMeta, SandboxRequest, SandboxState};
use crate::cni::{Network, PodIdentity};
use crate::namespaces;
use crate::pods::etc;
use crate::shim::protocol::{
    BindMount, CONTAINERS, ContainerExit, ContainerRecord, SHIM_SPEC, SOCKET, ShimSpec,
};

/// A shim that is not ready by then will not be.
const SHIM_START: Duration = Duration::from_secs(10);
/// Killed processes are gone by then, unless the kernel holds one.
const CGROUP_EMPTY: Duration = Duration::from_secs(10);
const META: &str = "sandbox.json";

/// The runtime.
#[derive(Debug)]
pub(crate) struct Builtin {
    /// Pods' directories are below.
    pub(crate) pods_dir: PathBuf,
    /// Pods' cgroups are below.
    pub(crate) pods_cgroup: PathBuf,
    /// Carries the shim and the images.
    pub(crate) exe: PathBuf,
    /// The pod network.
    pub(crate) network: Network,
}

trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, RuntimeError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, RuntimeError> {
        self.map_err(|e| RuntimeError::File { action, path: path.to_owned(), source: e.into() })
    }
}

impl Runtime for Builtin {
    fn version(&self) -> String {
        format!("seaway-builtin://{}", env!("CARGO_PKG_VERSION"))
    }

    fn accept(&self, container: &Container) -> Result<Vec<String>, Refusal> {
        let image = container.image.as_deref().unwrap_or_default();
        if !seaway_images::is_builtin(image) {
            return Err(Refusal::Image(format!(
                "image {image:?} is not one that Seaway carries (seaway/echo, seaway/client, seaway/pause); \
                 the builtin runtime pulls nothing"
            )));
        }
        let args = container.args.clone().unwrap_or_default();
        match container.command.as_deref().unwrap_or_default() {
            [] => Ok(args),
            [entry, rest @ ..] if is_entry_point(image, entry) => Ok([rest, &args].concat()),
            [other, ..] => Err(Refusal::Settings(format!(
                "command {other:?} is not the entry point of the built-in image {image}: leave command out, or use /{}",
                short_name(image)
            ))),
        }
    }

    fn accept_exec(&self, image: &str, command: &[String]) -> Result<Vec<String>, Refusal> {
        match command {
            [probe, _kind, _target] if probe == "probe" || probe == "/probe" => Ok(command.to_vec()),
            _ => Err(Refusal::Settings(format!(
                "the built-in image {image} can execute only /probe KIND TARGET, such as \
                 /probe http http://localhost:8080/healthz or /probe tcp localhost:8081"
            ))),
        }
    }

    async fn create(&self, request: &SandboxRequest) -> Result<Sandbox, RuntimeError> {
        let dir = self.pod_dir(&request.uid);
        let mut meta = SandboxMeta {
            pod: PodIdentity {
                container_id: uuid::Uuid::new_v4().simple().to_string(),
                namespace: request.namespace.clone(),
                name: request.name.clone(),
                uid: request.uid.clone(),
            },
            host_network: request.host_network,
            pid: None,
            attachment: None,
            ips: Vec::new(),
            complete: false,
        };
        if !request.host_network {
            meta.attachment = Some(self.network.plan(request.runtime_config.clone())?);
        }
        match self.build(request, &dir, &mut meta).await {
            Ok(sandbox) => Ok(sandbox),
            Err(error) => {
                if let Err(undo) = self.tear_down(&meta).await {
                    tracing::warn!(error = %undo, pod = %meta.pod.name, "a sandbox that failed is not undone yet");
                }
                Err(error)
            }
        }
    }

    async fn adopt(&self) -> Vec<Sandbox> {
        let mut sandboxes = Vec::new();
        for entry in std::fs::read_dir(&self.pods_dir).into_iter().flatten().flatten() {
            let dir = entry.path();
            let meta = std::fs::read(dir.join(META)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            let meta = meta.unwrap_or_else(|| Self::unknown(&entry.file_name().to_string_lossy()));
            sandboxes.push(self.readopt(meta, &dir).await);
        }
        sandboxes
    }

    async fn remove(&self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        self.tear_down(&sandbox.meta).await
    }

    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods_dir.join(uid)
    }

    async fn purge(&self, uid: &str) -> Result<(), RuntimeError> {
        let dir = self.pod_dir(uid);
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("remove", &dir),
            _ => Ok(()),
        }
    }

    fn pod_mounts(&self, uid: &str) -> Vec<BindMount> {
        let dir = self.pod_dir(uid).join("etc");
        let file = |name: &str| BindMount {
            source: dir.join(name),
            path: Path::new("/etc").join(name),
            read_only: false,
        };
        ["hosts", "resolv.conf", "hostname"].map(file).into()
    }
}

impl Builtin {
    async fn build(
        &self,
        request: &SandboxRequest,
        dir: &Path,
        meta: &mut SandboxMeta,
    ) -> Result<Sandbox, RuntimeError> {
        for part in ["etc", "rootfs", CONTAINERS] {
            let path = dir.join(part);
            std::fs::create_dir_all(&path).context("create", &path)?;
        }
        // Known on disk before anything of it exists: whatever happens, the next agent finds it.
        save(dir, meta)?;
        let mut child = self.start_shim(request, dir).await?;
        meta.pid = Some(child.id().cast_signed());
        if let Some(mut attachment) = meta.attachment.take() {
            let netns = netns_path(child.id());
            let added = self.network.add(&meta.pod, &netns, &mut attachment).await;
            meta.ips = attachment.ips();
            meta.attachment = Some(attachment);
            if let Err(error) = added {
                // It is killed with its cgroup, and must be waited for then.
                tokio::task::spawn_blocking(move || child.wait());
                return Err(error.into());
            }
        } else {
            meta.ips = request.node_ips.clone();
        }
        write_etc(request, &dir.join("etc"), &meta.ips)?;
        meta.complete = true;
        save(dir, meta)?;
        let stream = connect(dir).await.context("connect to", &dir.join(SOCKET))?;
        let (sender, state) = watch::channel(SandboxState { alive: true, containers: BTreeMap::new() });
        let (asks, asked) = mpsc::unbounded_channel();
        let link = Link::new(dir.to_owned(), sender, asked, Some(child));
        link.start(stream).await.context("talk to", &dir.join(SOCKET))?;
        Ok(Sandbox { meta: meta.clone(), state, asks })
    }

    /// Starts the shim and waits until it listens.
    async fn start_shim(&self, request: &SandboxRequest, dir: &Path) -> Result<Child, RuntimeError> {
        let cgroup = self.pods_cgroup.join(&request.uid);
        std::fs::create_dir_all(&cgroup).context("create cgroup", &cgroup)?;
        let spec = ShimSpec {
            hostname: (!request.host_network).then(|| request.hostname.clone()),
            cgroup,
            loopback: !request.host_network,
        };
        let path = dir.join(SHIM_SPEC);
        std::fs::write(&path, serde_json::to_vec(&spec).unwrap_or_default()).context("write", &path)?;
        let log_path = dir.join("shim.log");
        let log = std::fs::File::create(&log_path).context("create", &log_path)?;
        let mut command = Command::new(&self.exe);
        command.args(["pod-shim", "init"]).arg(dir).env_clear().env("LANG", "C.UTF-8");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = namespaces::spawn_sandboxed(command, request.host_network)
            .map_err(|e| RuntimeError::Shim(format!("{}: {e}", self.exe.display())))?;
        let Some(stdout) = child.stdout.take() else { return Err(RuntimeError::Gone) };
        let ready = tokio::task::spawn_blocking(move || {
            let mut stdout = stdout;
            matches!(stdout.read(&mut [0]), Ok(1))
        });
        if let Ok(Ok(true)) = tokio::time::timeout(SHIM_START, ready).await {
            return Ok(child);
        }
        // It may be hanging; it is ours, and nothing runs in it yet.
        let _gone = child.kill();
        let _reaped = child.wait();
        let said = std::fs::read_to_string(&log_path).unwrap_or_default();
        Err(RuntimeError::Shim(said.trim().to_owned()))
    }

    /// A directory without a readable description still has a name, and by it a cgroup.
    fn unknown(uid: &str) -> SandboxMeta {
        SandboxMeta {
            pod: PodIdentity {
                container_id: uid.to_owned(),
                namespace: String::new(),
                name: String::new(),
                uid: uid.to_owned(),
            },
            host_network: false,
            pid: None,
            attachment: None,
            ips: Vec::new(),
            complete: false,
        }
    }

    async fn readopt(&self, meta: SandboxMeta, dir: &Path) -> Sandbox {
        let dead = SandboxState { alive: false, containers: records(dir) };
        let (sender, state) = watch::channel(dead);
        let (asks, asked) = mpsc::unbounded_channel();
        if meta.complete
            && let Ok(stream) = connect(dir).await
        {
            let link = Link::new(dir.to_owned(), sender, asked, None);
            if let Err(error) = link.start(stream).await {
                tracing::warn!(%error, pod = %meta.pod.name, "a sandbox does not answer");
            }
        }
        Sandbox { meta, state, asks }
    }

    /// Network first, while the namespace is still there; then processes, cgroup and the files that say it exists.
    async fn tear_down(&self, meta: &SandboxMeta) -> Result<(), RuntimeError> {
        let dir = self.pod_dir(&meta.pod.uid);
        let cgroup = self.pods_cgroup.join(&meta.pod.uid);
        if let Some(attachment) = &meta.attachment {
            let netns = meta.pid.map(i32::cast_unsigned).filter(|pid| is_member(&cgroup, *pid));
            self.network.del(&meta.pod, netns.map(netns_path).as_deref(), attachment).await?;
        }
        end_cgroup(&cgroup).await?;
        for name in [SOCKET, "shim.new", SHIM_SPEC, META] {
            let path = dir.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).context("remove", &path);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn netns_path(pid: u32) -> String {
    format!("/proc/{pid}/ns/net")
}

/// A process id may have been given to someone else since.
fn is_member(cgroup: &Path, pid: u32) -> bool {
    let procs = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    procs.lines().any(|line| line.parse() == Ok(pid))
}

/// Kills everything in a cgroup and removes it.
async fn end_cgroup(cgroup: &Path) -> Result<(), RuntimeError> {
    if !cgroup.exists() {
        return Ok(());
    }
    let kill = cgroup.join("cgroup.kill");
    std::fs::write(&kill, "1").context("write", &kill)?;
    let deadline = tokio::time::Instant::now() + CGROUP_EMPTY;
    let mut pause = Duration::from_micros(500);
    loop {
        match std::fs::remove_dir(cgroup) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if tokio::time::Instant::now() > deadline => {
                return Err(error).context("remove", cgroup);
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn save(dir: &Path, meta: &SandboxMeta) -> Result<(), RuntimeError> {
    let path = dir.join(META);
    let draft = dir.join("sandbox.new");
    std::fs::write(&draft, serde_json::to_vec(meta).unwrap_or_default()).context("write", &draft)?;
    std::fs::rename(&draft, &path).context("replace", &path)
}

fn write_etc(request: &SandboxRequest, dir: &Path, ips: &[IpAddr]) -> Result<(), RuntimeError> {
    let hosts = if request.host_network {
        std::fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        etc::hosts(&request.hostname, request.fqdn.as_deref(), ips, &request.host_aliases)
    };
    for (name, text) in [
        ("hosts", hosts),
        ("resolv.conf", request.resolv_conf.clone()),
        ("hostname", format!("{}\n", request.hostname)),
    ] {
        let path = dir.join(name);
        std::fs::write(&path, text).context("write", &path)?;
    }
    Ok(())
}

/// The latest run of every container, from disk. What still ran when its shim ended, ended with it.
fn records(dir: &Path) -> BTreeMap<String, ContainerRecord> {
    let mut latest: BTreeMap<String, ContainerRecord> = BTreeMap::new();
    for container in std::fs::read_dir(dir.join(CONTAINERS)).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(container.path()).into_iter().flatten().flatten() {
            if file.path().extension().is_none_or(|e| e != "json") {
                continue;
            }
            let text = std::fs::read(file.path()).unwrap_or_default();
            let Ok(record) = serde_json::from_slice::<ContainerRecord>(&text) else { continue };
            let held = latest.entry(record.name.clone()).or_insert_with(|| record.clone());
            if record.attempt >= held.attempt {
                *held = record;
            }
        }
    }
    for record in latest.values_mut() {
        let lost = ContainerExit { finished_at: jiff::Timestamp::now(), code: 137, signal: Some(9) };
        record.exit.get_or_insert(lost);
    }
    latest
}

/// `seaway/echo:latest` -> `echo`.
fn short_name(image: &str) -> &str {
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split([':', '@']).next().unwrap_or(last)
}

fn is_entry_point(image: &str, entry: &str) -> bool {
    let name = short_name(image);
    entry == name || entry == format!("/{name}") || entry == format!("/usr/bin/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_one_entry_point() {
        for (image, entry, want) in [
            ("seaway/echo", "/echo", true),
            ("seaway/echo:v1", "echo", true),
            ("docker.io/seaway/echo@sha256:1", "/usr/bin/echo", true),
            ("seaway/echo", "/bin/sh", false),
            ("seaway/echo", "/client", false),
        ] {
            assert_eq!(is_entry_point(image, entry), want, "{image} {entry}");
        }
    }

    #[test]
    fn the_last_run_counts_and_ended_with_its_shim() {
        let dir = tempfile::tempdir().unwrap();
        let container = dir.path().join(CONTAINERS).join("web");
        std::fs::create_dir_all(&container).unwrap();
        for attempt in [9, 10] {
            let record = ContainerRecord {
                name: "web".into(),
                attempt,
                image: "seaway/echo".into(),
                id: format!("id{attempt}"),
                started_at: jiff::Timestamp::UNIX_EPOCH,
                exit: None,
            };
            let path = container.join(format!("{attempt}.json"));
            std::fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
        }
        let records = records(dir.path());
        assert_eq!(records["web"].attempt, 10);
        assert_eq!(records["web"].exit.as_ref().map(|e| e.code), Some(137));
    }
}
