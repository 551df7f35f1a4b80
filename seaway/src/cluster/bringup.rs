//! `seaway up`: from nothing to a cluster whose demo pods are Ready, showing progress on the way; whatever fails,
//! nothing is left half-made.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::header::{HeaderValue, USER_AGENT};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustix::fs::{FlockOperation, flock};
use seaway_apiserver::pki::Pki;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    ClusterSpec, Layout, bpffs, component, demo, preflight, publish, supervisor, teardown, topology,
};
use crate::cli::STATES;
use crate::telemetry::{say, say_err};

const API_DEADLINE: Duration = Duration::from_secs(30);
const NODES_DEADLINE: Duration = Duration::from_secs(60);
const PODS_DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(40);
/// Lines of each log that are shown when a cluster does not come up.
const LOG_TAIL_LINES: usize = 8;

/// Brings the cluster up and says how to use it.
pub fn up(spec: &ClusterSpec, state_root: &Path) -> Result<Layout> {
    spec.validate().context(crate::commands::Usage)?;
    let cgroup2 = preflight::cgroup2_mount()?;
    let layout = Layout::new(&spec.name, state_root, &cgroup2);
    refuse_second(spec, &layout)?;
    let listen: Vec<_> = [Some(spec.api_listen), spec.publish].into_iter().flatten().collect();
    preflight::check(state_root, &listen)?;
    if teardown::exists(&layout) {
        say_err("removing what an earlier cluster of this name left behind");
        teardown::remove(&layout)?;
    }
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Listened to before anything is made: from here on an interrupt undoes it.
    let interrupt = runtime.block_on(async { Interrupt::listen() })?;
    let ready = async {
        tokio::select! {
            ready = wait_ready(spec, &layout, started) => ready,
            () = interrupt.came() => Err(Interrupted.into()),
        }
    };
    if let Err(error) = make(spec, &layout).and_then(|()| runtime.block_on(ready)) {
        let logs = if error.is::<Interrupted>() { String::new() } else { log_tails(&layout) };
        let undone = teardown::remove(&layout);
        if !logs.is_empty() {
            say_err(&logs);
        }
        undone.context("after the failure the cluster could not be removed either")?;
        return Err(error.context("the cluster did not come up and was removed again"));
    }
    Ok(layout)
}

/// Why `up` ended early.
#[derive(Debug, thiserror::Error)]
#[error("it was interrupted")]
struct Interrupted;

/// Ctrl-C, or a request to end.
struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    /// Listens from now on. Needs a runtime.
    fn listen() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Returns when one has come.
    async fn came(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A running supervisor holds the cluster's lock; one that was just killed comes back as long as anything else runs.
fn refuse_second(spec: &ClusterSpec, layout: &Layout) -> Result<()> {
    let supervised = File::open(layout.lock_file())
        .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err());
    let pids = fs::read_dir(layout.pids()).into_iter().flatten().flatten();
    if supervised || pids.into_iter().any(|file| component::running(&file.path()).is_some()) {
        let name = layout.root().file_name().unwrap_or_default().to_string_lossy();
        bail!(
            "a cluster named {name:?} is already running: look at it with `seaway check{which}`, remove it with \
             `seaway down{which}`, or start another with --name, --api-listen and --publish",
            which = which(spec, layout)
        );
    }
    Ok(())
}

fn make(spec: &ClusterSpec, layout: &Layout) -> Result<()> {
    for dir in [layout.root().to_owned(), layout.logs(), layout.pids()] {
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let text = serde_json::to_vec_pretty(spec)?;
    fs::write(layout.spec_file(), text)
        .with_context(|| format!("cannot write {}", layout.spec_file().display()))?;
    install_binary(layout)?;
    bpffs::prepare(layout)?;
    fs::create_dir_all(layout.cgroup())
        .with_context(|| format!("cannot make {}", layout.cgroup().display()))?;
    let step = Step::begin("network");
    topology::build(spec, layout)?;
    step.done(&format!("{} nodes, one LAN, a client outside", spec.nodes));
    let step = Step::begin("credentials");
    credentials(spec, layout)?;
    step.done("");
    supervisor::spawn(layout)
}

fn install_binary(layout: &Layout) -> Result<()> {
    let (from, to) = (std::env::current_exe().context("cannot find the running executable")?, layout.exe());
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::copy(&from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Issued before anything runs, so that server and nodes start side by side.
fn credentials(spec: &ClusterSpec, layout: &Layout) -> Result<()> {
    let pki = Pki::open_or_create(layout.server_dir().join("pki"))?;
    let admin = pki.kubeconfig(&spec.local_api_url(), "kubernetes-admin", &["system:masters"])?;
    write_secret(&layout.kubeconfig(), &admin)?;
    for index in 0..spec.nodes {
        let name = ClusterSpec::node_name(index);
        let dir = layout.node_dir(&name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let node = pki.node_credentials(&name, &spec.node_ips(index), &spec.api_url())?;
        write_secret(&dir.join("kubeconfig"), &node.kubeconfig)?;
        write_secret(&dir.join("ca.crt"), &node.ca_pem)?;
        write_secret(&dir.join("serving.crt"), &node.serving_cert_pem)?;
        write_secret(&dir.join("serving.key"), &node.serving_key_pem)?;
    }
    Ok(())
}

fn write_secret(file: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = File::options();
    options.create(true).truncate(true).write(true).mode(0o600);
    let mut opened = options.open(file).with_context(|| format!("cannot make {}", file.display()))?;
    opened.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", file.display()))
}

async fn wait_ready(spec: &ClusterSpec, layout: &Layout, started: Instant) -> Result<()> {
    let client = client(layout.kubeconfig()).await?;
    let step = Step::begin("API server");
    until(API_DEADLINE, "the API server does not answer", async || {
        client.apiserver_version().await.map_err(anyhow::Error::from)?;
        Ok(Progress::Done(String::new()))
    })
    .await
    .map(|_| step.done(&spec.local_api_url()))?;
    if spec.demo {
        demo::apply(&client).await?;
    }
    let step = Step::begin("nodes Ready");
    let nodes =
        until(NODES_DEADLINE, "not every node became Ready", async || nodes_ready(&client, spec).await);
    step.done(&nodes.await?);
    if spec.demo {
        let step = Step::begin("demo pods Ready");
        let pods = until(PODS_DEADLINE, "not every demo pod became Ready", async || {
            let (ready, wanted) = demo::ready(&client, demo::NAMESPACE).await?;
            Ok(Progress::of(ready, wanted))
        });
        step.done(&pods.await?);
        let target = format!("{}:80\n", demo::frontend_address(&client).await?);
        fs::write(layout.root().join(publish::TARGET_FILE), target)?;
    }
    say_err(&format!("cluster {:?} is up in {:.1} s", spec.name, started.elapsed().as_secs_f32()));
    Ok(())
}

async fn nodes_ready(client: &Client, spec: &ClusterSpec) -> Result<Progress> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
    let is_ready = |node: &&Node| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    };
    Ok(Progress::of(nodes.items.iter().filter(is_ready).count(), usize::from(spec.nodes)))
}

/// A client of the cluster whose administrator's credentials lie in `kubeconfig`.
pub async fn client(kubeconfig: PathBuf) -> Result<Client> {
    Ok(Client::try_from(client_config(&kubeconfig).await?)?)
}

/// What such a client is made of.
pub async fn client_config(kubeconfig: &Path) -> Result<Config> {
    let read =
        Kubeconfig::read_from(kubeconfig).with_context(|| format!("cannot read {}", kubeconfig.display()))?;
    let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    let agent = HeaderValue::from_static(concat!("seaway/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    Ok(config)
}

enum Progress {
    Waiting(String),
    Done(String),
}

impl Progress {
    fn of(have: usize, want: usize) -> Self {
        let text = format!("{have}/{want}");
        if have >= want && want > 0 { Self::Done(text) } else { Self::Waiting(text) }
    }
}

/// Asks again and again until it is done or the deadline has passed, which is then explained by the last answer.
async fn until(deadline: Duration, failure: &str, ask: impl AsyncFn() -> Result<Progress>) -> Result<String> {
    let end = Instant::now() + deadline;
    loop {
        let last = match ask().await {
            Ok(Progress::Done(text)) => return Ok(text),
            Ok(Progress::Waiting(text)) => text,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() > end {
            bail!("{failure} within {} s: {last}", deadline.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// One line of progress with the time that it took.
struct Step {
    what: &'static str,
    since: Instant,
}

impl Step {
    fn begin(what: &'static str) -> Self {
        Self { what, since: Instant::now() }
    }

    fn done(self, detail: &str) {
        say_err(&format!("  {:<18} {:>6.2} s  {detail}", self.what, self.since.elapsed().as_secs_f32()));
    }
}

fn log_tails(layout: &Layout) -> String {
    let mut text = Vec::new();
    for entry in fs::read_dir(layout.logs()).into_iter().flatten().flatten() {
        let log = fs::read_to_string(entry.path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        if !tail.is_empty() {
            text.push(format!("--- {} ---\n{}", entry.file_name().to_string_lossy(), tail.join("\n")));
        }
    }
    text.join("\n")
}

/// What a person may want to do next.
pub fn say_next(spec: &ClusterSpec, layout: &Layout) {
    say("");
    say(&format!("  export KUBECONFIG={}", layout.kubeconfig().display()));
    say("  kubectl get pods -A -o wide");
    if let Some(publish) = spec.publish.filter(|_| spec.demo) {
        say(&format!("  curl http://{publish}/"));
    }
    let which = which(spec, layout);
    let exe = std::env::current_exe().map_or_else(|_| "seaway".into(), |exe| exe.display().to_string());
    say(&format!("  {exe} check{which}"));
    say(&format!("  {exe} status{which}"));
    say(&format!("  {exe} down{which}"));
}

/// The flags that name this cluster, where they are not the defaults.
fn which(spec: &ClusterSpec, layout: &Layout) -> String {
    let name = (spec.name != ClusterSpec::default().name).then(|| format!(" --name {}", spec.name));
    let states = layout.root().parent().filter(|states| *states != Path::new(STATES));
    let states = states.map(|states| format!(" --state-dir {}", states.display()));
    name.unwrap_or_default() + &states.unwrap_or_default()
}

/// Waits for Ctrl-C or a request to end.
pub fn wait_for_interrupt() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        Interrupt::listen()?.came().await;
        Ok(())
    })
}

/// The components that run, for `status`.
pub fn running_components(spec: &ClusterSpec, layout: &Layout) -> Vec<(String, Option<u32>)> {
    let mut names = vec![supervisor::NAME.to_owned()];
    names.extend(component::components(spec, layout).into_iter().map(|component| component.name));
    names
        .into_iter()
        .map(|name| {
            let file = component::pid_file(layout, &name);
            let alive = component::running(&file).is_some();
            let pid = fs::read_to_string(&file).ok().and_then(|text| text.split(' ').next()?.parse().ok());
            (name, pid.filter(|_| alive))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_try_next_names_the_cluster_that_was_made() {
        let named = |name: &str, states: &str| {
            let spec = ClusterSpec { name: name.into(), ..ClusterSpec::default() };
            which(&spec, &Layout::new(name, Path::new(states), Path::new("/sys/fs/cgroup")))
        };
        assert_eq!(named("seaway", STATES), "");
        assert_eq!(named("blue", STATES), " --name blue");
        assert_eq!(named("blue", "/srv/x"), " --name blue --state-dir /srv/x");
    }
}
