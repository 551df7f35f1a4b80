//! A server of the test's own: in this process or as a child that can be killed, on a free port of loopback.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use seaway_apiserver::ServerConfig;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Where a child process keeps its data; see [`serve_if_child`].
const CHILD_DIR: &str = "SEAWAY_TEST_SERVE_DIR";
const CHILD_ADDRESS: &str = "SEAWAY_TEST_SERVE_ADDRESS";

/// A running server; it stops when this is dropped.
pub(crate) struct Server {
    pub(crate) dir: std::sync::Arc<TempDir>,
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    task: Option<JoinHandle<()>>,
}

pub(crate) fn config(dir: &Path, listener: TcpListener) -> ServerConfig {
    let mut config = ServerConfig::new(dir, vec![listener]);
    config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()];
    config.load_balancer_pools = vec!["192.0.2.0/29".parse().unwrap(), "2001:db8::/120".parse().unwrap()];
    config.bookmark_interval = Duration::from_millis(200);
    config
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = config(dir.path(), listener);
        change(&mut config);
        let shutdown = CancellationToken::new();
        let run = seaway_apiserver::run(config, shutdown.clone());
        let task = Some(tokio::spawn(async { run.await.unwrap() }));
        let server = Self { dir: std::sync::Arc::new(dir), address, shutdown, task };
        wait_for(&server.kubeconfig()).await;
        server
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    pub(crate) async fn client(&self) -> kube::Client {
        client(&self.kubeconfig()).await
    }

    /// A client for somebody else.
    pub(crate) async fn client_as(&self, user: &str, groups: &[&str]) -> kube::Client {
        let pki = seaway_apiserver::Pki::open_or_create(self.dir.path().join("pki")).unwrap();
        let text = pki.kubeconfig(&format!("https://{}", self.address), user, groups).unwrap();
        let path = self.dir.path().join(format!("{user}.kubeconfig"));
        std::fs::write(&path, text).unwrap();
        client(&path).await
    }

    /// Stops and waits for the end.
    pub(crate) async fn stop(mut self) -> Duration {
        let started = Instant::now();
        self.shutdown.cancel();
        self.task.take().unwrap().await.unwrap();
        started.elapsed()
    }

    /// Stops, and leaves the directory.
    pub(crate) async fn stop_keeping(self) -> std::sync::Arc<TempDir> {
        let dir = std::sync::Arc::clone(&self.dir);
        self.stop().await;
        dir
    }

    pub(crate) async fn kubectl(&self, args: &str) -> String {
        let (ok, text) = self.try_kubectl(args, "").await;
        assert!(ok, "kubectl {args}: {text}");
        text
    }

    /// Runs kubectl with words split at spaces and `stdin`; returns whether it succeeded, and both outputs.
    pub(crate) async fn try_kubectl(&self, args: &str, stdin: &str) -> (bool, String) {
        let mut command = kubectl(&self.kubeconfig(), args);
        let stdin = stdin.to_owned();
        let output = tokio::task::spawn_blocking(move || run(&mut command, &stdin)).await.unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) fn kubectl(kubeconfig: &Path, args: &str) -> Command {
    let mut command = Command::new(std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into()));
    command.arg("--kubeconfig").arg(kubeconfig).args(args.split(' '));
    command.env("KUBECACHEDIR", kubeconfig.parent().unwrap().join("cache"));
    command
}

fn run(command: &mut Command, stdin: &str) -> Output {
    use std::io::Write as _;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("kubectl runs (package kubernetes-client)");
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

pub(crate) async fn client(kubeconfig: &Path) -> kube::Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

pub(crate) async fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} did not appear", path.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A server in a process of its own, to be killed.
pub(crate) struct ChildServer(Child);

impl ChildServer {
    /// Starts the test named `serve_if_child` of this test binary as a server.
    pub(crate) async fn start(dir: &Path, address: SocketAddr) -> Self {
        let kubeconfig = dir.join("admin.kubeconfig");
        std::fs::remove_file(&kubeconfig).ok();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "serve_if_child"])
            .env(CHILD_DIR, dir)
            .env(CHILD_ADDRESS, address.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(&kubeconfig).await;
        Self(child)
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Serves until killed when the environment says that this process is a child; otherwise does nothing.
pub(crate) async fn serve_if_child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let address = std::env::var(CHILD_ADDRESS).unwrap();
    let listener = TcpListener::bind(address).unwrap();
    let config = config(Path::new(&dir), listener);
    seaway_apiserver::run(config, CancellationToken::new()).await.unwrap();
}
