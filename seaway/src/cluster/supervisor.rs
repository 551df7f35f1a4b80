//! Keeps a cluster's processes running: a thread per component that starts it, waits for its end, and starts it
//! again. It holds no state of its own: killed and started anew it adopts what runs.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use tracing::{info, warn};

use super::component::{self, Component};
use super::{Layout, publish};
use crate::place;

/// A process that lived this long starts again at once.
const STABLE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The name under which the supervisor's own process id and log are kept.
pub const NAME: &str = "supervisor";

/// Runs until it is killed.
pub fn run(layout: &Layout) -> Result<()> {
    let spec = layout.load_spec()?.with_context(|| format!("no cluster at {}", layout.root().display()))?;
    // It fails only where we lead a session already, which is as good.
    if let Err(error) = rustix::process::setsid() {
        info!(%error, "no session of its own");
    }
    place::join_cgroup(&layout.cgroup().join(NAME))?;
    let _lock = lock(layout)?;
    component::remember(&component::pid_file(layout, NAME), std::process::id())?;
    let keepers: Vec<_> = component::components(&spec, layout)
        .into_iter()
        .map(|component| {
            let layout = layout.clone();
            thread::spawn(move || keep(&component, &layout))
        })
        .collect();
    if let Some(listen) = spec.publish.filter(|_| spec.demo) {
        publish::spawn(listen, layout.netns("client"), layout.root().join(publish::TARGET_FILE))?;
    }
    for keeper in keepers {
        if keeper.join().is_err() {
            bail!("a keeper thread panicked");
        }
    }
    Ok(())
}

/// There is one supervisor to a cluster, whoever starts more.
fn lock(layout: &Layout) -> Result<File> {
    let path = layout.lock_file();
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another supervisor holds {}", path.display()))?;
    Ok(file)
}

fn keep(component: &Component, layout: &Layout) {
    let mut process = component::adopt(component, layout);
    let mut pause = FIRST_PAUSE;
    loop {
        let since = Instant::now();
        match process.take().map_or_else(|| component::start(component, layout), Ok) {
            Ok(running) => {
                let how = running.wait();
                warn!(component = %component.name, %how, "ended; starting it again");
            }
            Err(error) => warn!(component = %component.name, error = format!("{error:#}"), "cannot start"),
        }
        pause =
            if since.elapsed() > STABLE { Duration::ZERO } else { (pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE) };
        thread::sleep(pause);
    }
}

/// Starts a supervisor that outlives us.
pub fn spawn(layout: &Layout) -> Result<()> {
    let log = component::open_log(&layout.logs(), NAME)?;
    let child = Command::new(layout.exe())
        .arg("supervise")
        .arg("--cluster-of")
        .arg(layout.root())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the log file")?)
        .stderr(log)
        .spawn()
        .context("cannot start the supervisor")?;
    info!(pid = child.id(), "supervisor started");
    Ok(())
}

/// Watches the supervisor from inside another process of the cluster, and replaces it when it dies.
pub fn guard(root: &Path) {
    let Some(layout) = layout_of(root) else { return };
    thread::spawn(move || {
        loop {
            if let Some(handle) = component::running(&component::pid_file(&layout, NAME)) {
                component::Process::Adopted(handle).wait();
                warn!("the supervisor ended; starting it again");
            }
            if let Err(error) = spawn(&layout) {
                warn!(error = format!("{error:#}"), "cannot start the supervisor");
            }
            thread::sleep(Duration::from_secs(1));
        }
    });
}

/// The layout of a cluster whose state directory is known.
pub fn layout_of(root: &Path) -> Option<Layout> {
    let cgroup2 = super::preflight::cgroup2_mount().ok()?;
    let name = root.file_name()?.to_str()?;
    Some(Layout::new(name, root.parent()?, &cgroup2))
}
