//! The processes that a cluster consists of: their command lines, and the files that tell a new supervisor which
//! of them already run.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{ClusterSpec, Layout};
use crate::place::Place;

/// One process to keep running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its name, also of its log.
    pub name: String,
    /// Arguments of the `seaway` binary.
    pub args: Vec<String>,
}

/// All components of a cluster, the server first.
pub fn components(spec: &ClusterSpec, layout: &Layout) -> Vec<Component> {
    let mut all = vec![server(spec, layout)];
    all.extend((0..spec.nodes).map(|index| node(spec, layout, index)));
    all
}

fn server(spec: &ClusterSpec, layout: &Layout) -> Component {
    let place = Place { netns: Some(layout.netns("lan")), join_cgroup: Some(layout.cgroup().join("server")) };
    let mut args = vec!["server".to_owned()];
    args.extend(place.flags());
    args.extend(flag("--data-dir", layout.server_dir().display()));
    args.extend(flag("--host-listen", spec.api_listen));
    for ip in spec.server_ips() {
        args.extend(flag("--listen", std::net::SocketAddr::new(ip, super::spec::API_PORT)));
        args.extend(flag("--advertise-address", ip));
    }
    args.extend(spec.service_cidrs.iter().flat_map(|cidr| flag("--service-cidr", cidr)));
    args.extend(spec.pod_cidrs.iter().flat_map(|cidr| flag("--cluster-cidr", cidr)));
    args.extend(spec.load_balancer_pools.iter().flat_map(|cidr| flag("--load-balancer-pool", cidr)));
    args.extend(flag("--cluster-of", layout.root().display()));
    Component { name: "server".into(), args }
}

fn node(spec: &ClusterSpec, layout: &Layout, index: u8) -> Component {
    let name = ClusterSpec::node_name(index);
    let dir = layout.node_dir(&name);
    let cgroup = layout.cgroup().join(&name);
    let place = Place { netns: Some(layout.netns(&name)), join_cgroup: Some(cgroup.join("agent")) };
    let mut args = vec!["node".to_owned()];
    args.extend(place.flags());
    args.extend(flag("--name", &name));
    args.extend(flag("--kubeconfig", dir.join("kubeconfig").display()));
    args.extend(flag("--state-dir", dir.display()));
    args.extend(flag("--cgroup", cgroup.display()));
    args.extend(flag("--bpffs", layout.bpffs().join(&name).display()));
    args.extend(flag("--cni-conf-dir", dir.join("cni/net.d").display()));
    args.extend(flag("--cni-bin-dir", dir.join("cni/bin").display()));
    args.extend(flag("--zone", format_args!("zone-{}", u32::from(index) % 3 + 1)));
    args.extend(spec.node_ips(index).iter().flat_map(|ip| flag("--node-ip", ip)));
    args.extend(flag("--proxy-mode", &spec.proxy_mode));
    args.extend(spec.service_cidrs.iter().flat_map(|cidr| flag("--service-cidr", cidr)));
    if spec.maglev {
        args.extend(flag("--load-balancing", "maglev"));
    }
    if spec.dsr {
        args.extend(flag("--north-south", "dsr"));
    }
    if spec.never_hand_over {
        args.extend(flag("--pod-hand-over", "never"));
    }
    if spec.xdp != "off" {
        args.extend(flag("--xdp", &spec.xdp));
    }
    if spec.traffic_metrics {
        args.push("--traffic-metrics".into());
    }
    if spec.vxlan {
        args.extend(flag("--overlay", "vxlan"));
    }
    args.push("--run-pods".into());
    Component { name, args }
}

fn flag(name: &str, value: impl ToString) -> [String; 2] {
    [name.to_owned(), value.to_string()]
}

/// A component's process.
pub enum Process {
    /// We started it.
    Child(Child),
    /// A former supervisor did.
    Adopted(OwnedFd),
}

impl Process {
    /// Waits until it ends; says how, where that is known.
    pub fn wait(self) -> String {
        match self {
            Self::Child(mut child) => match child.wait() {
                Ok(status) => status.to_string(),
                Err(error) => format!("cannot be waited for: {error}"),
            },
            Self::Adopted(pidfd) => {
                let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
                while poll(&mut fds, None).is_err() {}
                "ended".into()
            }
        }
    }
}

/// Starts a component with its log, and remembers its process id.
pub fn start(component: &Component, layout: &Layout) -> Result<Process> {
    let log = open_log(&layout.logs(), &component.name)?;
    let child = Command::new(layout.exe())
        .args(&component.args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the log file")?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", component.name))?;
    remember(&pid_file(layout, &component.name), child.id())?;
    Ok(Process::Child(child))
}

/// The process of a component that already runs.
pub fn adopt(component: &Component, layout: &Layout) -> Option<Process> {
    running(&pid_file(layout, &component.name)).map(Process::Adopted)
}

/// Where a component's process id is kept.
pub fn pid_file(layout: &Layout, name: &str) -> PathBuf {
    layout.pids().join(name)
}

/// Writes a process id together with its start time, which tells it from a later process of the same number.
pub fn remember(file: &Path, pid: u32) -> Result<()> {
    let start = start_time(pid).unwrap_or_default();
    fs::write(file, format!("{pid} {start}\n")).with_context(|| format!("cannot write {}", file.display()))
}

/// A handle on the process that `file` remembers, if it still runs.
pub fn running(file: &Path) -> Option<OwnedFd> {
    let text = fs::read_to_string(file).ok()?;
    let (pid, start) = text.trim().split_once(' ')?;
    let pid: u32 = pid.parse().ok()?;
    let handle = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
    (start_time(pid)? == start).then_some(handle)
}

/// When a process started: field 22 of /proc/PID/stat, counted from behind the command's closing parenthesis. `None`
/// also for one that has ended and waits for its parent to notice.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

/// Logs beyond this size are moved aside when their process starts again.
const MAX_LOG_BYTES: u64 = 16 << 20;

/// Opens a log for appending.
pub fn open_log(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(format!("{name}.log"));
    if fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_LOG_BYTES) {
        fs::rename(&path, dir.join(format!("{name}.log.1")))
            .with_context(|| format!("cannot move {} aside", path.display()))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("me");
        remember(&file, std::process::id()).unwrap();
        assert!(running(&file).is_some());
        fs::write(&file, format!("{} 1\n", std::process::id())).unwrap();
        assert!(running(&file).is_none(), "same number, other start time");
    }

    #[test]
    fn every_component_has_its_own_place() {
        let spec = ClusterSpec::default();
        let layout = Layout::new("seaway", Path::new("/state"), Path::new("/cg"));
        let all = components(&spec, &layout);
        assert_eq!(
            all.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
            ["server", "node1", "node2", "node3"]
        );
        assert!(all[2].args.contains(&"/cg/seaway/seaway/node2/agent".to_owned()));
        assert!(all[2].args.contains(&"172.30.0.12".to_owned()));
    }

    #[test]
    fn nodes_are_told_what_the_cluster_was_told() {
        let layout = Layout::new("seaway", Path::new("/state"), Path::new("/cg"));
        let said = |spec: &ClusterSpec| components(spec, &layout)[1].args.join(" ");
        let never = ClusterSpec { never_hand_over: true, ..ClusterSpec::default() };
        assert!(said(&never).contains("--pod-hand-over never"));
        assert!(!said(&ClusterSpec::default()).contains("--pod-hand-over"));
        let native = ClusterSpec { xdp: "native".into(), ..ClusterSpec::default() };
        assert!(said(&native).contains("--xdp native"));
        assert!(!said(&ClusterSpec::default()).contains("--xdp"));
    }
}
